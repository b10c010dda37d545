"""`divandb up` and its sister commands, as an operator uses them."""

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from divandb.datadir import read_admin
from tests.running import COMMAND, Running, divandb, running

ROOT = Path(__file__).parents[2]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Running]:
    """A node that a test may stop and kill."""
    with running(tmp_path) as started:
        yield started


def test_a_killed_node_comes_back_with_all_that_it_acknowledged(own: Running) -> None:
    assert own.request("PUT", "/kept")[0] == 201
    for number in range(3):
        status, answer = own.request("PUT", f"/kept/{number}", {"n": number})
        assert (status, answer["id"]) == (201, str(number))
        before = own.node_pid
        assert own.kill_node() != before
        status, found = own.request("GET", "/kept/_all_docs?include_docs=true")
        assert status == 200
        assert [row["doc"]["n"] for row in found["rows"]] == list(range(number + 1))
    assert own.cluster["nodes"][0]["restarts"] == 3
    assert own.stop() == 0


def test_a_restart_keeps_url_data_and_admin(own: Running) -> None:
    own.request("PUT", "/kept")
    own.request("PUT", "/kept/a", {"n": 1})
    url = own.url
    own.restart()
    assert own.cluster["url"] == url
    assert own.request("GET", "/kept/a")[1]["n"] == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_signal_ends_everything_cleanly(own: Running, number: int) -> None:
    node = own.node_pid
    assert own.stop(number) == 0
    assert not Path(f"/proc/{node}").exists()
    assert not (own.data / "cluster.json").exists()
    with contextlib.closing(socket.socket()) as client:
        assert client.connect_ex(("127.0.0.1", own.port)) != 0
    said = own.log.read_text()
    assert "Traceback" not in said
    assert "node killed" not in said, "the node did not come to its end"
    assert "node ended" in said


def test_requests_wait_while_the_node_is_started_again(own: Running) -> None:
    os.kill(own.node_pid, signal.SIGKILL)
    assert own.request("GET", "/_up")[0] == 200


def test_a_node_whose_users_were_dropped_is_still_up(own: Running) -> None:
    """Who asks `_up` to know whether to send clients must not take every node out for that."""
    assert own.request("DELETE", "/_users")[0] == 200
    assert own.request("GET", "/_up")[0] == 200


def test_the_node_answers_on_its_own_url_too(own: Running) -> None:
    node = own.cluster["nodes"][0]
    own.port = int(node["url"].rpartition(":")[2])
    assert node["url"] != own.cluster["url"]
    assert own.request("GET", "/_up")[0] == 200


def test_the_first_start_makes_a_password_and_later_ones_use_it(tmp_path: Path) -> None:
    said, admin = _start_and_log_in(tmp_path)
    assert stat.S_IMODE((tmp_path / "data" / "admin").stat().st_mode) == 0o600
    assert admin.startswith("admin:")
    assert admin.partition(":")[2] not in said
    assert _start_and_log_in(tmp_path)[1] == admin


def _start_and_log_in(folder: Path) -> tuple[str, str]:
    """Start without a given admin, log in with the line that is printed; that text, the admin."""
    process = subprocess.Popen(
        [*COMMAND, "up", "--port", "0", "--data", "data"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={key: value for key, value in os.environ.items() if key != "DIVANDB_ADMIN"},
    )
    try:
        assert process.stdout is not None
        with process.stdout:
            said = "".join(process.stdout.readline().decode() for _ in range(5))
        login = re.search("curl .*", said)
        assert login is not None
        answer = subprocess.run(
            login.group(), shell=True, capture_output=True, check=True, cwd=folder
        )
        user = json.loads(answer.stdout)["userCtx"]
        assert (user["name"], "_admin" in user["roles"]) == ("admin", True)
    finally:
        process.terminate()
        assert process.wait(20) == 0
    admin = read_admin(folder / "data")
    assert admin is not None
    return said, admin


def test_a_given_admin_is_written_nowhere(own: Running) -> None:
    assert own.request("GET", "/_session")[1]["userCtx"]["name"] == own.admin
    assert own.request("GET", "/_all_dbs", admin=False)[0] == 401
    assert not (own.data / "admin").exists()
    files = [path for path in own.data.rglob("*") if path.is_file()]
    assert len(files) > 3
    for file in [own.log, *files]:
        assert own.password.encode() not in file.read_bytes()


def test_the_files_are_for_their_owner_only(own: Running) -> None:
    paths = list(own.data.rglob("*"))
    modes = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in paths}
    assert modes == {(False, 0o600), (True, 0o700)}


def test_a_second_start_on_the_same_folder_is_refused(own: Running) -> None:
    done = divandb("up", "--port", "0", "--data", str(own.data))
    assert done.returncode == 1
    assert own.process is not None
    assert done.stderr == (
        f"divandb: the data folder {own.data} is in use by divandb, process {own.process.pid}\n"
    )
    assert own.request("GET", "/_up")[0] == 200


def test_a_port_in_use_is_refused_even_by_another_divandb(own: Running, tmp_path: Path) -> None:
    done = divandb("up", "--port", str(own.port), "--data", str(tmp_path / "other"))
    assert done.returncode == 1
    assert done.stderr == (
        f"divandb: cannot listen on 127.0.0.1 port {own.port}: Address already in use\n"
    )


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = divandb("up", "--port", "0", "--data", str(tmp_path / "file" / "data"))
    assert done.returncode == 1
    assert done.stderr.startswith("divandb: cannot make the data folder")
    assert done.stderr.count("\n") == 1


def test_a_limit_that_is_no_number_is_refused(tmp_path: Path) -> None:
    done = divandb("up", "--port", "0", "--data", str(tmp_path), DIVANDB_BODY_BYTES_MAX="plenty")
    assert done.returncode == 1
    assert "DIVANDB_BODY_BYTES_MAX" in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_restart_a_killed_node_ends_the_supervisor(tmp_path: Path) -> None:
    with running(tmp_path, "--no-restart") as own:
        os.kill(own.node_pid, signal.SIGKILL)
        assert own.process is not None
        assert own.process.wait(20) == 128 + signal.SIGKILL


def test_status_shows_what_runs(own: Running) -> None:
    done = divandb("status", "--data", str(own.data), "--json")
    assert done.returncode == 0
    (node,) = json.loads(done.stdout)["nodes"]
    recorded = own.cluster["nodes"][0]
    assert {**recorded, "up": True, "state": "up"}.items() <= node.items()
    assert node["vector"] and node["lag_ms"] == 0
    assert (node["name"], node["role"], node["master"]) == ("m1", "master", None)
    table = divandb("status", "--data", str(own.data)).stdout
    lines = [line.split()[:2] for line in table.splitlines()]
    assert ["m1", "master"] in lines


def test_status_of_a_node_that_does_not_answer_is_1(own: Running) -> None:
    os.kill(own.node_pid, signal.SIGSTOP)
    try:
        done = divandb("status", "--data", str(own.data), "--json")
    finally:
        os.kill(own.node_pid, signal.SIGCONT)
    assert done.returncode == 1
    assert json.loads(done.stdout)["nodes"][0]["up"] is False
    assert done.stderr == "divandb: no node answers\n"


def test_status_of_nothing_is_1(tmp_path: Path) -> None:
    done = divandb("status", "--data", str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"divandb: nothing runs in {tmp_path}\n"


def test_what_is_exported_can_be_imported(own: Running, tmp_path: Path) -> None:
    """3,000 documents in several pages and batches, with odd names, a design document, an
    attachment, a deletion, and numbers and spaces that must not change."""
    place = ["--data", str(own.data)]
    docs: list[dict[str, object]] = [
        {"_id": f"{n:05}", "n": n, "text": "é€𝄞\n" * 20} for n in range(3000)
    ]
    docs += [{"_id": "a/b c?&ü"}, {"_id": "_design/x", "language": "javascript"}, {"_id": "+"}]
    docs += [{"_id": "numbers", "real": 1.5, "small": 1e-7, "large": 12345678901234567}]
    docs += [{"_id": "att", "_attachments": {"i": {"data": "AP8=", "content_type": "image/x"}}}]
    source = json.dumps(docs).encode()
    secret = {"DIVANDB_ADMIN": own.credentials}
    done = divandb("import", "first/db", "-", *place, text=source, **secret)
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"first/db: {len(docs)} documents written, 0 conflicts, 0 failed\n"
    rev = own.request("GET", "/first%2Fdb/00007")[1]["_rev"]
    assert own.request("DELETE", f"/first%2Fdb/00007?rev={rev}")[0] == 200

    file = tmp_path / "out.jsonl"
    done = divandb("export", "first/db", str(file), *place, **secret)
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"{len(docs) - 1} documents of first/db exported\n"
    exported = [json.loads(line) for line in file.read_bytes().splitlines()]
    assert {doc["_id"] for doc in exported} == {doc["_id"] for doc in docs} - {"00007"}

    done = divandb("import", "second", str(file), *place, **secret)
    assert done.returncode == 0, done.stderr
    again = divandb("export", "second", "-", *place, **secret)
    assert again.returncode == 0, again.stderr
    assert again.stdout.encode() == file.read_bytes()
    assert own.exchange("GET", "/second/att/i")[2] == b"\x00\xff"


def test_rows_that_fail_are_named_and_the_others_are_written(own: Running) -> None:
    own.request("PUT", "/db")
    own.request("PUT", "/db/taken", {})
    rows = [b'{"_id":"taken"}', b'{"_id":"_bad"}', b'{"_foo":1}', b"{", b"7", b'{"_id":"good"}']
    arguments = ["import", "db", "-", "--url", own.url, "--user", own.credentials]
    done = divandb(*arguments, text=b"\n".join(rows))
    assert done.returncode == 1
    said = done.stderr.splitlines()
    assert {line.partition(":")[0] for line in said[:-1]} == {f"row {n}" for n in range(1, 6)}
    assert "row 1: taken: Document update conflict." in said
    assert said[-1] == "db: 1 documents written, 1 conflicts, 4 failed"
    assert own.request("GET", "/db/good")[0] == 200


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "nothing", "-"], "404, not_found"),
        (["import", "Illegal", "-"], "400, illegal_database_name"),
        (["export", "nothing", "-", "--user", "admin:wrong"], "401, unauthorized"),
    ],
)
def test_a_refusal_of_the_node_is_one_line(own: Running, arguments: list[str], words: str) -> None:
    done = divandb(*arguments, "--data", str(own.data), DIVANDB_ADMIN=own.credentials)
    assert done.returncode == 1
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_the_session_of_the_readme_works_as_pasted(own: Running, tmp_path: Path) -> None:
    """Only the port differs."""
    block = re.findall("```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    script = block.replace("127.0.0.1:5984", f"127.0.0.1:{own.port}")
    script = script.replace("/tmp/divan-cookies", str(tmp_path / "cookies"))
    folder = tmp_path / "divan-data"
    folder.mkdir()
    (folder / "admin").write_text(own.credentials.replace(" ", "%20"))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    answers = done.stdout.splitlines()
    assert "Brown the onions slowly." in answers
    assert '{"error":"conflict","reason":"Document update conflict."}' in answers
    others = [json.loads(line) for line in answers if line.startswith('{"ok"')]
    assert len(others) == 5
    assert '"id":"goulash"' in done.stdout
    assert own.request("GET", "/recipes")[0] == 404


def test_the_module_is_the_command() -> None:
    script = Path(sys.executable).with_name("divandb")
    shown = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert divandb("--version").stdout == shown.stdout
    assert shown.stdout.startswith("divandb, version ")
