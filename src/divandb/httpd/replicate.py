"""``/_replicate`` and ``/_scheduler/…``: replications that nodes of this cluster run."""

import asyncio
from typing import Any

import orjson
from starlette.responses import Response

from divandb.auth import policy
from divandb.auth.policy import UserContext
from divandb.cluster.peers import Peer
from divandb.errors import BadRequest, NotFound
from divandb.httpd import respond
from divandb.httpd.call import Call, RouteTable, json_object
from divandb.link import LinkBroken
from divandb.replication import request
from divandb.replication.jobs import DATABASE
from divandb.replication.watch import COMPLETED, FAILED

PATH = "/_divan/replications"
ROWS_BYTES_MAX = 16 * 2**20
WAIT_S = 2.0
LIMIT = 100
STATES = frozenset({"initializing", "running", "pending", "crashing", "error", COMPLETED, FAILED})


async def replicate(call: Call) -> Response:
    """``POST /_replicate``: answered at the end of a one-shot replication, at once of a continuous
    one.
    """
    policy.check_known(call.user)
    call.check_json_content_type()
    asked = await call.json_object()
    if asked.get("cancel") is True:
        return await _cancel(call, asked)
    what = request.parse(asked, call.user)
    jobs = call.services.replications
    job = jobs.begin(what)
    if what.continuous:
        return respond.ok(202, _local_id=job.id)
    return respond.json(await jobs.result(job))


async def _cancel(call: Call, asked: dict[str, Any]) -> Response:
    job_id = _job_id(call, asked)
    is_done = await call.services.replications.cancel(job_id, call.user)
    if not is_done:
        order = {"cancel": job_id, "name": call.user.name, "roles": call.user.roles}
        answers = await _ask_all(call, "POST", orjson.dumps(order))
        is_done = any(answer.get("ok") is True for answer in answers)
    if not is_done:
        raise NotFound("not found")
    return respond.ok(_local_id=job_id)


def _job_id(call: Call, asked: dict[str, Any]) -> str:
    for name in ("replication_id", "_local_id", "id"):
        if isinstance(asked.get(name), str):
            return str(asked[name])
    return request.parse(asked, call.user).job_id(call.services.cluster)


async def jobs(call: Call) -> Response:
    """``GET /_scheduler/jobs``: those of all nodes that answer."""
    policy.check_server_admin(call.user)
    rows = sorted(await _jobs_of_all(call), key=lambda row: str(row["id"]))
    return _page(call, [_job_row(row) for row in rows], "jobs")


async def job(call: Call) -> Response:
    """``GET /_scheduler/jobs/{job}``."""
    policy.check_server_admin(call.user)
    wanted = call.path("job")
    for row in await _jobs_of_all(call):
        if row["id"] == wanted:
            return respond.json(_job_row(row))
    raise NotFound("missing")


async def docs(call: Call) -> Response:
    """``GET /_scheduler/docs`` and ``/_scheduler/docs/_replicator``."""
    policy.check_server_admin(call.user)
    if "db" in call.request.path_params:
        _check_database(call)
    rows = await _docs(call)
    states = _states(call)
    return _page(call, [row for row in rows if row["state"] in states], "docs")


async def doc(call: Call) -> Response:
    """``GET /_scheduler/docs/_replicator/{doc}``."""
    policy.check_server_admin(call.user)
    _check_database(call)
    wanted = call.path("doc")
    for row in await _docs(call):
        if row["doc_id"] == wanted:
            return respond.json(row)
    raise NotFound("missing")


async def here(call: Call) -> Response:
    """``GET /_divan/replications``: those of this node. For nodes."""
    call.peer()
    return respond.json({"jobs": call.services.replications.shown()})


async def cancel_here(call: Call) -> Response:
    """``POST /_divan/replications``: end one of this node's. For nodes."""
    call.peer()
    order = await call.json_object()
    user = UserContext(order.get("name"), tuple(order.get("roles", ())))
    is_done = await call.services.replications.cancel(str(order.get("cancel")), user)
    return respond.json({"ok": is_done})


def _check_database(call: Call) -> None:
    if call.path("db") != DATABASE:
        raise NotFound("missing")


def _states(call: Call) -> frozenset[str]:
    text = call.query.get("states")
    if text is None:
        return STATES
    states = frozenset(text.split(","))
    if not states <= STATES:
        raise BadRequest(f"`states` must be some of {', '.join(sorted(STATES))}.")
    return states


def _page(call: Call, rows: list[dict[str, Any]], name: str) -> Response:
    limit, skip = call.number("limit", LIMIT), call.number("skip", 0)
    assert limit is not None and skip is not None
    offset = min(skip, len(rows))
    shown = rows[offset : offset + limit]
    return respond.json({"total_rows": len(rows), "offset": offset, name: shown})


def _job_row(row: dict[str, Any]) -> dict[str, Any]:
    """Without what only `_scheduler/docs` shows."""
    left_out = ("state", "error_count", "last_updated")
    return {name: value for name, value in row.items() if name not in left_out}


async def _docs(call: Call) -> list[dict[str, Any]]:
    jobs = {row["doc_id"]: row for row in await _jobs_of_all(call) if row["doc_id"] is not None}
    return sorted(call.services.watch.shown(jobs), key=lambda row: str(row["doc_id"]))


async def _jobs_of_all(call: Call) -> list[dict[str, Any]]:
    answers = await _ask_all(call, "GET")
    rows: list[dict[str, Any]] = call.services.replications.shown()
    return rows + [row for answer in answers for row in answer.get("jobs", ())]


async def _ask_all(call: Call, method: str, body: bytes = b"") -> list[dict[str, Any]]:
    """What the other nodes that live answer."""
    found = await asyncio.gather(*(_ask(p, method, body) for p in call.services.peers.live()))
    return [answer for answer in found if answer is not None]


async def _ask(peer: Peer, method: str, body: bytes) -> dict[str, Any] | None:
    try:
        async with asyncio.timeout(WAIT_S):
            reply = await peer.link.ask(
                method, PATH, body, wait_s=WAIT_S, body_bytes_max=ROWS_BYTES_MAX
            )
    except (LinkBroken, TimeoutError):
        return None
    return json_object(reply.body) if reply.status == 200 else None


ROUTES: RouteTable = [
    (PATH, {"GET": here, "POST": cancel_here}),
    ("/_replicate", {"POST": replicate}),
    ("/_scheduler/jobs", {"GET": jobs}),
    ("/_scheduler/jobs/{job}", {"GET": job}),
    ("/_scheduler/docs", {"GET": docs}),
    ("/_scheduler/docs/{db}", {"GET": docs}),
    ("/_scheduler/docs/{db}/{doc:path}", {"GET": doc}),
]
