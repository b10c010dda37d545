"""Documents of ``_users``: what is stored, refused, shown, and what logs in."""

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divandb.auth import passwords
from divandb.auth.policy import (
    ANONYMOUS,
    DEFAULT_SECURITY,
    Security,
    UserContext,
    parse_security,
)
from divandb.auth.users import (
    Account,
    PasswordRule,
    account,
    authenticate,
    check_visible,
    document_name,
    prepare,
    validate,
)
from divandb.errors import BadRequest, Forbidden, NotFound, Unauthorized

QUICK = passwords.Settings(iterations=3)
CLOSED = parse_security(DEFAULT_SECURITY)
ROOT = UserContext("root", ("_admin",))
JAN = UserContext("jan", ("crew",))
EVE = UserContext("eve")


def user(**members: Any) -> dict[str, Any]:
    doc = {"_id": "org.couchdb.user:jan", "type": "user", "name": "jan", "roles": []}
    return {key: value for key, value in (doc | members).items() if value is not ...}


def prepared(doc: dict[str, Any], ctx: UserContext = ROOT, **more: Any) -> dict[str, Any]:
    return prepare(doc, ctx=ctx, security=CLOSED, salt="5a17", settings=QUICK, **more)


def test_a_password_is_replaced_by_its_verifier() -> None:
    doc = prepared(user(password="secret", password_sha="old", extra=1))
    key = passwords.hash_password("secret", salt="5a17", settings=QUICK).key
    assert doc == user(
        extra=1,
        password_scheme="pbkdf2",
        pbkdf2_prf="sha256",
        salt="5a17",
        iterations=3,
        derived_key=key,
    )


def test_without_a_password_nothing_changes() -> None:
    for doc in (user(), user(password=None, salt="x", derived_key="k")):
        assert prepared(doc) == doc


def test_preparing_twice_gives_the_same_document() -> None:
    doc = user(password="secret")
    assert prepared(doc) == prepared(doc)
    assert prepared(prepared(doc)) == prepared(doc)


def test_a_hash_can_be_upgraded_without_a_new_salt() -> None:
    assert prepared(user(password="p", preserve_salt=True, salt="old"))["salt"] == "old"
    assert prepared(user(password="p", preserve_salt=True))["salt"] == "5a17"
    assert prepared(user(password="p", preserve_salt=False, salt="old"))["salt"] == "5a17"
    assert "preserve_salt" not in prepared(user(password="p", preserve_salt=True))
    with pytest.raises(Forbidden, match=r"Salt value of '5' is invalid\."):
        prepared(user(password="p", preserve_salt=True, salt=5))


def test_a_password_must_be_text() -> None:
    wrong: list[object] = [5, [], {}, True]
    for bad in wrong:
        with pytest.raises(Forbidden, match=r"Password value of '.*' is invalid\."):
            prepared(user(password=bad))


def test_passwords_obey_the_rules() -> None:
    rules = (PasswordRule(".{10,}", "Password min length is 10 characters."), PasswordRule("\\d"))
    prepared(user(password="long enough 1"), rules=rules)
    with pytest.raises(BadRequest) as short:
        prepared(user(password="short1"), rules=rules)
    reason = "Password does not conform to requirements. Password min length is 10 characters."
    assert short.value.reason == reason
    with pytest.raises(BadRequest) as plain:
        prepared(user(password="long enough"), rules=rules)
    assert plain.value.reason == "Password does not conform to requirements."


def test_other_users_documents_do_not_exist_for_a_writer() -> None:
    for ctx in (ROOT, JAN, ANONYMOUS):
        prepared(user(), ctx)
    with pytest.raises(NotFound, match="missing"):
        prepared(user(), EVE)
    with pytest.raises(NotFound, match="missing"):
        prepared({"_id": "_design/x"}, JAN)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"type": ...}, "doc.type must be user"),
        ({"type": "group"}, "doc.type must be user"),
        ({"name": ...}, "doc.name is required"),
        ({"name": ""}, "doc.name is required"),
        ({"name": 0}, "doc.name is required"),
        ({"roles": ...}, "doc.roles must exist"),
        ({"roles": None}, "doc.roles must exist"),
        ({"roles": "x"}, "doc.roles must be an array"),
        ({"roles": {}}, "doc.roles must be an array"),
        ({"roles": [1]}, "doc.roles can only contain strings"),
        ({"name": "eve"}, "Doc ID must be of the form org.couchdb.user:name"),
        ({"name": 5, "_id": "org.couchdb.user:5"},
         "Doc ID must be of the form org.couchdb.user:name"),
        ({"password_sha": "x"},
         "Users with password_sha must have a salt."
         "See /_utils/script/couch.js for example code."),
        ({"password_scheme": "rot13"}, "Password scheme `rot13` not supported."),
        ({"password_scheme": "pbkdf2"}, "iterations must be a number."),
        ({"password_scheme": "pbkdf2", "iterations": True}, "iterations must be a number."),
        ({"password_scheme": "pbkdf2", "iterations": 1}, "derived_key must be a string."),
        ({"roles": ["_admin"]}, "No system roles (starting with underscore) in users db."),
        ({"name": "_jan", "_id": "org.couchdb.user:_jan"},
         "Username may not start with underscore."),
        ({"name": "j:n", "_id": "org.couchdb.user:j:n"},
         "Character `:` is not allowed in usernames."),
    ],
)  # fmt: skip
def test_even_admins_cannot_store_nonsense(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(Forbidden) as caught:
        validate(user(**change), None, ROOT, CLOSED)
    assert caught.value.reason == reason


def test_what_admins_may_store() -> None:
    validate(user(roles=["crew", "_metrics"]), None, ROOT, CLOSED)
    validate(user(roles=["crew"]), user(), ROOT, CLOSED)
    validate(prepared(user(password="p")), None, ROOT, CLOSED)
    validate({"_id": "org.couchdb.user:jan", "_deleted": True}, user(), ROOT, CLOSED)
    validate({"_id": "org.couchdb.user:jan", "_deleted": True}, None, ROOT, CLOSED)
    validate(
        user(roles=["r"]), user(), UserContext("d"), parse_security({"admins": {"names": ["d"]}})
    )


def test_names_cannot_be_changed() -> None:
    with pytest.raises(Forbidden, match=r"Usernames can not be changed\."):
        validate(user(), user(name="eve"), ROOT, CLOSED)


def test_a_deleted_user_may_come_back() -> None:
    tombstone = {"_id": "org.couchdb.user:jan", "_deleted": True}
    validate(user(), tombstone, ROOT, CLOSED)
    validate(user(), tombstone, ANONYMOUS, CLOSED)
    with pytest.raises(Forbidden, match="Only _admin may set roles"):
        validate(user(roles=["crew"]), tombstone, JAN, CLOSED)


def test_users_keep_their_own_documents() -> None:
    validate(user(roles=["b", "a"], x=1), user(roles=["a", "b"]), JAN, CLOSED)
    validate({"_id": "org.couchdb.user:jan", "_deleted": True}, user(), JAN, CLOSED)
    validate(user(), None, ANONYMOUS, CLOSED)
    for new, old, ctx, reason in (
        (user(), user(), EVE, "You may only update your own user document."),
        (user(), user(), ANONYMOUS, "You may only update your own user document."),
        (user(roles=["a"]), user(roles=["b"]), JAN, "Only _admin may edit roles"),
        (user(roles=["a", "a"]), user(roles=["a"]), JAN, "Only _admin may edit roles"),
        (user(roles=["a"]), None, JAN, "Only _admin may set roles"),
        (user(_deleted=True), user(), EVE, "Only admins may delete other user docs."),
        (user(_deleted=True), None, JAN, "Only admins may delete other user docs."),
        (user(_deleted=True), {"_id": "x"}, ANONYMOUS, "Only admins may delete other user docs."),
    ):
        with pytest.raises(Forbidden) as caught:
            validate(new, old, ctx, CLOSED)
        assert caught.value.reason == reason


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
MEMBERS = st.sampled_from(
    [
        "type",
        "name",
        "roles",
        "salt",
        "password_sha",
        "password_scheme",
        "iterations",
        "derived_key",
    ]
)


@given(st.dictionaries(MEMBERS, JSON), st.none() | st.dictionaries(MEMBERS, JSON))
def test_any_document_is_accepted_or_forbidden(
    change: dict[str, Any], old: dict[str, Any] | None
) -> None:
    for ctx in (ROOT, JAN, ANONYMOUS):
        try:
            validate(user(**change), old, ctx, CLOSED)
        except Forbidden as refusal:
            assert refusal.reason


@given(st.dictionaries(MEMBERS, JSON), JSON)
def test_any_document_can_be_an_account(doc: dict[str, Any], totp: object) -> None:
    who = account("jan", None, doc | {"totp": totp})
    assert who is not None
    assert "_admin" not in who.roles


def test_who_sees_what() -> None:
    own = "org.couchdb.user:jan"
    check_visible(own, ROOT, CLOSED)
    check_visible(own, JAN, CLOSED)
    for ctx in (EVE, ANONYMOUS):
        with pytest.raises(NotFound, match="missing"):
            check_visible(own, ctx, CLOSED)


def test_design_documents_are_for_admins() -> None:
    check_visible("_design/x", ROOT, CLOSED)
    with pytest.raises(Forbidden) as caught:
        check_visible("_design/x", JAN, CLOSED)
    reason = "Only administrators can view design docs in the users database."
    assert caught.value.reason == reason


def test_document_names() -> None:
    assert document_name("org.couchdb.user:a:b") == "a:b"
    assert document_name("_design/x") is None


def test_accounts_of_admins_users_and_both() -> None:
    verifier = passwords.hash_password("p", salt="s", settings=QUICK)
    doc = user(roles=["crew", "_admin", "_metrics"]) | verifier.members()
    assert account("jan", None, None) is None
    assert account("jan", verifier, None) == Account("jan", ("_admin",), "s", verifier)
    both = account("jan", verifier, doc | {"_conflicts": ["1-a"]})
    assert both == Account("jan", ("_admin", "crew", "_metrics"), "s", verifier)
    assert account("jan", None, doc) == Account("jan", ("crew", "_metrics"), "s", verifier)
    with pytest.raises(Unauthorized, match=r"^User document conflicts must be resolved before"):
        account("jan", None, doc | {"_conflicts": ["1-a"]})


def login(who: Account | None, password: str, token: str | None = None) -> UserContext:
    return authenticate(who, password, settings=QUICK, now_s=59, token=token)


def test_logging_in() -> None:
    who = account("jan", None, prepared(user(password="p", roles=["crew"])))
    assert login(who, "p") == UserContext("jan", ("crew",), "default")
    for wrong, password in ((who, "q"), (who, ""), (None, ""), (account("jan", None, user()), "")):
        with pytest.raises(Unauthorized) as caught:
            login(wrong, password)
        assert caught.value.reason == "Name or password is incorrect."


def test_unknown_accounts_cost_as_much_as_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    costs: list[int] = []
    real = hashlib.pbkdf2_hmac

    def counted(name: str, password: bytes, salt: bytes, iterations: int) -> bytes:
        costs.append(iterations)
        return real(name, password, salt, iterations)

    monkeypatch.setattr(hashlib, "pbkdf2_hmac", counted)
    known = account("jan", None, prepared(user(password="p")))
    costs.clear()
    for who in (known, None, account("jan", None, user())):
        with pytest.raises(Unauthorized):
            login(who, "wrong")
    assert costs == [QUICK.iterations] * 3


def test_a_second_factor_is_asked_for() -> None:
    totp = {"key": "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ", "length": 8}
    who = account("jan", None, prepared(user(password="p", totp=totp)))
    assert login(who, "p", "94287082").name == "jan"
    for password, token in (("p", None), ("p", ""), ("p", "94287083"), ("q", "94287082")):
        with pytest.raises(Unauthorized, match=r"Name or password is incorrect\."):
            login(who, password, token)


def test_an_account_that_costs_too_much_is_refused() -> None:
    doc = user(password_scheme="pbkdf2", iterations=10**9, derived_key="k", salt="s")
    validate(doc, None, ROOT, Security())
    with pytest.raises(Forbidden, match="Iteration count is too high for this server"):
        login(account("jan", None, doc), "p")
