"""``/{db}`` and what belongs to a whole database."""

import asyncio
import contextlib
from typing import Any

from starlette.responses import Response

from divandb.auth import policy, users
from divandb.catalog import Known
from divandb.cluster import messages
from divandb.cluster.peers import Peer
from divandb.errors import BadRequest, UnsupportedMediaType
from divandb.httpd import respond
from divandb.httpd.call import Call, encode_json
from divandb.httpd.cluster import COMPACTED_S_MAX
from divandb.httpd.info import database_info
from divandb.link import LinkBroken
from divandb.revtree import parse_rev

REVS_LIMIT_MAX = 1_000_000
PURGED_INFOS_LIMIT = 1000


async def info(call: Call) -> Response:
    """``GET /{db}``."""
    return respond.json(database_info(call, call.database()))


async def create(call: Call) -> Response:
    """``PUT /{db}``."""
    policy.check_server_admin(call.user)
    name = call.path("db")
    options: dict[str, object] = {}
    if call.query.get("partitioned") is not None:
        options["partitioned"] = call.flag("partitioned")
    for parameter in ("q", "n"):
        number = call.number(parameter)
        if number is not None:  # kept and shown again; every node holds all the data in one file
            options[parameter] = max(number, 1)
    await call.entry.create_database(name, options)
    answer = respond.ok(201)
    answer.headers["location"] = call.own_url(call.request.path_params["db"])
    return answer


async def drop(call: Call) -> Response:
    """``DELETE /{db}``."""
    policy.check_server_admin(call.user)
    if call.query.get("rev") is not None:
        raise BadRequest(
            "You tried to DELETE a database with a ?=rev parameter. "
            "Did you mean to DELETE a document instead?"
        )
    await call.entry.drop_database(call.path("db"))
    return respond.ok()


async def get_security(call: Call) -> Response:
    """``GET /{db}/_security``."""
    return respond.json_bytes(call.database().security_json)


async def put_security(call: Call) -> Response:
    """``PUT /{db}/_security``."""
    known = call.database_as_admin()
    security = await call.json()
    policy.parse_security(security)
    await call.entry.set_security(known, encode_json(security))
    return respond.ok()


async def get_revs_limit(call: Call) -> Response:
    """``GET /{db}/_revs_limit``."""
    return respond.json(call.database().revs_limit)


async def put_revs_limit(call: Call) -> Response:
    """``PUT /{db}/_revs_limit``."""
    known = call.database_as_admin()
    await call.entry.set_revs_limit(known, _limit(await call.json()))
    return respond.ok()


async def get_purged_infos_limit(call: Call) -> Response:
    """``GET /{db}/_purged_infos_limit``: purges are kept as contexts, without a limit."""
    policy.check_server_admin(call.user)
    call.database()
    return respond.json(PURGED_INFOS_LIMIT)


async def put_purged_infos_limit(call: Call) -> Response:
    """``PUT /{db}/_purged_infos_limit``: checked, and without effect."""
    policy.check_server_admin(call.user)
    call.database()
    _limit(await call.json())
    return respond.ok()


def _limit(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= REVS_LIMIT_MAX:
        raise BadRequest(f"The limit must be a number from 1 to {REVS_LIMIT_MAX}")
    return value


async def compact(call: Call) -> Response:
    """``POST /{db}/_compact``: begins at once, in the background, on all nodes that answer."""
    known = call.services.catalog.get(call.path("db"))
    policy.check_compaction(known.security, call.user)
    call.check_json_content_type()
    await call.body()
    call.services.compact(known.num)
    told = messages.encode((known.name, known.generation, call.services.progress.vector))
    await asyncio.gather(*(_compact_there(peer, told) for peer in call.services.peers.live()))
    return respond.ok(202)


async def _compact_there(peer: Peer, told: bytes) -> None:
    with contextlib.suppress(LinkBroken):  # it compacts by itself, too
        await peer.link.ask(
            "POST", f"{messages.PREFIX}/compact", told,
            wait_s=2 * COMPACTED_S_MAX, body_bytes_max=64, repeatable=True,
        )  # fmt: skip


async def ensure_full_commit(call: Call) -> Response:
    """``POST /{db}/_ensure_full_commit``: every answered write is durable already; what the
    session wrote is on the Masters' Board, too, once this is answered.
    """
    known = call.database()
    if "json" not in call.headers.get("content-type", ""):
        raise UnsupportedMediaType("Content-Type must be application/json")
    await call.body()
    await call.entry.confirm()
    return respond.ok(201, instance_start_time=str(known.created_ms // 1000))


async def purge(call: Call) -> Response:
    """``POST /{db}/_purge``: removes leaf revisions for good."""
    policy.check_server_admin(call.user)
    known = call.database()
    call.check_json_content_type()
    wanted = await call.json_object()
    if len(wanted) > call.services.limits.bulk_docs_max:
        raise BadRequest("Too many documents.")
    for revs in wanted.values():
        _check_revs(revs)
    purged = await call.entry.purge(known, wanted)
    return respond.json({"purge_seq": None, "purged": purged}, 201)


def _check_revs(revs: Any) -> list[str]:
    if not isinstance(revs, list):
        raise BadRequest("Revisions must be a JSON array")
    for rev in revs:
        parse_rev(rev)
    return revs


async def revs_diff(call: Call) -> Response:
    """``POST /{db}/_revs_diff``: which of these revisions are not here."""
    known = _database_for_revs(call)
    answer: dict[str, object] = {}
    for doc_id, revs in (await _wanted_revs(call)).items():
        missing, ancestors = call.services.replica.missing_revs(known, doc_id, revs)
        if missing:
            row: dict[str, object] = {"missing": missing}
            if ancestors:
                row["possible_ancestors"] = ancestors
            answer[doc_id] = row
    return respond.json(answer)


async def missing_revs(call: Call) -> Response:
    """``POST /{db}/_missing_revs``: the same, in its older shape."""
    known = _database_for_revs(call)
    found = {
        doc_id: call.services.replica.missing_revs(known, doc_id, revs)[0]
        for doc_id, revs in (await _wanted_revs(call)).items()
    }
    return respond.json({"missing_revs": {doc_id: revs for doc_id, revs in found.items() if revs}})


def _database_for_revs(call: Call) -> Known:
    known = call.database()
    if known.name == users.USERS_DB:  # which users there are is not for everybody
        policy.check_server_admin(call.user)
    return known


async def _wanted_revs(call: Call) -> dict[str, list[str]]:
    wanted = await call.json_object()
    if len(wanted) > call.services.limits.bulk_docs_max:
        raise BadRequest("Too many documents.")
    return {doc_id: _check_revs(revs) for doc_id, revs in wanted.items()}


ROUTES = [
    ("/{db}", {"GET": info, "PUT": create, "DELETE": drop}),
    ("/{db}/_security", {"GET": get_security, "PUT": put_security}),
    ("/{db}/_revs_limit", {"GET": get_revs_limit, "PUT": put_revs_limit}),
    ("/{db}/_purged_infos_limit", {"GET": get_purged_infos_limit, "PUT": put_purged_infos_limit}),
    ("/{db}/_compact", {"POST": compact}),
    ("/{db}/_ensure_full_commit", {"POST": ensure_full_commit}),
    ("/{db}/_purge", {"POST": purge}),
    ("/{db}/_revs_diff", {"POST": revs_diff}),
    ("/{db}/_missing_revs", {"POST": missing_revs}),
]
