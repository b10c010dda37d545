"""Every error a client can see: one tree, one handler.

    DivanError                    500 internal_server_error
    ├── BadRequest                400 bad_request
    │   ├── IllegalDocId          400 illegal_docid
    │   ├── IllegalDatabaseName   400 illegal_database_name
    │   ├── DocValidation         400 doc_validation
    │   ├── QueryParseError       400 query_parse_error
    │   └── CompilationError      400 compilation_error
    ├── Unauthorized              401 unauthorized
    ├── Forbidden                 403 forbidden
    ├── NotFound                  404 not_found
    ├── MethodNotAllowed          405 method_not_allowed
    ├── Conflict                  409 conflict
    ├── Removed                   410 removed
    ├── Expelled                  410 expelled
    ├── Gone                      410 gone
    ├── PreconditionFailed        412 precondition_failed
    │   ├── FileExists            412 file_exists
    │   └── MissingStub           412 missing_stub
    ├── TooLarge                  413 too_large
    ├── UnsupportedMediaType      415 bad_content_type
    ├── RangeNotSatisfiable       416 requested_range_not_satisfiable
    ├── NotImplementedHere        501 not_implemented
    ├── FunctionFailed            500 os_process_error
    │   └── FunctionEnded         500 os_process_error
    ├── InvalidValue              500 invalid_value
    ├── TookTooLong               500 timeout
    ├── ReplicationFailed         500 replication_failed
    └── Busy                      503 service_unavailable (with Retry-After)
        └── StorageFull           507 insufficient_storage

An error is answered as CouchDB does: ``{"error": error, "reason": reason}`` with
``status``. ``reason`` is for people and, where CouchDB clients compare it, matches
CouchDB to the letter.
"""


class DivanError(Exception):
    """The root: ``status`` (HTTP), ``error`` (code), ``reason`` (text), ``headers`` (extra)."""

    status = 500
    error = "internal_server_error"

    def __init__(
        self, reason: str, *, error: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.headers = headers or {}
        if error is not None:
            self.error = error


class BadRequest(DivanError):
    status = 400
    error = "bad_request"


class IllegalDocId(BadRequest):
    error = "illegal_docid"


class IllegalDatabaseName(BadRequest):
    error = "illegal_database_name"


class DocValidation(BadRequest):
    error = "doc_validation"


class QueryParseError(BadRequest):
    error = "query_parse_error"


class CompilationError(BadRequest):
    """A function of a design document that is none."""

    error = "compilation_error"


class Unauthorized(DivanError):
    status = 401
    error = "unauthorized"


class Forbidden(DivanError):
    status = 403
    error = "forbidden"


class NotFound(DivanError):
    status = 404
    error = "not_found"


class MethodNotAllowed(DivanError):
    status = 405
    error = "method_not_allowed"


class Gone(DivanError):
    status = 410
    error = "gone"


class Conflict(DivanError):
    status = 409
    error = "conflict"

    def __init__(self, reason: str = "Document update conflict.") -> None:
        super().__init__(reason)


class Removed(DivanError):
    """A node is asked that is no member of the cluster any more."""

    status = 410
    error = "removed"


class Expelled(DivanError):
    """A node asks that is no member of the cluster any more."""

    status = 410
    error = "expelled"


class PreconditionFailed(DivanError):
    status = 412
    error = "precondition_failed"


class FileExists(PreconditionFailed):
    error = "file_exists"


class MissingStub(PreconditionFailed):
    error = "missing_stub"


class TooLarge(DivanError):
    status = 413
    error = "too_large"


class UnsupportedMediaType(DivanError):
    status = 415
    error = "bad_content_type"


class RangeNotSatisfiable(DivanError):
    status = 416
    error = "requested_range_not_satisfiable"


class NotImplementedHere(DivanError):
    status = 501
    error = "not_implemented"


class FunctionFailed(DivanError):
    """A function of a design document was ended, or raised what is no answer."""

    error = "os_process_error"


class FunctionEnded(FunctionFailed):
    """It took too long, or too much memory."""


class InvalidValue(DivanError):
    """A value that a built-in reduce function cannot take."""

    error = "invalid_value"


class TookTooLong(DivanError):
    error = "timeout"


class ReplicationFailed(DivanError):
    """The other side of a replication cannot be reached, or answers what it should not."""

    error = "replication_failed"


class Busy(DivanError):
    """A bounded queue is full: the caller may come back after ``retry_after_s`` seconds."""

    status = 503
    error = "service_unavailable"

    def __init__(self, reason: str, *, retry_after_s: int = 1) -> None:
        super().__init__(reason, headers={"retry-after": str(retry_after_s)})


class StorageFull(Busy):
    """The disk refused a write: nothing was stored, reads go on."""

    status = 507
    error = "insufficient_storage"
