"""A request until it has its answer: whom it is sent to, when it is sent again, what goes with it.

An attempt that got no answer may have been carried out, unless no connection was made. What
changes nothing is sent again, to the next node. A write of documents is sent again marked as a
repeat (Rule 5): ids, parents and contents are in it, so the server can tell its own first answer
from somebody else's edit. Everything else ends with ``UncertainError``.

Pure but for the clock: see ``wire``.
"""

import base64
from collections.abc import Mapping
from typing import Any

from divandb.client import errors, tokens, wire
from divandb.client.errors import ClientError, NoAnswerError, TooBusyError, UncertainError
from divandb.client.nodes import Node, Nodes
from divandb.client.options import Options
from divandb.client.tokens import Session
from divandb.client.wire import Answer, Fault, Kind, Repeat, Request, Rest, Send, Steps, Wait
from divandb.clock import Clock, Rng

TOPOLOGY = "/_divan/topology"
PROBE = "/_up"
REPEAT = "divan-repeat"
MISDIRECTED = 421
"""It was refused before anything was done."""
NO_LOGIN = (401, 403)
UNAVAILABLE = (502, 503, 504)
"""Perhaps it was done."""


class Sender:
    """Sends the requests of one client."""

    def __init__(
        self, nodes: Nodes, options: Options, user: str | None, password: str | None, clock: Clock,
        rng: Rng,
    ) -> None:  # fmt: skip
        self.nodes = nodes
        self.options = options
        self._clock = clock
        self._rng = rng
        self.may_learn = True
        """``False`` once the members were not told for want of a login: asking again and again with
        a wrong password would lock the account for this address.
        """
        self._common = {"accept": "application/json"}
        if user is not None:
            pair = base64.b64encode(f"{user}:{password or ''}".encode()).decode()
            self._common["authorization"] = f"Basic {pair}"

    def new_id(self) -> str:
        """An id for a document."""
        return self._rng.token(16).hex()

    # Who is there

    @property
    def is_choosing(self) -> bool:
        """Is there more than one node to choose from?"""
        return self.options.direct or len(self.nodes.all()) > 1

    def learn(self) -> Steps[None]:
        """Ask who the members are, once, of whoever is asked first and answers."""
        if not (self.options.direct and self.may_learn):
            return
        for node in self.nodes.order(Kind.READ)[:3]:
            effect = Send("GET", node.url + TOPOLOGY, self._common, None, Wait.PROBE)
            found = yield from wire.sent(effect)
            if isinstance(found, Fault):
                self.nodes.failed(node)
                continue
            self.may_learn = found.status not in NO_LOGIN
            try:
                told = found.json() if found.status == 200 else {}
                self.nodes.learn(told["members"])
            except (ClientError, KeyError, TypeError, ValueError):
                # No member of such a cluster, or it has other troubles, which requests will meet.
                self.nodes.is_refresh_due = False
            return

    def probe(self, node: Node) -> Steps[None]:
        """Measure how far it is."""
        began = self._clock.monotonic()
        headers = {"accept": "application/json"}
        effect = Send("GET", node.url + PROBE, headers, None, Wait.PROBE)
        found = yield from wire.sent(effect)
        if isinstance(found, Answer) and found.status == 200:
            self.nodes.probed(node, self._clock.monotonic() - began)
            self.nodes.answered(node, found.headers.get("divan-lag"))
        elif isinstance(found, Answer) or not found.is_ours:
            self.nodes.failed(node)

    def look(self) -> Steps[None]:
        """Who is there, and how far are they?"""
        yield from self.learn()
        for node in self.nodes.all():
            yield from self.probe(node)

    def keep_looking(self) -> Steps[None]:
        """Measure all nodes now and then, and see who is there when that may have changed."""
        learned = -self.options.refresh_every_s
        while self.is_choosing:
            now = self._clock.monotonic()
            if self.nodes.is_refresh_due or now - learned >= self.options.refresh_every_s:
                learned = now
                yield from self.learn()
            for node in self.nodes.all():
                yield from self.probe(node)
            yield Rest(self.options.probe_every_s * (0.75 + self._rng.uniform() / 2))

    # A request

    def ask(
        self, request: Request, session: Session | None = None, *,
        concern: str | None = None, max_staleness_ms: int | None = None,
    ) -> Steps[Answer]:  # fmt: skip
        """The answer of whichever node gave one, be it a refusal; raises ``ClientError``."""
        call = _Call(self, request, session, concern, max_staleness_ms)
        until = self._clock.monotonic() + self.options.retry_s_max
        pause_s = self.options.pause_s_min
        passed: set[str] = set()
        for _ in range(self.options.attempts_max):
            order = self.nodes.order(request.kind, max_staleness_ms)
            node = next((one for one in order if one.name not in passed), None)
            if node is None:
                if self._clock.monotonic() + pause_s > until:
                    break
                yield Rest(pause_s * (0.5 + self._rng.uniform() / 2))
                pause_s = min(pause_s * 2, self.options.pause_s_max)
                passed.clear()
                node = self.nodes.order(request.kind, max_staleness_ms)[0]
            passed.add(node.name)
            answer = yield from call.attempt(node)
            if answer is not None:
                return answer
            if self._clock.monotonic() > until:
                break
        raise call.failure

    def headers(self, session: Session | None) -> dict[str, str]:
        """What goes with every request."""
        if session is None:
            return dict(self._common)
        return {**self._common, tokens.HEADER: session.token}


class _Call:
    """One request, over all its attempts."""

    def __init__(
        self, sender: Sender, request: Request, session: Session | None,
        concern: str | None, max_staleness_ms: int | None,
    ) -> None:  # fmt: skip
        self._sender = sender
        self._request = request
        self._session = session
        self._said: dict[str, str] = {}
        if concern is not None and request.kind is Kind.WRITE:
            self._said["divan-concern"] = concern
        if max_staleness_ms is not None and request.kind is Kind.READ:
            self._said["divan-max-staleness"] = str(max_staleness_ms)
        self._is_uncertain = False
        """May an attempt have been carried out that got no answer?"""
        self.failure: ClientError = NoAnswerError("No node was asked.")
        """Why there is no answer, after the latest attempt."""

    def attempt(self, node: Node) -> Steps[Answer | None]:
        """Send it to this node; ``None``: to another one. Raises what ends the call."""
        request = self._request
        headers = {**self._sender.headers(self._session), **self._said, **request.headers}
        if self._is_uncertain and request.repeat is Repeat.MARKED:
            headers[REPEAT] = "true"
        effect = Send(
            request.method, node.url + request.path, headers, request.body, request.wait,
            request.streams,
        )  # fmt: skip
        found = yield from wire.sent(effect)
        if isinstance(found, Fault):
            self._broken(node, found)
            return None
        return self._judged(node, found, headers.get(tokens.HEADER, ""))

    def _broken(self, node: Node, fault: Fault) -> None:
        if fault.is_ours:
            raise TooBusyError(fault.why)
        self._sender.nodes.failed(node)
        if fault.is_sent and self._request.repeat is not Repeat.ALWAYS:
            self._is_uncertain = True
        what = f"{self._request.method} {self._request.path}: {node.name}: {fault.why}"
        self.failure = UncertainError(what) if self._is_uncertain else NoAnswerError(what)
        if self._is_uncertain and not self._may_repeat:
            raise self.failure

    def _judged(self, node: Node, answer: Answer, sent: str) -> Answer | None:
        nodes = self._sender.nodes
        nodes.answered(node, answer.headers.get("divan-lag"))
        if answer.status not in NO_LOGIN:
            self._sender.may_learn = True
        if self._session is not None and answer.status not in (401, MISDIRECTED):
            headers = answer.headers
            is_behind = tokens.BEHIND in headers
            self._session.note(sent, headers.get(tokens.HEADER), is_behind=is_behind)
        is_write = self._request.repeat is not Repeat.ALWAYS
        if answer.status == MISDIRECTED:
            nodes.is_refresh_due = True
        elif answer.status in UNAVAILABLE:
            self._is_uncertain = self._is_uncertain or is_write
        else:
            return Answer(
                answer.status, answer.headers, answer.body, answer.stream, node.name,
                self._is_uncertain,
            )  # fmt: skip
        refusal = errors.of_answer(
            answer.status, answer.body, is_uncertain=self._is_uncertain
        )  # fmt: skip
        self.failure = refusal
        if not self._may_repeat and answer.status in UNAVAILABLE:
            raise refusal
        return None

    @property
    def _may_repeat(self) -> bool:
        return self._request.repeat is not Repeat.NEVER


class Line:
    """How one client, or one session of it, asks."""

    def __init__(
        self, sender: Sender, session: Session | None, concern: str | None,
        max_staleness_ms: int | None,
    ) -> None:  # fmt: skip
        self.sender = sender
        self.session = session
        self.concern = concern
        self.max_staleness_ms = max_staleness_ms

    def ask(self, request: Request, *accepted: int) -> Steps[Answer]:
        """The answer; raises ``ServerError`` for one of 400 or above that is not ``accepted``."""
        answer = yield from self.sender.ask(
            request, self.session, concern=self.concern, max_staleness_ms=self.max_staleness_ms
        )
        if answer.status >= 400 and answer.status not in accepted:
            raise errors.of_answer(answer.status, answer.body, is_uncertain=answer.is_uncertain)
        return answer

    def read(
        self, path: str, parameters: Mapping[str, Any] | None = None, *, wait: Wait = Wait.READ
    ) -> Steps[Any]:
        """GET; the answer's JSON."""
        answer = yield from self.ask(Request("GET", path + wire.query(parameters or {}), wait=wait))
        return answer.json()

    def question(self, path: str, value: Any, *, wait: Wait = Wait.SLOW) -> Steps[Any]:
        """POST what changes nothing; the answer's JSON."""
        body, headers = wire.json_body(value)
        request = Request("POST", path, Kind.READ, Repeat.ALWAYS, body, headers, wait)
        answer = yield from self.ask(request)
        return answer.json()

    def write(
        self, method: str, path: str, value: Any, repeat: Repeat, *, wait: Wait = Wait.WRITE
    ) -> Steps[Answer]:
        """Send JSON to a master."""
        body, headers = (None, {}) if value is None else wire.json_body(value)
        return (yield from self.ask(Request(method, path, Kind.WRITE, repeat, body, headers, wait)))
