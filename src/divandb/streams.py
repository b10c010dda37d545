"""httpx clients for streams between nodes: cheap to make, and paid for before the fork.

The first client of a process costs 12 MB and 0.2 s: modules, and the system's certificates. So a
client without TLS gets a context that knows no certificates, made once, so that it trusts nobody,
and ``warm`` loads the rest in the parent that all nodes of a machine are forked from.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Mapping

import httpx

from divandb import tls as tls_of

_UNUSED = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def client(
    url: str,
    timeout: httpx.Timeout,
    *,
    headers: Mapping[str, str] | None = None,
    connections_max: int = 1,
    transport: httpx.AsyncBaseTransport | None = None,
    tls: ssl.SSLContext | None = None,
) -> httpx.AsyncClient:
    """A client for this URL and others of its scheme; ``https`` takes ``tls``, or the system's
    certificates.
    """
    verify = (tls or tls_of.of_system()) if url.startswith("https") else _UNUSED
    return httpx.AsyncClient(
        timeout=timeout,
        headers=headers,
        limits=httpx.Limits(max_connections=connections_max),
        trust_env=False,
        follow_redirects=False,
        transport=transport,
        verify=verify,
    )


def warm() -> None:
    """Load what a client loads at its first request."""

    async def ask() -> None:
        async with client("http://127.0.0.1:1", httpx.Timeout(1.0)) as asking:
            with contextlib.suppress(httpx.HTTPError):
                await asking.get("http://127.0.0.1:1/")

    asyncio.run(ask())
