"""One revision as an answer: the stored bytes, and what the reader asked for besides.

A plain GET is the stored body as it is. Everything else is put behind it: ``_revisions``,
``_conflicts`` and their kin, and ``_attachments`` with data, which is read and encoded a chunk at a
time.
"""

from base64 import b64encode
from collections.abc import AsyncIterator, Iterable, Iterator

import msgspec
import orjson

from divandb import document, revtree
from divandb.attachments import GZIP
from divandb.catalog import Known
from divandb.errors import BadRequest
from divandb.httpd.call import Call
from divandb.packing import Gunzip
from divandb.replica import Replica, Revision, Row
from divandb.revtree import Attachment

BASE64_STEP = 3 * 64 * 1024


class Options(msgspec.Struct, frozen=True):
    """What a reader wants to see of a document."""

    revs: bool = False
    revs_info: bool = False
    conflicts: bool = False
    deleted_conflicts: bool = False
    local_seq: bool = False
    attachments: bool = False
    att_encoding_info: bool = False
    atts_since: tuple[str, ...] | None = None

    @property
    def plain(self) -> bool:
        """Is the stored body the answer?"""
        return self == _PLAIN

    @property
    def varies(self) -> bool:
        """May the answer change while the revision stays?"""
        return self.revs_info or self.conflicts or self.deleted_conflicts or self.local_seq

    @property
    def sends_attachments(self) -> bool:
        """Are attachments' bytes asked for?"""
        return self.attachments or self.atts_since is not None


_PLAIN = Options()


def options_of(call: Call) -> Options:
    """The options in a request's parameters."""
    query = call.query
    if not query:
        return _PLAIN
    meta = call.flag("meta")
    since = call.json_parameter("atts_since")
    if since is not None and not (
        isinstance(since, list) and all(isinstance(rev, str) for rev in since)
    ):
        raise BadRequest("atts_since must be a JSON array of revisions")
    return Options(
        revs=call.flag("revs"),
        revs_info=meta or call.flag("revs_info"),
        conflicts=meta or call.flag("conflicts"),
        deleted_conflicts=meta or call.flag("deleted_conflicts"),
        local_seq=call.flag("local_seq"),
        attachments=call.flag("attachments"),
        att_encoding_info=call.flag("att_encoding_info"),
        atts_since=tuple(since) if since is not None else None,
    )


def whole(replica: Replica, known: Known, row: Row, revision: Revision, options: Options) -> bytes:
    """The answer as one piece; attachments' data is not asked for, or may stand in memory."""
    return b"".join(pieces(replica, known, row, revision, options))


async def streamed(
    replica: Replica, known: Known, row: Row, revision: Revision, options: Options
) -> AsyncIterator[bytes]:
    """The answer in pieces of bounded size."""
    for piece in pieces(replica, known, row, revision, options):
        yield piece


def pieces(
    replica: Replica, known: Known, row: Row, revision: Revision, options: Options
) -> Iterator[bytes]:
    """The document as JSON."""
    if options.plain:
        yield revision.body
        return
    yield _head(replica, known, row, revision, options)
    if revision.attachments:
        yield b',"_attachments":{'
        wanted = sent_attachments(row, revision, options)
        for index, att in enumerate(revision.attachments):
            yield (b"," if index else b"") + orjson.dumps(att.name) + b":"
            yield from (
                _with_data(replica, att, options) if att in wanted else (_stub(att, options),)
            )
        yield b"}"
    yield b"}"


def with_following(
    replica: Replica, known: Known, row: Row, revision: Revision, options: Options
) -> bytes:
    """The document as JSON whose attachments follow in a multipart answer, as stored."""
    head = _head(replica, known, row, revision, options)
    if not revision.attachments:
        return head + b"}"
    wanted = sent_attachments(row, revision, options)
    shown = {}
    for att in revision.attachments:
        entry = document.stub(att) | _encoding_info(att)
        if att in wanted:
            del entry["stub"]
            entry["follows"] = True
        shown[att.name] = entry
    return head + b',"_attachments":' + orjson.dumps(shown) + b"}"


def sent_attachments(row: Row, revision: Revision, options: Options) -> list[Attachment]:
    """The attachments whose bytes the reader lacks: with ``atts_since``, the newer ones."""
    if not options.sends_attachments:
        return []
    if options.atts_since is None:
        return list(revision.attachments)
    ancestry = set(revtree.known_revs(revtree.descendants(row.document.leaves, revision.rev)))
    has = max(
        (revtree.parse_rev(rev)[0] for rev in options.atts_since if rev in ancestry), default=0
    )
    return [att for att in revision.attachments if att.revpos > has]


def all_sent(row: Row, found: Iterable[Revision | str], options: Options) -> Iterator[Attachment]:
    """The same of several revisions of a document; those that are not here as their names."""
    for revision in found:
        if isinstance(revision, Revision):
            yield from sent_attachments(row, revision, options)


def _head(replica: Replica, known: Known, row: Row, revision: Revision, options: Options) -> bytes:
    """The body without its attachments and without the brace at its end."""
    body = document.without_stubs(revision.body, revision.attachments)
    return document.with_members(body, _members(replica, known, row, revision, options))[:-1]


def _members(
    replica: Replica, known: Known, row: Row, revision: Revision, options: Options
) -> dict[str, object]:
    members: dict[str, object] = {}
    shown = row.document.shown()
    if options.revs or options.revs_info:
        ancestry = _ancestry(shown, revision.rev)
        if options.revs:
            members["_revisions"] = {"start": ancestry.pos, "ids": list(ancestry.ancestry)}
        if options.revs_info:
            available = replica.available(known, row, ancestry)
            members["_revs_info"] = [{"rev": rev, "status": status} for rev, status in available]
    if options.local_seq:
        members["_local_seq"] = row.seq
    if options.conflicts:
        losers = [leaf.rev for leaf in shown[1:] if not leaf.deleted]
        if losers:
            members["_conflicts"] = losers
    if options.deleted_conflicts:
        losers = [leaf.rev for leaf in shown[1:] if leaf.deleted]
        if losers:
            members["_deleted_conflicts"] = losers
    return members


def _ancestry(shown: list[revtree.Leaf], rev: str) -> revtree.Leaf:
    """A leaf below ``rev``, cut so that ``rev`` is its head."""
    leaf = revtree.descendants(shown, rev)[0]
    pos = revtree.parse_rev(rev)[0]
    return msgspec.structs.replace(leaf, pos=pos, ancestry=leaf.ancestry[leaf.pos - pos :])


def _encoding_info(att: Attachment) -> dict[str, object]:
    return {"encoding": att.encoding, "encoded_length": att.encoded_length} if att.encoding else {}


def _stub(att: Attachment, options: Options) -> bytes:
    return orjson.dumps(
        document.stub(att) | (_encoding_info(att) if options.att_encoding_info else {})
    )


def _with_data(replica: Replica, att: Attachment, options: Options) -> Iterator[bytes]:
    entry = document.stub(att)
    del entry["stub"], entry["length"]
    if options.att_encoding_info:
        entry |= _encoding_info(att)
    yield orjson.dumps(entry)[:-1] + b',"data":"'
    stored = replica.blob(att.blob)
    unpack = att.encoding == GZIP and not options.att_encoding_info
    yield from _base64(unpacked(stored, att.length) if unpack else stored)
    yield b'"}'


def unpacked(stored: Iterator[bytes], length: int) -> Iterator[bytes]:
    """What gzipped chunks unpack to."""
    gunzip = Gunzip(length)
    for chunk in stored:
        yield from gunzip.feed(chunk)
    gunzip.flush()


def _base64(chunks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        rest += chunk
        ready = len(rest) - len(rest) % 3
        for start in range(0, ready, BASE64_STEP):
            yield b64encode(rest[start : min(start + BASE64_STEP, ready)])
        rest = rest[ready:]
    yield b64encode(rest)
