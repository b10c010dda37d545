"""Who is let in, who gets 401 and who 403, with which words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divandb.auth import policy
from divandb.auth.policy import ANONYMOUS, DEFAULT_SECURITY, Security, UserContext, parse_security
from divandb.errors import BadRequest, Forbidden, Unauthorized

ROOT = UserContext("root", ("_admin",))
JAN = UserContext("jan", ("crew",))
PARTS = parse_security(
    {"admins": {"names": ["eve"], "roles": ["ops"]}, "members": {"names": ["jan"], "roles": ["r"]}}
)


def test_by_default_only_server_admins_get_in() -> None:
    security = parse_security(DEFAULT_SECURITY)
    policy.check_member(security, ROOT)
    policy.check_admin(security, ROOT)
    with pytest.raises(Unauthorized) as unknown:
        policy.check_member(security, ANONYMOUS)
    assert unknown.value.reason == "You are not authorized to access this db."
    with pytest.raises(Forbidden) as known:
        policy.check_member(security, JAN)
    assert known.value.reason == "You are not allowed to access this db."


def test_a_database_without_members_is_public() -> None:
    empty: list[object] = [{}, {"members": {}}, {"members": {"names": [], "roles": []}}]
    for obj in empty:
        security = parse_security(obj)
        policy.check_member(security, ANONYMOUS)
        with pytest.raises(Unauthorized):
            policy.check_admin(security, ANONYMOUS)


@pytest.mark.parametrize(
    ("ctx", "member", "admin"),
    [
        (ROOT, True, True),
        (UserContext("eve"), True, True),
        (UserContext("x", ("ops",)), True, True),
        (UserContext("jan"), True, False),
        (UserContext("x", ("r",)), True, False),
        (UserContext("x", ("jan",)), False, False),
        (UserContext("r"), False, False),
        (ANONYMOUS, False, False),
    ],
)
def test_members_and_admins_by_name_and_by_role(
    ctx: UserContext, member: bool, admin: bool
) -> None:
    assert policy.is_member(PARTS, ctx) is member
    assert policy.is_db_admin(PARTS, ctx) is admin


def test_refusals_to_change_a_database() -> None:
    for ctx, error in ((ANONYMOUS, Unauthorized), (JAN, Forbidden)):
        with pytest.raises(error) as caught:
            policy.check_admin(PARTS, ctx)
        assert caught.value.reason == "You are not a db or server admin."
    policy.check_admin(PARTS, UserContext("eve"))


def test_server_matters_are_401_for_everybody_else() -> None:
    for ctx in (ANONYMOUS, JAN):
        with pytest.raises(Unauthorized, match=r"You are not a server admin\.$"):
            policy.check_server_admin(ctx)
        with pytest.raises(Unauthorized, match=r"You are not a server or db admin\.$"):
            policy.check_compaction(PARTS, ctx)
        with pytest.raises(Unauthorized, match="read-only metrics user"):
            policy.check_metrics(ctx)
    policy.check_server_admin(ROOT)
    policy.check_compaction(PARTS, UserContext("eve"))
    policy.check_metrics(ROOT)
    policy.check_metrics(UserContext("m", ("_metrics",)))


def test_only_a_few_places_are_open_without_a_login() -> None:
    for segment in ("", "_up", "_session", "_utils"):
        policy.check_valid_user(ANONYMOUS, segment)
    for segment in ("db", "_all_dbs", "_users", "_utilsx"):
        policy.check_valid_user(JAN, segment)
        with pytest.raises(Unauthorized, match="Authentication required"):
            policy.check_valid_user(ANONYMOUS, segment)


def test_replications_need_a_login() -> None:
    policy.check_known(JAN)
    with pytest.raises(Unauthorized, match="You are not an authenticated user"):
        policy.check_known(ANONYMOUS)


@pytest.mark.parametrize(
    ("obj", "reason"),
    [
        ([], "The security object must be a JSON object."),
        (None, "The security object must be a JSON object."),
        ({"admins": []}, "admins or members must be a JSON list of strings"),
        ({"members": None}, "admins or members must be a JSON list of strings"),
        ({"readers": "x"}, "admins or members must be a JSON list of strings"),
        ({"admins": {"names": "x"}}, "names must be a JSON list of strings"),
        ({"admins": {"names": [1]}}, "names must be a JSON list of strings"),
        ({"members": {"roles": None}}, "roles must be a JSON list of strings"),
        ({"members": {"roles": [["a"]]}}, "roles must be a JSON list of strings"),
    ],
)
def test_security_objects_of_the_wrong_shape(obj: object, reason: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_security(obj)
    assert caught.value.reason == reason


def test_readers_stand_in_for_members_and_other_keys_are_left_alone() -> None:
    old = parse_security({"readers": {"names": ["jan"]}, "cloudant": {"x": 1}})
    assert old.members.names == {"jan"}
    both = parse_security({"readers": {"names": ["jan"]}, "members": {"names": ["eve"]}})
    assert both.members.names == {"eve"}


NAMES = st.lists(st.sampled_from("abc"), max_size=2)
GROUPS = st.fixed_dictionaries({}, optional={"names": NAMES, "roles": NAMES})


@given(
    st.fixed_dictionaries({}, optional={"admins": GROUPS, "members": GROUPS}),
    st.sampled_from([None, "a", "b"]),
    st.lists(st.sampled_from("abc"), max_size=2),
)
def test_every_admin_is_a_member(
    obj: dict[str, object], name: str | None, roles: list[str]
) -> None:
    security = parse_security(obj)
    ctx = UserContext(name, tuple(roles))
    assert policy.is_member(security, ctx) or not policy.is_db_admin(security, ctx)
    assert not security.is_public or policy.is_member(security, ctx)
    assert policy.is_db_admin(Security(), ROOT)
