"""Who may do what on a board: credentials, rights, and Rule 3 over the wire."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from divandb.board.access import (
    Credential,
    Principal,
    Principals,
    access_from,
    access_json,
    basic,
    check_admin,
    check_any_right,
    check_right,
)
from divandb.board.base import BadRequest, EventBoard, Refused, Right, Unidentified
from tests.conformance.conftest import ADMIN, Embedded, secret_of

SECRET = "a secret of some length"
SALT = b"0123456789abcdef"
ACCESS = {"m1": frozenset(Right), "m1.replicas": frozenset({Right.READ})}


def principals(**known: str) -> Principals:
    credentials = {name: Credential.of(secret, SALT) for name, secret in known.items()}
    admins = {"admin": Credential.of("the admin's secret", SALT)}
    return Principals(admins, credentials, Credential.of("nobody's secret!", SALT))


# Credentials


def test_name_and_secret_are_a_principal() -> None:
    known = principals(m1=SECRET)
    assert known.authenticate(basic("m1", SECRET)) == Principal("m1")
    assert known.authenticate(basic("admin", "the admin's secret")) == Principal("admin", True)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Basic",
        "Basic ???",
        "Bearer " + SECRET,
        basic("m1", SECRET + "."),
        basic("m1", SECRET[:-1]),
        basic("m1", ""),
        basic("m2", SECRET),
        basic("m2", "nobody's secret!"),
        basic("", ""),
        basic("admin", SECRET),
        "Basic " + base64.b64encode(b"m1").decode(),
        "Basic " + base64.b64encode(b"m1:\xff\xff").decode(),
    ],
)
def test_anything_else_is_nobody(header: str) -> None:
    with pytest.raises(Unidentified):
        principals(m1=SECRET).authenticate(header)


def test_a_colon_may_stand_in_a_secret() -> None:
    secret = "with: a colon in it"
    assert principals(m1=secret).authenticate(basic("m1", secret)).name == "m1"


@pytest.mark.parametrize("secret", ["", "x" * 15, "x" * 257, "with a\nline break in it"])
def test_a_poor_secret_is_not_taken(secret: str) -> None:
    with pytest.raises(BadRequest):
        Credential.of(secret, SALT)


def test_what_is_kept_does_not_show_the_secret_and_differs_by_salt() -> None:
    one, other = Credential.of(SECRET, SALT), Credential.of(SECRET, SALT[::-1])
    assert SECRET.encode() not in one.digest
    assert one.digest != other.digest
    assert one.fits(SECRET) and other.fits(SECRET)


@pytest.mark.parametrize("name", ["", ".", "..", "_x", "a/b", "a b", "a:b", "x" * 201, "é"])
def test_names_that_could_be_mistaken_are_not_taken(name: str) -> None:
    with pytest.raises(BadRequest):
        principals().checked(name)


def test_an_admin_of_the_configuration_cannot_be_replaced() -> None:
    with pytest.raises(BadRequest, match="configuration"):
        principals().checked("admin")


# Rights


def test_rights_are_what_the_list_says() -> None:
    check_right(Principal("m1"), ACCESS, Right.WRITE, "t")
    check_right(Principal("m1.replicas"), ACCESS, Right.READ, "t")
    check_any_right(Principal("m1.replicas"), ACCESS, "t")
    with pytest.raises(Refused, match=r"m1\.replicas may not write t"):
        check_right(Principal("m1.replicas"), ACCESS, Right.WRITE, "t")
    with pytest.raises(Refused, match="m2 may not read t"):
        check_right(Principal("m2"), ACCESS, Right.READ, "t")
    with pytest.raises(Refused):
        check_any_right(Principal("m2"), {"m2": frozenset()}, "t")


def test_an_admin_may_do_everything_and_others_administer_nothing() -> None:
    for right in Right:
        check_right(Principal("admin", is_admin=True), {}, right, "t")
    check_any_right(Principal("admin", is_admin=True), {}, "t")
    check_admin(Principal("admin", is_admin=True), "create t")
    with pytest.raises(Refused, match="m1 may not create t: that takes an admin"):
        check_admin(Principal("m1"), "create t")


def test_an_access_list_survives_json() -> None:
    assert access_from(json.loads(json.dumps(access_json(ACCESS)))) == ACCESS


@pytest.mark.parametrize("value", [None, [], {"m1": ["own"]}, {"m1": "read"}, {"m1": None}])
def test_what_is_no_access_list_is_refused(value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        access_from(value)


# Over the wire


def over_http(folder: Path, body: Callable[[Embedded], Awaitable[None]]) -> None:
    async def run() -> None:
        async with Embedded(folder) as board:
            await body(board)

    asyncio.run(run())


async def status_of(board: Embedded, who: str, method: str, path: str, body: bytes = b"") -> int:
    """The status of a request by hand, with a principal's credentials."""
    reader, writer = await asyncio.open_connection("127.0.0.1", board.port)
    writer.write(
        f"{method} /board/v1/{path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        f"authorization: {basic(who, secret_of(who))}\r\n"
        f"content-length: {len(body)}\r\n\r\n".encode()
        + body
    )
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return int(answer.split(b" ")[1])


async def made(board: Embedded) -> EventBoard:
    admin = await board.connect(ADMIN)
    await board.connect("m1.replicas")
    await admin.create_topic("masters", 1, {"m1": frozenset(Right)})
    await admin.create_topic("replicas.m1", 1, ACCESS)
    await admin.create_topic("replicas.m2", 1, {"m2": frozenset(Right)})
    return admin


@pytest.mark.parametrize("topic", ["masters", "replicas.m2"])
def test_a_replica_gets_403_on_what_is_not_its_groups(tmp_path: Path, topic: str) -> None:
    async def body(board: Embedded) -> None:
        admin = await made(board)
        who, message = "m1.replicas", b"\1\0\0\0x"
        assert await status_of(board, who, "GET", f"topics/{topic}/0?offset=0") == 403
        assert await status_of(board, who, "GET", f"topics/{topic}/0?offset=9&wait_ms=9000") == 403
        assert await status_of(board, who, "POST", f"topics/{topic}/0", message) == 403
        assert await status_of(board, who, "GET", f"topics/{topic}") == 403
        assert await status_of(board, who, "PUT", f"topics/{topic}", b"{}") == 403
        own = {"partitions": 1, "access": {"m1.replicas": ["read", "write"]}}
        asked = json.dumps(own).encode()
        assert await status_of(board, who, "PUT", f"topics/{topic}", asked) == 403
        assert await status_of(board, who, "PUT", "_principals/m1", b'{"secret": ""}') == 403
        assert await status_of(board, who, "GET", "topics/replicas.m1/0?offset=0") == 200
        assert await status_of(board, who, "POST", "topics/replicas.m1/0", message) == 403
        for name in ("masters", "replicas.m1", "replicas.m2"):
            assert (await admin.describe(name)).partitions[0].end == 0

    over_http(tmp_path, body)


def test_nothing_but_up_is_told_to_strangers(tmp_path: Path) -> None:
    async def body(board: Embedded) -> None:
        await made(board)
        assert await status_of(board, "stranger", "GET", "_up") == 200
        for path in ("topics/masters", "topics/masters/0?offset=0", "topics/nothing", "anything"):
            assert await status_of(board, "stranger", "GET", path) == 401
        with pytest.raises(Unidentified):
            await board.client("m1.replicas", "not the right secret").describe("replicas.m1")

    over_http(tmp_path, body)


def test_a_new_secret_holds_at_once_on_open_connections_and_after_a_restart(
    tmp_path: Path,
) -> None:
    async def body(board: Embedded) -> None:
        admin = await made(board)
        replica = await board.connect("m1.replicas")
        await replica.describe("replicas.m1")
        await admin.set_principal("m1.replicas", "another secret than before")
        with pytest.raises(Unidentified):
            await replica.describe("replicas.m1")
        await board.stop()
        await board.start()
        renewed = board.client("m1.replicas", "another secret than before")
        assert (await renewed.describe("replicas.m1")).topic == "replicas.m1"
        with pytest.raises(Unidentified):
            await replica.describe("replicas.m1")
        kept = (board.config.data / "principals.json").read_text()
        assert "another secret" not in kept
        assert (board.config.data / "principals.json").stat().st_mode & 0o077 == 0

    over_http(tmp_path, body)
