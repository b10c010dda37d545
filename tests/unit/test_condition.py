"""What a node says of itself."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from divandb.cluster.drain import Left
from divandb.cluster.peers import Peers
from divandb.cluster.progress import Progress
from divandb.condition import REASON_CHARS_MAX, REASONS_MAX, Inside, condition
from divandb.config import Config, Limits
from divandb.governor import Governor
from divandb.hot import HotDocuments
from divandb.node import Role
from divandb.store import arrivals, outbox
from divandb.telemetry import LineLog
from divandb.tenure import Tenure
from tests.stores import Store, edit


def inside(store: Store, **parts: Any) -> Inside:
    """A master over this file, without anybody else."""
    clock = store.clock
    config = Config(Path("unused"))
    progress = Progress({}, {}, clock, "m1")
    tenure, log = Tenure(config, {}), LineLog("m1", clock)
    tenure.is_ready = True
    peers = Peers(config, tenure, progress, lambda url: None, clock, log)
    nothing = SimpleNamespace(missing=3, fetched=4, events=5, waiting_jobs=6)
    found: dict[str, Any] = {
        "config": config, "started_ms": 1_700_000_000_123, "progress": progress, "peers": peers,
        "role": Role(), "fetcher": nothing, "gatherer": nothing, "writer": nothing,
        "shelf": SimpleNamespace(status=lambda: {"making": False}), "courier": nothing,
        "drain": SimpleNamespace(left=lambda: None),
        "verifier": SimpleNamespace(status=lambda: {"open": 7}),
        "governor": Governor(Limits()), "hot": HotDocuments(0), "alarms": store.ledger.alarms,
        "reading": store.reader, "clock": clock,
        "indexer": SimpleNamespace(status=lambda: {"kept": 8}),
        "switching": lambda: [{"next": "9"}],
    }  # fmt: skip
    return Inside(**{**found, **parts})


def test_a_calm_node(tmp_path: Path) -> None:
    store = Store(tmp_path)
    said = condition(inside(store))
    assert (said["pid"], said["started"]) == (os.getpid(), "2023-11-14T22:13:20.123Z")
    assert said["holes"] == {"count": 0, "reasons": []}
    assert (said["waiting_local"], said["missing_blobs"], said["fetched_blobs"]) == (0, 3, 4)
    assert said["alarms"] == {"hlc_drift_ms_max": 0, "hlc_drift_events": 0, "damaged_blobs": 0}
    assert said["snapshot"] == {"making": False}
    assert said["hot"] == {"documents": 0, "bytes": 0, "hits": 0, "misses": 0}
    assert said["verify"] == {"open": 7}
    assert (said["budget"]["share"], said["budget"]["reason"]) == (0.2, "start")
    assert said["indexes"] == {"kept": 8, "switching": [{"next": "9"}]}
    assert (said["forwarding_jobs"], said["outbox_rows"]) == (None, None)
    assert (said["role"], said["serves"]) == ("master", True)
    assert said["owners"] == {"m1": {"name": "m1", "epoch": 0, "confirmed": True}}
    waiting = inside(store, courier=SimpleNamespace(waiting_jobs=7))
    waiting.peers.tenure.is_leaving = True
    assert condition(waiting)["forwarding_jobs"] == 7
    store.close()


def test_what_a_drained_node_still_has_to_finish(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert condition(inside(store))["drain"] is None
    for left, is_done in ((Left(1, 0, 0), False), (Left(0, 0, 0), True)):
        drain = SimpleNamespace(left=lambda left=left: left)
        said = condition(inside(store, drain=drain))["drain"]
        assert said == {
            "connections": left.connections, "writes": 0, "unpublished": 0, "done": is_done,
        }  # fmt: skip
    store.close()


def test_holes_and_alarms_show(tmp_path: Path) -> None:
    store = Store(tmp_path)
    damaged = [b"\x9b\x02" + bytes([number]) for number in range(REASONS_MAX + 2)]
    assert store.do(lambda ledger: arrivals.take(ledger, damaged, 0)) == len(damaged)
    store.do(lambda ledger: ledger.connection.execute("UPDATE hole SET reason = ?", ("x" * 999,)))
    store.do(lambda ledger: ledger.connection.execute("INSERT INTO waiting VALUES (1,'k',1,1,'')"))
    store.ledger.alarms.damaged_blobs = 2
    said = condition(inside(store))
    assert said["holes"] == {
        "count": len(damaged), "reasons": ["x" * REASON_CHARS_MAX] * REASONS_MAX,
    }  # fmt: skip
    assert said["waiting_local"] == 1
    assert said["alarms"]["damaged_blobs"] == 2
    store.close()


def test_the_latest_reasons_are_shown(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in range(4):
        store.do(
            lambda ledger, n=number: ledger.connection.execute(
                "INSERT INTO hole (reason, event) VALUES (?, ?)", (f"reason {n}", bytes([n]))
            )
        )
    assert arrivals.holes(store.reader, 2) == (4, ["reason 3", "reason 2"])
    store.close()


def test_what_is_behind_the_board_is_counted(tmp_path: Path) -> None:
    """Rows that are published stay for a while, and do not count."""
    store = Store(tmp_path)
    role = Role()
    role.publisher = SimpleNamespace(published=0, failing=None)  # type: ignore[assignment]
    node = inside(store, role=role)
    assert outbox.span(store.reader) == (1, 0)
    assert condition(node)["outbox_rows"] == 0
    store.create("db")
    store.write("db", *(edit(f"d{number}", None, {}) for number in range(9)))
    assert condition(node)["outbox_rows"] == 10
    role.publisher.published = 4
    assert condition(node)["outbox_rows"] == 6
    store.do(lambda ledger: outbox.trim(ledger.connection, 4))
    assert (outbox.span(store.reader), condition(node)["outbox_rows"]) == ((5, 10), 6)
    role.publisher.published = 0  # a new start: what was trimmed is published all the same
    assert condition(node)["outbox_rows"] == 6
    role.publisher.published = 10
    assert condition(node)["outbox_rows"] == 0
    store.close()
