"""``/{db}/_divan/…``: what CouchDB does not have."""

import asyncio
from collections.abc import Awaitable, Callable

from starlette.responses import Response

from divandb.auth import policy
from divandb.errors import Busy
from divandb.httpd import respond
from divandb.httpd.call import Call
from divandb.httpd.services import Services


async def digest(call: Call) -> Response:
    """``GET /{db}/_divan/digest``: equal at equal vectors, on whatever node."""
    known = call.database()
    replica = call.services.replica
    if call.flag("check"):
        policy.check_server_admin(call.user)
        summary = await replica.checked(known, _pause(call.services))
    else:
        summary = replica.summary(known)
    answer: dict[str, object] = {
        "db_name": known.name,
        "generation": known.generation,
        "digest": summary.digest,
        "doc_count": summary.docs,
        "doc_del_count": summary.tombstones,
        "update_seq": summary.update_seq,
        "vector": {_hex(origin): oseq for origin, oseq in sorted(summary.vector.items()) if oseq},
    }
    if summary.recomputed is not None:
        answer["recomputed"] = summary.recomputed
    return respond.json(answer)


def _hex(origin: int) -> str:
    return f"{origin % 2**64:016x}"


def _pause(services: Services) -> Callable[[], Awaitable[None]]:
    """Between pieces of work: as long as the last one took, so that others come first."""
    clock = services.clock
    begun = clock.monotonic()

    async def pause() -> None:
        nonlocal begun
        if services.stopping.is_set():
            raise Busy("The node stops.")
        await asyncio.sleep(clock.monotonic() - begun)
        begun = clock.monotonic()

    return pause


ROUTES = [
    ("/{db}/_divan/digest", {"GET": digest}),
]
