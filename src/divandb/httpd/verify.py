"""``/_divan/proof`` and ``/_divan/verify``: whether nodes hold the same."""

from starlette.responses import Response

from divandb.auth import policy
from divandb.errors import BadRequest
from divandb.httpd import respond
from divandb.httpd.call import Call, RouteTable

MEDIA_TYPE = "application/vnd.msgpack"
STEPS = ("rows", "nodes")


async def proof(call: Call) -> Response:
    """``POST /_divan/proof``: what this node holds. For nodes."""
    asker, _, _ = call.peer()
    answer = await call.services.witness.answer(asker, await call.body())
    return Response(answer, media_type=MEDIA_TYPE)


async def begin(call: Call) -> Response:
    """``POST /_divan/verify``: have all rows read, or all nodes asked, now."""
    _check(call)
    step = (await call.json_object()).get("step")
    if step not in STEPS:
        raise BadRequest(f"`step` must be one of {', '.join(STEPS)}.")
    return respond.json({"run": call.services.verifier.begin(step)}, 202)


async def report(call: Call) -> Response:
    """``GET /_divan/verify``: what came of it."""
    _check(call)
    return respond.json(call.services.verifier.report())


def _check(call: Call) -> None:
    if not call.is_from_peer:
        policy.check_server_admin(call.user)


ROUTES: RouteTable = [
    ("/_divan/proof", {"POST": proof}),
    ("/_divan/verify", {"GET": report, "POST": begin}),
]
