"""What a call can raise.

ClientError
├── NoAnswerError                no node answered in time, and nothing was done
├── UncertainError               no answer, and perhaps it was done: look before doing it again
├── TooBusyError                 all connections of this client are in use
├── BadAnswerError               what came cannot be read, or is too large
└── ServerError                  an answer: ``status``, and CouchDB's ``error`` and ``reason``
    ├── BadRequestError          400
    ├── UnauthorizedError        401
    ├── ForbiddenError           403
    ├── NotFoundError            404
    ├── ConflictError            409
    ├── PreconditionFailedError  412
    ├── TooLargeError            413
    ├── UnsupportedMediaTypeError 415
    ├── RangeError               416
    ├── UnavailableError         502, 503, 504
    └── StorageFullError         507
"""

import orjson

REASON_CHARS_MAX = 300


class ClientError(Exception):
    """The root."""


class NoAnswerError(ClientError):
    """No node answered in time. The request was not carried out."""


class UncertainError(ClientError):
    """The request was sent and got no answer, and sending it again could do it twice.

    Only requests that cannot be repeated end like this: see docs/client.md.
    """


class TooBusyError(ClientError):
    """Every connection was in use for too long: ``connections_max`` is too small for the load."""


class BadAnswerError(ClientError):
    """An answer that is no JSON where it must be, or has more bytes than ``answer_bytes_max``."""


class ServerError(ClientError):
    """The server's refusal."""

    def __init__(self, status: int, error: str, reason: str, *, is_uncertain: bool = False) -> None:
        super().__init__(f"{status} {error}: {reason}")
        self.status = status
        self.error = error
        """CouchDB's code, such as ``not_found``."""
        self.reason = reason
        self.is_uncertain = is_uncertain
        """Did an earlier attempt of this call get no answer, or does this answer leave open whether
        it was done? Then it may have been, all the same.
        """


class BadRequestError(ServerError):
    """400"""


class UnauthorizedError(ServerError):
    """401: no login, or a wrong one."""


class ForbiddenError(ServerError):
    """403"""


class NotFoundError(ServerError):
    """404: no such database, document, revision or attachment."""


class ConflictError(ServerError):
    """409: the document has another revision by now."""


class PreconditionFailedError(ServerError):
    """412: the database is there already; bytes of an attachment are missing."""


class TooLargeError(ServerError):
    """413"""


class UnsupportedMediaTypeError(ServerError):
    """415"""


class RangeError(ServerError):
    """416"""


class UnavailableError(ServerError):
    """502, 503, 504: no node could do it in time."""


class StorageFullError(ServerError):
    """507: the disk is full; nothing was stored."""


_KINDS: dict[int, type[ServerError]] = {
    400: BadRequestError,
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    412: PreconditionFailedError,
    413: TooLargeError,
    415: UnsupportedMediaTypeError,
    416: RangeError,
    502: UnavailableError,
    503: UnavailableError,
    504: UnavailableError,
    507: StorageFullError,
}
_CODES = {"unauthorized": 401, "forbidden": 403, "not_found": 404, "conflict": 409}


def of_answer(status: int, body: bytes, *, is_uncertain: bool = False) -> ServerError:
    """The error of an answer, whoever gave it: a proxy's need not be JSON."""
    error, reason = "http_error", body[:REASON_CHARS_MAX].decode(errors="replace")
    try:
        told = orjson.loads(body)
    except ValueError:
        told = None
    if isinstance(told, dict):
        error, reason = str(told.get("error", error)), str(told.get("reason", ""))
    kind = _KINDS.get(status, ServerError)
    return kind(status, error, reason, is_uncertain=is_uncertain)


def of_row(row: dict[str, object], *, is_uncertain: bool = False) -> ServerError:
    """The error of one document within an answer to many."""
    error = str(row.get("error"))
    status = _CODES.get(error, 400)
    reason = str(row.get("reason", ""))
    return _KINDS[status](status, error, reason, is_uncertain=is_uncertain)
