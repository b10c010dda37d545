"""The fast lane between nodes: heartbeats, forwarded writes, and "do you contain this?".

    POST /_divan/heartbeat   who is there, and what they contain
    POST /_divan/commands    writes that a replica has fixed; at a master only
    POST /_divan/reached     waits until a vector is contained
    POST /_divan/hot         which documents are read most here

Bodies are MessagePack (``cluster.messages``). Only members of the cluster are answered.
"""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import msgspec
import orjson

from divandb.cluster import messages, trust
from divandb.cluster.messages import Answer, Order
from divandb.commands import Job
from divandb.config import REPLICA
from divandb.errors import BadRequest, DivanError, Forbidden, TooLarge, Unauthorized
from divandb.httpd.services import Services

Headers = list[tuple[bytes, bytes]]
Done = Callable[[int, Headers, bytes], None]
Handler = Callable[[bytes, Done], bool]
PREFIX = b"/_divan/"
BODY_FACTOR = 4
"""A bulk of JSON may grow so much on its way to a master."""


class NotAMaster(DivanError):
    """Writes are carried out elsewhere."""

    status = 421
    error = "misdirected_request"


class PeerLane:
    """Answers other nodes."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._tasks: set[asyncio.Task[None]] = set()
        self._works = {
            b"/_divan/heartbeat": self._heartbeat,
            b"/_divan/commands": self._commands,
            b"/_divan/reached": self._reached,
            b"/_divan/hot": self._hot,
        }
        self._holders: dict[tuple[bytes, bool], tuple[str, str, str]] = {}

    def handler(self, url: bytes, headers: Headers) -> Handler | None:
        """What carries out this request; ``None`` if it is not for this lane."""
        work = self._works.get(url)
        if work is None:
            return None
        asked = dict(headers)
        size = asked.get(b"content-length", b"")
        most = BODY_FACTOR * self._services.limits.body_bytes_max
        if not size.isdigit() or int(size) > most:
            return lambda body, done: _refuse(done, TooLarge("the request entity is too large"))
        holder = self._holder(asked.get(b"authorization", b""))
        if holder is None:
            refusal = Unauthorized("This is for nodes of the cluster.")
            return lambda body, done: _refuse(done, refusal)

        def carry_out(body: bytes, done: Done) -> bool:
            try:
                self._services.peers.check_member(holder[0])
                self._services.peers.check_removed()
                work(holder, body, done)
            except DivanError as refusal:
                return _refuse(done, refusal)
            except msgspec.MsgspecError as fault:
                return _refuse(done, BadRequest(f"The message cannot be read: {fault}"))
            return True

        return carry_out

    def _holder(self, authorization: bytes) -> tuple[str, str, str] | None:
        keys = self._services.peers.tenure.keys
        # A replica that has become a master checks more.
        place = (authorization, bool(keys.masters))
        known = self._holders.get(place)
        if known is None:
            known = trust.holder(keys, authorization.decode("latin-1"))
            if known is not None:
                self._holders[place] = known
        return known

    def _heartbeat(self, holder: tuple[str, str, str], body: bytes, done: Done) -> None:
        told = messages.decode_heartbeat(body)
        if not told.members or told.members[0].name != holder[0]:
            raise Forbidden("A node speaks for itself.")
        _, role, slot = holder
        if told.members[0].slot != slot or told.members[0].role not in (role, REPLICA):
            raise Forbidden("This credential is for another place.")
        _give(done, self._services.peers.answer(told))

    def _hot(self, _: tuple[str, str, str], body: bytes, done: Done) -> None:
        _give(done, self._services.hottest())

    def _reached(self, _: tuple[str, str, str], body: bytes, done: Done) -> None:
        question = messages.decode_question(body)
        if self._services.progress.contains(question.needs):
            _give(done, messages.Reached(True))
            return

        async def wait() -> None:
            wait_s = min(question.wait_ms, self._services.limits.concern_wait_ms_max) / 1000
            yes = await self._services.progress.reach(question.needs, wait_s)
            _give(done, messages.Reached(yes))

        self._start(wait())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _commands(self, _: tuple[str, str, str], body: bytes, done: Done) -> None:
        carry_out = self._services.carry_out
        if not self._services.peers.tenure.serves:
            raise NotAMaster("This node accepts no writes now.")
        orders = messages.decode_orders(body)
        answers: list[Answer | None] = [None] * len(orders)
        open_orders = len(orders)

        def answered(place: int, job: Job) -> None:
            nonlocal open_orders
            if isinstance(job.result, Exception) and not isinstance(job.result, DivanError):
                self._services.log.fault("a forwarded write failed", job.result)
            answers[place] = messages.answer_of(
                job.result, job.written, job.slot, job.reached, job.visible
            )
            open_orders -= 1
            if not open_orders:
                _give(done, answers)

        for place, order in enumerate(orders):
            job = _job(order, partial(answered, place))
            try:
                carry_out(job)
            except DivanError as refusal:
                job.result = refusal
                answered(place, job)


def _job(order: Order, done: Callable[[Job], None]) -> Job:
    return Job(order.command, _size(order.command), done, None, order.needs, order.concern)


def _size(command: Any) -> int:
    """Bytes of bodies: what the writer's queue counts."""
    writes = getattr(command, "writes", None)
    if writes is not None:
        return sum(len(w.body) + sum(len(data) for _, data in w.blobs) for w in writes)
    return len(getattr(command, "data", b"") or getattr(command, "value", b"") or b"")


def _give(done: Done, value: Any) -> None:
    done(200, [], messages.encode(value))


def _refuse(done: Done, refusal: DivanError) -> bool:
    body = orjson.dumps({"error": refusal.error, "reason": refusal.reason})
    done(refusal.status, [], body)
    return True
