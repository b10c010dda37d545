"""What Kafka's brokers are asked and told besides messages: topics, places, rights, principals.

Each request is answered within ``answer_s_max`` or ``Unreachable``. A broker makes a change known
to the others after it has answered; so whoever makes one waits until it can be seen.
"""

import asyncio
import concurrent.futures
import dataclasses
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    TopicDescription,
    UserScramCredentialDeletion,
    UserScramCredentialUpsertion,
)

from divandb.board.base import (
    Access,
    BadRequest,
    BoardError,
    NoTopic,
    PartitionInfo,
    Refused,
    Right,
    TopicInfo,
    Unreachable,
)
from divandb.board.kafka_client import (
    BATCH_OVERHEAD_BYTES,
    KafkaBounds,
    connection_words,
    error_of,
)

SCRAM_ROUNDS = 4096
"""Secrets are random: more rounds would only make logging in slower."""
LOOK_S = 0.05
"""So often it is looked whether a change can be seen, and whether a login was refused."""
DOWN_S = 1.0
"""While no broker can be reached, an answer is waited for no longer than that."""
ATTEMPT_S = 2.0
"""A question that has no answer for so long is asked again, by a client that knows nothing of old:
one that waits for a dead broker does not ask for another one.
"""
GROUPS = "divandb."
"""How the names of all consumer groups begin: they are looked up, and never joined."""
_ANY: Any = None
_SCRAM = {
    "SCRAM-SHA-256": ScramMechanism.SCRAM_SHA_256,
    "SCRAM-SHA-512": ScramMechanism.SCRAM_SHA_512,
}
_STALE = {KafkaError._TIMED_OUT, KafkaError._TIMED_OUT_QUEUE}
_Question = Callable[[AdminClient, float], "concurrent.futures.Future[Any]"]
"""Asks a client, to be answered within seconds."""
_RIGHTS = {Right.READ: AclOperation.READ, Right.WRITE: AclOperation.WRITE}


@dataclasses.dataclass(frozen=True)
class Where:
    """One partition as it is now."""

    identity: str
    start: int
    end: int


class Admin:
    """Requests of one principal; the client is made at the first."""

    def __init__(self, settings: dict[str, Any], bounds: KafkaBounds, who: str) -> None:
        self._settings = settings
        self._bounds = bounds
        self._who = who
        self._client: AdminClient | None = None
        self._cluster: str | None = None
        self._login_problem: BoardError | None = None
        self._is_down = False
        self._is_closed = False
        self._clients_made = 0
        self._why_down = ""
        self._leaving: set[asyncio.Future[None]] = set()

    async def close(self) -> None:
        """Let go of the client."""
        self._is_closed = True
        self._let_go()
        if self._leaving:
            await asyncio.wait(self._leaving)

    def _let_go(self) -> None:
        held, self._client = [self._client], None
        if held != [None]:
            # The last reference goes in a thread: librdkafka's own threads are awaited there.
            leaving = asyncio.ensure_future(asyncio.to_thread(held.clear))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)

    # What is there

    async def describe(self, topic: str, message_bytes_max: int) -> TopicInfo:
        """A topic; ``message_bytes_max`` is taken where its own may not be seen."""
        known = await self._described(topic)
        numbers = [one.id for one in known.partitions]
        places = [TopicPartition(topic, number) for number in sorted(numbers)]
        starts, ends, limit = await asyncio.gather(
            self._offsets(places, OffsetSpec.earliest()),
            self._offsets(places, OffsetSpec.latest()),
            self.message_bytes_max(topic, message_bytes_max),
        )
        pairs = zip(starts, ends, strict=True)
        partitions = tuple(PartitionInfo(start, end) for start, end in pairs)
        return TopicInfo(topic, await self._identity(known), partitions, limit)

    async def where(self, topic: str, partition: int, right: Right = Right.READ) -> Where:
        """One partition's place, and the identity of its log; ``right`` is what it is asked for."""
        places = [TopicPartition(topic, partition)]
        known = await self._described(topic, right)
        if not any(one.id == partition for one in known.partitions):
            raise NoTopic(f"{topic} has {len(known.partitions)} partitions; not {partition}.")
        identity, (start,), (end,) = await asyncio.gather(
            self._identity(known),
            self._offsets(places, OffsetSpec.earliest()),
            self._offsets(places, OffsetSpec.latest()),
        )
        return Where(identity, start, end)

    async def message_bytes_max(self, topic: str, otherwise: int) -> int:
        """The largest message that the topic takes; ``otherwise`` where that may not be seen."""
        try:
            settings = await self.topic_settings(topic)
        except Refused:
            return otherwise
        return int(settings["max.message.bytes"]) - BATCH_OVERHEAD_BYTES

    async def topic_settings(self, topic: str) -> dict[str, str]:
        """A topic's own settings, with the defaults of its brokers."""
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
        found = await self._asked(
            lambda client, wait_s: client.describe_configs([resource], request_timeout=wait_s)[
                resource
            ],
            f"read the settings of {topic}",
        )
        return {name: entry.value for name, entry in found.items()}

    async def operations(self, topic: str) -> set[str]:
        """What this principal may do with a topic, such as ``READ``."""
        known = await self._described(topic, operations=True)
        return {one.name for one in known.authorized_operations or []}

    async def brokers(self) -> int:
        """How many brokers the cluster has."""
        return len((await self._described_cluster()).nodes)

    async def copies(self, topic: str) -> int:
        """How many replicas each partition has, the fewest counted."""
        known = await self._described(topic)
        return min(len(one.replicas) for one in known.partitions)

    async def _described(
        self, topic: str, right: Right = Right.READ, *, operations: bool = False
    ) -> TopicDescription:
        found: TopicDescription = await self._asked(
            lambda client, wait_s: client.describe_topics(
                TopicCollection([topic]),
                include_authorized_operations=operations,
                request_timeout=wait_s,
            )[topic],
            f"{right} {topic}",
        )
        return found

    async def _described_cluster(self) -> Any:
        return await self._asked(
            lambda client, wait_s: client.describe_cluster(request_timeout=wait_s),
            "read the cluster",
        )

    async def _identity(self, known: TopicDescription) -> str:
        """A new one each time that a topic is made."""
        if self._cluster is None:
            self._cluster = (await self._described_cluster()).cluster_id
        return f"{self._cluster}/{known.topic_id}"

    async def _offsets(self, places: Sequence[TopicPartition], which: OffsetSpec) -> list[int]:
        return list(await asyncio.gather(*(self._offset(place, which) for place in places)))

    async def _offset(self, place: TopicPartition, which: OffsetSpec) -> int:
        what = f"read {place.topic}"
        found = await self._asked(
            lambda client, wait_s: client.list_offsets({place: which}, request_timeout=wait_s)[
                place
            ],
            what,
        )
        if found.offset < 0:  # what librdkafka says while nobody leads the partition
            raise Unreachable(f"{self._who} could not {what}: nobody knows its offsets.")
        return int(found.offset)

    # Topics

    async def make_topic(
        self, topic: str, partitions: int, settings: Mapping[str, str], copies: int
    ) -> None:
        """Make a topic; one that is there by now is as good."""
        new = NewTopic(topic, partitions, copies, config=dict(settings))
        asked = self._asking().create_topics([new], request_timeout=self._wait_s)
        await self._done_by_admin(asked[topic], f"create {topic}", KafkaError.TOPIC_ALREADY_EXISTS)
        await self._until(lambda: self._has_partitions(topic, partitions), f"create {topic}")

    async def grow_topic(self, topic: str, partitions: int) -> None:
        """Let a topic have more partitions."""
        asked = self._asking().create_partitions(
            [NewPartitions(topic, partitions)], request_timeout=self._wait_s
        )
        await self._done_by_admin(asked[topic], f"grow {topic}")
        await self._until(lambda: self._has_partitions(topic, partitions), f"grow {topic}")

    async def _has_partitions(self, topic: str, partitions: int) -> bool:
        try:
            known = await self._described(topic)
            places = [TopicPartition(topic, number) for number in range(partitions)]
            await self._offsets(places, OffsetSpec.latest())
        except (NoTopic, Unreachable):
            return False
        return len(known.partitions) >= partitions

    # Rights

    async def set_access(self, topic: str, access: Access) -> bool:
        """Give exactly these principals these rights, and who reads the one to look its group up:
        was a right taken away?
        """
        wanted = bindings(topic, access)
        what = f"set the rights on {topic}"
        there = await self.bindings(topic)
        missing, extra = wanted - there, there - wanted
        if missing:
            asked = self._asking().create_acls(sorted(missing), request_timeout=self._wait_s)
            await asyncio.gather(*(self._done_by_admin(one, what) for one in asked.values()))
        if extra:
            filters = [_filter_of(one) for one in sorted(extra)]
            deleted = self._asking().delete_acls(filters, request_timeout=self._wait_s)
            await asyncio.gather(*(self._done_by_admin(one, what) for one in deleted.values()))
        if missing or extra:
            await self._until(lambda: self._has_bindings(topic, wanted), what)
        return bool(extra)

    async def _has_bindings(self, topic: str, wanted: set[AclBinding]) -> bool:
        return await self.bindings(topic) == wanted

    async def bindings(self, topic: str) -> set[AclBinding]:
        """Who is allowed what on a topic of this very name, and who may look groups up."""
        found = await asyncio.gather(
            self._acls(ResourceType.TOPIC, topic, ResourcePatternType.LITERAL),
            self._acls(ResourceType.GROUP, GROUPS, ResourcePatternType.PREFIXED),
        )
        named = {one.principal for one in found[0]}
        return set(found[0]) | {one for one in found[1] if one.principal in named}

    async def _acls(
        self, kind: ResourceType, name: str, pattern: ResourcePatternType
    ) -> list[AclBinding]:
        asked = self._asking().describe_acls(
            AclBindingFilter(
                kind, name, pattern, _ANY, _ANY, AclOperation.ANY, AclPermissionType.ALLOW
            ),
            request_timeout=self._wait_s,
        )
        found: list[AclBinding] = await self._done_by_admin(asked, f"read the rights on {name}")
        return found

    # Principals

    async def set_scram(self, name: str, secret: str, mechanism: str) -> None:
        """Make a principal known, or give it another secret."""
        change = UserScramCredentialUpsertion(
            name, ScramCredentialInfo(_SCRAM[mechanism], SCRAM_ROUNDS), secret.encode()
        )
        what = f"set the secret of {name}"
        asked = self._asking().alter_user_scram_credentials([change], request_timeout=self._wait_s)
        await self._done_by_admin(asked[name], what)
        await self._until(lambda: self._has_scram(name), what)

    async def remove_scram(self, name: str) -> None:
        """Let nobody log in by this name any more; one that nobody can log in by is as good."""
        what = f"remove the secrets of {name}"
        for mechanism in _SCRAM.values():
            change = UserScramCredentialDeletion(name, mechanism)
            asked = self._asking().alter_user_scram_credentials(
                [change], request_timeout=self._wait_s
            )
            await self._done_by_admin(asked[name], what, KafkaError.RESOURCE_NOT_FOUND)
        await self._until(lambda: self._has_no_scram(name), what)

    async def _has_no_scram(self, name: str) -> bool:
        return not await self._has_scram(name)

    async def _has_scram(self, name: str) -> bool:
        asked: Any = self._asking().describe_user_scram_credentials(
            [name], request_timeout=self._wait_s
        )
        try:
            await self._done_by_admin(asked[name], f"read the secret of {name}")
        except BoardError as problem:
            if isinstance(problem, Refused | Unreachable):
                raise
            return False
        return True

    # Requests

    @property
    def _wait_s(self) -> float:
        return self._bounds.answer_s_max

    def _asking(self) -> AdminClient:
        if self._client is None:
            self._client = AdminClient(self._settings | {"error_cb": self._on_error})
            self._clients_made += 1
        self._client.poll(0)
        # What was told before is old news.
        self._login_problem, self._is_down = None, False
        return self._client

    def _on_error(self, problem: KafkaError) -> None:
        """What librdkafka tells of its connections, within ``poll``."""
        if problem.code() == KafkaError._AUTHENTICATION:
            self._login_problem = error_of(problem, self._who, "log in")
        elif problem.code() == KafkaError._ALL_BROKERS_DOWN:
            self._is_down = True
        else:
            self._why_down = connection_words(problem, self._settings)

    async def _asked(self, ask: _Question, what: str) -> Any:
        """The answer to a question that changes nothing: asked again if there is none."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._wait_s
        while not self._is_closed:
            wait_s = min(ATTEMPT_S, max(until - loop.time(), LOOK_S))
            asked = ask(self._asking(), wait_s)
            # No name for the client here: who lets go of it lets go of the last reference.
            number, began = self._clients_made, loop.time()
            try:
                return await self._answer(asked, what, wait_s=wait_s)
            except Unreachable:
                is_given_up = self._client is None or self._clients_made != number
                is_stale = is_given_up or loop.time() - began >= wait_s
                if self._is_down or not is_stale or loop.time() >= until:
                    raise
                if not is_given_up:
                    self._let_go()
        raise Unreachable("The client is closed.")

    async def _done_by_admin(
        self, asked: "concurrent.futures.Future[Any]", what: str, *harmless: int
    ) -> Any:
        """The answer to something that takes an admin."""
        try:
            return await self._answer(asked, what, *harmless)
        except Refused as refused:
            raise type(refused)(f"{refused.reason} That takes an admin.") from None

    async def _answer(
        self,
        asked: "concurrent.futures.Future[Any]",
        what: str,
        *harmless: int,
        wait_s: float | None = None,
    ) -> Any:
        """What a request brings; ``None`` for an error with one of the harmless codes. It is waited
        for ``wait_s``, or else ``answer_s_max``.
        """
        loop = asyncio.get_running_loop()
        answered = loop.create_future()
        asked.add_done_callback(lambda done: _tell(loop, answered))
        began = loop.time()
        while not answered.done():
            await asyncio.wait([answered], timeout=LOOK_S)
            if not answered.done():
                self._check(loop.time() - began, self._wait_s if wait_s is None else wait_s, what)
        try:
            return asked.result()
        except KafkaException as problem:
            error: KafkaError = problem.args[0]
            if error.code() in harmless:
                return None
            if error.code() in _STALE:
                # It waits for a controller that is dead, and is slow to ask who it is now.
                self._let_go()
            raise error_of(error, self._who, what) from None

    def _check(self, waited_s: float, wait_s: float, what: str) -> None:
        """Raises if there is no use in waiting longer for an answer."""
        if self._client is not None:
            self._client.poll(0)  # calls _on_error
        if self._login_problem is not None:
            raise self._login_problem
        if self._is_down and waited_s > DOWN_S:
            raise Unreachable(f"{self._who} could not {what}: {self._why_down or 'no broker'}.")
        if waited_s > wait_s:
            raise Unreachable(f"{self._who} could not {what}: no answer in {self._wait_s:g} s.")

    async def _until(self, holds: Callable[[], Awaitable[bool]], what: str) -> None:
        """Wait until a change can be seen."""
        try:
            async with asyncio.timeout(self._wait_s):
                while not await holds():
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            raise Unreachable(f"{self._who} could not {what}: it does not show.") from None


def _tell(loop: asyncio.AbstractEventLoop, answered: "asyncio.Future[None]") -> None:
    """From librdkafka's thread."""

    def settle() -> None:
        if not answered.done():
            answered.set_result(None)

    if not loop.is_closed():
        loop.call_soon_threadsafe(settle)


def bindings(topic: str, access: Access) -> set[AclBinding]:
    """Rule 3 as Kafka knows it. Who may do anything with a topic may see its settings, for they say
    how large a message may be; who reads may look its group up.
    """
    found = set()
    for name, rights in access.items():
        found |= {_allow(ResourceType.TOPIC, topic, name, _RIGHTS[right]) for right in rights}
        if rights:
            found.add(_allow(ResourceType.TOPIC, topic, name, AclOperation.DESCRIBE_CONFIGS))
            found.add(_allow(ResourceType.GROUP, GROUPS, name, AclOperation.DESCRIBE))
    return found


def _allow(kind: ResourceType, name: str, who: str, operation: AclOperation) -> AclBinding:
    pattern = (
        ResourcePatternType.PREFIXED if kind is ResourceType.GROUP else ResourcePatternType.LITERAL
    )
    return AclBinding(kind, name, pattern, f"User:{who}", "*", operation, AclPermissionType.ALLOW)


def operation_of(one: AclBinding) -> str:
    """What it allows, in Kafka's word."""
    return AclOperation(one.operation).name


def _filter_of(one: AclBinding) -> AclBindingFilter:
    return AclBindingFilter(
        one.restype, one.name, one.resource_pattern_type, one.principal, one.host, one.operation,
        one.permission_type,
    )  # fmt: skip


def rights_of(names: Iterable[str]) -> frozenset[Right]:
    """The rights in names of operations."""
    return frozenset(right for right, operation in _RIGHTS.items() if operation.name in set(names))


def check_mechanism(mechanism: str) -> None:
    """Raises ``BadRequest`` for one whose credentials a broker does not let be set."""
    if mechanism not in _SCRAM:
        raise BadRequest(f"Credentials for {mechanism} are the brokers' own configuration.")
