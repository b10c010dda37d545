"""Fixtures for all tests, and an end to a test that hangs."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from uuid import uuid4

import pytest
from hypothesis import settings

from tests.running import Cluster, Running, clustered, running

settings.register_profile("without a stopwatch", deadline=None)
settings.load_profile("without a stopwatch")
TEST_S_MAX = 120.0
SYSTEM = Path(__file__).parent / "system"
ONE_NODE = {
    "test_answers.py", "test_attachments.py", "test_auth_http.py", "test_bounds.py",
    "test_changes.py", "test_documents_http.py", "test_durability.py", "test_find.py",
    "test_functions.py", "test_fuzz.py", "test_listing.py", "test_views.py",
}  # fmt: skip
"""Of the system tests, those that ask a single node, and do not mind who else is at work."""


class TookTooLong(BaseException):
    """No ``Exception``: what a test waits for may fail meanwhile, the end of its time may not."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what wants the machine for itself: `make test` plays all else two at a time."""
    for item in items:
        asks_one = item.path.name in ONE_NODE and "cluster" not in getattr(item, "fixturenames", ())
        is_system = SYSTEM in item.path.parents and not asks_one
        if is_system or item.get_closest_marker("kafka"):
            item.add_marker("alone")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Interrupt a test, with its fixtures, after ``TEST_S_MAX`` or what `timeout_s` says."""
    marker = item.get_closest_marker("timeout_s")
    limit_s = float(marker.args[0]) if marker else TEST_S_MAX

    def fail(number: int, frame: FrameType | None) -> None:
        raise TookTooLong(f"the test took longer than {limit_s:g} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One node for the whole session: tests use databases of their own."""
    with running(tmp_path_factory.mktemp("node")) as started:
        yield started


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three masters with three replicas each, for tests that do not break it."""
    with clustered(tmp_path_factory.mktemp("cluster")) as started:
        yield started


@pytest.fixture
def db(cluster: Cluster) -> str:
    """A new database of the session's cluster, which is there on all nodes."""
    name = f"db-{uuid4().hex}"
    assert cluster.request("PUT", f"/{name}")[0] == 201
    return name


WRITE_CONCERN = "/_node/_local/_config/divan/write_concern"


CLIENTS_AGAINST = os.environ.get("DIVANDB_TEST_CLIENTS_AGAINST", "node,cluster").split(",")


@pytest.fixture(params=CLIENTS_AGAINST)
def couch(request: pytest.FixtureRequest) -> Iterator[Running]:
    """A single node, and a cluster behind one port.

    Some of them, and tests that look behind their backs, do not carry the cookies by which a
    session finds its writes. For those, an operator lets writes be answered when all can see them.
    """
    running: Running = request.getfixturevalue(request.param)
    if request.param == "cluster":
        assert running.request("PUT", WRITE_CONCERN, "visible")[0] == 200
    yield running
    if request.param == "cluster":
        assert running.request("DELETE", WRITE_CONCERN)[0] == 200
