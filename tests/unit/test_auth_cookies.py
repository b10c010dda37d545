"""The AuthSession cookie: CouchDB's bytes, computed here by hand, and who gets in with it."""

import base64
import hashlib
import hmac
from http.cookies import SimpleCookie

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divandb.auth.cookies import (
    Login,
    Settings,
    clear_cookie,
    make,
    needs_renewal,
    parse,
    read,
    set_cookie,
)
from divandb.errors import BadRequest

NOW_S = 0x65A1B2C3
PLAIN = Settings()
SALTS = {"jan": "5a17", "pélé": "", "": "x"}


def cookie_by_hand(name: str, seconds: str, key: bytes, digest: str = "sha256") -> str:
    signed = f"{name}:{seconds}".encode()
    mac = hmac.new(key, signed, getattr(hashlib, digest)).digest()
    return base64.urlsafe_b64encode(signed + b":" + mac).decode().rstrip("=")


def opened(
    value: str,
    *,
    now_s: int = NOW_S,
    secrets: tuple[str, ...] = ("secret",),
    settings: Settings = PLAIN,
) -> Login | None:
    return read(value, salt_of=SALTS.get, secrets=secrets, settings=settings, now_s=now_s)


def made(name: str = "jan", settings: Settings = PLAIN, now_s: int = NOW_S) -> str:
    return make(name, salt=SALTS[name], secret="secret", settings=settings, now_s=now_s)


def test_a_cookie_is_what_couchdb_makes() -> None:
    assert made() == cookie_by_hand("jan", "65A1B2C3", b"secret5a17")
    assert made("pélé") == cookie_by_hand("pélé", "65A1B2C3", b"secret")
    old = Settings(hashes=("sha", "sha256"))
    assert made(settings=old) == cookie_by_hand("jan", "65A1B2C3", b"secret5a17", "sha1")


def test_cookies_with_any_of_the_hashes_are_read() -> None:
    for digest in ("sha256", "sha1"):
        cookie = cookie_by_hand("jan", "65A1B2C3", b"secret5a17", digest)
        assert opened(cookie) == Login("jan", 600)
    sha512 = cookie_by_hand("jan", "65A1B2C3", b"secret5a17", "sha512")
    assert opened(sha512) is None
    assert opened(sha512, settings=Settings(hashes=("sha512",))) == Login("jan", 600)


@given(
    st.sampled_from(sorted(SALTS)),
    st.integers(0, 2**40),
    st.sampled_from(["sha", "sha224", "sha256", "sha384", "sha512"]),
)
def test_what_was_made_is_read(name: str, now_s: int, digest: str) -> None:
    settings = Settings(hashes=(digest,))
    assert opened(made(name, settings, now_s), settings=settings, now_s=now_s) == Login(name, 600)


@given(st.integers(0, 200), st.integers(1, 255))
def test_a_changed_cookie_opens_nothing(place: int, flip: int) -> None:
    raw = bytearray(base64.urlsafe_b64decode(made() + "=="))
    raw[place % len(raw)] ^= flip
    changed = base64.urlsafe_b64encode(bytes(raw)).decode().rstrip("=")
    try:
        assert opened(changed) is None
    except BadRequest as refusal:
        assert "Malformed" in refusal.reason


@given(st.text(max_size=60))
def test_any_text_is_a_login_of_nobody_or_malformed(text: str) -> None:
    try:
        assert opened(text) is None
    except BadRequest as refusal:
        reason = "Malformed AuthSession cookie. Please clear your cookies."
        assert refusal.reason == reason


@pytest.mark.parametrize("value", ["x", "amFu", "amFuOjEy", "ÄÖ", "a b", made()[:8]])
def test_a_malformed_cookie_is_a_400(value: str) -> None:
    with pytest.raises(BadRequest, match="Malformed AuthSession cookie"):
        parse(value)


def test_old_foreign_and_revoked_cookies_open_nothing() -> None:
    cookie = made()
    assert opened(cookie, now_s=NOW_S + 599) == Login("jan", 1)
    assert opened(cookie, now_s=NOW_S + 600) is None
    assert opened("") is None
    assert opened(cookie, secrets=("other",)) is None
    assert opened(cookie, secrets=()) is None
    assert opened(cookie, secrets=("new", "secret")) == Login("jan", 600)
    assert opened(cookie_by_hand("jan", "65A1B2C3", b"secretother")) is None
    assert opened(cookie_by_hand("eve", "65A1B2C3", b"secret")) is None
    for seconds in ("-1", "0x65A1B2C3", "65A1_B2C3", " 65A1B2C3", "", "F" * 16):
        assert opened(cookie_by_hand("jan", seconds, b"secret5a17")) is None


def test_a_cookie_is_renewed_when_a_tenth_of_its_time_is_gone() -> None:
    assert not needs_renewal(Login("jan", 600), PLAIN)
    assert not needs_renewal(Login("jan", 540), PLAIN)
    assert needs_renewal(Login("jan", 539), PLAIN)


def test_the_header_that_sets_it() -> None:
    assert set_cookie("v", settings=PLAIN, secure=False, now_s=NOW_S) == (
        "AuthSession=v; Version=1; Expires=Fri, 12 Jan 2024 21:54:35 GMT; Max-Age=600"
        "; Path=/; HttpOnly"
    )
    short = Settings(persistent=False, same_site="Strict", domain="example.com")
    assert set_cookie("v", settings=short, secure=True, now_s=NOW_S) == (
        "AuthSession=v; Version=1; Secure; Domain=example.com; Path=/; HttpOnly; SameSite=Strict"
    )


def test_the_header_that_clears_it() -> None:
    header = clear_cookie(settings=PLAIN, secure=True)
    assert header == (
        "AuthSession=; Version=1; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0"
        "; Secure; Path=/; HttpOnly"
    )
    assert SimpleCookie(header)["AuthSession"].value == ""


def test_other_software_reads_the_header() -> None:
    cookie = SimpleCookie(set_cookie(made(), settings=PLAIN, secure=False, now_s=NOW_S))
    assert cookie["AuthSession"].value == made()
    assert cookie["AuthSession"]["max-age"] == "600"


def test_settings_that_make_no_sense_are_refused() -> None:
    for hashes in ((), ("md5",)):
        with pytest.raises(ValueError, match="hash_algorithms"):
            Settings(hashes=hashes)
    for timeout_s in (0, 10**10):
        with pytest.raises(ValueError, match="timeout"):
            Settings(timeout_s=timeout_s)
