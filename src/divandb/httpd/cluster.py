"""``/_divan/…``: what nodes and operators ask of a node; the frequent ones have ``peer_lane``."""

import asyncio
import contextlib
import re

import msgspec
from starlette.responses import Response

from divandb.auth import policy
from divandb.cluster import messages, removal
from divandb.cluster.messages import Candidacy
from divandb.config import MASTER, REPLICA, Member
from divandb.errors import BadRequest, NotFound
from divandb.httpd import respond
from divandb.httpd.call import Call, RouteTable, whole
from divandb.telemetry import rfc3339

FRAMES = "application/vnd.divandb.frames"
MESSAGE = "application/msgpack"
EVENT = "application/vnd.divandb.event"
COMPACTED_S_MAX, COMPACTED_POLL_S = 1.0, 0.02
"""A small compaction is waited for, so that whoever asked finds it done on all nodes."""


async def status(call: Call) -> Response:
    """``GET /_divan/status``: this node, as `divandb status` shows it. For admins and nodes."""
    _check_operator(call)
    return respond.json(call.services.condition())


async def topology(call: Call) -> Response:
    """``GET /_divan/topology``: the members, for clients that choose their node. For all users."""
    policy.check_known(call.user)
    peers = call.services.peers
    tenure = peers.tenure
    members = [_shown(tenure.member, tenure.role, is_live=not tenure.is_drained)]
    for peer in peers.all():
        role = MASTER if tenure.owns(peer.member) else REPLICA
        is_live = peers.is_live(peer) and not peer.is_drained
        members.append(_shown(peer.member, role, is_live=is_live))
    told = {"name": call.services.config.name, "cluster": call.services.cluster}
    return respond.json({**told, "members": members})


def _shown(member: Member, role: str, *, is_live: bool) -> dict[str, object]:
    return {
        "name": member.name,
        "role": role,
        "slot": member.slot,
        "url": member.url,
        "zone": member.zone,
        "live": is_live,
    }


async def beyond(call: Call) -> Response:
    """``POST /_divan/beyond``: a vector in, frames of Write Events out. For nodes."""
    call.peer()
    return respond.stream(call.services.give(await _vector(call)), FRAMES)


async def _vector(call: Call) -> dict[int, int]:
    try:
        return messages.decode_vector(await call.body())
    except msgspec.MsgspecError:
        raise BadRequest("The body must be a vector in MessagePack.") from None


async def passed(call: Call) -> Response:
    """``POST /_divan/passed``: who of this node's group contains a vector? For nodes."""
    call.peer()
    return _message(call.services.peers.passing(await _vector(call)))


async def versions(call: Call) -> Response:
    """``POST /_divan/versions``: how far is this node with versions of views? For nodes."""
    call.peer()
    try:
        return _message(call.services.versions.answer(await call.body()))
    except msgspec.MsgspecError:
        raise BadRequest("The body must be versions in MessagePack.") from None


async def grant(call: Call) -> Response:
    """``POST /_divan/grant``: may the node that asks take over its slot? For nodes."""
    asked = await _candidacy(call)
    return _message(call.services.failover.grant(call.peer(), asked.epoch))


async def leave(call: Call) -> Response:
    """``POST /_divan/leave``: the slot's owner accepts no more writes, so that the node that asks
    may go on. For nodes of its group.
    """
    await _candidacy(call)
    return _message(await call.services.failover.leave(call.peer()))


async def promote(call: Call) -> Response:
    """``POST /_divan/promote``: this node takes its slot over. For admins and nodes."""
    _check_operator(call)
    epoch = await call.services.failover.promote()
    return respond.json({"ok": True, "owner": call.services.config.name, "epoch": epoch})


async def demote(call: Call) -> Response:
    """``POST /_divan/demote``: another node of the group takes this one's slot over. For admins."""
    _check_operator(call)
    owner = await call.services.failover.demote()
    return respond.json({"ok": True, "owner": owner})


async def remove(call: Call) -> Response:
    """``POST /_divan/remove``: a node is a member no more. For admins and nodes."""
    _check_operator(call)
    body = await call.json_object()
    name, is_forced = body.get("node"), body.get("force", False)
    if not isinstance(name, str) or not isinstance(is_forced, bool):
        raise BadRequest('The body must be {"node": NAME, "force": true or false}.')
    services = call.services
    if name not in services.peers.removed:
        now = services.clock.monotonic()
        own = services.progress.vector
        removal.check(
            services.peers, own, name, now,
            is_forced=is_forced, is_to_own=services.failover.has_granted(name),
        )  # fmt: skip
        at = rfc3339(services.clock.wall_ms())
        await call.entry.remove_member(name, msgspec.json.encode({"at": at}))
    return respond.json({"ok": True, "removed": name})


async def drain(call: Call) -> Response:
    """``POST /_divan/drain`` with ``{"drained": true}``: this node leaves service, or with
    ``false`` is back in it. For admins.
    """
    _check_operator(call)
    asked = await call.json()
    wanted = asked.get("drained") if isinstance(asked, dict) else None
    if not isinstance(wanted, bool):
        raise BadRequest('The body must be {"drained": true} or {"drained": false}.')
    owner = None
    if wanted:
        owner = await call.services.drain.begin()
    else:
        call.services.drain.end()
    return respond.json({"ok": True, "owner": owner})


async def receipts(call: Call) -> Response:
    """``GET /_divan/receipts?after=KEY``: writes that came back with former owners, a page of
    them. For admins.
    """
    _check_operator(call)
    found, following = call.services.replica.receipts(call.query.get("after", ""))
    rows, key = b",\n".join(found), msgspec.json.encode(following)
    return Response(b'{"receipts":[%b],"next":%b}\n' % (rows, key), media_type="application/json")


def _check_operator(call: Call) -> None:
    if not call.is_from_peer:
        policy.check_server_admin(call.user)


async def compact(call: Call) -> Response:
    """``POST /_divan/compact``: begin with a database, as another node was asked to. Answered when
    it is done, or after a moment. For nodes.
    """
    call.peer()
    try:
        name, generation, vector = messages.decode_compaction(await call.body())
    except msgspec.MsgspecError:
        raise BadRequest("The body must be a compaction in MessagePack.") from None
    services = call.services
    known = services.catalog.find(name)
    if known is not None and known.generation == generation:
        await services.progress.reach(vector, COMPACTED_S_MAX / 2)
        services.compact(known.num)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(COMPACTED_S_MAX):
                while services.compacting(known.num):
                    await asyncio.sleep(COMPACTED_POLL_S)
    return _message(True)


async def _candidacy(call: Call) -> Candidacy:
    call.peer()
    try:
        return messages.decode_candidacy(await call.body())
    except msgspec.MsgspecError:
        raise BadRequest("The body must be a candidacy in MessagePack.") from None


def _message(value: object) -> Response:
    return Response(messages.encode(value), media_type=MESSAGE)


async def blob(call: Call) -> Response:
    """``GET /_divan/blob/{hex}/{chunk}``: a piece of an attachment, as a Write Event. For nodes."""
    call.peer()
    name, index = call.path("hex"), whole("chunk", call.path("chunk"))
    if re.fullmatch(r"[0-9a-f]{64}", name) is None:
        raise BadRequest("An attachment is named by 64 hex digits.")
    data = call.services.replica.blob_event(bytes.fromhex(name), index)
    if data is None:
        raise NotFound("missing")
    return Response(data, media_type=EVENT)


ROUTES: RouteTable = [
    ("/_divan/status", {"GET": status}),
    ("/_divan/topology", {"GET": topology}),
    ("/_divan/beyond", {"POST": beyond}),
    ("/_divan/passed", {"POST": passed}),
    ("/_divan/versions", {"POST": versions}),
    ("/_divan/compact", {"POST": compact}),
    ("/_divan/grant", {"POST": grant}),
    ("/_divan/leave", {"POST": leave}),
    ("/_divan/promote", {"POST": promote}),
    ("/_divan/demote", {"POST": demote}),
    ("/_divan/remove", {"POST": remove}),
    ("/_divan/drain", {"POST": drain}),
    ("/_divan/receipts", {"GET": receipts}),
    ("/_divan/blob/{hex}/{chunk}", {"GET": blob}),
]
