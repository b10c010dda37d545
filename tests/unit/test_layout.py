"""A cluster on one machine: who belongs to it, and with what each node is started."""

import dataclasses
from pathlib import Path

import pytest

from divandb import datadir
from divandb.cluster import topics
from divandb.config import BoardAccess, KafkaAccess, Limits, Member
from divandb.datadir import PlannedNode
from divandb.layout import (
    BOARD,
    Layout,
    is_new,
    needs_board,
    planned,
    specs,
    with_master,
    with_replica,
)
from divandb.store.file import FILE_NAME

REMOTE = PlannedNode("m1-r9", "replica", "m1", "http://h9:6985")


def layout(data: Path, **changes: bool) -> Layout:
    return Layout(data, "admin:x", Limits(), b"s" * 32, **changes)


def test_nodes_are_named_after_their_slot() -> None:
    names = [node.name for node in planned(2, 2)]
    assert names == ["m1", "m2", "m1-r1", "m1-r2", "m2-r1", "m2-r2"]


def test_a_new_node_gets_the_next_number() -> None:
    nodes = planned(2, 1)
    assert with_master(nodes) == PlannedNode("m3", "master", "m3")
    assert with_replica(nodes, "m2") == PlannedNode("m2-r2", "replica", "m2")
    assert with_replica([*nodes, REMOTE], "m1").name == "m1-r10"
    with pytest.raises(ValueError, match="there is no master m3"):
        with_replica(nodes, "m3")


def test_the_name_of_a_removed_node_is_not_given_again() -> None:
    """Nor is a slot gone with the node that had its name."""
    nodes = [node for node in planned(2, 2) if node.name not in ("m1", "m2-r2")]
    assert with_replica(nodes, "m2", ["m2-r2", "m1"]).name == "m2-r3"
    assert with_replica(nodes, "m1", ["m2-r2", "m1"]).name == "m1-r3"
    assert with_master(nodes).name == "m3"
    members = [Member(node.name, node.role, node.slot, "") for node in nodes]
    topics_of = topics.layout("c", members)
    assert set(topics_of["divandb.c.masters"][1]) == {"m1", "m2"}
    assert set(topics_of["divandb.c.replicas.m2"][1]) == {"m2", "m2-r0", "m2-r1"}


def test_members_are_read_as_they_were_written(tmp_path: Path) -> None:
    nodes = [*planned(2, 1), REMOTE]
    datadir.write_members(tmp_path, nodes)
    assert datadir.read_members(tmp_path) == nodes


def test_ports_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert datadir.read_ports(tmp_path) == {}
    datadir.write_ports(tmp_path, {"board": 1, "m1": 2})
    assert datadir.read_ports(tmp_path) == {"board": 1, "m1": 2}


def test_a_single_node_has_no_board() -> None:
    assert not needs_board(planned(1, 0))
    assert [one.name for one in specs(planned(1, 0), {})] == ["m1"]


def test_on_kafka_no_board_is_started_and_each_node_has_a_name_there(tmp_path: Path) -> None:
    nodes = planned(2, 1)
    datadir.write_members(tmp_path, nodes)
    started = specs(nodes, {}, has_board=False)
    assert [one.name for one in started] == ["m1", "m2", "m1-r1", "m2-r1"]
    kafka = BoardAccess("kafka://k:1", "", "", KafkaAccess(mechanism="PLAIN"))
    whole = dataclasses.replace(layout(tmp_path), kafka=kafka)
    urls = {one.name: "http://127.0.0.1:1" for one in started}
    accesses = [whole.node_config(one, urls).board for one in started]
    assert [one.principal for one in accesses if one] == ["m1", "m2", "m1-r1", "m2-r1"]
    assert len({one.secret for one in accesses if one}) == 4
    assert all(one and one.kafka == kafka.kafka for one in accesses)


def test_replicas_serve_clients_or_masters_if_there_are_none() -> None:
    serving = [one.name for one in specs(planned(2, 1), {}) if one.serves_clients]
    assert serving == ["m1-r1", "m2-r1"]
    serving = [one.name for one in specs(planned(2, 0), {}) if one.serves_clients]
    assert serving == ["m1", "m2"]


def test_a_node_on_another_host_is_not_started_here() -> None:
    found = specs([*planned(1, 0), REMOTE], {"m1": 7})
    assert [(one.name, one.port) for one in found] == [(BOARD, 0), ("m1", 7)]
    assert found[1].serves_clients


def test_a_node_knows_all_others(tmp_path: Path) -> None:
    nodes = [*planned(1, 1), REMOTE]
    datadir.write_members(tmp_path, nodes)
    urls = {"board": "http://b", "m1": "http://m1", "m1-r1": "http://r1"}
    spec = next(one for one in specs(nodes, {}) if one.name == "m1-r1")
    config = layout(tmp_path).node_config(spec, urls)
    assert config.seeds == (
        Member("m1", "master", "m1", "http://m1"),
        Member("m1-r9", "replica", "m1", "http://h9:6985"),
    )
    assert config.board is not None
    assert config.board.url == "http://b"


def founding(data: Path, name: str, **changes: bool) -> bool:
    datadir.write_members(data, planned(2, 0))
    spec = next(one for one in specs(planned(2, 0), {}) if one.name == name)
    return layout(data, **changes).node_config(spec, {"m1": "http://1", "m2": "http://2"}).founding


def test_when_all_are_new_nobody_looks_for_a_file(tmp_path: Path) -> None:
    assert is_new(tmp_path, planned(2, 0))
    assert founding(tmp_path, "m1", founding=True)


def test_when_all_start_only_a_node_without_its_file_looks_for_one(tmp_path: Path) -> None:
    (tmp_path / "m1").mkdir()
    (tmp_path / "m1" / FILE_NAME).touch()
    assert not is_new(tmp_path, planned(2, 0))
    assert founding(tmp_path, "m1")
    assert not founding(tmp_path, "m2")


def test_a_node_that_starts_later_looks_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "m1").mkdir()
    (tmp_path / "m1" / FILE_NAME).touch()
    assert not founding(tmp_path, "m1", is_starting=False)
    assert not founding(tmp_path, "m2", founding=True, is_starting=False)


def test_a_board_is_told_of_nodes_on_other_hosts(tmp_path: Path) -> None:
    datadir.write_members(tmp_path, [*planned(1, 0), REMOTE])
    config = layout(tmp_path).board_config()
    assert config.arrange is not None
    assert config.data == tmp_path / "board"
