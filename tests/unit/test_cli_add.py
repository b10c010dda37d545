"""`divandb add`: which node comes next, whom it is told, and what is refused."""

import json
import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from divandb import configfile, datadir
from divandb.cli import add as command
from divandb.cli import divandb
from divandb.cli.add import chosen, grow
from divandb.cluster import trust
from divandb.config import Member
from divandb.datadir import ClusterRecord, DataDirError, NodeRecord, PlannedNode
from divandb.layout import planned
from tests.stores import StillClock

SECRET = b"s" * 32


def run(data: Path, *arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(
        divandb, ["add", *arguments, "--data", str(data)], env={"DIVANDB_ADMIN": None}
    )
    assert result.exit_code == status, result.output
    return result.output


def record(data: Path, names: list[str], host: str = "127.0.0.1") -> None:
    roles = {"board": "board"}
    nodes = [
        NodeRecord(
            name, roles.get(name, "master"), None, f"http://{host}:{port}", os.getpid(), 0, None
        )
        for port, name in enumerate(names, 40001)
    ]
    datadir.write_cluster(data, ClusterRecord(f"http://{host}:5984", os.getpid(), nodes))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[signal.Signals]:
    """The signals that were sent."""
    sent: list[signal.Signals] = []

    def kill(pid: int, number: signal.Signals) -> None:
        assert pid == os.getpid()
        if number:
            sent.append(number)

    monkeypatch.setattr(command.os, "kill", kill)
    return sent


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of `divandb up` that runs with two masters."""
    datadir.write_members(tmp_path, planned(2, 0))
    datadir.write_private(tmp_path / "secret", SECRET.hex())
    datadir.write_private(tmp_path / "admin", "admin:x")
    record(tmp_path, ["board", "m1", "m2"])
    return tmp_path


def test_the_next_nodes_are_chosen() -> None:
    nodes = planned(2, 1)
    assert chosen(nodes, "m2", 0) == [PlannedNode("m2-r2", "replica", "m2")]
    assert [one.name for one in chosen(nodes, None, 2)] == ["m3", "m3-r1", "m3-r2"]
    with pytest.raises(ValueError, match="at most 256 nodes"):
        chosen(planned(4, 63), "m1", 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["replica"], "needs --to MASTER"),
        (["master", "--to", "m1"], "--to is for `divandb add replica`"),
        (["replica", "--to", "m1", "--replicas", "1"], "--replicas is for"),
        (["replica", "--to", "m1", "--print-config"], "go with --print-config"),
        (["replica", "--to", "m1", "--host", "h"], "go with --print-config"),
        (["replica", "--to", "m1", "--port", "1"], "go with --print-config"),
        (["master", "--replicas", "1", "--print-config", "--host", "h"], "one by one"),
        (["board"], "'board' is not one of"),
    ],
)
def test_bad_usage_is_said(tmp_path: Path, arguments: list[str], words: str) -> None:
    assert words in run(tmp_path, *arguments, status=2)


# On this machine


def test_board_and_supervisor_are_told_and_the_answer_is_waited_for(
    data: Path, told: list[signal.Signals], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(one: NodeRecord) -> bool:
        return one.name in ("m3", "m3-r1")

    def sleep(seconds: float) -> None:
        record(data, ["board", "m1", "m2", "m3", "m3-r1"])

    monkeypatch.setattr(command, "_answers", answers)
    monkeypatch.setattr(command.time, "sleep", sleep)
    text = run(data, "master", "--replicas", "1")
    assert text == "m3  http://127.0.0.1:40004\nm3-r1  http://127.0.0.1:40005\n"
    assert told == [signal.SIGHUP, signal.SIGUSR1]
    assert [one.name for one in datadir.read_members(data)] == ["m1", "m2", "m3", "m3-r1"]


def test_the_wait_is_bounded(
    data: Path, told: list[signal.Signals], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = StillClock()

    def sleep(seconds: float) -> None:
        clock.ms += 1000

    monkeypatch.setattr(command.time, "sleep", sleep)
    with pytest.raises(DataDirError, match=r"no answer from m1-r1 in 5 s"):
        grow(data, "m1", 0, 5.0, clock)


def test_a_cluster_that_ends_meanwhile_is_not_waited_for(
    data: Path, told: list[signal.Signals], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command.time, "sleep", lambda seconds: datadir.remove_cluster(data))
    with pytest.raises(DataDirError, match="has ended"):
        grow(data, "m1", 0, 5.0, StillClock())


def test_a_single_node_says_how_to_get_a_board(data: Path, told: list[signal.Signals]) -> None:
    record(data, ["m1"])
    text = run(data, "replica", "--to", "m1", status=1)
    assert "single node without a board" in text
    assert "divandb up --masters 1 --replicas 1" in text
    assert told == []


def test_nothing_that_runs_and_no_such_master_are_clear_errors(
    data: Path, told: list[signal.Signals]
) -> None:
    assert "there is no master m7" in run(data, "replica", "--to", "m7", status=1)
    assert datadir.read_members(data) == planned(2, 0)
    datadir.remove_cluster(data)
    assert "nothing runs in" in run(data, "replica", "--to", "m1", status=1)
    assert "No such file" in run(data / "nowhere", "replica", "--to", "m1", status=1)


# On another host


def file_in(text: str, folder: Path) -> configfile.NodeFile:
    """The file that was printed."""
    path = folder / "printed.toml"
    # The hint for people goes to the other stream.
    path.write_text(text[text.index("name = ") :])
    return configfile.read_node(path, {})


def test_a_node_for_another_host_is_made_from_what_runs_here(
    data: Path, told: list[signal.Signals], tmp_path: Path
) -> None:
    record(data, ["board", "m1", "m2"], host="10.0.0.1")
    output = run(data, "replica", "--to", "m2", "--print-config", "--host", "h9")
    assert "divandb node --config m2-r1.toml" in output
    file = file_in(output, tmp_path)
    config = file.config
    assert (config.name, config.role, config.slot) == ("m2-r1", "replica", "m2")
    assert (config.url, file.node_port, file.port) == ("http://h9:6985", 6985, None)
    assert config.admin == "admin:x"
    assert config.seeds == (
        Member("m1", "master", "m1", "http://10.0.0.1:40002"),
        Member("m2", "master", "m2", "http://10.0.0.1:40003"),
    )
    assert config.board is not None
    assert config.board.url == "http://10.0.0.1:40001"
    assert config.keys == trust.keys_of(SECRET, "m2-r1", "replica", "m2", is_master=False)
    assert told == [signal.SIGHUP]
    added = PlannedNode("m2-r1", "replica", "m2", "http://h9:6985")
    assert datadir.read_members(data) == [*planned(2, 0), added]
    assert datadir.read_ports(data) == {"board": 40001, "m1": 40002, "m2": 40003}
    again = run(data, "master", "--print-config", "--host", "h9", "--port", "5984")
    file = file_in(again, tmp_path)
    assert (file.config.url, file.port) == ("http://h9:6986", 5984)
    assert Member("m2-r1", "replica", "m2", "http://h9:6985") in file.config.seeds


def test_what_listens_on_the_loopback_has_no_nodes_elsewhere(
    data: Path, told: list[signal.Signals]
) -> None:
    text = run(data, "replica", "--to", "m1", "--print-config", "--host", "h9", status=1)
    assert "start it with --host" in " ".join(text.split())
    assert datadir.read_members(data) == planned(2, 0)
    run(data, "replica", "--to", "m1", "--print-config", "--host", "localhost")


def test_a_cluster_of_files_gets_another_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["up", "--print-config", "--hosts", "h1,h2", "--masters", "2", "--replicas", "0"]
    result = CliRunner().invoke(divandb, [*arguments, "--out", str(out)])
    assert result.exit_code == 0
    before = configfile.read_board(out / "board.toml", {})
    with open(out / "board.toml", "a") as board:
        board.write("# a note\n")
    text = run(out, "master", "--print-config", "--host", "h3")
    assert "send the board a SIGHUP" in text
    file = file_in(text, tmp_path)
    assert (file.config.name, file.config.url) == ("m3", "http://h3:6987")
    assert file.config.seeds == before.members
    after = configfile.read_board(out / "board.toml", {})
    assert after.members == (*before.members, file.config.member)
    assert file.config.board is not None
    assert after.secrets["m3"] == file.config.board.secret
    assert "# a note" in (out / "board.toml").read_text()


def test_a_cluster_of_files_on_kafka_gets_another_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["up", "--print-config", "--hosts", "h1,h2", "--masters", "2", "--replicas", "0"]
    arguments += ["--board", "kafka://k1:9092,k2:9092", "--out", str(out)]
    environment = {"DIVANDB_BOARD_ADMIN_SECRET": "s", "DIVANDB_BOARD_SECURITY": "sasl_ssl"}
    result = CliRunner().invoke(divandb, arguments, env=environment)
    assert result.exit_code == 0, result.output
    assert "divandb board init --config board.toml" in result.output
    before = configfile.read_boards(out / "board.toml", {})
    assert isinstance(before, configfile.KafkaFile)
    assert (before.admin.secret, before.admin.kafka.security) == ("s", "sasl_ssl")
    text = run(out, "master", "--print-config", "--host", "h3")
    assert "divandb board init --config" in text
    file = file_in(text, tmp_path)
    after = configfile.read_boards(out / "board.toml", {})
    assert isinstance(after, configfile.KafkaFile)
    assert after.members == (*before.members, file.config.member)
    assert file.config.board == after.access(file.config.member)
    assert file.config.board.kafka.security == "sasl_ssl"


def test_a_secret_of_another_cluster_is_noticed(tmp_path: Path) -> None:
    arguments = ["up", "--print-config", "--hosts", "h1", "--out", str(tmp_path)]
    CliRunner().invoke(divandb, arguments)
    before = (tmp_path / "board.toml").read_text()
    datadir.write_private(tmp_path / "secret", "00" * 32)
    text = run(tmp_path, "master", "--print-config", "--host", "h3", status=1)
    assert "are of two clusters" in text
    assert (tmp_path / "board.toml").read_text() == before


def test_members_json_says_where_a_node_is(data: Path) -> None:
    datadir.write_members(data, [PlannedNode("m1", "master", "m1")])
    assert json.loads((data / "members.json").read_text()) == [
        {"name": "m1", "role": "master", "slot": "m1"}
    ]
