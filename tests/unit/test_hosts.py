"""A cluster over several hosts: what runs where, and the files that are written for it."""

import dataclasses
import stat
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from divandb import configfile, hosts
from divandb.cli import divandb
from divandb.cluster import topics
from divandb.config import BoardAccess, Config, TlsFiles
from divandb.layout import planned

HOSTS = ("h1", "h2", "10.0.0.3")


def plan(on: tuple[str, ...] = HOSTS) -> hosts.Plan:
    data, secret = Path("divan-data"), b"s" * 32
    return hosts.Plan(on, on[0], 5984, data, "admin:x", secret, Config(data).limits)


@given(st.integers(1, 6), st.integers(0, 4), st.integers(2, 5))
def test_no_replica_shares_a_host_with_its_master(masters: int, replicas: int, count: int) -> None:
    nodes = planned(masters, replicas)
    placed = hosts.spread(nodes, [f"h{number}" for number in range(count)])
    assert all(placed[node.name] != placed[node.slot] for node in nodes if node.name != node.slot)


def test_three_by_three_is_spread_evenly() -> None:
    placed = hosts.spread(planned(3, 3), HOSTS)
    assert Counter(placed.values()) == dict.fromkeys(HOSTS, 4)
    assert [placed[f"m{number}"] for number in (1, 2, 3)] == list(HOSTS)


def test_on_one_host_everything_is_there() -> None:
    assert set(hosts.spread(planned(2, 2), ["h1"]).values()) == {"h1"}


def test_every_process_has_a_port_and_a_url_of_its_own() -> None:
    files = hosts.node_files(plan(), planned(3, 3))
    ports = [file.node_port for file in files.values()]
    assert ports == list(range(6985, 6997))
    assert files["m3"].config.url == "http://10.0.0.3:6987"
    assert files["m3"].host == "10.0.0.3"
    assert files["m1"].host == "0.0.0.0"
    assert [name for name, file in files.items() if file.port is None] == ["m1", "m2", "m3"]
    assert {file.port for name, file in files.items() if "-r" in name} == {5984}


def test_without_replicas_masters_serve_clients() -> None:
    assert {file.port for file in hosts.node_files(plan(), planned(3, 0)).values()} == {5984}


def test_files_are_read_as_they_were_meant() -> None:
    nodes = planned(3, 2)
    made = plan()
    files = hosts.node_files(made, nodes)
    for name, file in files.items():
        table = tomllib.loads(configfile.node_text(file))
        assert configfile.node_from(table, name, Path(), {}, str) == file
    board = hosts.board_file(made, hosts.members(made, nodes))
    table = tomllib.loads(configfile.board_text(board))
    assert configfile.board_from(table, "board.toml", Path(), {}, str) == board


def test_the_board_knows_the_credentials_that_the_nodes_have() -> None:
    nodes, made = planned(2, 1), plan()
    board = hosts.board_file(made, hosts.members(made, nodes))
    for file in hosts.node_files(made, nodes).values():
        access = file.config.board
        assert access == BoardAccess(board.url, access.principal, board.secrets[access.principal])
        assert file.config.keys.cluster == board.cluster
        seeds = {one.name for one in file.config.seeds}
        assert seeds == {one.name for one in nodes} - {file.config.name}
    rights = topics.layout(board.cluster, board.members)
    assert rights[topics.masters(board.cluster)][0] == 2


def test_only_masters_hold_the_masters_key() -> None:
    keys = {name: f.config.keys for name, f in hosts.node_files(plan(), planned(2, 1)).items()}
    assert [name for name, one in keys.items() if one.masters] == ["m1", "m2"]


@pytest.mark.parametrize("host", ["db-1.example.org", "10.0.0.1", "fe80::1", "h"])
def test_names_and_addresses_are_hosts(host: str) -> None:
    assert hosts.check_host(host) == host


@pytest.mark.parametrize("host", ["", "-h", "a b", "a/b", "h:1", "http://h"])
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(ValueError):
        hosts.check_host(host)


def test_an_ipv6_address_stands_in_brackets() -> None:
    assert hosts.url_of("fe80::1", 1) == "http://[fe80::1]:1"


# divandb up --print-config


def printed(out: Path, *options: str) -> str:
    arguments = ["up", "--print-config", "--hosts", "h1,h2", "--out", str(out), *options]
    result = CliRunner().invoke(divandb, arguments, env={"DIVANDB_ADMIN": None})
    assert result.exit_code == 0, result.output
    return result.output


def test_print_config_writes_files_for_their_owner_alone(tmp_path: Path) -> None:
    out = tmp_path / "files"
    text = printed(out, "--masters", "2", "--replicas", "1", "--board-host", "h9", "--port", "80")
    names = {"admin", "secret", "board.toml", "m1.toml", "m2.toml", "m1-r1.toml", "m2-r1.toml"}
    assert {path.name for path in out.iterdir()} == names
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o600}
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.startswith("  ")]
    assert lines[0] == ["h9", "divandb board --config board.toml"]
    assert [line[0] for line in lines[1:]] == ["h1", "h2", "h2", "h1"]
    board = configfile.read_board(out / "board.toml", {})
    assert (board.url, board.port) == ("http://h9:1080", 1080)
    node = configfile.read_node(out / "m1-r1.toml", {})
    assert (node.port, node.config.url) == (80, "http://h2:1083")
    assert node.config.data == out / "divan-data" / "m1-r1"
    assert node.config.admin == (out / "admin").read_text().strip()


def test_each_cluster_has_a_secret_of_its_own(tmp_path: Path) -> None:
    printed(tmp_path / "a")
    printed(tmp_path / "b")
    assert (tmp_path / "a" / "secret").read_text() != (tmp_path / "b" / "secret").read_text()


def test_files_that_are_there_are_left_alone(tmp_path: Path) -> None:
    printed(tmp_path)
    before = (tmp_path / "board.toml").read_text()
    arguments = ["up", "--print-config", "--hosts", "h1", "--out", str(tmp_path)]
    result = CliRunner().invoke(divandb, arguments)
    assert result.exit_code == 1
    assert "is there already" in result.output
    assert (tmp_path / "board.toml").read_text() == before


def test_limits_of_the_environment_are_written_down(tmp_path: Path) -> None:
    arguments = ["up", "--print-config", "--hosts", "h1", "--out", str(tmp_path)]
    CliRunner().invoke(divandb, arguments, env={"DIVANDB_UUIDS_MAX": "7"})
    limits = configfile.read_node(tmp_path / "m1.toml", {}).config.limits
    assert dataclasses.replace(limits, uuids_max=1000) == Config(tmp_path).limits
    assert limits.uuids_max == 7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--print-config"], "needs --hosts and --out"),
        (["--hosts", "h1"], "need --print-config"),
        (["--print-config", "--hosts", "h1,h1", "--out", "x"], "names a host twice"),
        (["--print-config", "--hosts", "h1,a b", "--out", "x"], "'a b' is no host name"),
        (["--print-config", "--hosts", "h1", "--out", "x", "--port", "64534"], "port below"),
        (["--print-config", "--hosts", "h1", "--out", "x", "--port", "0"], "port below"),
    ],
)
def test_bad_usage_of_print_config_is_said(options: list[str], words: str) -> None:
    result = CliRunner().invoke(divandb, ["up", *options])
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())


def test_with_tls_all_urls_are_https_and_all_processes_have_certificates(tmp_path: Path) -> None:
    assert "/tls must hold `tls.crt`" in printed(tmp_path, "--tls", "/tls")
    board = configfile.read_board(tmp_path / "board.toml", {})
    assert board.url == "https://h1:6984"
    assert board.config.tls == TlsFiles(Path("/tls/tls.crt"), Path("/tls/tls.key"))
    for name in ("m1", "m3-r3"):
        config = configfile.read_node(tmp_path / f"{name}.toml", {}).config
        assert config.tls == TlsFiles(*map(Path, ("/tls/tls.crt", "/tls/tls.key", "/tls/ca.crt")))
        assert config.board is not None
        urls = [config.url, config.board.url, *(one.url for one in config.seeds)]
        assert all(url.startswith("https://h") for url in urls)


def test_a_node_that_is_added_has_tls_as_the_others_have(tmp_path: Path) -> None:
    printed(tmp_path, "--tls", "/tls")
    arguments = ["add", "replica", "--to", "m1", "--print-config", "--host", "h3"]
    result = CliRunner().invoke(divandb, [*arguments, "--data", str(tmp_path)])
    assert result.exit_code == 0, result.output
    (tmp_path / "new.toml").write_text(result.stdout)
    config = configfile.read_node(tmp_path / "new.toml", {}).config
    assert config.url == "https://h3:6997"
    assert config.tls == configfile.read_node(tmp_path / "m1.toml", {}).config.tls


def test_the_folder_of_certificates_is_the_same_on_every_host(tmp_path: Path) -> None:
    arguments = ["up", "--print-config", "--hosts", "h1", "--out", str(tmp_path), "--tls", "tls"]
    result = CliRunner().invoke(divandb, arguments)
    assert result.exit_code == 2
    assert "must begin with /" in result.output
