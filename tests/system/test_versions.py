"""A new version of a design document on groups of nodes: built beside the one in use, on replicas
first, switched to when the group is ready; and a promoted replica has it.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.running import Cluster, clustered, divandb
from tests.system.wire import faults

DOCS = 24
SLOW_MS = 100
SWITCH_S_MAX = 60.0
POLL_S = 0.05

pytestmark = pytest.mark.timeout_s(240)


SLOW = f"var until = Date.now() + {SLOW_MS}; while (Date.now() < until);"


class Design:
    """A database with a view whose versions emit different values."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.path = f"/versions-{uuid4().hex}"
        self.rev: dict[str, str] = {}
        assert cluster.request("PUT", self.path)[0] == 201
        docs = [{"_id": f"d{number:02}"} for number in range(DOCS)]
        path = f"{self.path}/_bulk_docs?concern=visible"
        assert cluster.request("POST", path, {"docs": docs})[0] == 201

    def put(self, value: str, code: str = SLOW) -> None:
        views = {"v": {"map": f"function(doc) {{ {code} emit(doc._id, '{value}') }}"}}
        path = f"{self.path}/_design/d"
        status, made = self.cluster.request("PUT", path, {"views": views, **self.rev})
        assert status == 201, made
        self.rev = {"_rev": made["rev"]}

    def read(self, node: str, query: str = "") -> tuple[str, bool]:
        """(what all rows say, are they said to be of the version before)"""
        path = f"{self.path}/_design/d/_view/v{query}"
        status, headers, body = self.cluster.exchange("GET", path, node=node)
        assert status == 200, body
        rows = json.loads(body)["rows"]
        (value,) = {row["value"] for row in rows}
        assert len(rows) == DOCS
        return value, headers["divan-view-before"] == "true"

    def await_all(self, value: str, nodes: list[str]) -> None:
        """All of the nodes answer who does not wait with that version, and none is on its way."""

        def is_so() -> bool:
            return all(
                self.read(node, "?update=false") == (value, False) and not self.switching(node)
                for node in nodes
            )

        self.cluster.await_true(is_so, SWITCH_S_MAX)

    def switching(self, node: str) -> list[Any]:
        said = self.cluster.status_of(node)["indexes"]["switching"]
        return [one for one in said if one["database"] == self.path[1:]]

    def info(self, node: str) -> Any:
        path = f"{self.path}/_design/d/_info"
        return self.cluster.request("GET", path, node=node)[1]["view_index"]


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two masters with two replicas each. Databases count as large from the second document on."""
    folder = tmp_path_factory.mktemp("versions")
    environment = {"DIVANDB_VIEW_WAIT_DOCS_MAX": "1"}
    with clustered(folder, masters=2, replicas=2, **environment) as started:
        yield started
        assert started.stop() == 0
        assert faults(started) == ""


@pytest.fixture
def design(group: Cluster) -> Design:
    """A design document whose first version is on all nodes."""
    made = Design(group)
    made.put("old", code="")
    for node in group.nodes:
        assert made.read(node) == ("old", False)
    return made


def test_the_version_before_answers_until_the_group_is_ready(
    group: Cluster, design: Design
) -> None:
    design.put("new")
    replicas, until = ["m1-r1", "m1-r2"], time.monotonic() + SWITCH_S_MAX
    switched: set[str] = set()
    seen_building = False

    def are_ready() -> bool:
        return all(design.info(one)["ready"] for one in replicas)

    while switched != {"m1", *replicas}:
        assert time.monotonic() < until
        for node in ("m1", *replicas):
            value, is_before = design.read(node, "?update=false")
            if value == "old":
                assert is_before and node not in switched  # nobody turns back
                assert design.read(node)[0] == "old" or are_ready()
                continue
            assert not is_before
            if node not in switched:
                switched.add(node)
                assert are_ready()
        if not are_ready() and (said := design.switching("m1")):
            # The owner waits for its replicas, and has not begun.
            seen_building = True
            if said[0]["waits_for"] and said[0]["held"]:
                assert design.info("m1")["update_seq"] == 0 or design.info("m1-r1")["ready"]
        time.sleep(POLL_S)
    assert seen_building
    design.await_all("new", group.nodes)
    for node in group.nodes:
        assert design.info(node)["in_use"] == design.info(node)["signature"]
        assert design.read(node) == ("new", False)


def test_status_tells_of_the_switch_and_of_whom_it_waits_for(
    group: Cluster, design: Design
) -> None:
    """The new version never comes to an end: the one before answers, and everybody can see why."""
    before = design.info("m1")["signature"]
    design.put("new", code="if (doc._id == 'd05') for (;;);")
    told: list[Any] = []

    def is_told() -> bool:
        done = divandb("status", "--json", "--data", str(group.data))
        found = json.loads(done.stdout)["groups"]["m1"]["switching"]
        told[:] = [one for one in found if one["database"] == design.path[1:]]
        return [(len(one["building"]), len(one["waits_for"])) for one in told] == [(3, 2)]

    group.await_true(is_told, SWITCH_S_MAX)
    (one,) = told
    assert one["design_document"] == "_design/d" and one["in_use"] == before
    assert one["next"] == design.info("m1")["signature"]
    assert one["building"] == ["m1", "m1-r1", "m1-r2"]
    assert set(one["waits_for"]) == {"m1-r1", "m1-r2"}
    text = divandb("status", "--data", str(group.data)).stdout
    assert f"m1: {design.path[1:]}/_design/d: version {before[:8]} answers until" in text
    for node in group.nodes:
        assert design.read(node) == ("old", True)
    design.put("newer", code="")
    design.await_all("newer", group.nodes)


def test_who_insists_gets_the_new_version_and_turns_nobody_else(
    group: Cluster, design: Design
) -> None:
    design.put("new")
    assert design.read("m1-r1", "?update=true") == ("new", False)
    assert design.read("m1-r1") in [("old", True), ("new", False)]
    design.await_all("new", group.nodes)


def test_changes_come_into_the_version_before_while_the_next_one_is_built(
    group: Cluster, design: Design
) -> None:
    design.put("new")
    assert design.read("m1-r2") == ("old", True)
    path = f"{design.path}/extra?concern=visible"
    assert group.request("PUT", path, {})[0] == 201
    path = f"{design.path}/_design/d/_view/v?key=%22extra%22"
    found = group.request("GET", path, node="m1-r2")[1]["rows"]
    assert [row["id"] for row in found] == ["extra"]
    assert group.request("DELETE", design.path)[0] == 200


def test_a_promoted_replica_answers_at_once_from_its_index(group: Cluster, design: Design) -> None:
    design.put("new")
    design.await_all("new", group.nodes)
    status, said = group.request("POST", "/_divan/demote", node="m1")
    assert status == 200, said
    owner = said["owner"]
    assert owner.startswith("m1-r")
    assert design.read(owner, "?update=false") == ("new", False)
    assert group.status_of(owner)["indexes"]["building"] == []
    # And once more, while a version is on its way.
    design.put("newer")
    assert group.request("POST", "/_divan/promote", node="m1", wait_s_max=60)[0] == 200
    assert design.read("m1", "?update=false") in [("new", True), ("newer", False)]
    design.await_all("newer", group.nodes)


def test_a_replica_that_is_stopped_holds_no_switch(group: Cluster, design: Design) -> None:
    with group.frozen("m1-r2"):
        group.await_true(lambda: not is_live(group, "m1-r2"), SWITCH_S_MAX)
        design.put("new")
        design.await_all("new", [name for name in group.nodes if name != "m1-r2"])
    design.await_all("new", group.nodes)


def test_a_node_without_others_answers_as_couchdb_does(tmp_path: Path) -> None:
    environment = {"DIVANDB_VIEW_WAIT_DOCS_MAX": "1"}
    with clustered(tmp_path, masters=1, replicas=0, **environment) as single:
        design, (node,) = Design(single), single.nodes
        design.put("old", code="")
        assert design.read(node) == ("old", False)
        design.put("new")
        assert design.read(node, "?update=false") == ("old", True)
        assert design.read(node) == ("new", False)
        assert design.read(node, "?update=false") == ("new", False)
        assert design.switching(node) == []


def is_live(group: Cluster, name: str) -> bool:
    """Do the owner and the other replica count on it?"""
    said = [group.status_of(node)["peers"] for node in ("m1", "m1-r1")]
    return any(peer["live"] for peers in said for peer in peers if peer["name"] == name)
