"""The Python client: documents of a cluster, from the closest node. See docs/client.md.

    aio.py       ``AsyncClient``, for asyncio
    sync.py      ``Client``, the same for threads
    calls.py     what each call asks, and how its answer is read
    feed.py      `_changes`, across nodes
    sender.py    a request until it has its answer: retries, repeats, headers
    nodes.py     the nodes, how far they are, which one is asked
    tokens.py    sessions
    content.py   documents as dictionaries
    wire.py      requests and answers; paths and parameters
    driving.py   what both drivers make of httpx
    connections.py   kept open between requests
    options.py   bounds and defaults
    errors.py    what a call can raise

Imports nothing of the server but ``clock`` and ``closest``.
"""

from divandb.client.aio import (
    AsyncAttachment,
    AsyncBulk,
    AsyncClient,
    AsyncDatabase,
    AsyncDocument,
    AsyncSecurity,
    AsyncView,
)
from divandb.client.calls import Saved
from divandb.client.errors import (
    BadAnswerError,
    BadRequestError,
    ClientError,
    ConflictError,
    ForbiddenError,
    NoAnswerError,
    NotFoundError,
    PreconditionFailedError,
    RangeError,
    ServerError,
    StorageFullError,
    TooBusyError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
    UncertainError,
    UnsupportedMediaTypeError,
)
from divandb.client.feed import Change
from divandb.client.nodes import Node
from divandb.client.options import Options
from divandb.client.sync import Attachment, Bulk, Client, Database, Document, Security, View

__all__ = [
    "AsyncAttachment",
    "AsyncBulk",
    "AsyncClient",
    "AsyncDatabase",
    "AsyncDocument",
    "AsyncSecurity",
    "AsyncView",
    "Attachment",
    "BadAnswerError",
    "BadRequestError",
    "Bulk",
    "Change",
    "Client",
    "ClientError",
    "ConflictError",
    "Database",
    "Document",
    "ForbiddenError",
    "NoAnswerError",
    "Node",
    "NotFoundError",
    "Options",
    "PreconditionFailedError",
    "RangeError",
    "Saved",
    "Security",
    "ServerError",
    "StorageFullError",
    "TooBusyError",
    "TooLargeError",
    "UnauthorizedError",
    "UnavailableError",
    "UncertainError",
    "UnsupportedMediaTypeError",
    "View",
]
