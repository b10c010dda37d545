"""`docs/board.md` against the code."""

import dataclasses
import re
from pathlib import Path

from divandb.board import base
from divandb.board.base import BoardError, BoardLimits
from divandb.board.broker import BrokerLimits
from divandb.board.log import LogSettings
from divandb.board.records import HEADER_BYTES, MAGIC
from divandb.board.wire import WireLimits

PAGE = (Path(__file__).parents[2] / "docs" / "board.md").read_text()


def section(heading: str) -> str:
    found = re.search(rf"^##+ {heading}\n(.*?)(?=^##|\Z)", PAGE, re.M | re.S)
    assert found is not None
    return found[1]


def kinds(kind: type[BoardError] = BoardError) -> set[type[BoardError]]:
    return {kind}.union(*(kinds(child) for child in kind.__subclasses__()))


def test_every_limit_is_listed_with_its_default() -> None:
    shown = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", section("Limits"), re.M))
    limits = (BoardLimits, BrokerLimits, WireLimits, LogSettings)
    fields = [field for one in limits for field in dataclasses.fields(one)]
    assert shown == {field.name: str(field.default) for field in fields}


def test_every_error_is_listed_with_its_status() -> None:
    listed = set(re.findall(r"^\| (\d+) \| `(\w+)` \|", section("Errors"), re.M))
    known = {(str(kind.status), kind.error) for kind in kinds() if kind.__module__ == base.__name__}
    assert listed | {("503", "unreachable")} == known


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    drawn = set(re.findall(r"(\w+) +(\d{3}) (\w+)", base.__doc__ or ""))
    known = {kind for kind in kinds() if kind.__module__ == base.__name__}
    assert drawn == {(kind.__name__, str(kind.status), kind.error) for kind in known}


def test_the_record_is_described_as_it_is() -> None:
    sizes = [int(size) for size in re.findall(r"^\| (\d+) \|", section("Formats"), re.M)]
    assert sum(sizes) == HEADER_BYTES
    assert MAGIC.decode() in section("Formats")
