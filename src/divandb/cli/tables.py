"""The text of `divandb status`: two tables, one of processes and one of what they contain."""

from collections.abc import Iterator, Sequence
from typing import Any

PROCESSES = ("NAME", "ROLE", "MASTER", "STATE", "PID", "RESTARTS", "UP SINCE", "URL")
CELL_CHARS_MAX = 60
"""A longer cell is cut: many masters make long ones, and `--json` has all of it."""
ABSENT = "-"
BEHIND = "Below each master: the writes that it has and the node has not."


def as_text(found: dict[str, Any]) -> str:
    """Both tables, for what `--json` prints."""
    nodes: list[dict[str, Any]] = found["nodes"]
    head = f"{found['url']}  {_sum(nodes)}"
    told = [node for node in nodes if "vector" in node]
    slots = sorted({slot for node in told for slot in node.get("slots", {})}, key=_order)
    parts = [head, table([PROCESSES, *map(_process, nodes)])]
    if told:
        names = ("NAME", "LAG MS", *slots, "QUEUE", "SHARE", "BOARD NEXT/END")
        parts.append(f"{BEHIND}\n{table([names, *(_content(node, slots) for node in told)])}")
    short = [line for slot, one in found["groups"].items() for line in _short(slot, one)]
    new = [line for slot, one in found["groups"].items() for line in _versions(slot, one)]
    versions = ["\n".join(new)] if new else []
    return "\n\n".join([*parts, *short, *versions, *notes(nodes)])


def _short(slot: str, group: dict[str, Any]) -> Iterator[str]:
    """Of a group that has lost nodes."""
    if group["up"] < group["members"]:
        yield f"{slot}: redundancy {group['up']}/{group['members']}, owned by {group['owner']}"


def _versions(slot: str, group: dict[str, Any]) -> Iterator[str]:
    """Of design documents whose version before answers while the group builds the next one."""
    for one in group["switching"]:
        what = f"{one['database']}/{one['design_document']}"
        told = [f"version {one['in_use'][:8]} answers until {one['next'][:8]} is ready"]
        for word in ("ready", "building"):
            if one[word]:
                told.append(f"{word} on {', '.join(one[word])}")
        yield f"{slot}: {what}: {'; '.join(told)}"


def _sum(nodes: list[dict[str, Any]]) -> str:
    up = sum(node["up"] for node in nodes)
    return f"{up} of {len(nodes)} processes answer"


def _order(slot: str) -> tuple[int, str]:
    return len(slot), slot


def _process(node: dict[str, Any]) -> tuple[str, ...]:
    return (
        node["name"],
        node["role"],
        _cell(node["master"]),
        _state(node),
        _cell(node["pid"]),
        _cell(node["restarts"]),
        _moment(node["started_at"]),
        node["url"],
    )


def _state(node: dict[str, Any]) -> str:
    """The state in a word; a node that fetches a peer's file is told by how far that is."""
    drain = node.get("drain")
    if node["up"] and drain is not None:
        return "drained" if drain["done"] else "draining"
    copying = node.get("copying")
    if copying is None:
        return str(node["state"])
    total = copying["total_bytes"]
    return f"copying {100 * copying['bytes'] // total}%" if total else "copying"


def _moment(text: str | None) -> str:
    """Without the milliseconds."""
    return ABSENT if text is None else text.partition(".")[0].removesuffix("Z") + "Z"


def _content(node: dict[str, Any], slots: Sequence[str]) -> tuple[str, ...]:
    of = node.get("slots", {})
    share = node.get("budget", {}).get("share")
    return (
        node["name"],
        _cell(node.get("lag_ms")),
        *(_cell(of.get(slot, {}).get("lag_events")) for slot in slots),
        _cell(node.get("queue_jobs")),
        ABSENT if share is None else f"{100 * share:.0f}%",
        _cut(_board(node.get("board") or {})),
    )


def _board(board: dict[str, Any]) -> str:
    """``m2 120/120 m3 7/9``, or why there is nothing to read."""
    words = [
        f"{name.rpartition('.')[2]} {_cell(one['next'])}/{_cell(one['end'])}"
        for name, one in board.get("reading", {}).items()
    ]
    return "  ".join(words) or ABSENT


def notes(nodes: list[dict[str, Any]]) -> list[str]:
    """Lines for what fails just now."""
    lines = []
    for node in nodes:
        board = node.get("board") or {}
        faults = {
            "cannot publish": board.get("failing"),
            "cannot publish to its replicas": board.get("relay_failing"),
        }
        for name, one in board.get("reading", {}).items():
            faults[f"cannot read {name}"] = one["failing"]
        lines += [f"{node['name']} {what}: {why}" for what, why in faults.items() if why]
        for slot, age_ms in (node.get("silent") or {}).items():
            lines.append(f"{node['name']} has not heard of {slot} for {age_ms / 1000:.1f} s")
        lines += [f"{node['name']} {line}" for line in _alarms(node)]
    return ["\n".join(lines)] if lines else []


def _alarms(node: dict[str, Any]) -> Iterator[str]:
    """What an operator should look at, though nothing fails."""
    for topic, limit in ((node.get("board") or {}).get("small") or {}).items():
        yield f"sends pieces: {topic} takes no message above {limit} bytes"
    budget = node.get("budget") or {}
    if budget.get("hurts"):
        yield f"takes {100 * budget['share']:.0f}% of its time for others: {budget['reason']}"
    holes = node.get("holes") or {"count": 0}
    if holes["count"]:
        yield f"cannot apply {holes['count']} events: {'; '.join(holes['reasons'])}"
    if node.get("missing_blobs"):
        yield f"lacks the bytes of {node['missing_blobs']} attachments"
    yield from _verified(node.get("verify") or {})
    for name, value in (node.get("alarms") or {}).items():
        if value:
            yield f"alarm {name}: {value}"


def _verified(verify: dict[str, Any]) -> Iterator[str]:
    """What the node has found of its own rows."""
    if verify.get("failing"):
        yield f"cannot read all rows: {verify['failing']}"
    if verify.get("open"):
        named = [f"{one['database']} {one['id']}: {one['what']}" for one in verify["examples"]]
        count = f"{verify['open']} documents that are not what they should be"
        yield f"holds {count}: {'; '.join(named)}"


def _cut(text: str) -> str:
    return text if len(text) <= CELL_CHARS_MAX else f"{text[: CELL_CHARS_MAX - 1]}…"


def _cell(value: object) -> str:
    if value is None:
        return ABSENT
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns that line up; numbers to the right."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    are_numbers = [all(_is_number(cell) for cell in column[1:]) for column in columns]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(row, widths, are_numbers, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _is_number(cell: str) -> bool:
    return cell == ABSENT or cell.rstrip("%").replace(".", "", 1).isdigit()
