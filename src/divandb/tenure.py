"""Who owns the slots, and with that what this node is: master or replica.

An owner holds its slot for an *epoch*. In epoch 0 that is the node which the configuration names;
whoever takes a slot over begins the next epoch. The claims log (``cluster.claims``) is the referee:
the first claim of an epoch holds. While the board is away, two nodes may begin the same epoch; then
the one that the log has confirmed holds it, else the one with the smaller name. All nodes hear of
owners in heartbeats and take over the one that outranks: so they agree, in whatever order they hear
of them. Two nodes that both believe they own a slot cannot damage anything: their origins differ,
and merging loses nothing.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Mapping

import msgspec

from divandb.config import MASTER, REPLICA, BoardAccess, Config, Keys, Member, Spare


class Owner(msgspec.Struct, frozen=True, array_like=True):
    """Who has a slot."""

    epoch: int
    name: str
    is_confirmed: bool = False
    """Does the claims log say so, or the configuration?"""


def outranks(one: Owner, other: Owner | None) -> bool:
    """Is ``one`` what a node believes that has heard of both?"""
    return other is None or _rank(one) > _rank(other)


def is_same(one: Owner, other: Owner) -> bool:
    """The same node in the same epoch?"""
    return (one.epoch, one.name) == (other.epoch, other.name)


def _rank(owner: Owner) -> tuple[int, bool, list[int]]:
    return owner.epoch, owner.is_confirmed, [-ord(char) for char in owner.name] + [1]


class Tenure:
    """The owners as this node knows them, and what it shows to others by that."""

    def __init__(self, config: Config, owners: Mapping[str, Owner]) -> None:
        """``owners`` are those that the node's file remembers."""
        self._config = config
        self._spare = config.spare
        self._member = config.member
        self.owners: dict[str, Owner] = dict(owners)
        self.is_ready = False
        """Is this node in the role of an owner, with nothing of its predecessor's left to read?"""
        self.is_leaving = False
        """Is another node about to take the slot over?"""
        self.is_drained = False
        """Has an operator taken this node out of service?"""
        self.moved = asyncio.Event()
        """Set when an owner has changed; whoever waits for it clears it."""
        self.changed: Callable[[str], None] = lambda slot: None
        """Told of each slot that another owner has, or the same in another epoch."""
        for member in (config.member, *config.seeds):
            self.expect(member)

    @property
    def serves(self) -> bool:
        """Are writes accepted here?"""
        return self.is_ready and not self.is_leaving and not self.is_drained

    def expect(self, member: Member) -> None:
        """There is such a member: a slot of which nothing else is known is its."""
        if member.role == MASTER and member.slot not in self.owners:
            self.owners[member.slot] = Owner(0, member.name, is_confirmed=True)

    def learn(self, owners: Mapping[str, Owner]) -> None:
        """Somebody says so."""
        if owners == self.owners:
            return
        for slot, owner in owners.items():
            before = self.owners.get(slot)
            if owner != before and outranks(owner, before):
                self.owners[slot] = owner
                self.moved.set()
                if before is None or not is_same(owner, before):
                    self.changed(slot)

    def admit(self, spare: Spare) -> None:
        """What an owner of this node's slot shows was handed over."""
        self._spare = spare
        self.moved.set()

    def owner_of(self, slot: str) -> str | None:
        """The name of the node that owns a slot."""
        owner = self.owners.get(slot)
        return owner.name if owner is not None else None

    def owns(self, member: Member) -> bool:
        """Is it the owner of its slot?"""
        owner = self.owners.get(member.slot)
        return owner is not None and owner.name == member.name

    @property
    def own(self) -> Owner | None:
        """Who owns this node's slot."""
        return self.owners.get(self._config.slot)

    @property
    def is_owner(self) -> bool:
        """Does this node own its slot, and can it show that?"""
        return self.owns(self._config.member) and self.has_credentials

    @property
    def has_credentials(self) -> bool:
        """Has it what an owner shows?"""
        return self._config.role == MASTER or self._spare is not None

    @property
    def role(self) -> str:
        """What this node is now."""
        return MASTER if self.is_owner else REPLICA

    @property
    def member(self) -> Member:
        """This node as it is now."""
        role = self.role
        if self._member.role != role:
            self._member = dataclasses.replace(self._member, role=role)
        return self._member

    @property
    def keys(self) -> Keys:
        """What it knows of the cluster's secrets in this role."""
        keys, spare = self._config.keys, self._spare
        if self.role == self._config.role or spare is None:
            return keys
        return dataclasses.replace(keys, token=spare.token, masters=spare.masters)

    @property
    def board(self) -> BoardAccess | None:
        """How it opens the boards in this role."""
        board, spare, shown = self._config.board, self._spare, self._config.spare_certificate
        if self.role == self._config.role or spare is None or board is None:
            return board
        kafka = board.kafka
        if shown.certificate is not None:
            kafka = dataclasses.replace(
                kafka, certificate=shown.certificate, certificate_key=shown.certificate_key
            )
        return dataclasses.replace(
            board, principal=spare.principal, secret=spare.secret, kafka=kafka
        )
