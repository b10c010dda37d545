"""Indexes brought on: by queries that wait for them, and by themselves after each change.

One thread takes one step at a time, of whatever index is next; while clients ask, it rests after
each (``governor``). What there is to index the databases' readers say (``Sources``): an index that
none of them names any more is retired, once all that they name have come as far as their database.
What takes a step at most is waited for; longer work goes on beside it, so that one large index lets
no other one grow old.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence, Set
from typing import Any

import msgspec

from divandb.catalog import Catalog, Known
from divandb.clock import Clock
from divandb.errors import BadRequest, DivanError, FunctionFailed, NotFound
from divandb.governor import Pace
from divandb.store.indexes import STEP_ROWS_MAX, Built, IndexFile, Recipe
from divandb.store.writer import as_refusal
from divandb.telemetry import Log
from divandb.trouble import Trouble

BUILDS_MAX = 4
"""So many indexes that lack more than a step are brought on at a time if nobody waits."""
LOOK_EVERY_S = 1.0
"""Changes are taken in so often, when nobody waits for them."""
FAULT_PAUSE_S = 5.0
FUNCTION_PAUSE_S_MIN, FUNCTION_PAUSE_S_MAX = 5.0, 300.0
"""An index whose function failed is begun again after this time, each time twice as long."""
DISK_PAUSE_S_MIN, DISK_PAUSE_S_MAX = 5.0, 60.0
"""One that failed for another reason, such as a full disk, likewise; who asks for it has it tried
at once.
"""
SHOWN_AFTER_S = 0.1
"""`_active_tasks` shows work that has gone on for so long."""


class Source(msgspec.Struct, frozen=True):
    """An index that a database should have."""

    signature: bytes
    """16 bytes: the same for what gives the same entries."""
    recipe: Recipe
    name: str
    """The design document that it is in."""
    is_held: bool = False
    """Is it to wait until somebody asks for it? What there is of it is kept."""


_PAUSES = ((DISK_PAUSE_S_MIN, DISK_PAUSE_S_MAX), (FUNCTION_PAUSE_S_MIN, FUNCTION_PAUSE_S_MAX))
"""By whether a function failed."""

Sources = Callable[[Known], Sequence[Source]]
"""The indexes of a database."""
Offload = Callable[..., Awaitable[Any]]
Key = tuple[int, bytes]


class Used(msgspec.Struct, frozen=True):
    """The index that answers for a design document."""

    signature: bytes
    about: bytes
    """What a reader must know of it."""


class _Work:
    """An index that is being brought on."""

    def __init__(self, known: Known, source: Source, goal: int, began: float, wall_ms: int) -> None:
        self.known = known
        self.source = source
        self.goal = goal
        self.start = 0
        self.began = began
        self.started_ms = self.updated_ms = wall_ms
        self.waiting: list[tuple[int, asyncio.Future[None]]] = []

    def wait(self, goal: int) -> asyncio.Future[None]:
        """Done when the index has come to ``goal``."""
        self.goal = max(self.goal, goal)
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append((goal, reached))
        return reached

    def tell(self, seq: int) -> None:
        """It has come to ``seq``."""
        for goal, reached in self.waiting:
            if goal <= seq and not reached.done():
                reached.set_result(None)
        self.waiting = [(goal, reached) for goal, reached in self.waiting if goal > seq]

    def fail(self, fault: BaseException) -> None:
        """It cannot go on."""
        for _, reached in self.waiting:
            if not reached.done():
                reached.set_exception(fault)
        self.waiting.clear()


class _Failure(msgspec.Struct):
    """An index that cannot be built: a function fails on some document, or the disk is full."""

    fault: DivanError
    until: float
    """It is not tried before by itself, and if it is the document's fault by nobody."""
    pause_s: float
    is_of_function: bool


class Indexer:
    """Lives on the event loop; steps are taken by ``offload``, one at a time."""

    def __init__(
        self,
        indexes: IndexFile,
        catalog: Catalog,
        offload: Offload,
        pace: Pace,
        clock: Clock,
        log: Log,
    ) -> None:
        """``indexes`` is settled. ``pace`` is awaited after each step."""
        self._indexes = indexes
        self._built: dict[Key, Built] = {(one.db, one.signature): one for one in indexes.built()}
        self._used: dict[int, dict[str, Used]] = {}
        """database → design document → the index that answers for it."""
        for num, name, signature, about in indexes.used():
            self._used.setdefault(num, {})[name] = Used(signature, about)
        self._storing: dict[tuple[int, str], bytes | None] = {}
        """What is being stored of that."""
        self._trouble = Trouble(log, "indexes cannot be kept current")
        self._use_trouble = Trouble(log, "a switch to another index cannot be stored")
        self._catalog = catalog
        self._offload = offload
        self._pace = pace
        self._clock = clock
        self._log = log
        self._works: dict[Key, _Work] = {}
        self._failures: dict[Key, _Failure] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed: set[int] = set()
        self._wake = asyncio.Event()
        self._is_to_sweep = True
        self.sources: list[Sources] = []
        """Who has indexes; they must all be here before ``run``."""

    def find(self, known: Known, signature: bytes) -> Built | None:
        """An index as far as it has come, if it was begun."""
        return self._built.get((known.num, signature))

    # Which one answers

    def in_use(self, known: Known, name: str) -> Used | None:
        """What answers for a design document, if anything ever did."""
        used = self._used.get(known.num, {}).get(name)
        return used if used is not None and self.find(known, used.signature) else None

    def use(self, known: Known, name: str, built: Built, about: bytes) -> None:
        """Have this index answer for a design document. It does so once that is stored: a node that
        ends in between has not switched.
        """
        self._remember(known.num, name, built, about)

    def disuse(self, known: Known, names: Set[str]) -> None:
        """There are no design documents but these: for others nothing answers."""
        for name in self._used.get(known.num, {}).keys() - names:
            self._remember(known.num, name, None)

    def _remember(self, num: int, name: str, built: Built | None, about: bytes = b"") -> None:
        if (num, name) not in self._storing:
            self._storing[num, name] = built.signature if built is not None else None
            self._spawn(self._store_use(num, name, built, about))

    async def _store_use(self, num: int, name: str, built: Built | None, about: bytes) -> None:
        try:
            if built is None:
                await self._take(self._indexes.disuse, num, name)
                self._used.get(num, {}).pop(name, None)
            else:
                await self._take(self._indexes.use, num, name, built.num, about)
                self._used.setdefault(num, {})[name] = Used(built.signature, about)
            self._use_trouble.over()
            self.changed({num})
        except Exception as fault:
            self._use_trouble.met(fault, self._clock.monotonic())
            await asyncio.sleep(DISK_PAUSE_S_MIN)  # who looks next has it tried again
        finally:
            del self._storing[num, name]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Bringing on

    def is_at_work(self, known: Known, signature: bytes) -> bool:
        """Is it being brought on?"""
        return (known.num, signature) in self._works

    async def current(self, known: Known, source: Source) -> Built:
        """An index that has all changes which the database has now.

        Raises ``NotFound`` when the database goes meanwhile, ``FunctionFailed`` and
        ``CompilationError``, ``StorageFull`` and other faults.
        """
        goal = self._catalog.counters(known).seq
        found = self.find(known, source.signature)
        if found is None or found.seq < goal:
            await self._bring_on(known, source, goal)
            found = self.find(known, source.signature)
            if found is None:  # retired in between, with its database
                raise NotFound("missing")
        return found

    def nearly(self, known: Known, source: Source) -> asyncio.Future[None] | None:
        """Done when an index has what the database has now, if one step is left until then."""
        goal = self._catalog.counters(known).seq
        found = self.find(known, source.signature)
        done = found.seq if found is not None else 0
        if (found is not None and done >= goal) or goal - done > STEP_ROWS_MAX:
            return None
        return self._bring_on(known, source, goal)

    def begin(self, known: Known, source: Source) -> None:
        """Have an index brought on, and wait for nothing."""
        reached = self._bring_on(known, source, self._catalog.counters(known).seq)
        reached.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _bring_on(self, known: Known, source: Source, goal: int) -> asyncio.Future[None]:
        key = (known.num, source.signature)
        work = self._works.get(key)
        if work is None:
            now = self._clock.monotonic()
            failure = self._failures.get(key)
            if failure is not None and failure.is_of_function and now < failure.until:
                failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                failed.set_exception(failure.fault)
                return failed
            work = self._works[key] = _Work(known, source, goal, now, self._clock.wall_ms())
            self._spawn(self._carry_on(key, work))
        return work.wait(goal)

    async def _carry_on(self, key: Key, work: _Work) -> None:
        try:
            await self._steps(key, work)
            self._failures.pop(key, None)
        except asyncio.CancelledError as end:
            work.fail(NotFound("missing"))
            raise end
        except NotFound as fault:
            work.fail(fault)
        except DivanError as fault:
            self._put_off(key, work, fault)
            work.fail(fault)
        except Exception as fault:
            self._log.fault("an index cannot be built", fault, database=work.known.name)
            self._put_off(key, work, DivanError("An index cannot be built; the log says why."))
            work.fail(fault)
        finally:
            del self._works[key]

    def _put_off(self, key: Key, work: _Work, fault: DivanError) -> None:
        before = self._failures.get(key)
        is_of_function = isinstance(fault, FunctionFailed | BadRequest)
        least_s, most_s = _PAUSES[is_of_function]
        pause_s = min(before.pause_s * 2, most_s) if before else least_s
        until = self._clock.monotonic() + pause_s
        self._failures[key] = _Failure(fault, until, pause_s, is_of_function)
        if is_of_function or before is None:
            why = "a function fails" if is_of_function else "it cannot be stored"
            self._log.event(
                f"an index waits: {why}", database=work.known.name, reason=fault.reason,
                retry_s=round(pause_s),
            )  # fmt: skip
        asyncio.get_running_loop().call_later(pause_s, self.changed, {key[0]})

    async def _steps(self, key: Key, work: _Work) -> None:
        built = self._built.get(key)
        if built is None:
            source = work.source
            built = await self._take(self._indexes.begin, *key, work.goal, source.name)
            self._built[key] = built
        self._take_first_in_use(work, built)
        work.start = built.seq
        work.tell(built.seq)  # of an empty database it is there already
        while built.seq < work.goal:
            began = self._clock.monotonic()
            built = await self._take(self._indexes.step, built, work.goal, work.source.recipe)
            if key not in self._built:
                raise NotFound("missing")
            self._built[key] = built
            self._take_first_in_use(work, built)
            work.updated_ms = self._clock.wall_ms()
            work.tell(built.seq)
            if built.seq < work.goal:
                await self._pace(self._clock.monotonic() - began)

    def _take_first_in_use(self, work: _Work, built: Built) -> None:
        """The first index of a design document answers as soon as it is whole."""
        name, about = work.source.name, work.source.recipe.about
        if about is not None and built.is_complete and not self.in_use(work.known, name):
            self.use(work.known, name, built, about)

    async def _take(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return await self._offload(function, *arguments)
        except Exception as fault:
            raise as_refusal(fault) from fault

    def tasks(self) -> list[dict[str, object]]:
        """What is under way, as `_active_tasks` has it."""
        now = self._clock.monotonic()
        return [
            self._shown(key, work)
            for key, work in self._works.items()
            if now - work.began >= SHOWN_AFTER_S
        ]

    def _shown(self, key: Key, work: _Work) -> dict[str, object]:
        built = self._built.get(key)
        total = max(work.goal - work.start, 1)
        done = max((built.seq if built else 0) - work.start, 0)
        return {
            "type": "indexer",
            "database": work.known.name,
            "design_document": work.source.name,
            "progress": int(100 * done / total),
            "changes_done": done,
            "total_changes": total,
            "started_on": work.started_ms // 1000,
            "updated_on": work.updated_ms // 1000,
        }

    def status(self) -> dict[str, object]:
        """How many indexes there are, what is under way, and what waits since a function fails."""
        now = self._clock.monotonic()
        return {
            "kept": len(self._built),
            "building": self.tasks(),
            "failing": [
                {"reason": failure.fault.reason, "again_s": max(round(failure.until - now), 0)}
                for failure in self._failures.values()
            ],
        }

    # By itself

    def changed(self, nums: set[int]) -> None:
        """These databases have changed."""
        self._changed |= nums
        self._wake.set()

    async def run(self) -> None:
        """Keep all indexes current until cancelled."""
        self._changed |= {
            found.num for name in self._catalog.names() if (found := self._catalog.find(name))
        }
        self._changed |= {num for num, _ in self._built}
        self._wake.set()
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                changed, self._changed = self._changed, set()
                failed, unfinished = await self._keep_up(changed)
                await asyncio.sleep(FAULT_PAUSE_S if failed else LOOK_EVERY_S)
                if failed or unfinished:
                    self.changed(failed | unfinished)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep_up(self, nums: set[int]) -> tuple[set[int], set[int]]:
        """Have the indexes of these databases current: those of which it failed, and those whose
        indexes have farther to go.
        """
        found = [self._catalog.find(name) for name in self._catalog.names()]
        living = {known.num: known for known in found if known is not None}
        failed: set[int] = set()
        unfinished: set[int] = set()
        for num in nums:
            try:
                if not await self._keep_current(num, living.get(num)):
                    unfinished.add(num)
            except NotFound:
                failed.add(num)  # dropped a moment ago: the next look finds it gone
            except DivanError as fault:  # a full disk, most likely
                self._trouble.met(fault, self._clock.monotonic())
                failed.add(num)
            except Exception as fault:
                self._log.fault("indexes cannot be kept current", fault)
                failed.add(num)
        if not failed:
            self._trouble.over()
        return failed, unfinished

    async def _keep_current(self, num: int, known: Known | None) -> bool:
        """Are all of a database's indexes current? Those that fail, or are held, do not count."""
        sources = self._sources_of(known) if known is not None else []
        are_current = True
        for source in sources:
            assert known is not None
            if not source.is_held and not await self._kept(known, source):
                are_current = False
        if known is None:
            self._used.pop(num, None)
        if are_current:
            await self._retire(num, {source.signature for source in sources})
        while self._is_to_sweep:
            self._is_to_sweep = await self._take(self._indexes.sweep)
        return are_current

    async def _kept(self, known: Known, source: Source) -> bool:
        """Bring an index on: has it come as far as it can?"""
        found = self.find(known, source.signature)
        left = self._catalog.counters(known).seq - (found.seq if found is not None else 0)
        failure = self._failures.get((known.num, source.signature))
        if failure is not None and self._clock.monotonic() < failure.until:
            return True  # it is looked at again when its time has come
        if left > STEP_ROWS_MAX:
            if len(self._works) < BUILDS_MAX and not self.is_at_work(known, source.signature):
                self.begin(known, source)
            return False
        try:
            await self.current(known, source)
        except NotFound:
            raise
        except Exception:  # it is put off and was told of; queries meet it, too
            return True
        return True

    def _sources_of(self, known: Known) -> list[Source]:
        return [source for each in self.sources for source in each(known)]

    async def _retire(self, num: int, used: Set[bytes]) -> None:
        """Indexes that are not used any more go, but none that has been taken in use since they
        were named.
        """
        answering = {one.signature for one in self._used.get(num, {}).values()}
        answering |= {sign for (db, _), sign in self._storing.items() if db == num and sign}
        gone = [
            one
            for (db, sign), one in self._built.items()
            if db == num and sign not in used | answering and (num, sign) not in self._works
        ]
        self._failures = {
            key: failure
            for key, failure in self._failures.items()
            if key[0] != num or key[1] in used
        }
        if gone:
            for one in gone:
                del self._built[num, one.signature]
            try:
                await self._take(self._indexes.retire, [one.num for one in gone])
            except Exception:  # they are still in the file, and go with a later look
                for one in gone:
                    self._built.setdefault((num, one.signature), one)
                raise
            self._is_to_sweep = True
