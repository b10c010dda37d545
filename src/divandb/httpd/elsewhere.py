"""Attachments whose bytes are not here yet: an answer that sends them is another node's.

A document is applied whether its attachments' bytes are here or not, and `cluster.blobs` fetches
what is missing. Until it has, a request that would send such bytes is passed on to a node that can
answer it. An answer that goes through many documents waits for them instead, for a while.
"""

import asyncio
from collections.abc import Iterable

from starlette.responses import Response

from divandb.cluster.peers import Peer
from divandb.errors import Busy
from divandb.httpd.call import Call
from divandb.httpd.forward import PASSED_ON
from divandb.httpd.services import Services
from divandb.httpd.standing import FORWARDED
from divandb.replica import Replica
from divandb.revtree import Attachment
from divandb.vector import covers

PEERS_MAX = 16
"""Nodes that are asked, one after the other."""
WAIT_S_MAX = 5.0
LOOK_S = 0.05


def lacking(replica: Replica, attachments: Iterable[Attachment]) -> list[Attachment]:
    """Those whose bytes are not here."""
    return [att for att in attachments if not replica.has_blob(att.blob)]


async def answer(
    call: Call, attachments: Iterable[Attachment], body: bytes = b""
) -> Response | None:
    """Another node's answer to this request, whose body was ``body``; ``None`` if all the bytes are
    here. Raises ``Busy`` if they are nowhere.
    """
    services = call.services
    missing = lacking(services.replica, attachments)
    if not missing:
        return None
    services.want(att.blob for att in missing)
    for peer in _others(call):
        found = await services.forwarder.attempt(
            call.request, call.request.scope["path"], peer, body
        )
        if found is not None:
            call.request.scope[PASSED_ON] = True
            return found
    raise _not_here(missing[0])


def _others(call: Call) -> list[Peer]:
    """Who may have them, and has what the session needs."""
    if FORWARDED in call.headers:
        return []
    needs = call.session.needs.vector
    return [p for p in call.services.peers.nearest() if covers(p.vector, needs)][:PEERS_MAX]


async def awaited(services: Services, attachments: Iterable[Attachment]) -> None:
    """Have what is missing fetched now, and wait for it; raises ``Busy`` if it does not come."""
    missing = lacking(services.replica, attachments)
    services.want(att.blob for att in missing)
    until = services.clock.monotonic() + WAIT_S_MAX
    while missing:
        if services.clock.monotonic() > until:
            raise _not_here(missing[0])
        await asyncio.sleep(LOOK_S)
        missing = lacking(services.replica, missing)


def _not_here(att: Attachment) -> Busy:
    return Busy(f"The bytes of attachment {att.name} have not come here yet; try again shortly.")
