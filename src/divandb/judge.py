"""What design documents say of a write before a master takes it: `validate_doc_update`.

Asked on masters, of what clients write, also as replicators do (``new_edits=false``): never of what
arrives from a board, which another master has let pass. A database whose design documents have no
such function costs a look into a dict.

The old document is the parent revision that the write names. If that is no leaf any more when the
writer comes to it, the write is a conflict: so what was judged is what is done.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson

from divandb import revtree
from divandb.auth.policy import UserContext
from divandb.catalog import Catalog, Known
from divandb.commands import Edit, Graft, WriteDocuments
from divandb.designs import VALIDATE, Design, Designs
from divandb.errors import (
    BadRequest,
    Conflict,
    DivanError,
    Forbidden,
    FunctionEnded,
    Unauthorized,
)
from divandb.replica import Replica
from divandb.revtree import Leaf
from divandb.store.documents import Row
from divandb.views import form
from divandb.views.design import LANGUAGE, Views
from divandb.views.engine import Engine
from divandb.views.reduce import builtin_of

DESIGN = "_design/"
INVALID = "invalid_design_doc"
REVISIONS_MAX = 20
"""Of a document's ancestry that a function is shown."""
_PATH = orjson.dumps([VALIDATE]).decode()

Offload = Callable[..., Awaitable[Any]]


class Judge:
    """Lives on the event loop of a node that may be a master."""

    def __init__(
        self,
        designs: Designs,
        catalog: Catalog,
        replica: Replica,
        engine: Engine,
        offload: Offload,
    ) -> None:
        self._designs = designs
        self._catalog = catalog
        self._replica = replica
        self._engine = engine
        self._offload = offload

    def is_asked(self, command: WriteDocuments) -> bool:
        """Is there anything to say of these writes?"""
        known = self._catalog.find(command.database)
        if known is None:
            return False
        if self._designs.validators(known):
            return True
        return any(write.id.startswith(DESIGN) for write in command.writes)

    async def refusals(self, command: WriteDocuments) -> dict[int, DivanError]:
        """The writes that are refused, by their place among the command's."""
        known = self._catalog.find(command.database)
        if known is None or known.generation != command.generation:
            return {}  # the writer says so
        refused: dict[int, DivanError] = {}
        shown: dict[int, str] = {}
        for place, write in enumerate(command.writes):
            if write.id.startswith(DESIGN):
                if isinstance(write, Edit) and not write.deleted:
                    await self._compile(known, place, write, refused)
                continue
            try:
                arguments = self._arguments(known, command, write)
            except Conflict as conflict:
                refused[place] = conflict
                continue
            if arguments is not None:
                shown[place] = arguments
        for design in self._designs.validators(known):
            await self._judge(design, command, shown, refused)
        return refused

    async def _compile(
        self, known: Known, place: int, write: Edit, refused: dict[int, DivanError]
    ) -> None:
        """Refuse a design document that has not the form of one, or whose views are no
        functions.
        """
        document = orjson.loads(write.body)
        wrong = form.fault(document, partitioned=bool(known.options.get("partitioned")))
        if wrong is not None:
            refused[place] = BadRequest(wrong, error=INVALID)
            return
        views = Views(document)
        if views.language != LANGUAGE or not views.views:
            return
        for view in views.views.values():
            reduce = view.reduce
            if reduce is not None and reduce.startswith("_") and builtin_of(reduce) is None:
                reason = f"`{reduce}` is not a supported reduce function."
                refused[place] = BadRequest(reason, error=INVALID)
                return
        try:
            await self._offload(self._engine.ask, views.program, "notes", [[]], [])
        except DivanError as fault:
            refused[place] = fault

    def _arguments(self, known: Known, command: WriteDocuments, write: Edit | Graft) -> str | None:
        """What the functions are given, as JSON; None if there is nothing to ask. Raises
        ``Conflict``.
        """
        row = self._replica.row(known, write.id)
        shown = row.document.shown()
        new = orjson.loads(write.body)
        parent: Leaf | None
        if isinstance(write, Edit):
            parent = revtree.find_leaf(shown, write.parent) if write.parent else None
            if write.parent and parent is None:
                pos = revtree.parse_rev(write.parent)[0] + 1
                if command.repeat and any(leaf.knows(pos, write.rev_hash) for leaf in shown):
                    return None  # it was done before
                if not command.orphans:
                    raise Conflict
            del new["_rev"]
            if write.parent:
                new["_rev"] = write.parent
            new["_revisions"] = _revisions(parent)
        else:
            parent = _nearest(shown, write)
            new["_revisions"] = {"start": write.pos, "ids": write.ancestry[:REVISIONS_MAX]}
        user = _user_of(command)
        context = {"db": known.name, "name": user.name, "roles": user.roles}
        security = known.security_json.decode()
        old = self._old(known, row, parent)
        return f"[{orjson.dumps(new).decode()},{old},{orjson.dumps(context).decode()},{security}]"

    def _old(self, known: Known, row: Row, parent: Leaf | None) -> str:
        revision = self._replica.revision(known, row, parent.rev) if parent is not None else None
        if revision is None or parent is None:
            return "null"
        old = orjson.loads(revision.body)
        old["_revisions"] = _revisions(parent)
        return orjson.dumps(old).decode()

    async def _judge(
        self,
        design: Design,
        command: WriteDocuments,
        shown: dict[int, str],
        refused: dict[int, DivanError],
    ) -> None:
        """Ask one design document's function about all writes that are not refused yet."""
        places = [place for place in shown if place not in refused]
        while places:
            calls = [[_PATH, shown[place]] for place in places]
            ids = [command.writes[place].id for place in places]
            answers, fault = await self._offload(
                self._engine.attempt, design.program, "validate", calls, ids
            )
            for place, answer in zip(places, answers, strict=False):
                (said,) = orjson.loads(answer)
                if said is not None:
                    refused[place] = refusal_of(said)
            places = places[len(answers) :]
            if isinstance(fault, FunctionEnded):
                # It would hold up everybody else with each of the others.
                refused.update(dict.fromkeys(places, fault))
                return
            if fault is not None:
                refused[places[0]] = fault
                places = places[1:]


def refusal_of(said: Any) -> DivanError:
    """What a function threw, as an error."""
    if isinstance(said, dict):
        for name, kind in (("forbidden", Forbidden), ("unauthorized", Unauthorized)):
            if name in said:
                return kind(_text(said[name]))
        if len(said) == 1:
            (said,) = said.values()
    return DivanError(_text(said), error="unknown_error")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _user_of(command: WriteDocuments) -> UserContext:
    name, roles = command.user
    return UserContext(name, roles)


def _revisions(leaf: Leaf | None) -> dict[str, Any]:
    if leaf is None:
        return {"start": 0, "ids": []}
    return {"start": leaf.pos, "ids": leaf.ancestry[:REVISIONS_MAX]}


def _nearest(shown: Sequence[Leaf], write: Graft) -> Leaf | None:
    """The leaf that a revision made elsewhere comes behind, if there is one here."""
    revs = {f"{write.pos - back}-{name}" for back, name in enumerate(write.ancestry)}
    return next((leaf for leaf in shown if leaf.rev in revs), None)
