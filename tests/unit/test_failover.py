"""Who takes a slot over: the ranking, and the claims log as the referee."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from divandb.board.memory import MemoryBoard
from divandb.cluster import claims, messages, topics, trust
from divandb.cluster.failover import ranked
from divandb.config import MASTER, REPLICA, Member
from divandb.tenure import Owner
from tests.stores import SeededRng

SLOTS = {1: "m1", 2: "m1", 3: "m2"}
MEMBERS = [Member("m1", MASTER, "m1", "")] + [
    Member(f"m1-r{number}", REPLICA, "m1", "") for number in (1, 2)
]
VECTORS = st.dictionaries(st.sampled_from([1, 2, 3]), st.integers(0, 5))


def test_the_slots_own_writes_count_before_all_others() -> None:
    candidates = {"a": {1: 5, 3: 1}, "b": {1: 4, 3: 100}, "c": {1: 3, 2: 2, 3: 2}}
    assert ranked(candidates, SLOTS, "m1") == ["c", "a", "b"]


def test_of_equals_the_smaller_name_goes_first() -> None:
    assert ranked({"b": {1: 1}, "a": {1: 1}}, SLOTS, "m1") == ["a", "b"]


@given(st.dictionaries(st.sampled_from("abcd"), VECTORS, min_size=1))
def test_all_candidates_see_the_same_ranking(candidates: dict[str, dict[int, int]]) -> None:
    backwards = dict(reversed(candidates.items()))
    assert ranked(candidates, SLOTS, "m1") == ranked(backwards, SLOTS, "m1")


def test_the_first_claim_of_an_epoch_holds_it() -> None:
    async def body() -> None:
        board = MemoryBoard(SeededRng(1))
        await topics.arrange(board.connect("admin", is_admin=True), "c", MEMBERS, {}, {})
        one, other = board.connect("m1-r1"), board.connect("m1-r2")
        # Somebody's claim of another version, and one that is none.
        await one.publish(topics.claims("c"), 0, [b"\x95\x02\xa2m1\x01\xa1x\x00", b"nothing"])
        assert await claims.claim(one, "c", "m1", Owner(1, "m1-r1"), 0) == Owner(1, "m1-r1", True)
        for _ in range(2):
            held = await claims.claim(other, "c", "m1", Owner(1, "m1-r2"), 0)
            assert held == Owner(1, "m1-r1", is_confirmed=True)
        assert (await claims.claim(other, "c", "m1", Owner(2, "m1-r2"), 0)).name == "m1-r2"
        assert (await claims.claim(other, "c", "m2", Owner(1, "m2-r1"), 0)).name == "m2-r1"
        # Who comes back sees who was the last, and that a later claim of an epoch is none.
        await one.publish(topics.claims("c"), 0, [b"\x95\x01\xa2m1\x02\xa1x\x00"])
        assert await claims.newest(one, "c", "m1") == Owner(2, "m1-r2", is_confirmed=True)
        assert await claims.newest(one, "c", "m3") is None

    asyncio.run(body())


def test_what_refuses_says_why() -> None:
    assert messages.error_of(b'{"error":"expelled","reason":"m2 was removed"}') == "expelled"
    assert [messages.error_of(body) for body in (b"", b"[]", b"{}", b'{"error":1}')] == [""] * 4


def test_what_a_master_grants_is_what_the_configuration_would_have_given() -> None:
    """So that an owner's credential is the same wherever it comes from."""
    secret = bytes(32)
    keys = trust.keys_of(secret, "m2", MASTER, "m2", is_master=True)
    spare = trust.spare_of(secret, MEMBERS[1])
    assert trust.grant(keys, "m1-r1", "m1") == spare
    assert (spare.principal, spare.secret) == ("m1", trust.board_secret(secret, "m1"))


def test_who_owned_a_slot_first_reads_its_board_later_as_somebody_else() -> None:
    spare = trust.spare_of(bytes(32), MEMBERS[0])
    assert (spare.principal, spare.masters) == ("m1-r0", b"")
    rights = topics.layout("c", MEMBERS)
    assert spare.principal not in rights[topics.masters("c")][1]
    assert spare.principal in rights[topics.replicas("c", "m1")][1]
