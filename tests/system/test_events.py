"""The boards as a public interface: what a cluster's masters accept, followed by others."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import bare
from bench.servers import BenchError
from divandb.localkafka import JARS_HERE
from tests.running import COMMAND, EMBEDDED, KAFKA, Cluster, clustered, divandb

PAGE = (Path(__file__).parents[2] / "docs" / "events.md").read_text()
LARGE_CHARS = 2_500_000
LINE_S_MAX = 30.0
CONSOLE = """#!/bin/sh
exec java -cp '{jars}/*' -Dorg.slf4j.simpleLogger.defaultLogLevel=warn \\
    org.apache.kafka.tools.consumer.ConsoleConsumer "$@"
"""


def pasted(heading: str, language: str) -> str:
    """The example below a heading of `docs/events.md`."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", section, re.M | re.S)
    return str(found)


def admin_of(cluster: Cluster) -> dict[str, str]:
    """The variables by which a command is the admin of the boards."""
    return {key: value for key, value in cluster.environment.items() if "ADMIN_SECRET" in key}


def write(cluster: Cluster) -> None:
    """One of everything, some through each master."""

    def put(master: str, path: str, body: Any = None) -> None:
        status, answer = cluster.request("PUT", path, body, node=master)
        assert status in (200, 201), answer

    put("m1", "/shop")
    put("m1", "/shop/order-1", {"item": "lamp"})
    rev = cluster.request("GET", "/shop/order-1", node="m1")[1]["_rev"]
    put("m1", f"/shop/order-1/note?rev={rev}", b"z" * 300_000)
    put("m1", "/shop/_security", {"admins": {"names": ["ann"]}})
    put("m1", "/other")
    cluster.await_true(lambda: cluster.request("GET", "/shop", node="m2")[0] == 200)
    put("m2", "/shop/order-2", {"item": "chair"})
    put("m2", "/shop/large", {"text": "x" * LARGE_CHARS})


def tailed(*arguments: str, **environment: str) -> list[dict[str, Any]]:
    """What `divandb events tail --json` prints up to the end as it is now."""
    done = divandb("events", "tail", "--json", "--no-follow", *arguments, **environment)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def reader_of(cluster: Cluster, name: str) -> Path:
    """A new reader's file."""
    made = divandb("events", "reader", name, "--data", str(cluster.data), **admin_of(cluster))
    assert made.returncode == 0, made.stderr
    path = cluster.folder / f"{name}.toml"
    path.write_text(made.stdout)
    return path


@contextlib.contextmanager
def ended(process: "subprocess.Popen[bytes]") -> Iterator["subprocess.Popen[bytes]"]:
    """A process that does not outlive the test."""
    with process:
        try:
            yield process
        finally:
            process.kill()


def await_published(cluster: Cluster) -> None:
    """Wait until all that was written is on the Masters' Board."""

    def is_there() -> bool:
        nodes = [cluster.request("GET", "/_divan/status", node=name)[1] for name in cluster.masters]
        return all(node["outbox_rows"] == 0 for node in nodes)

    cluster.await_true(is_there)


@contextlib.contextmanager
def two_masters(folder: Path, board: str) -> Iterator[Cluster]:
    """Two masters, and what they have accepted."""
    with clustered(folder, masters=2, replicas=0, board=board) as cluster:
        write(cluster)
        await_published(cluster)
        yield cluster


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """On the embedded board."""
    with two_masters(tmp_path_factory.mktemp("embedded"), EMBEDDED) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def on_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """On Apache Kafka."""
    with two_masters(tmp_path_factory.mktemp("kafka"), KAFKA) as cluster:
        yield cluster


@pytest.fixture(params=["embedded", pytest.param("on_kafka", marks=pytest.mark.kafka)])
def followed(request: pytest.FixtureRequest) -> Cluster:
    """On either board."""
    cluster: Cluster = request.getfixturevalue(request.param)
    return cluster


def test_all_changes_of_all_masters_are_printed(followed: Cluster) -> None:
    found = tailed("--data", str(followed.data), **admin_of(followed))
    shop = [one for one in found if one["database"] == "shop"]
    bodies = {one["id"]: one["leaves"][0]["body"] for one in shop if one["kind"] == "document"}
    assert bodies["order-2"]["item"] == "chair"
    assert bodies["large"]["text"] == "x" * LARGE_CHARS
    assert set(bodies["order-1"]["_attachments"]) == {"note"}, "the latest comes last"
    assert {one["kind"] for one in shop} == {"created", "document", "register"}
    assert {(one["slot"], one["partition"]) for one in found} == {("m1", 0), ("m2", 1)}
    marks: dict[str, int] = {}
    for one in found:
        assert one["after"] == marks.get(one["origin"], one["after"])
        marks[one["origin"]] = one["mark"]
    chosen = ("--slot", "m2", "--from", "1", "--database", "shop")
    part = tailed("--data", str(followed.data), *chosen, **admin_of(followed))
    assert part == [one for one in shop if one["slot"] == "m2" and one["offset"] >= 1]


def test_a_reader_follows_until_ctrl_c_may_do_nothing_else_and_nothing_once_removed(
    followed: Cluster,
) -> None:
    file = reader_of(followed, "follower")
    everything = tailed("--config", str(file))
    assert [one for one in everything if one.get("id") == "order-1"]
    refused = divandb("events", "tail", "--config", str(file), "--replicas", "m1")
    assert refused.returncode == 1
    assert "follower may not read" in refused.stderr
    assert ("TOPIC_AUTHORIZATION_FAILED" in refused.stderr) == (followed.broker is not None)
    command = [*COMMAND, "events", "tail", "--config", str(file), "--from", "START"]
    with ended(
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        lines = {process.stdout.readline() for _ in everything}
        assert len(lines) == len(everything)
        assert followed.request("PUT", "/shop/live", {}, node="m2")[0] == 201
        assert b"  live  " in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(LINE_S_MAX) == 0
        assert (process.stdout.read(), process.stderr.read()) == (b"", b"")
    arguments = ("--remove", "--data", str(followed.data))
    if followed.broker is not None:
        nobody = divandb("events", "reader", "follower", *arguments)
        assert nobody.returncode == 1 and "it takes an admin" in nobody.stderr
    removed = divandb("events", "reader", "follower", *arguments, **admin_of(followed))
    assert removed.returncode == 0, removed.stderr
    refused = divandb("events", "tail", "--config", str(file))
    # Brokers forget who it was; the embedded board knows it still, without rights.
    words = "may not read" if followed.broker is None else "does not take name or secret"
    assert refused.returncode == 1 and words in refused.stderr


def test_who_takes_only_the_head_gets_no_error(embedded: Cluster) -> None:
    command = [*COMMAND, "events", "tail", "--data", str(embedded.data), "--from", "START"]
    with ended(
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                    )
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        embedded.request("PUT", f"/shop/{os.urandom(8).hex()}", {}, node="m1")
        assert process.wait(LINE_S_MAX) == 0
        assert process.stderr.read() == b""


# What the page offers to paste


@pytest.fixture(scope="module")
def warehouse(on_kafka: Cluster) -> Path:
    """The file of a reader."""
    return reader_of(on_kafka, "warehouse")


def lines_until(process: "subprocess.Popen[bytes]", last: bytes, count: int = 1) -> list[bytes]:
    """What it prints up to the line in which this stands for the last time of so many."""
    assert process.stdout is not None
    found: list[bytes] = []
    while sum(last in line for line in found) < count:
        line = process.stdout.readline()
        assert line, "it has ended"
        found.append(line)
    return found


@pytest.mark.kafka
def test_the_example_in_python_follows_all_changes(on_kafka: Cluster, warehouse: Path) -> None:
    (on_kafka.folder / "changes.py").write_text(pasted("From Python", "python"))
    assert "divandb" not in re.findall(
        r"^(?:from|import) (\w+)", pasted("From Python", "python"), re.M
    )
    command = [sys.executable, "changes.py", warehouse.name]
    with ended(
        subprocess.Popen(
            command, cwd=on_kafka.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    ) as process:
        seen: list[dict[str, Any]] = []
        assert process.stdout is not None and process.stderr is not None
        while {one.get("id") for one in seen} < {None, "order-1", "order-2", "large"} or not [
            one for one in seen if one.get("register") == "security"
        ]:
            seen.append(json.loads(process.stdout.readline()))
        assert on_kafka.request("PUT", "/shop/later", {"n": 1}, node="m2")[0] == 201
        while seen[-1].get("id") != "later":
            seen.append(json.loads(process.stdout.readline()))
        process.kill()
        assert process.stderr.read() == b"", "nothing was missing"
    winners = {one["id"]: one["winner"] for one in seen if one["kind"] == "document"}
    assert winners["order-2"]["item"] == "chair" and winners["later"]["n"] == 1
    assert winners["large"]["text"] == "x" * LARGE_CHARS
    numbered = [(one["slot"], one["oseq"]) for one in seen]
    assert len(set(numbered)) == len(numbered), "nothing comes twice"


@pytest.mark.kafka
def test_the_example_with_the_console_consumer_shows_a_partition(
    on_kafka: Cluster, warehouse: Path
) -> None:
    reader = tomllib.loads(warehouse.read_text())
    script = on_kafka.folder / "bin" / "kafka-console-consumer.sh"
    script.parent.mkdir()
    script.write_text(CONSOLE.format(jars=JARS_HERE))
    script.chmod(0o700)
    environment = {
        **os.environ,
        "PATH": f"{script.parent}:{os.environ['PATH']}",
        "BROKERS": reader["board"]["url"].removeprefix("kafka://"),
        "CLUSTER": reader["cluster"],
        "SECRET": reader["board"]["secret"],
    }
    shell = subprocess.Popen(
        ["sh", "-c", pasted("With Kafka's own tools", "sh")],
        cwd=on_kafka.folder, env=environment, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    with shell:
        try:
            lines = lines_until(shell, b'"item":"lamp"')
        finally:
            os.killpg(shell.pid, signal.SIGKILL)
    assert lines[0].startswith(
        b"Partition:0\tOffset:0\t\\x9B\x01\xa2m1".replace(b"\x01\xa2", b"\\x01\\xA2")
    )
    assert [line for line in lines if b"created\\xA4shop" in line]


# What the benchmark holds boards against


@pytest.mark.kafka
def test_a_bare_loop_sends_the_bytes_of_the_board_through_its_broker(
    on_kafka: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in admin_of(on_kafka).items():
        monkeypatch.setenv(name, value)
    assert on_kafka.broker is not None
    url = on_kafka.broker.ensemble.url
    topic = f"divandb.{on_kafka.request('GET', '/')[1]['uuid']}.masters"
    outcome = bare.measured(bare.Plan(url, topic, rate=50.0, seconds=1.0))
    assert 40 <= outcome.messages <= 50 and 0 < outcome.p50_ms <= outcome.p99_ms
    assert outcome.message_bytes > 100, "an event has more"
    with pytest.raises(BenchError, match="the bare loop failed"):
        bare.Running(bare.Plan(url, f"{topic}.missing", rate=1.0, seconds=1.0))
