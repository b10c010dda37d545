"""``/_divan/…``: what nodes and operators ask of a node; the frequent ones have ``peer_lane``."""

import re

import msgspec
from starlette.responses import Response

from divandb.auth import policy
from divandb.cluster import messages
from divandb.errors import BadRequest, NotFound
from divandb.httpd import respond
from divandb.httpd.call import Call, RouteTable, whole

FRAMES = "application/vnd.divandb.frames"
EVENT = "application/vnd.divandb.event"


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
    ("/_divan/beyond", {"POST": beyond}),
    ("/_divan/blob/{hex}/{chunk}", {"GET": blob}),
]
