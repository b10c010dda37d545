"""Verifiers against CouchDB's algorithm, computed here by hand."""

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divandb.auth.passwords import (
    HASHES,
    Settings,
    Verifier,
    admin_line,
    decoy,
    from_document,
    hash_password,
    new_salt,
    outdated,
    parse_admin,
    totp_matches,
    verify,
)
from divandb.errors import BadRequest, Forbidden

QUICK = Settings(iterations=3, iterations_max=1000)
HEX = st.text("0123456789abcdef", min_size=1, max_size=64)


def pbkdf2_by_hand(name: str, password: bytes, salt: bytes, iterations: int) -> str:
    """RFC 8018 with one block, which is all that a key of the digest's size needs."""
    block = turn = hmac.new(password, salt + b"\0\0\0\1", name).digest()
    for _ in range(iterations - 1):
        turn = hmac.new(password, turn, name).digest()
        block = bytes(a ^ b for a, b in zip(block, turn, strict=True))
    return block.hex()


@pytest.mark.parametrize("prf", list(HASHES))
def test_a_key_is_pbkdf2_of_the_salts_text(prf: str) -> None:
    settings = Settings(prf=prf, iterations=7)
    made = hash_password("pässword", salt="00ff", settings=settings)
    key = pbkdf2_by_hand(HASHES[prf], "pässword".encode(), b"00ff", 7)
    assert made == Verifier("pbkdf2", "00ff", key, prf, 7)
    assert verify("pässword", made, settings)
    assert not verify("passwort", made, settings)


def test_known_answer_of_rfc_6070() -> None:
    verifier = Verifier("pbkdf2", "salt", "4b007901b765489abead49d926f721d065a429c1", "sha", 4096)
    assert verify("password", verifier, Settings())


def test_new_hashes_are_what_couchdb_3_5_makes() -> None:
    settings = Settings()
    assert (settings.prf, settings.iterations) == ("sha256", 600_000)


def test_old_schemes_are_checked() -> None:
    sha = hashlib.sha1(b"passwordsalt").hexdigest()
    simple = Verifier("simple", "salt", sha)
    both = Verifier("simple+pbkdf2", "salt", pbkdf2_by_hand("sha256", sha.encode(), b"salt", 5))
    both = Verifier(both.scheme, both.salt, both.key, "sha256", 5)
    for verifier in (simple, both):
        assert verify("password", verifier, QUICK)
        assert not verify("passwore", verifier, QUICK)


@given(st.text(), HEX, st.sampled_from(list(HASHES)))
def test_what_was_hashed_verifies_after_any_round_trip(password: str, salt: str, prf: str) -> None:
    settings = Settings(prf=prf, iterations=2)
    made = hash_password(password, salt=salt, settings=settings)
    assert from_document(made.members()) == made
    assert parse_admin(admin_line(made)) == made
    assert verify(password, made, settings)
    assert not verify(password + "x", made, settings)


@pytest.mark.parametrize(
    ("iterations", "reason"),
    [
        (9, "Iteration count is too low for this server"),
        (10**9, "Iteration count is too high for this server"),
    ],
)
def test_the_cost_of_a_check_is_bounded(iterations: int, reason: str) -> None:
    settings = Settings(iterations=10, iterations_min=10)
    with pytest.raises(Forbidden) as caught:
        verify("x", Verifier("pbkdf2", "s", "k", "sha256", iterations), settings)
    assert caught.value.reason == reason


def test_an_unknown_hash_function_is_refused() -> None:
    with pytest.raises(Forbidden, match="PRF is invalid"):
        verify("x", Verifier("pbkdf2", "s", "k", "md5", 10), QUICK)


@pytest.mark.parametrize(
    "bad",
    [
        {"prf": "md5"},
        {"iterations": 0},
        {"iterations_min": 0},
        {"iterations": 5, "iterations_min": 6},
        {"iterations": 5, "iterations_max": 4},
    ],
)
def test_settings_that_do_not_fit_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"iterations|pbkdf2_prf"):
        Settings(**bad)  # type: ignore[arg-type]


def test_no_password_fits_the_decoy() -> None:
    assert not verify("", decoy(QUICK), QUICK)


def test_a_salt_is_32_hex_digits() -> None:
    class Zeros:
        def token(self, size: int) -> bytes:
            return bytes(size)

        def uniform(self) -> float:
            return 0.0

    assert new_salt(Zeros()) == "0" * 32


@pytest.mark.parametrize(
    "doc",
    [
        {},
        {"password_scheme": "pbkdf2", "salt": "s", "iterations": 10},
        {"password_scheme": "pbkdf2", "salt": 5, "derived_key": "k"},
        {"password_scheme": "pbkdf2", "salt": "s", "derived_key": "k", "iterations": "10"},
        {"password_scheme": "pbkdf2", "salt": "s", "derived_key": "k", "iterations": True},
        {"password_scheme": "pbkdf2", "salt": "s", "derived_key": "k", "pbkdf2_prf": ["sha"]},
        {"password_scheme": "rot13", "salt": "s", "derived_key": "k"},
        {"password_scheme": ["simple"], "salt": "s", "password_sha": "k"},
    ],
)
def test_a_document_without_a_usable_verifier_has_none(doc: dict[str, object]) -> None:
    assert from_document(doc) is None


def test_old_documents_mean_sha_and_10000_iterations() -> None:
    doc = {"password_scheme": "pbkdf2", "salt": "s", "derived_key": "k"}
    assert from_document(doc) == Verifier("pbkdf2", "s", "k", "sha", 10_000)
    assert from_document({"salt": "s", "password_sha": "k"}) == Verifier("simple", "s", "k")


def test_admin_lines() -> None:
    assert parse_admin("-hashed-aa,bb") == Verifier("simple", "bb", "aa")
    assert parse_admin("-pbkdf2-aa,bb,10") == Verifier("pbkdf2", "bb", "aa", "sha", 10)
    assert parse_admin("-pbkdf2:sha-aa,bb,10") == Verifier("pbkdf2", "bb", "aa", "sha", 10)
    line = "-pbkdf2:sha512-aa,bb,10"
    assert parse_admin(line) == Verifier("pbkdf2", "bb", "aa", "sha512", 10)
    assert admin_line(Verifier("pbkdf2", "bb", "aa", "sha512", 10)) == line
    assert admin_line(Verifier("simple", "bb", "aa")) == "-hashed-aa,bb"
    with pytest.raises(ValueError, match="simple\\+pbkdf2"):
        admin_line(Verifier("simple+pbkdf2", "bb", "aa"))


@pytest.mark.parametrize("line", ["secret", "-pbkdf2:md5-aa,bb,10", "", "-pbkdf2", "hashed-a,b"])
def test_other_admin_lines_are_passwords_to_be_hashed(line: str) -> None:
    assert parse_admin(line) is None


@pytest.mark.parametrize(
    "line", ["-hashed-aa", "-hashed-,bb", "-pbkdf2-aa,bb", "-pbkdf2-aa,bb,x", "-pbkdf2-a,b,1,2"]
)
def test_a_broken_admin_line_is_an_error(line: str) -> None:
    with pytest.raises(BadRequest, match="malformed"):
        parse_admin(line)


def test_outdated_verifiers_are_recognised() -> None:
    settings = Settings(iterations=10)
    current = Verifier("pbkdf2", "s", "k", "sha256", 10)
    assert not outdated(current, settings)
    assert outdated(Verifier("simple", "s", "k"), settings)
    assert outdated(Verifier("pbkdf2", "s", "k", "sha", 10), settings)
    assert outdated(Verifier("pbkdf2", "s", "k", "sha256", 9), settings)


RFC_6238_KEY = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"


@pytest.mark.parametrize(
    ("now_s", "token"), [(59, "94287082"), (1111111109, "07081804"), (2000000000, "69279037")]
)
def test_one_time_tokens_of_rfc_6238(now_s: int, token: str) -> None:
    config = {"key": RFC_6238_KEY, "length": 8}
    for shift in (-30, 0, 30):
        assert totp_matches(config, token, now_s + shift)
    assert not totp_matches(config, token, now_s + 90)
    assert totp_matches({"key": RFC_6238_KEY}, token[-6:], now_s)


@pytest.mark.parametrize(
    "config",
    [
        {},
        None,
        "x",
        {"key": "1"},
        {"key": 5},
        {"key": "é"},
        {"key": RFC_6238_KEY, "length": 0},
        {"key": RFC_6238_KEY, "length": "6"},
        {"key": RFC_6238_KEY, "algorithm": "md5"},
    ],
)
def test_a_second_factor_that_makes_no_sense_opens_nothing(config: object) -> None:
    assert not totp_matches(config, "", 59)
    assert not totp_matches(config, "287082", 59)
