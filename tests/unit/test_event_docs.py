"""`docs/events.md` against the code."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from divandb import document, event, follow
from divandb.board.log import LogSettings
from divandb.config import TopicSettings
from divandb.event import Chunk, Creation, DocumentState, Event, Large, RegisterValue
from divandb.merge import Document
from divandb.revtree import HASH_CHARS_MAX, Attachment, Leaf
from divandb.store.arrivals import DRIFT_MS_MAX

PAGE = (Path(__file__).parents[2] / "docs" / "events.md").read_text()
MEMBERS = {"item": "lamp"}
ORIGIN = -972684561393903563
HEX_BYTES = 16
Labels = list[tuple[str, Any]]


def section(heading: str) -> str:
    found = re.search(rf"^##+ {heading}\n(.*?)(?=^##|\Z)", PAGE, re.M | re.S)
    assert found is not None, heading
    return found[1]


def fields(heading: str) -> list[str]:
    """The names in the second column of a table of fields; the first column counts them."""
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", section(heading), re.M)
    assert [int(number) for number, _ in rows] == list(range(len(rows)))
    return [name for _, name in rows]


@pytest.mark.parametrize(
    ("heading", "kind"),
    [
        ("The envelope", Event),
        ("`document`", DocumentState),
        ("A leaf", Leaf),
        ("An attachment", Attachment),
        ("`register`", RegisterValue),
        ("`created`", Creation),
        ("`blob`", Chunk),
        ("`large`", Large),
    ],
)
def test_every_field_is_listed_in_its_place(heading: str, kind: type[msgspec.Struct]) -> None:
    assert fields(heading) == list(kind.__struct_fields__)


def test_every_kind_has_its_heading() -> None:
    headings = re.findall(r"^### `(\w+)`$", PAGE, re.M)
    assert {*headings, event.DROPPED} == set(event._PAYLOADS)
    assert dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", section("Payloads"), re.M)).keys() == set(
        event._PAYLOADS
    )


def test_numbers_in_the_text_are_the_codes() -> None:
    text = section("What a node takes")
    assert f"1 to {HASH_CHARS_MAX} printable" in text
    assert f"more than {DRIFT_MS_MAX // 60_000} minutes" in text
    assert (event.NUMBER_MAX, event.STAMP_MAX, event.GENERATION_MAX) == (2**63 - 1, 2**62, 2**53)
    assert f"{event.CHUNK_BYTES // 1024} KiB each" in section("`blob`")
    assert f"up to {follow.PIECES_BYTES_MAX // 2**20} MiB" in section("Looking at them")
    topic, log = TopicSettings(), LogSettings()
    assert (topic.retention_ms, topic.retention_bytes) == (log.retention_ms, log.retention_bytes)
    kept = section("How long events stay")
    assert f"{log.retention_ms // 86_400_000} days" in kept
    assert f"{log.retention_bytes // 2**30} GiB" in kept


# The example


def an_event() -> Event:
    """As a master makes one."""
    rev_hash = document.rev_hash(None, False, MEMBERS, ())
    members = document.dump_members(MEMBERS)
    digest = document.content_digest(members, False, ())
    leaf = Leaf(1, (rev_hash,), False, digest, (), ((ORIGIN, 7),))
    body = document.body_bytes("order-1", leaf.rev, False, members, ())
    state = DocumentState("order-1", Document((leaf,), {ORIGIN: 7}), (body,))
    stamp = 1795449684217 << 16
    return Event(
        1, "m1", ORIGIN, 7, 6, 7, stamp, event.DOCUMENT, "shop", 1, event.pack(state)
    )  # fmt: skip


LEAF: Labels = [
    ("pos", None), ("ancestry", None), ("deleted", None), ("digest", None), ("attachments", None),
    ("dots", None),
]  # fmt: skip
STATE: Labels = [
    ("id", None), ("document", [("leaves", [("leaf", LEAF)]), ("context", None)]), ("bodies", None),
]  # fmt: skip
ENVELOPE: Labels = [(name, None) for name in Event.__struct_fields__[:-1]] + [("payload", STATE)]


def annotated(label: str, value: Any, labels: Labels | None, depth: int = 0) -> Iterator[str]:
    """Lines of hex and what it says, in the order of the bytes."""
    whole = msgspec.msgpack.encode(value)
    if labels is None:
        shown = value.hex() if isinstance(value, bytes) else told(value)
        yield from lines(whole, f"{label} {shown}", depth)
        return
    inner = value
    if isinstance(value, bytes):
        head = whole[: len(whole) - len(value)]
        yield from lines(head, f"{label}, {len(value)} bytes that are MessagePack again", depth)
        inner, depth, label = msgspec.msgpack.decode(value), depth + 1, ""
    yield from lines(bytes([0x90 + len(inner)]), f"{label} array of {len(inner)}".strip(), depth)
    for (name, below), one in zip(labels, inner, strict=True):
        yield from annotated(name, one, below, depth + 1)


def told(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        return " ".join(one.decode() for one in value)
    return json.dumps(value)


def lines(data: bytes, text: str, depth: int) -> Iterator[str]:
    for start in range(0, len(data), HEX_BYTES):
        part = data[start : start + HEX_BYTES].hex()
        yield f"{part:{2 * HEX_BYTES}}  {'  ' * depth}{text if start == 0 else '…'}".rstrip()


def test_the_example_is_what_the_code_makes() -> None:
    made = an_event()
    assert event.open_payload(event.decode(event.encode(made)))
    value = msgspec.msgpack.decode(event.encode(made))
    expected = "\n".join(annotated("an event:", value, ENVELOPE))
    (block,) = re.findall(r"^```text\n(.*?)\n```", section("An example"), re.M | re.S)
    assert block == expected
    hexes = "".join(line.split()[0] for line in block.splitlines())
    assert bytes.fromhex(hexes) == event.encode(made)
