"""The boards' topics, and who may open them (Rule 3).

    divandb.<cluster>.masters          one partition a slot; masters read and write
    divandb.<cluster>.replicas.<slot>  one partition; the slot's master writes, its replicas read
    divandb.<cluster>.claims           one partition; all nodes read and write

A slot's number is its partition: ``m1`` has partition 0.

On the boards the owner of a slot is called as the slot is, and a replica as its node is. The node
that is called as its slot is goes by ``m1-r0`` there once another node owns the slot.

An operator may let others than nodes read the Masters' Event Board: its *readers*, who may do
nothing else on any board.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Protocol

from divandb.board.base import PRINCIPAL_NAME, Access, Right
from divandb.config import MASTER, Member

_SLOT = re.compile(r"m([1-9][0-9]{0,2})")
_NODE = re.compile(rf"{_SLOT.pattern}(-r[0-9]+)?")
_READ = frozenset({Right.READ})
_BOTH = frozenset({Right.READ, Right.WRITE})


def partition_of(slot: str) -> int:
    """The slot's partition; raises ``ValueError`` for what is no slot's name."""
    match = _SLOT.fullmatch(slot)
    if match is None:
        raise ValueError(f"{slot!r} is no slot: they are called m1, m2, …")
    return int(match[1]) - 1


def is_slot(name: str) -> bool:
    """Is a slot called so?"""
    return _SLOT.fullmatch(name) is not None


def masters(cluster: str) -> str:
    """The Masters' Event Board."""
    return f"divandb.{cluster}.masters"


def replicas(cluster: str, slot: str) -> str:
    """The slot's Replicas' Event Board."""
    return f"divandb.{cluster}.replicas.{slot}"


def claims(cluster: str) -> str:
    """Where nodes say which slot they take over."""
    return f"divandb.{cluster}.claims"


def principal_of(member: Member) -> str:
    """Who a node is on the boards: a slot's principal has the slot's name, whoever holds it."""
    return member.slot if member.role == MASTER else principal_as_replica(member)


def principal_as_replica(member: Member) -> str:
    """Who it is there while it does not own its slot."""
    return member.name if member.name != member.slot else f"{member.slot}-r0"


def principals_of(member: Member) -> tuple[str, str]:
    """Who it is or may become."""
    return member.slot, principal_as_replica(member)


def check_reader(name: str, taken: Iterable[str]) -> None:
    """Raises ``ValueError`` unless a reader may have this name: nodes, those that there may be one
    day too, and who is ``taken`` keep theirs.
    """
    if not PRINCIPAL_NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot be a principal's name")
    if _NODE.fullmatch(name) or name in set(taken):
        raise ValueError(f"{name} is the name of a node or an admin")


def layout(
    cluster: str, members: Iterable[Member], readers: Iterable[str] = ()
) -> dict[str, tuple[int, Access]]:
    """Topic → (partitions, who may do what). ``readers`` may read the Masters' Event Board."""
    known = list(members)
    slots = sorted({one.slot for one in known}, key=partition_of)
    found: dict[str, tuple[int, Access]] = {
        masters(cluster): (
            max(map(partition_of, slots), default=-1) + 1,
            {**dict.fromkeys(readers, _READ), **dict.fromkeys(slots, _BOTH)},
        )
    }
    for slot in slots:
        group = [principal_as_replica(one) for one in known if one.slot == slot]
        found[replicas(cluster, slot)] = (1, {slot: _BOTH, **dict.fromkeys(group, _READ)})
    everybody = [principal for one in known for principal in principals_of(one)]
    found[claims(cluster)] = (1, dict.fromkeys(everybody, _BOTH))
    return found


class Board(Protocol):
    """A board in the hands of its admin."""

    async def set_principal(self, name: str, secret: str) -> None:
        """Make a principal known, or give it another secret."""
        ...

    async def create_topic(
        self, topic: str, partitions: int, access: Access, *, durable: bool = True
    ) -> object:
        """Make a topic, or give one more partitions and these rights."""
        ...


async def arrange(
    board: Board,
    cluster: str,
    members: Iterable[Member],
    secrets: Mapping[str, str],
    readers: Mapping[str, str],
) -> None:
    """Make the topics and principals of these members, or bring them up to date; for an admin.

    ``readers``: name → secret. Who is none any more has lost the right when this is done.
    """
    for principal, secret in {**readers, **secrets}.items():
        await board.set_principal(principal, secret)
    for topic, (partitions, access) in layout(cluster, members, readers).items():
        # What a group's board loses its replicas ask of each other and of their master.
        durable = not topic.startswith(replicas(cluster, ""))
        await board.create_topic(topic, partitions, access, durable=durable)
