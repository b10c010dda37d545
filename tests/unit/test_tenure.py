"""Who owns a slot, whatever the order in which nodes hear of it."""

import dataclasses
import itertools
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from divandb.config import (
    MASTER,
    REPLICA,
    BoardAccess,
    Config,
    KafkaAccess,
    Keys,
    Member,
    Spare,
    TlsFiles,
)
from divandb.tenure import Owner, Tenure, outranks

OWNERS = st.builds(
    Owner, st.integers(0, 3), st.sampled_from(["m1", "m1-r1", "m1-r10", "m1-r2"]), st.booleans()
)
M1 = Member("m1", MASTER, "m1", "http://m1")
SPARE = Spare("token of an owner", b"key", "m1", "secret of m1")


def config(name: str, role: str, spare: Spare | None = None) -> Config:
    return Config(
        Path("unused"), name, role, "m1", f"http://{name}", keys=Keys(token="own token"),
        board=BoardAccess("http://board", name, "own secret"), spare=spare,
        seeds=() if name == "m1" else (M1,),
    )  # fmt: skip


@given(st.lists(OWNERS, min_size=1, max_size=5))
def test_all_who_have_heard_the_same_believe_the_same(said: list[Owner]) -> None:
    believed = set()
    for order in itertools.islice(itertools.permutations(said), 24):
        tenure = Tenure(config("m1", MASTER), {})
        for owner in order:
            tenure.learn({"m1": owner})
        believed.add(tenure.owners["m1"])
    assert len(believed) == 1


@given(OWNERS, OWNERS)
def test_of_two_owners_one_outranks(one: Owner, other: Owner) -> None:
    assert outranks(one, other) != outranks(other, one) or one == other


def test_a_later_epoch_counts_and_then_what_the_log_confirms() -> None:
    assert outranks(Owner(2, "z"), Owner(1, "a", is_confirmed=True))
    assert outranks(Owner(1, "z", is_confirmed=True), Owner(1, "a"))
    assert outranks(Owner(1, "a"), Owner(1, "b"))
    assert outranks(Owner(1, "m1"), Owner(1, "m1-r1"))
    assert outranks(Owner(0, "a"), None)


def test_a_node_is_at_first_what_its_configuration_says() -> None:
    assert Tenure(config("m1", MASTER), {}).role == MASTER
    replica = Tenure(config("m1-r1", REPLICA, SPARE), {})
    assert (replica.role, replica.owner_of("m1")) == (REPLICA, "m1")


def test_it_is_what_its_file_remembers_after_that() -> None:
    known = {"m1": Owner(3, "m1-r1", is_confirmed=True)}
    assert Tenure(config("m1", MASTER, SPARE), known).role == REPLICA
    assert Tenure(config("m1-r1", REPLICA, SPARE), known).role == MASTER


def test_who_takes_a_slot_over_shows_what_an_owner_shows() -> None:
    tenure = Tenure(config("m1-r1", REPLICA, SPARE), {})
    assert tenure.keys.token == "own token"
    assert tenure.board == BoardAccess("http://board", "m1-r1", "own secret")
    tenure.learn({"m1": Owner(1, "m1-r1")})
    assert (tenure.keys.token, tenure.keys.masters) == (SPARE.token, SPARE.masters)
    assert tenure.board == BoardAccess("http://board", "m1", "secret of m1")
    assert tenure.member == Member("m1-r1", MASTER, "m1", "http://m1-r1")


def test_who_takes_a_slot_over_shows_brokers_the_certificate_of_an_owner() -> None:
    own, owners = Path("own.crt"), TlsFiles(Path("owner.crt"), Path("owner.key"))
    access = BoardAccess("kafka://h:1", "m1-r1", "", KafkaAccess("ssl", certificate=own))
    replica = dataclasses.replace(config("m1-r1", REPLICA, SPARE), board=access)
    for files, shown in ((TlsFiles(), own), (owners, owners.certificate)):
        tenure = Tenure(dataclasses.replace(replica, spare_certificate=files), {})
        assert tenure.board == access
        tenure.learn({"m1": Owner(1, "m1-r1")})
        assert tenure.board is not None
        assert tenure.board.kafka == dataclasses.replace(
            access.kafka, certificate=shown, certificate_key=files.certificate_key
        )


def test_without_an_owners_credentials_nobody_is_one() -> None:
    tenure = Tenure(config("m1-r1", REPLICA), {})
    tenure.learn({"m1": Owner(1, "m1-r1")})
    assert not tenure.is_owner
    tenure.admit(SPARE)
    assert tenure.is_owner


def test_a_change_is_told_once() -> None:
    told: list[str] = []
    tenure = Tenure(config("m1", MASTER), {})
    tenure.changed = told.append
    tenure.learn({"m1": Owner(1, "m1-r1")})
    tenure.learn({"m1": Owner(1, "m1-r1", is_confirmed=True)})
    tenure.learn({"m1": Owner(0, "m1", is_confirmed=True), "m2": Owner(0, "m2")})
    assert told == ["m1", "m2"]
