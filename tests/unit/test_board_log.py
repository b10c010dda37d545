"""The embedded board's log: appends, power cuts at any moment, torn ends, flipped bits."""

import contextlib
import errno
import random
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divandb.board import records
from divandb.board.base import BoardError, Damaged, DiskFull, OffsetAhead, OffsetGone
from divandb.board.log import LogSettings, PartitionLog, bases
from divandb.board.topics import Shelf, UnknownFormat
from tests.stores import SeededRng, StillClock

FOLDER = "t/0"
BLOCK_BYTES = 64
SMALL = LogSettings(segment_bytes_max=2000, retention_bytes=10**9, recent_bytes_max=700)
NOTHING_RECENT = LogSettings(segment_bytes_max=2000, retention_bytes=10**9, recent_bytes_max=0)


class PowerCut(Exception):
    """The machine stops here."""


class SimFile:
    """A file whose unsynced bytes may be lost, in part and in any order."""

    def __init__(self, disk: "SimDisk") -> None:
        self._disk = disk
        self.data = bytearray()
        self.synced = b""

    def write_at(self, position: int, data: bytes) -> None:
        self._disk.step(len(data))
        end = position + len(data)
        self.data.extend(bytes(max(0, position - len(self.data))))
        self.data[position:end] = data
        self._disk.step()

    def sync(self) -> None:
        self._disk.step()
        if self._disk.sync_fails:
            raise OSError(errno.EIO, "I/O error")
        self.synced = bytes(self.data)
        self._disk.step()

    def truncate(self, size: int) -> None:
        self._disk.step()
        del self.data[size:]

    def close(self) -> None:
        pass

    def power_cut(self, rng: random.Random) -> None:
        """Keep any of the blocks that were not synced, and any size in between."""
        old, new = self.synced, bytes(self.data)
        size = rng.randint(min(len(old), len(new)), max(len(old), len(new)))
        mixed = bytearray(size)
        for at in range(0, size, BLOCK_BYTES):
            source = old if rng.random() < 0.4 else new
            block = source[at : min(at + BLOCK_BYTES, size)]
            mixed[at : at + len(block)] = block
        # Bytes that were synced and not written since are what they were.
        self.data, self.synced = mixed, bytes(mixed)


class SimDisk:
    """Files in memory, with a power cut after so many steps and room for so many bytes."""

    def __init__(self) -> None:
        self.files: dict[str, SimFile] = {}
        self.folders: set[str] = set()
        self.steps_left: int | None = None
        self.room_bytes: int | None = None
        self.sync_fails = False
        self.boot = "first"

    def step(self, size: int = 0) -> None:
        if self.steps_left is not None:
            self.steps_left -= 1
            if self.steps_left < 0:
                raise PowerCut
        if self.room_bytes is not None and size:
            if size > self.room_bytes:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.room_bytes -= size

    def power_cut(self, rng: random.Random) -> None:
        self.steps_left = None
        self.boot = f"{rng.random()}"
        for file in self.files.values():
            file.power_cut(rng)

    def names(self, folder: str) -> list[str]:
        files = {name.removeprefix(f"{folder}/").split("/")[0] for name in self.files
                 if name.startswith(f"{folder}/")}  # fmt: skip
        return sorted(files)

    def make_folder(self, folder: str) -> None:
        self.folders.add(folder)

    def create(self, name: str) -> SimFile:
        self.step()
        self.files[name] = SimFile(self)
        self.step()
        return self.files[name]

    def open(self, name: str) -> SimFile:
        return self.files[name]

    def size(self, name: str) -> int:
        return len(self.files[name].data)

    def read(self, name: str, position: int, bytes_max: int) -> bytes:
        if name not in self.files:
            raise FileNotFoundError(errno.ENOENT, "No such file", name)
        return bytes(self.files[name].data[position : position + bytes_max])

    def replace(self, name: str, data: bytes) -> None:
        self.step(len(data))
        file = SimFile(self)
        file.data, file.synced = bytearray(data), data
        self.files[name] = file
        self.step()

    def remove(self, name: str) -> None:
        del self.files[name]

    def flip(self, name: str, at: int, bit: int) -> None:
        self.files[name].data[at] ^= 1 << bit
        self.files[name].synced = bytes(self.files[name].data)


class Told:
    """A log that remembers."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []

    def event(self, what: str, **values: object) -> None:
        self.events.append((what, values))

    def fault(self, what: str, fault: BaseException, **values: object) -> None:
        raise fault

    def names(self) -> list[str]:
        return [what for what, _ in self.events]


def opened(disk: SimDisk, setting: LogSettings = SMALL, told: Told | None = None) -> PartitionLog:
    return PartitionLog(disk, FOLDER, setting, told or Told(), wall_ms=1_000)


def batch(messages: list[bytes], bytes_max: int = 500) -> list[tuple[bytes, int]]:
    return records.pieces(records.pack_messages(messages), bytes_max)[0]


def append(log: PartitionLog, *batches: list[bytes], wall_ms: int = 1_000) -> list[int]:
    return log.append([batch(messages) for messages in batches], wall_ms)


def read_all(log: PartitionLog, bytes_max: int = 600) -> Iterator[tuple[int, bytes]]:
    """Every message with its offset, going on behind damaged places."""
    offset = log.start
    while offset < log.end:
        try:
            found = log.recent(offset, bytes_max) or log.read(offset, bytes_max)
        except Damaged as damage:
            assert damage.resume > offset
            offset = damage.resume
            continue
        messages, first, after = records.unpack(found.records, offset, 10**9)
        assert after > offset
        assert not messages or after == first + len(messages)
        yield from enumerate(messages, first)
        offset = after


# In good times


@pytest.mark.parametrize("setting", [SMALL, NOTHING_RECENT], ids=["recent", "from disk"])
def test_what_was_appended_is_read_from_every_offset(setting: LogSettings) -> None:
    log = opened(SimDisk(), setting)
    sent = [b"%d" % number * (number % 90) for number in range(200)]
    for at in range(0, 200, 8):
        assert append(log, sent[at : at + 5], sent[at + 5 : at + 8]) == [at, at + 5]
    assert (log.start, log.end) == (0, 200)
    for offset in range(200):
        found = log.recent(offset, 300) or log.read(offset, 300)
        messages, first, _ = records.unpack(found.records, offset, 10**9)
        assert first == offset and messages and messages == sent[offset : offset + len(messages)]


def test_an_answer_is_bounded_but_never_empty() -> None:
    log = opened(SimDisk(), NOTHING_RECENT)
    append(log, *([b"x" * 100] for _ in range(50)))
    append(log, [b"y" * 5_000])
    assert len(log.read(0, 1_000).records) <= 1_000
    assert records.unpack(log.read(3, 1).records, 3, 1)[0] == [b"x" * 100]
    assert records.unpack(log.read(50, 1).records, 50, 1)[0] == [b"y" * 5_000]
    assert log.read(51, 1_000) == (b"", 51, 51)


def test_offsets_outside_are_refused() -> None:
    log = opened(SimDisk(), LogSettings(segment_bytes_max=500, retention_bytes=900))
    for _ in range(30):
        append(log, [b"x" * 100])
        log.retain(1_000)
    assert 0 < log.start < log.end == 30
    with pytest.raises(OffsetGone) as gone:
        log.read(0, 100)
    assert gone.value.start == log.start
    with pytest.raises(OffsetAhead) as ahead:
        log.recent(31, 100)
    assert ahead.value.end == 30


def test_retention_by_age_keeps_a_segment_until_its_last_record_is_old() -> None:
    disk = SimDisk()
    setting = LogSettings(segment_bytes_max=300, retention_ms=1_000, recent_bytes_max=0)
    log = opened(disk, setting)
    for number in range(10):
        append(log, [b"x" * 150], wall_ms=number * 100)
    log = opened(disk, setting)
    assert log.retain(1_000) == 0
    assert log.retain(1_450) > 0
    assert 0 < log.start <= 5
    assert log.retain(10**9) > 0
    assert (log.start, log.end) == (9, 10), "the last segment stays"
    assert bases(disk, FOLDER) == [9]


def test_a_log_goes_on_where_it_ended() -> None:
    disk = SimDisk()
    for number in range(20):
        told = Told()
        log = opened(disk, told=told)
        assert append(log, [b"%d" % number * 30]) == [number]
        assert not told.events
    assert [offset for offset, _ in read_all(opened(disk))] == list(range(20))


def test_many_gaps_are_passed() -> None:
    """Each start finds a torn end; the next append's offset lies behind all it may have held."""
    disk = SimDisk()
    known: dict[int, bytes] = {}
    for number in range(12):
        log = opened(disk)
        (first,) = append(log, [b"a%d" % number, b"b"])
        known |= {first: b"a%d" % number, first + 1: b"b"}
        last = disk.files[f"{FOLDER}/{bases(disk, FOLDER)[-1]:020d}.log"]
        last.data.extend(b"torn" * number)
        last.synced = bytes(last.data)
    assert dict(read_all(opened(disk))) == known


# When the disk is full or fails


def test_a_full_disk_keeps_nothing_of_the_batch_and_takes_the_next() -> None:
    disk = SimDisk()
    log = opened(disk)
    append(log, [b"first"])
    for room in range(0, 400, 7):
        disk.room_bytes = room
        with pytest.raises(DiskFull):
            append(log, [b"x" * 500])
    disk.room_bytes = None
    assert append(log, [b"second"]) == [1]
    assert list(read_all(opened(disk))) == [(0, b"first"), (1, b"second")]


def test_a_segment_that_could_not_be_made_leaves_no_trap() -> None:
    """A large batch needs a new segment, which fails half-way; a small one that would still fit
    into the old segment must not go there, or two files would hold the same offsets.
    """
    disk = SimDisk()
    log = opened(disk)
    append(log, [b"x" * 1_000])
    make = disk.create

    def make_and_fail(name: str) -> SimFile:
        make(name)
        raise OSError(errno.ENOSPC, "No space left on device")

    disk.create = make_and_fail  # type: ignore[method-assign]
    with pytest.raises(DiskFull):
        append(log, [b"y" * 1_500])
    with pytest.raises(DiskFull):
        append(log, [b"small"])
    disk.create = make  # type: ignore[method-assign]
    append(log, [b"small"])
    append(log, [b"smaller"])
    expected = [(0, b"x" * 1_000), (1, b"small"), (2, b"smaller")]
    assert list(read_all(log)) == list(read_all(opened(disk))) == expected


def test_after_a_failed_sync_nothing_is_taken_until_the_log_is_opened_again() -> None:
    disk, told = SimDisk(), Told()
    log = opened(disk, told=told)
    append(log, [b"first"])
    disk.sync_fails = True
    for _ in range(2):
        with pytest.raises(BoardError, match="cannot be written"):
            append(log, [b"second"])
    assert log.end == 1, "nobody reads what may not be on the disk"
    assert told.names() == ["log stopped"]
    disk.sync_fails = False
    log = opened(disk)
    append(log, [b"third"])
    assert [message for _, message in read_all(log)] in (
        [b"first", b"second", b"third"],
        [b"first", b"third"],
    )


# Power cuts


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    lives=st.lists(
        st.tuples(
            st.lists(st.integers(1, 6), max_size=8),
            st.one_of(st.none(), st.integers(0, 30)),
            st.booleans(),
        ),
        min_size=1,
        max_size=6,
    ),
)
def test_power_cuts_lose_nothing_acknowledged_and_no_offset_means_two_things(
    seed: int, lives: list[tuple[list[int], int | None, bool]]
) -> None:
    """A life is some appends, up to a step at which it ends: by power cut, or killed, so that what
    was not synced is still there for the next life.
    """
    rng = random.Random(seed)
    disk = SimDisk()
    sent: dict[int, set[bytes]] = {}
    acknowledged: dict[int, bytes] = {}
    for sizes, steps_left, is_killed in lives:
        try:
            disk.steps_left = steps_left
            log = opened(disk)
            # What a reader may have seen is as good as acknowledged.
            acknowledged |= dict(read_all(log))
            for count in sizes:
                messages = [rng.randbytes(rng.choice([0, 5, 60, 300])) for _ in range(count)]
                for offset, message in enumerate(messages, log.end):
                    sent.setdefault(offset, set()).add(message)
                (first,) = append(log, messages)
                for offset, message in enumerate(messages, first):
                    assert offset not in acknowledged, "an offset is never used twice"
                    acknowledged[offset] = message
            assert dict(read_all(log)) == acknowledged
        except PowerCut:
            pass
        disk.steps_left = None
        if not is_killed:
            disk.power_cut(rng)
    log = opened(disk)
    found = dict(read_all(log))
    assert found.items() >= acknowledged.items()
    assert all(message in sent[offset] for offset, message in found.items())
    assert log.end > max(acknowledged, default=-1)


def test_an_end_torn_at_any_byte_is_cut_and_told() -> None:
    disk = SimDisk()
    log = opened(disk)
    append(log, [b"one", b"two"])
    name = f"{FOLDER}/{0:020d}.log"
    before = disk.size(name)
    append(log, [b"three", b"four"])
    whole = bytes(disk.files[name].data)
    for size in range(before + 1, len(whole)):
        torn, told = SimDisk(), Told()
        file = torn.create(name)
        file.data, file.synced = bytearray(whole[:size]), whole[:size]
        log = opened(torn, told=told)
        assert told.names() == ["torn end cut"]
        (first,) = append(log, [b"five"])
        assert first > 2, "what is left may be of a record that was given out"
        assert dict(read_all(opened(torn))) == {0: b"one", 1: b"two", first: b"five"}


def test_a_power_cut_while_a_damaged_end_is_cut_does_not_free_its_offsets() -> None:
    for steps_left in range(12):
        for seed in range(8):
            disk = SimDisk()
            log = opened(disk)
            append(log, [b"one"])
            append(log, [b"two" * 50, b"three"])
            name = f"{FOLDER}/{0:020d}.log"
            disk.flip(name, disk.size(name) - 3, 1)
            disk.steps_left = steps_left
            with contextlib.suppress(PowerCut):
                opened(disk)
            disk.power_cut(random.Random(seed))
            (first,) = append(opened(disk), [b"four"])
            assert first > 2
            assert dict(read_all(opened(disk))) == {0: b"one", first: b"four"}


# Flipped bits


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 2**32), is_opened_again=st.booleans())
def test_a_flipped_bit_costs_its_record_and_nothing_else(seed: int, is_opened_again: bool) -> None:
    rng = random.Random(seed)
    disk = SimDisk()
    log = opened(disk, NOTHING_RECENT)
    known: dict[int, bytes] = {}
    places: dict[str, list[tuple[int, int, range]]] = {}
    for _ in range(rng.randint(1, 30)):
        messages = [rng.randbytes(rng.randint(0, 80)) for _ in range(rng.randint(1, 4))]
        (first,) = append(log, messages)
        known |= dict(enumerate(messages, first))
        name = f"{FOLDER}/{bases(disk, FOLDER)[-1]:020d}.log"
        begin = places[name][-1][1] if name in places else 0
        offsets = range(first, first + len(messages))
        places.setdefault(name, []).append((begin, disk.size(name), offsets))
    name = rng.choice(sorted(places))
    at = rng.randrange(disk.size(name))
    disk.flip(name, at, rng.randrange(8))
    hit = next(offsets for begin, end, offsets in places[name] if begin <= at < end)
    end = log.end
    told = Told()
    if is_opened_again:
        log = opened(disk, NOTHING_RECENT, told)
    expected = {offset: message for offset, message in known.items() if offset not in hit}
    assert dict(read_all(log)) == expected
    assert log.end >= end
    (first,) = append(log, [b"new"])
    assert first >= end, "an offset is never used twice"
    assert dict(read_all(log)) == expected | {first: b"new"}
    assert dict(read_all(opened(disk, NOTHING_RECENT))) == expected | {first: b"new"}


def test_damage_names_segment_and_offset_and_the_rest_goes_on() -> None:
    disk, told = SimDisk(), Told()
    log = opened(disk, NOTHING_RECENT)
    for number in range(9):
        append(log, [b"%d" % number])
    name = f"{FOLDER}/{0:020d}.log"
    disk.flip(name, disk.size(name) // 2, 3)
    log = opened(disk, NOTHING_RECENT, told)
    (what, values), *_ = told.events
    assert (what, values["segment"], values["offset"]) == ("log damaged", name, 4)
    with pytest.raises(Damaged) as damage:
        log.read(4, 1_000)
    assert (damage.value.segment, damage.value.offset, damage.value.resume) == (name, 4, 5)
    assert [offset for offset, _ in read_all(log)] == [0, 1, 2, 3, 5, 6, 7, 8]


def test_a_missing_segment_is_damage() -> None:
    disk = SimDisk()
    log = opened(disk, NOTHING_RECENT)
    for _ in range(30):
        append(log, [b"x" * 300])
    _, second, third, *_ = bases(disk, FOLDER)
    disk.remove(f"{FOLDER}/{second:020d}.log")
    for one in (log, opened(disk, NOTHING_RECENT)):
        offsets = [offset for offset, _ in read_all(one)]
        assert offsets == [*range(second), *range(third, 30)]


# Records


@given(st.lists(st.binary(max_size=50), max_size=30), st.integers(1, 200))
def test_messages_survive_packing_and_cutting(messages: list[bytes], bytes_max: int) -> None:
    found, largest = records.pieces(records.pack_messages(messages), bytes_max)
    assert [one for body, _ in found for one in records.split_messages(body)] == messages
    assert sum(count for _, count in found) == len(messages)
    assert all(len(body) <= bytes_max or count == 1 for body, count in found)
    assert largest == max(map(len, messages), default=0)


@given(st.binary(max_size=100))
def test_bytes_that_are_no_messages_are_refused(data: bytes) -> None:
    try:
        found, _ = records.pieces(data, 10**6)
    except ValueError:
        with pytest.raises(ValueError, match="cut off"):
            list(records.split_messages(data))
    else:
        assert b"".join(body for body, _ in found) == data


@given(st.binary(max_size=300), st.integers(0, 2**40), st.integers(0, 40))
def test_a_record_is_sound_only_as_it_was_written(body: bytes, first: int, since: int) -> None:
    packed = records.pack_record(body, 3, first + since, 77, first)
    record = records.record_at(b"xx" + packed + b"yy", 2)
    assert record is not None
    assert (record.first, record.messages, record.next) == (first + since, 3, first + since + 3)
    assert (record.wall_ms, record.durable, record.end) == (77, first, 2 + len(packed))
    for at in range(len(packed)):
        changed = bytearray(packed)
        changed[at] ^= 1
        assert records.record_at(bytes(changed), 0) is None
        assert records.record_at(packed[:at], 0) is None


def test_an_answer_is_unpacked_up_to_its_bound_and_never_across_a_gap() -> None:
    def record(messages: list[bytes], first: int) -> bytes:
        return records.pack_record(records.pack_messages(messages), len(messages), first, 0, first)

    answer = record([b"aaa", b"bbb"], 5) + record([b"ccc"], 7) + records.pack_skip(20, 0, 8)
    assert records.unpack(answer, 5, 100) == ([b"aaa", b"bbb", b"ccc"], 5, 8)
    assert records.unpack(answer, 6, 100) == ([b"bbb", b"ccc"], 6, 8)
    assert records.unpack(answer, 5, 6) == ([b"aaa", b"bbb"], 5, 7)
    assert records.unpack(answer, 5, 0) == ([b"aaa"], 5, 6)
    assert records.unpack(records.pack_skip(20, 0, 8), 8, 9) == ([], 20, 20)
    with pytest.raises(ValueError, match="no sound record"):
        records.unpack(answer[:-1], 5, 100)


# Topics


def shelf(disk: SimDisk, told: Told, seed: int = 1) -> Shelf:
    return Shelf(disk, SMALL, StillClock(), SeededRng(seed), told)


def test_a_topic_keeps_its_identity_until_one_of_its_logs_is_lost() -> None:
    disk, told = SimDisk(), Told()
    topic = shelf(disk, told).create("t", 2, {})
    append(topic.logs[0], [b"first"])
    again = shelf(disk, told, 2).topics()["t"]
    assert (again.identity, again.logs[0].end, len(again.logs)) == (topic.identity, 1, 2)
    disk.remove(f"topics/t/1/{0:020d}.log")
    lost = shelf(disk, told, 3).topics()["t"]
    assert lost.identity != topic.identity
    assert lost.logs[0].end == 1
    assert told.names() == ["log lost"]
    assert shelf(disk, told, 4).topics()["t"].identity == lost.identity


def test_a_topic_that_is_not_durable_begins_anew_when_the_machine_has_failed() -> None:
    """A killed process leaves it as it was: what it had written is in the system's memory."""
    disk, told = SimDisk(), Told()
    topic = shelf(disk, told).create("t", 2, {}, durable=False)
    append(topic.logs[0], [b"first"])
    killed = shelf(disk, told, 2).topics()["t"]
    assert (killed.identity, killed.logs[0].end, killed.durable) == (topic.identity, 1, False)
    shelf(disk, told, 3).change(killed, 3, {})
    disk.power_cut(random.Random(1))
    lost = shelf(disk, told, 4).topics()["t"]
    assert lost.identity != topic.identity
    assert [log.end for log in lost.logs] == [0, 0, 0]
    assert shelf(disk, told, 5).topics()["t"].identity == lost.identity


def test_a_topic_that_is_not_durable_is_never_trusted_where_starts_have_no_names() -> None:
    disk, told = SimDisk(), Told()
    disk.boot = ""
    topic = shelf(disk, told).create("t", 1, {}, durable=False)
    assert shelf(disk, told, 2).topics()["t"].identity != topic.identity


def test_a_topic_whose_file_is_damaged_is_made_again_under_a_new_identity() -> None:
    disk, told = SimDisk(), Told()
    made = shelf(disk, told).create("t", 1, {})
    append(made.logs[0], [b"first"])
    disk.flip("topics/t/topic.json", 20, 0)
    assert shelf(disk, told, 2).topics() == {}
    assert told.names() == ["file damaged"]
    again = shelf(disk, told, 3).create("t", 1, {})
    assert again.identity != made.identity
    assert again.logs[0].end == 1


def test_a_power_cut_while_a_topic_is_made_leaves_none_or_all_of_it() -> None:
    for steps in range(12):
        disk, told = SimDisk(), Told()
        disk.steps_left = steps
        try:
            shelf(disk, told).create("t", 2, {})
        except PowerCut:
            disk.power_cut(random.Random(steps))
        disk.steps_left = None
        found = shelf(disk, told).topics()
        assert not found or len(found["t"].logs) == 2
        assert not told.events


def test_files_of_a_later_version_are_not_guessed_at() -> None:
    disk, told = SimDisk(), Told()
    shelf(disk, told).create("t", 1, {})
    line = disk.read("topics/t/topic.json", 0, 999).split(b"\n")[0]
    line = line.replace(b'"format": 1', b'"format": 2')
    disk.replace("topics/t/topic.json", b"%s\n%08x\n" % (line, zlib.crc32(line)))
    with pytest.raises(UnknownFormat, match="format 2"):
        shelf(disk, told).topics()
