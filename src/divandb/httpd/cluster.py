"""``/_divan/…``: what nodes and operators ask of a node; the frequent ones have ``peer_lane``."""

import msgspec
from starlette.responses import Response

from divandb.auth import policy
from divandb.cluster import messages
from divandb.errors import BadRequest
from divandb.httpd import respond
from divandb.httpd.call import Call, RouteTable

FRAMES = "application/vnd.divandb.frames"


async def status(call: Call) -> Response:
    """``GET /_divan/status``: this node, as `divandb status` shows it. For admins and nodes."""
    if not call.is_from_peer:
        policy.check_server_admin(call.user)
    return respond.json(call.services.condition())


async def beyond(call: Call) -> Response:
    """``POST /_divan/beyond``: a vector in, frames of Write Events out. For nodes."""
    call.peer()
    try:
        vector = messages.decode_vector(await call.body())
    except msgspec.MsgspecError:
        raise BadRequest("The body must be a vector in MessagePack.") from None
    return respond.stream(call.services.give(vector), FRAMES)


ROUTES: RouteTable = [
    ("/_divan/status", {"GET": status}),
    ("/_divan/beyond", {"POST": beyond}),
]
