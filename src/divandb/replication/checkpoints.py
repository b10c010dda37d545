"""Where a replication goes on: the logs at both sides compared, and the next log made.

Pure. A log is the document `_local/{replication id}` in the form of CouchDB's replicator. PouchDB's
is read as well: it has ``last_seq`` for what is here ``source_last_seq`` and ``recorded_seq``.

A session counts when both sides know it: then neither is a database made anew, nor a copy of
another. Of the two sequences that the sides have for it the lower one is taken, since a side may
have been restored from an older copy.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

HISTORY_MAX = 50
"""Sessions that a log remembers."""
VERSION = 3

Seq = str | int
Log = Mapping[str, Any]


class Counts(msgspec.Struct):
    """What a session did."""

    missing_checked: int = 0
    missing_found: int = 0
    docs_read: int = 0
    docs_written: int = 0
    doc_write_failures: int = 0

    def to_dict(self) -> dict[str, int]:
        """For logs and answers."""
        return {name: getattr(self, name) for name in self.__struct_fields__}


def start_of(source: Log | None, target: Log | None) -> Seq:
    """The sequence of the source behind which to go on; 0: from the beginning."""
    here = dict(_sessions(source or {}))
    for session, seq in _sessions(target or {}):
        if session in here:
            both = (_number(seq), _number(here[session]))
            if None in both and seq != here[session]:
                continue
            return min((both[0] or 0, seq), (both[1] or 0, here[session]), key=lambda p: p[0])[1]
    return 0


def is_same(one: Seq, other: Seq) -> bool:
    """Do two sequences of one source, between which there was no change, stand for the same place?
    What is behind the number may differ: here it holds what else the server knows.
    """
    return one == other or (_number(one) is not None and _number(one) == _number(other))


def _sessions(log: Log) -> list[tuple[str, Seq]]:
    """(session, how far it came), the newest first."""
    found = [_session(log, "source_last_seq")]
    history = log.get("history")
    for entry in history if isinstance(history, list) else []:
        if isinstance(entry, dict):
            found.append(_session(entry, "recorded_seq"))
    kept: dict[str, Seq] = {}
    for one in found:
        if one is not None:
            kept.setdefault(*one)
    return list(kept.items())


def _session(entry: Log, name: str) -> tuple[str, Seq] | None:
    session, seq = entry.get("session_id"), entry.get(name, entry.get("last_seq"))
    if not isinstance(session, str) or not isinstance(seq, str | int):
        return None
    return session, seq


def _number(seq: Seq) -> int | None:
    """What is ordered in a sequence: ``12`` of ``12-g1AA…``."""
    head = str(seq).partition("-")[0]
    return int(head) if head.isascii() and head.isdigit() and len(head) <= 18 else None


def next_log(
    before: Log | None, session: str, start: tuple[Seq, str], end: tuple[Seq, str], counts: Counts
) -> dict[str, Any]:
    """The log to store: this session first, then those of ``before``.

    ``start`` and ``end`` are (sequence, moment in the words of an HTTP date).
    """
    entry = {
        "session_id": session,
        "start_time": start[1],
        "end_time": end[1],
        "start_last_seq": start[0],
        "end_last_seq": end[0],
        "recorded_seq": end[0],
        **counts.to_dict(),
    }
    history = (before or {}).get("history")
    older = [
        one
        for one in (history if isinstance(history, list) else [])
        if isinstance(one, dict) and one.get("session_id") != session
    ]
    return {
        "session_id": session,
        "source_last_seq": end[0],
        "replication_id_version": VERSION,
        "history": [entry, *older][:HISTORY_MAX],
    }
