"""TLS: what a process shows to those who connect, and whom it trusts when it connects itself.

Certificates prove servers. Who is calling is proved by credentials (``cluster.trust``), so nobody
is asked for a certificate of his own.

Contexts live as long as the process: ``reload`` gives them what the files hold by then. Connections
that are open go on as they are.
"""

import functools
import ssl
from collections.abc import Callable
from pathlib import Path

from divandb.config import TlsFiles

HANDSHAKE_S_MAX = 10.0
"""A connection that has not agreed on a key by then is dropped."""


class TlsError(ValueError):
    """A certificate, key or CA that cannot be used; the text is one line for the operator."""


class Tls:
    """One process's TLS."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises ``TlsError``."""
        self._files = files
        self.served = _served(files)
        """For listening sockets; ``None``: without TLS."""
        self.trusted = _trusted(files)
        """For https URLs; ``None``: as the system does."""

    def reload(self) -> None:
        """Read the files again; raises ``TlsError``, and then nothing has changed.

        Authorities that are new are trusted, too; one that is gone is trusted until the process
        ends.
        """
        _served(self._files), _trusted(self._files)  # nothing is changed before all of it is sound
        if self.served is not None:
            _show(self.served, self._files)
        if self.trusted is not None:
            _trust(self.trusted, self._files)

    def renew(self, tell: Callable[..., object]) -> None:
        """``reload``, for a signal: ``tell(what, **details)`` hears what came of it."""
        if self._files == TlsFiles():
            return
        try:
            self.reload()
        except TlsError as problem:
            tell("certificates stay as they were", why=problem)
        else:
            tell("certificates are read again")


@functools.cache
def of_system() -> ssl.SSLContext:
    """Trusts whom the system trusts, or the variable ``SSL_CERT_FILE`` names."""
    return ssl.create_default_context()


def _served(files: TlsFiles) -> ssl.SSLContext | None:
    if files.certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    _show(context, files)
    return context


def _show(context: ssl.SSLContext, files: TlsFiles) -> None:
    assert files.certificate is not None
    try:
        context.load_cert_chain(files.certificate, files.certificate_key, _no_password)
    except OSError as problem:  # ssl.SSLError is one
        raise TlsError(
            f"{_named(files)}: {_reason(problem, 'no certificate with its key')}"
        ) from None
    except ValueError:
        raise TlsError(f"{_named(files)}: the key is encrypted") from None


def _no_password() -> str:
    """Instead of a question on the terminal."""
    raise ValueError


def _trusted(files: TlsFiles) -> ssl.SSLContext | None:
    if files.ca is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _trust(context, files)
    return context


def _trust(context: ssl.SSLContext, files: TlsFiles) -> None:
    try:
        context.load_verify_locations(files.ca)
    except OSError as problem:
        raise TlsError(
            f"{files.ca}: {_reason(problem, 'no certificate of an authority')}"
        ) from None


def _named(files: TlsFiles) -> str:
    paths: list[Path | None] = [files.certificate, files.certificate_key]
    return " and ".join(str(path) for path in paths if path is not None)


def _reason(problem: OSError, unsound: str) -> str:
    """Of an error of the file system its own; OpenSSL's say little to anybody."""
    if isinstance(problem, ssl.SSLError):
        return f"{unsound} ({problem.reason or 'not PEM'})"
    return problem.strerror or str(problem)
