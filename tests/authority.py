"""Certificates for tests: authorities of a minute, and what they sign."""

import subprocess
from pathlib import Path

from divandb.config import TlsFiles

_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]


class Authority:
    """Signs certificates; its own is ``certificate``."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.certificate = folder / "ca.crt"
        self._key = folder / "ca.key"
        _req("-subj", "/CN=tests", "-keyout", self._key, "-out", self.certificate)

    def issue(self, folder: Path, host: str = "127.0.0.1", name: str = "node") -> TlsFiles:
        """A certificate for an address and a name, with its key and this authority's, in a
        folder.
        """
        folder.mkdir(exist_ok=True)
        files = TlsFiles(folder / "tls.crt", folder / "tls.key", folder / "ca.crt")
        _req(
            "-subj", f"/CN={name}", "-addext", f"subjectAltName=IP:{host}",
            "-addext", "basicConstraints=critical,CA:FALSE",
            "-CA", self.certificate, "-CAkey", self._key,
            "-keyout", folder / "tls.key", "-out", folder / "tls.crt",
        )  # fmt: skip
        (folder / "ca.crt").write_bytes(self.certificate.read_bytes())
        return files


def _req(*options: str | Path) -> None:
    subprocess.run(["openssl", "req", "-x509", *_KEY, *options], check=True, capture_output=True)
