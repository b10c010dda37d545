"""Writes in: the node that takes a request fixes everything a master would choose (Rule 5).

Document ids, the parent of each write and with it the new revision, salts, stamps, generations:
chosen here, before the command is first handed to a master, so that carrying it out twice, or late,
does what once would have done.

What the session wrote elsewhere travels with the command, and the master waits for it. Here it is
waited for only where something is chosen by what this node shows: the deleted leaf that a write
without a revision extends, the attachments that a stub means, an account's salt.
"""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import msgspec
import orjson

from divandb import attachments, document
from divandb.attachments import Offload, Received, Upload
from divandb.auth import passwords, policy, users
from divandb.auth.policy import UserContext
from divandb.catalog import NO_DATABASE, Catalog, Known
from divandb.clock import HybridClock, Rng
from divandb.cluster.needs import Needs
from divandb.cluster.sessions import Session
from divandb.commands import (
    Command,
    Concern,
    Confirm,
    CreateDatabase,
    DropDatabase,
    Edit,
    Graft,
    Job,
    Purge,
    SetRegister,
    WriteDocuments,
)
from divandb.config import Limits
from divandb.document import Sent
from divandb.errors import (
    BadRequest,
    Conflict,
    DivanError,
    FileExists,
    IllegalDatabaseName,
    IllegalDocId,
    NotFound,
    TooLarge,
)
from divandb.master import REVS_LIMIT, WriteResult
from divandb.replica import Replica
from divandb.revtree import Attachment, parse_rev
from divandb.store import registers

EVERYWHERE = Concern.VISIBLE
"""What few do and everybody must see at once: a database, a user or a design document made here is
there at the next node.
"""
SYSTEM_NAMES = frozenset({"_users", "_replicator", "_global_changes"})
REPLICATOR_DB = "_replicator"
NAME_CHARS_MAX = 238
FIX_TRIES_MAX = 3
YIELD_EVERY = 256
_NAME = re.compile(r"[a-z][a-z0-9_$()+/-]*")
# Revisions stand in headers, so nothing that could end one comes in with them.
_REV_HASHES = re.compile(r"[!#-~]+(?:\n[!#-~]+)*")


class Prepared(msgspec.Struct, frozen=True):
    """A document that was sent, under the id it will have, with what followed it in multipart."""

    id: str
    sent: Sent
    received: Mapping[str, Received] = {}
    kept: tuple[Attachment, ...] = ()
    """Attachments of another document that a copy takes over."""


class Doubtful(Conflict):
    """A conflict after an attempt that nobody answered: the parent may not be chosen again."""

    def __init__(self, conflict: Conflict) -> None:
        super().__init__(conflict.reason)


def check_name(name: str) -> str:
    """``name`` if a database may have it; raises ``IllegalDatabaseName`` in CouchDB's words."""
    if len(name) > NAME_CHARS_MAX:
        raise IllegalDatabaseName(
            f"Database name exceeds {NAME_CHARS_MAX} characters.", error="database_name_too_long"
        )
    if name not in SYSTEM_NAMES and not _NAME.fullmatch(name):
        raise IllegalDatabaseName(
            f"Name: '{name}'. Only lowercase characters (a-z), digits (0-9), and any of the "
            "characters _, $, (, ), +, -, and / are allowed. Must begin with a letter."
        )
    return name


class Entry:
    """Fixes writes and hands them to a master."""

    def __init__(
        self,
        submit: Callable[[Job], None],
        catalog: Catalog,
        replica: Replica,
        hlc: HybridClock,
        rng: Rng,
        limits: Limits,
        offload: Offload,
        password_settings: Callable[[], passwords.Settings],
        needs: Needs,
    ) -> None:
        self._submit = submit
        self._catalog = catalog
        self._replica = replica
        self._hlc = hlc
        self._rng = rng
        self._limits = limits
        self._offload = offload
        self._passwords = password_settings
        self._needs = needs
        self._running: set[asyncio.Future[None]] = set()
        self._session = Session()

    def within(self, session: Session) -> "Entry":
        """The same, for one request of a session."""
        entry = Entry.__new__(Entry)
        entry.__dict__.update(self.__dict__, _session=session)
        return entry

    async def execute(
        self, command: Command, size_bytes: int, *, concern: Concern = Concern.LOCAL
    ) -> Any:
        """Hand a command to a master; its result once it is durable, or its refusal raised.

        ``concern`` is what this command asks for besides what the request does.
        """
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        job = Job(command, size_bytes, lambda job: _settle(answer, job))
        if self._session.is_repeat and isinstance(command, WriteDocuments):
            job.command, job.doubtful = msgspec.structs.replace(command, repeat=True), True
        job.needs = self._session.needs.vector
        job.concern = max(self._session.concern, concern, key=list(Concern).index)
        self._submit(job)
        try:
            return await answer
        finally:
            self._session.took_part(job)

    async def catch_up(self) -> None:
        """Have here what the session wrote elsewhere, as far as any live node has it."""
        await self._needs.come(self._session.needs.vector)

    @property
    def _is_behind(self) -> bool:
        return not self._needs.are_here(self._session.needs.vector)

    # Databases

    async def create_database(
        self, name: str, options: Mapping[str, object], security: bytes | None = None
    ) -> None:
        """Make a database; raises ``FileExists`` if there is one."""
        check_name(name)
        if self._catalog.find(name) is not None:
            raise FileExists("The database could not be created, the file already exists.")
        generation = self._catalog.generation(name) + 1
        packed = orjson.dumps(options).decode()
        command = CreateDatabase(name, generation, packed, security)
        await self.execute(command, 0, concern=EVERYWHERE)

    async def drop_database(self, name: str) -> None:
        """Drop the generation of the database that is known now."""
        known = self._catalog.get(check_name(name))
        await self.execute(DropDatabase(name, known.generation), 0, concern=EVERYWHERE)

    # Documents

    def new_id(self) -> str:
        """An id for a document that was sent without one."""
        return self._rng.token(16).hex()

    def upload(self, content_type: str, *, packed: bool = False) -> Upload:
        """A receiver for one streamed attachment."""
        upload = self._rng.token(16)
        # Until a document refers to it, it is no part of a session, and waits for nothing of one.
        return Upload(
            self.within(Session()).execute,
            self._offload,
            self._limits,
            content_type,
            upload,
            packed=packed,
        )

    async def write(
        self,
        known: Known,
        ctx: UserContext,
        documents: Sequence[Prepared],
        *,
        new_edits: bool = True,
        concern: Concern = Concern.LOCAL,
    ) -> list[WriteResult]:
        """Write documents; for each its revision, or why it was refused."""
        if self._is_behind and any(_looks_here(known, prepared) for prepared in documents):
            await self.catch_up()
        results: list[WriteResult] = [Conflict()] * len(documents)
        places: Sequence[int] = range(len(documents))
        for attempt in range(FIX_TRIES_MAX):
            fixed: dict[int, Edit | Graft] = {}
            for count, place in enumerate(places, 1):
                if count % YIELD_EVERY == 0:
                    await asyncio.sleep(0)
                try:
                    prepared = await self._ruled(known, ctx, documents[place])
                    fixed[place] = self._fixed(known, prepared, new_edits, again=attempt > 0)
                except DivanError as refusal:
                    results[place] = refusal
            try:
                places = await self._carried_out(known, ctx, documents, fixed, results, concern)
            except NotFound:
                if not self._is_behind:
                    raise
                known = await self._made_anew(known, ctx)
            if not places:
                break
        return results

    async def _carried_out(
        self,
        known: Known,
        ctx: UserContext,
        documents: Sequence[Prepared],
        fixed: dict[int, Edit | Graft],
        results: list[WriteResult],
        concern: Concern,
    ) -> list[int]:
        """Have the writes carried out; the places of those whose parent may be chosen again."""
        if not fixed:
            return []
        writes = list(fixed.values())
        if known.name == users.USERS_DB or any(write.id.startswith("_design/") for write in writes):
            concern = EVERYWHERE
        command = _command(known, ctx, writes)
        answers = await self.execute(command, _size(writes), concern=concern)
        if self._is_behind and any(
            isinstance(result, Conflict) and _is_parent_ours(write, documents[place])
            for (place, write), result in zip(fixed.items(), answers, strict=True)
        ):
            await self.catch_up()
        again = []
        for (place, write), result in zip(fixed.items(), answers, strict=True):
            results[place] = result
            refused = isinstance(result, Conflict)
            if isinstance(result, Doubtful):
                results[place] = Conflict()
            elif refused and self._may_choose_again(known, documents[place], write):
                again.append(place)
        return again

    async def _made_anew(self, known: Known, ctx: UserContext) -> Known:
        """The database as the session made it anew elsewhere, for its members; raises ``NotFound``
        if there is none but the one that is gone.
        """
        await self.catch_up()
        found = self._catalog.get(known.name)
        if found.generation == known.generation:
            raise NotFound(NO_DATABASE)
        policy.check_member(found.security, ctx)
        return found

    def _fixed(
        self, known: Known, prepared: Prepared, new_edits: bool, *, again: bool
    ) -> Edit | Graft:
        if new_edits:
            return self.edit_of(known, prepared, again=again)
        return self._graft(known, prepared)

    def _may_choose_again(self, known: Known, prepared: Prepared, write: Edit | Graft) -> bool:
        """Did we choose the parent, and would we choose another now?"""
        if not _is_parent_ours(write, prepared):
            return False
        winner = self._replica.winner(known, prepared.id)
        return winner is None or bool(winner[1] & 1 and winner[0] != write.parent)

    async def _ruled(self, known: Known, ctx: UserContext, prepared: Prepared) -> Prepared:
        """The document as it may be stored: some have rules of their own."""
        if prepared.id.startswith("_local/"):
            raise IllegalDocId("A _local document is not written like others.")
        if prepared.id[0] == "_":
            policy.check_admin(known.security, ctx)
        elif known.name == REPLICATOR_DB:
            # What a replication reads and writes here, it does as a server admin.
            policy.check_server_admin(ctx)
        elif known.name == users.USERS_DB:
            return await self._fixed_user(known, ctx, prepared)
        return prepared

    def begin_edit(
        self,
        known: Known,
        ctx: UserContext,
        prepared: Prepared,
        edit: Edit,
        done: Callable[[Any], None],
    ) -> None:
        """Hand one ordinary edit to a master: ``done`` gets the revision, or the error.

        Only for documents that need no rules of their own; raises ``Busy``.
        """

        def answered(job: Job) -> None:
            self._session.took_part(job)
            result = job.result[0] if isinstance(job.result, list) else job.result
            if self._is_worth_another_try(known, prepared, edit, job, result):
                again = asyncio.ensure_future(self._again(known, ctx, prepared, done))
                self._running.add(again)
                again.add_done_callback(self._running.discard)
            else:
                done(result)

        command = _command(known, ctx, [edit])
        job = Job(command, len(edit.body), answered)
        job.needs, job.concern = self._session.needs.vector, self._session.concern
        self._submit(job)

    def _is_worth_another_try(
        self, known: Known, prepared: Prepared, edit: Edit, job: Job, result: object
    ) -> bool:
        if isinstance(result, NotFound):
            return self._is_behind
        if not isinstance(result, Conflict) or job.doubtful or not _is_parent_ours(edit, prepared):
            return False
        return self._is_behind or self._may_choose_again(known, prepared, edit)

    async def _again(
        self, known: Known, ctx: UserContext, prepared: Prepared, done: Callable[[Any], None]
    ) -> None:
        try:
            done((await self.write(known, ctx, [prepared]))[0])
        except Exception as fault:
            done(fault)

    def edit_of(self, known: Known, prepared: Prepared, *, again: bool = False) -> Edit:
        """What a master is asked to do for an edit: its parent chosen, its revision known.

        A write without a revision is taken for a new document's; only ``again``, when a master has
        refused that, is a deleted leaf looked for which it may extend.
        """
        sent = prepared.sent
        parent = sent.rev
        if parent is None and again:
            winner = self._replica.winner(known, prepared.id)
            parent = winner[0] if winner is not None and winner[1] & 1 else None
        pos = parse_rev(parent)[0] + 1 if parent else 1
        held, blobs = self._attachments(known, prepared, parent, pos, keep_revpos=False)
        members = self._members(prepared)
        digest = document.content_digest(members, sent.deleted, held)
        rev_hash = document.rev_hash(parent, sent.deleted, sent.members, held)
        body = document.body_bytes(prepared.id, f"{pos}-{rev_hash}", sent.deleted, members, held)
        return Edit(prepared.id, parent, rev_hash, sent.deleted, digest, body, held, blobs)

    def _graft(self, known: Known, prepared: Prepared) -> Graft:
        sent = prepared.sent
        pos, path = document.ancestry_of(sent)
        if not _REV_HASHES.fullmatch("\n".join(path)):
            raise BadRequest("Invalid rev format")
        parent = f"{pos - 1}-{path[1]}" if len(path) > 1 else None
        held, blobs = self._attachments(known, prepared, parent, pos, keep_revpos=True)
        members = self._members(prepared)
        digest = document.content_digest(members, sent.deleted, held)
        body = document.body_bytes(prepared.id, f"{pos}-{path[0]}", sent.deleted, members, held)
        return Graft(prepared.id, pos, path, sent.deleted, digest, body, held, blobs)

    def _members(self, prepared: Prepared) -> bytes:
        members = document.dump_members(prepared.sent.members)
        if len(members) > self._limits.document_bytes_max:
            raise TooLarge(prepared.id, error="document_too_large")
        return members

    def _attachments(
        self, known: Known, prepared: Prepared, parent: str | None, pos: int, *, keep_revpos: bool
    ) -> tuple[tuple[Attachment, ...], tuple[tuple[bytes, bytes], ...]]:
        entries = prepared.sent.attachments
        if prepared.kept:
            return tuple(msgspec.structs.replace(att, revpos=pos) for att in prepared.kept), ()
        if not entries:
            return (), ()
        stubs = any(entry.get("stub") is True for entry in entries.values())
        kept = self._stub_sources(known, prepared.id, parent, keep_revpos) if stubs else {}
        return attachments.resolve(
            prepared.id,
            entries,
            kept,
            prepared.received,
            pos,
            self._limits,
            keep_revpos=keep_revpos,
        )

    def _stub_sources(
        self, known: Known, doc_id: str, parent: str | None, any_leaf: bool
    ) -> dict[str, Attachment]:
        """Attachments that a stub may mean: the parent's; for a graft, failing that, any leaf's."""
        row = self._replica.row(known, doc_id)
        held: dict[str, Attachment] = {}
        if any_leaf:
            for leaf in reversed(row.document.shown()):
                held.update({att.name: att for att in leaf.attachments})
        revision = self._replica.revision(known, row, parent) if parent else None
        if revision is not None:
            held.update({att.name: att for att in revision.attachments})
        return held

    async def _fixed_user(self, known: Known, ctx: UserContext, prepared: Prepared) -> Prepared:
        """A `_users` document as it may be stored: the salt chosen, the password hashed, the rules
        kept.
        """
        sent = prepared.sent
        winner = self._replica.winner(known, prepared.id)
        old = orjson.loads(winner[2]) if winner is not None else None
        new = {"_id": prepared.id, "_deleted": sent.deleted, **sent.members}
        new = await self._offload(
            lambda: users.prepare(
                new,
                ctx=ctx,
                security=known.security,
                salt=passwords.new_salt(self._rng),
                settings=self._passwords(),
            )
        )
        users.validate(new, old, ctx, known.security)
        members = {name: value for name, value in new.items() if name[0] != "_"}
        return msgspec.structs.replace(
            prepared, sent=msgspec.structs.replace(sent, members=members)
        )

    async def purge(self, known: Known, revs: dict[str, list[str]]) -> dict[str, list[str]]:
        """Remove leaf revisions; those that were removed, by id."""
        purged: dict[str, list[str]] = await self.execute(
            Purge(known.name, known.generation, revs), 0
        )
        return purged

    # Registers

    async def set_security(self, known: Known, security: bytes) -> None:
        """Replace `_security`."""
        await self._set(known, registers.SECURITY, "", security, concern=EVERYWHERE)

    async def set_revs_limit(self, known: Known, limit: int) -> None:
        """How many revisions of ancestry new leaves keep."""
        await self._set(known, registers.OPTION, REVS_LIMIT, b"%d" % limit, concern=EVERYWHERE)

    async def write_local(self, known: Known, doc_id: str, sent: Sent) -> str:
        """Store a `_local` document without a conflict check, as CouchDB does; its revision.

        Attachments are left out, as CouchDB leaves them out.
        """
        if sent.deleted:
            return await self.delete_local(known, doc_id)
        members = self._members(Prepared(doc_id, sent))
        rev = f"0-{_local_number(sent.rev) + 1}"
        await self._set(
            known, registers.LOCAL, doc_id, document.body_bytes(doc_id, rev, False, members, ())
        )
        return rev

    async def delete_local(self, known: Known, doc_id: str) -> str:
        """Delete a `_local` document; raises ``NotFound`` if there is none."""
        await self.catch_up()
        if self._replica.local(known, doc_id) is None:
            raise NotFound("missing")
        await self._set(known, registers.LOCAL, doc_id, None)
        return "0-0"

    async def confirm(self) -> None:
        """Wait until what the session wrote is on the Masters' Board, or at another master."""
        await self.execute(Confirm(), 0)

    async def admin_line(self, password: str, settings: passwords.Settings) -> str:
        """An admin's password as it is stored; the salt is chosen here."""
        salt = passwords.new_salt(self._rng)
        verifier = await self._offload(
            lambda: passwords.hash_password(password, salt=salt, settings=settings)
        )
        return passwords.admin_line(verifier)

    async def set_setting(self, key: str, value: bytes | None) -> None:
        """Set, or with ``None`` delete, a setting of the server."""
        await self._set(None, registers.SETTING, key, value, concern=EVERYWHERE)

    async def remove_member(self, name: str, value: bytes) -> None:
        """A node is a member no more; ``value`` is a JSON object for people."""
        await self._set(None, registers.REMOVED, name, value, concern=EVERYWHERE)

    async def _set(
        self,
        known: Known | None,
        kind: str,
        key: str,
        value: bytes | None,
        *,
        concern: Concern = Concern.LOCAL,
    ) -> None:
        name, generation = (known.name, known.generation) if known else (None, 0)
        command = SetRegister(name, generation, kind, key, value, self._hlc.stamp())
        await self.execute(command, len(value or b""), concern=concern)


def _command(known: Known, ctx: UserContext, writes: list[Edit | Graft]) -> WriteDocuments:
    return WriteDocuments(known.name, known.generation, writes, user=(ctx.name, ctx.roles))


def _settle(answer: asyncio.Future[Any], job: Job) -> None:
    if answer.done():  # the client went away; the write stands
        return
    if isinstance(job.result, Exception):
        answer.set_exception(job.result)
    else:
        answer.set_result(_sure(job))


def _sure(job: Job) -> Any:
    """The result; a conflict that may be with an attempt of our own nobody answered is final."""
    if job.doubtful and isinstance(job.result, list):
        return [Doubtful(one) if isinstance(one, Conflict) else one for one in job.result]
    return job.result


def _looks_here(known: Known, prepared: Prepared) -> bool:
    """Does what becomes of the document depend on what this node shows of it?"""
    stubs = any(entry.get("stub") is True for entry in prepared.sent.attachments.values())
    return stubs or known.name == users.USERS_DB


def _is_parent_ours(write: Edit | Graft, prepared: Prepared) -> TypeGuard[Edit]:
    """Was its parent not named, but chosen here?"""
    return prepared.sent.rev is None and isinstance(write, Edit)


def _size(writes: Sequence[Edit | Graft]) -> int:
    blobs = sum(len(data) for write in writes if write.blobs for _, data in write.blobs)
    return sum([len(write.body) for write in writes]) + blobs


def _local_number(rev: str | None) -> int:
    if rev is None:
        return 0
    pos, number = parse_rev(rev)
    if pos != 0 or not number.isascii() or not number.isdigit() or len(number) > 15:
        raise BadRequest("Invalid rev format")
    return int(number)
