"""Documents of `_replicator`: each node reads all of them, and runs those that are its own.

    a document comes, or another version of it   its replication begins anew
    it goes                                      its replication ends
    its slot has another owner                   the same, here and there
    its replication is through                   `_replication_state` is written into it

As in CouchDB 3, only ends are written into documents, ``completed`` and ``failed``: what goes on
meanwhile is in `_scheduler/docs`. A document with an end is left alone until somebody removes that.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from divandb.auth.policy import ADMIN_ROLE, UserContext
from divandb.clock import Clock
from divandb.config import Limits
from divandb.errors import BadRequest, DivanError
from divandb.replication import request
from divandb.replication.end import End
from divandb.replication.jobs import DATABASE, Jobs
from divandb.replication.request import Replication, Side
from divandb.telemetry import Log, rfc3339
from divandb.trouble import Trouble

LOOK_S = 1.0
PAGE_DOCS = 200
WRITES_MAX = 5
"""How often an end is written over a document that others change meanwhile."""
COMPLETED, FAILED = "completed", "failed"
SERVER = UserContext(name=None, roles=(ADMIN_ROLE,))
"""As whom this node works for documents: only server admins write them."""
OWN = Side("", DATABASE)


class Entry:
    """One document."""

    def __init__(self, doc: dict[str, Any]) -> None:
        self.doc_id: str = doc["_id"]
        self.end: str | None = doc.get("_replication_state")
        self.time: str | None = doc.get("_replication_state_time")
        self.stats: dict[str, Any] | None = doc.get("_replication_stats")
        self.reason: str | None = doc.get("_replication_state_reason")
        self.what: Replication | None = None
        self.fault: str | None = None
        try:
            self.what = request.parse(doc, SERVER)
        except BadRequest as refusal:
            self.fault = refusal.reason

    @property
    def is_open(self) -> bool:
        """Is there something left to do?"""
        return self.end not in (COMPLETED, FAILED)


class Watch:
    """Lives on the event loop."""

    def __init__(
        self,
        end: End,
        jobs: Jobs,
        version: Callable[[], object],
        is_own: Callable[[str], bool],
        cluster: str,
        clock: Clock,
        limits: Limits,
        log: Log,
    ) -> None:
        """``end`` is `_replicator` here; ``version`` is another whenever it has changed, and
        ``None`` without it. ``is_own`` says which documents' replications run here.
        """
        self._end = end
        self._jobs = jobs
        self._version = version
        self._is_own = is_own
        self._cluster = cluster
        self._clock = clock
        self._limits = limits
        self._log = log
        self._seen: object = None
        self._since: str | int = 0
        self._trouble = Trouble(log, "_replicator cannot be read")
        self.entries: dict[str, Entry] = {}
        jobs.ended = self.write_end

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._look()
                self._trouble.over()
            except DivanError as fault:
                self._trouble.met(fault, self._clock.monotonic())
            except Exception as fault:
                self._log.fault("_replicator cannot be followed", fault)
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        version = self._version()
        if version is None:
            self.entries.clear()
            self._since = 0
        elif version != self._seen:
            await self._read()
        self._seen = version
        await self._settle()

    async def _read(self) -> None:
        """Take in what has changed."""
        while True:
            page = await self._end.changes(self._since, PAGE_DOCS, params={"include_docs": "true"})
            for row in page["results"]:
                await self._take(row)
            self._since = page["last_seq"]
            if len(page["results"]) < PAGE_DOCS:
                return

    async def _take(self, row: dict[str, Any]) -> None:
        doc_id = row["id"]
        if doc_id.startswith("_design/"):
            return
        if row.get("deleted") or row.get("doc") is None:
            self.entries.pop(doc_id, None)
            return
        if doc_id not in self.entries and len(self.entries) >= self._limits.replication_docs_max:
            self._log.event("too many documents in _replicator: one is ignored", doc=doc_id)
            return
        self.entries[doc_id] = Entry(row["doc"])

    async def _settle(self) -> None:
        """Run what is this node's, and nothing else."""
        for doc_id, job in self._jobs.kept().items():
            entry = self.entries.get(doc_id)
            is_same = entry is not None and entry.is_open and entry.what == job.what
            if not is_same or not self._is_own(doc_id):
                await self._jobs.drop(doc_id)
            elif job.answer is not None:  # it could not be written then
                await self.write_end(doc_id, job.answer)
        running = self._jobs.kept()
        for doc_id, entry in list(self.entries.items()):
            if not entry.is_open or doc_id in running or not self._is_own(doc_id):
                continue
            if entry.what is None:
                await self._write(doc_id, FAILED, {"_replication_state_reason": entry.fault})
            else:
                self._jobs.keep(doc_id, entry.what)

    async def write_end(self, doc_id: str, answer: dict[str, Any]) -> None:
        """A document's replication is through."""
        entry = self.entries.get(doc_id)
        if entry is None or entry.what is None:
            return
        stats = dict(answer["history"][0]) if answer.get("history") else {}
        await self._write(
            doc_id,
            COMPLETED,
            {
                "_replication_id": entry.what.id(self._cluster),
                "_replication_stats": {
                    "revisions_checked": stats.get("missing_checked", 0),
                    "missing_revisions_found": stats.get("missing_found", 0),
                    "docs_read": stats.get("docs_read", 0),
                    "docs_written": stats.get("docs_written", 0),
                    "doc_write_failures": stats.get("doc_write_failures", 0),
                    "checkpointed_source_seq": answer.get("source_last_seq"),
                },
            },
        )

    async def _write(self, doc_id: str, end: str, members: dict[str, Any]) -> None:
        entry = self.entries[doc_id]
        for _ in range(WRITES_MAX):
            doc = await self._end.document(doc_id)
            held = None if doc is None else Entry(doc)
            if doc is None or held is None or not held.is_open or held.what != entry.what:
                return  # that was done, or it has another meaning by now
            told = {"_replication_state": end, "_replication_state_time": self._now()}
            cleared = {n: v for n, v in doc.items() if not n.startswith("_replication_")}
            if await self._end.put(doc_id, cleared | told | members):
                return

    def _now(self) -> str:
        return rfc3339(self._clock.wall_ms())

    # What is shown

    def shown(self, jobs: dict[str, dict[str, object]]) -> list[dict[str, object]]:
        """Rows of `_scheduler/docs`; ``jobs`` are the rows of `_scheduler/jobs`, of all nodes, by
        document.
        """
        return [self._row(entry, jobs.get(doc_id)) for doc_id, entry in self.entries.items()]

    def _row(self, entry: Entry, job: dict[str, object] | None) -> dict[str, object]:
        what = entry.what
        row: dict[str, object] = {
            "database": DATABASE,
            "doc_id": entry.doc_id,
            "id": what.job_id(self._cluster) if what is not None else None,
            "node": None,
            "source": what.source.shown if what is not None else None,
            "target": what.target.shown if what is not None else None,
            "source_proxy": None,
            "target_proxy": None,
            "state": entry.end or "initializing",
            "info": {"error": entry.reason} if entry.reason else entry.stats,
            "error_count": 1 if entry.end == FAILED else 0,
            "start_time": entry.time,
            "last_updated": entry.time,
        }
        if entry.is_open and job is not None:
            names = ("node", "state", "info", "error_count", "start_time", "last_updated")
            row |= {name: job[name] for name in names}
        return row
