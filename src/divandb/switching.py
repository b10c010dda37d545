"""When a group turns from one version of a design document to the next: a pure decision.

Each node keeps the rows of both versions while the next one is being built, asks the others of its
group how far they are, and decides by these rules:

1. Replicas build at once. A slot's owner, which has writes to take, begins when it waits for none
   of them: it need not have replicas.
2. A node turns to the next version when its own rows are ready and it waits for no replica. So all
   replicas of a group turn within a look of each other, and the owner after them.
3. A replica is waited for while it lives and its rows grow. One that has stood still for
   ``patience_s`` is not: a function that fails there, or a node that hangs, holds nobody for ever.
4. Nobody turns back.
"""

from collections.abc import Mapping

import msgspec

NOT_BEGUN = -1


class Build(msgspec.Struct, frozen=True, array_like=True):
    """How far a node is with a version."""

    seq: int = NOT_BEGUN
    """The changes that it has taken in; ``NOT_BEGUN`` where there are no rows yet."""
    is_ready: bool = False
    """Has it ever come as far as its database was when it was begun?"""


class Verdict(msgspec.Struct, frozen=True):
    """What a node does about a version."""

    may_build: bool = True
    is_switched: bool = False
    waits_for: tuple[str, ...] = ()
    """Replicas, by name."""


class Switch:
    """One version on its way, as one node sees it."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[Build, float]] = {}
        """replica → how far it was last, and since when."""

    def look(
        self,
        own: Build,
        replicas: Mapping[str, Build | None],
        now: float,
        patience_s: float,
        *,
        is_owner: bool,
    ) -> Verdict:
        """``replicas`` are the others of the group that live; None: that one gave no answer.
        ``now`` is monotonic, in seconds.
        """
        self._seen = {name: self._met(name, said, now) for name, said in replicas.items()}
        waits_for = tuple(
            name
            for name, (build, since) in sorted(self._seen.items())
            if not build.is_ready and now - since < patience_s
        )
        return Verdict(not (is_owner and waits_for), own.is_ready and not waits_for, waits_for)

    def _met(self, name: str, said: Build | None, now: float) -> tuple[Build, float]:
        before = self._seen.get(name, (Build(), now))
        return before if said is None or said == before[0] else (said, now)
