"""Certificates: what is served and trusted, what is refused in one line, and new ones for old."""

import asyncio
import contextlib
import dataclasses
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from divandb import streams
from divandb.config import TlsFiles
from divandb.link import Link, LinkBroken
from divandb.tls import Tls, TlsError
from tests.authority import Authority
from tests.stores import SeededRng
from tests.unit.test_link import Peer, in_loop


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    folder = tmp_path_factory.mktemp("authorities")
    return Authority(folder / "ours"), Authority(folder / "theirs")


@contextlib.asynccontextmanager
async def listening(peer: Peer, tls: Tls) -> AsyncIterator[str]:
    """The peer's URL while it listens."""
    server = await asyncio.start_server(peer.serve, "127.0.0.1", 0, ssl=tls.served)
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in peer.writers:
            writer.close()


async def asked(url: str, trusted: ssl.SSLContext | None) -> str:
    """What became of a question over a new connection."""
    link = Link(url, {}, SeededRng(), tls=trusted)
    try:
        return (await link.ask("GET", "/", body_bytes_max=10)).body.decode()
    except LinkBroken as broken:
        assert not broken.sent
        return broken.reason
    finally:
        await link.close()


@in_loop
async def test_a_link_goes_only_where_the_authority_is_trusted(
    tmp_path: Path, authorities: tuple[Authority, Authority]
) -> None:
    ours = Tls(authorities[0].issue(tmp_path / "ours"))
    theirs = Tls(authorities[1].issue(tmp_path / "theirs"))
    async with listening(Peer(), ours) as url:
        assert await asked(url, ours.trusted) == "ok"
        for trusted in (theirs.trusted, None):
            reason = await asked(url, trusted)
            assert "shows a certificate that is not trusted: unable to get" in reason


@in_loop
async def test_a_certificate_must_be_of_the_address_that_was_asked(
    tmp_path: Path, authorities: tuple[Authority, Authority]
) -> None:
    tls = Tls(authorities[0].issue(tmp_path / "tls", "127.0.0.2"))
    async with listening(Peer(), tls) as url:
        assert "IP address mismatch" in await asked(url, tls.trusted)


@in_loop
async def test_a_stream_goes_only_where_the_authority_is_trusted(
    tmp_path: Path, authorities: tuple[Authority, Authority]
) -> None:
    tls = Tls(authorities[0].issue(tmp_path / "tls"))
    length = {"content-length": "0"}
    async with listening(Peer(), tls) as url:
        async with streams.client(url, httpx.Timeout(5), tls=tls.trusted) as client:
            assert (await client.get(url, headers=length)).text == "ok"
        # A client that was made for http has no authorities: it trusts nobody.
        for made_for in (url, "http://127.0.0.1:1"):
            async with streams.client(made_for, httpx.Timeout(5)) as client:
                with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                    await client.get(url, headers=length)


@in_loop
async def test_new_certificates_are_taken_and_unsound_ones_change_nothing(
    tmp_path: Path, authorities: tuple[Authority, Authority]
) -> None:
    old, new = authorities
    tls = Tls(old.issue(tmp_path / "tls"))
    first, second = Tls(old.issue(tmp_path / "a")), Tls(new.issue(tmp_path / "b"))
    told: list[Any] = []

    def tell(*what: Any, **details: Any) -> None:
        told.append((*what, *map(str, details.values())))

    async with listening(Peer(), tls) as url, listening(Peer(), second) as other:
        assert "not trusted" in await asked(other, tls.trusted)
        key = tmp_path / "tls" / "tls.key"
        shutil.copy(tmp_path / "b" / "tls.key", key)  # half of the new pair
        tls.renew(tell)
        assert told[-1][0] == "certificates stay as they were"
        assert f"{key}: no certificate with its key (KEY_VALUES_MISMATCH)" in told[-1][1]
        assert await asked(url, first.trusted) == "ok"
        for name in ("tls.crt", "ca.crt"):
            shutil.copy(tmp_path / "b" / name, tmp_path / "tls" / name)
        tls.renew(tell)
        assert told[-1] == ("certificates are read again",)
        assert await asked(url, second.trusted) == "ok"
        assert "not trusted" in await asked(url, first.trusted)
        # The new authority is trusted, and the old one still is.
        assert await asked(other, tls.trusted) == "ok"
        async with listening(Peer(), first) as old_url:
            assert await asked(old_url, tls.trusted) == "ok"


def test_without_tls_there_is_nothing_to_read_again() -> None:
    tls = Tls(TlsFiles())
    assert (tls.served, tls.trusted) == (None, None)
    tls.renew(lambda *what, **details: pytest.fail("nothing has happened"))


def no_file(files: TlsFiles) -> TlsFiles:
    return dataclasses.replace(files, certificate=Path("/nowhere/tls.crt"))


def no_authority(files: TlsFiles) -> TlsFiles:
    return dataclasses.replace(files, ca=Path("/nowhere/ca.crt"))


def no_key(files: TlsFiles) -> TlsFiles:
    return dataclasses.replace(files, certificate_key=None)


def not_pem(files: TlsFiles) -> TlsFiles:
    assert files.ca is not None
    files.ca.write_text("nonsense")
    return files


def encrypted(files: TlsFiles) -> TlsFiles:
    key = str(files.certificate_key)
    command = ["openssl", "pkcs8", "-topk8", "-passout", "pass:x", "-in", key, "-out", f"{key}.x"]
    subprocess.run(command, check=True)
    return dataclasses.replace(files, certificate_key=Path(f"{key}.x"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (no_file, "/nowhere/tls.crt and .*: No such file or directory"),
        (no_authority, "/nowhere/ca.crt: No such file or directory"),
        (no_key, r"tls\.crt: no certificate with its key \("),
        (not_pem, r"ca\.crt: no certificate of an authority \("),
        (encrypted, "the key is encrypted"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(
    tmp_path: Path,
    authorities: tuple[Authority, Authority],
    change: Callable[[TlsFiles], TlsFiles],
    words: str,
) -> None:
    files = change(authorities[0].issue(tmp_path / "tls"))
    with pytest.raises(TlsError, match=words) as caught:
        Tls(files)
    assert "\n" not in str(caught.value)
