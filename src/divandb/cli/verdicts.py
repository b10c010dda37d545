"""What `divandb verify` makes of the nodes' reports, and its text: data in, data out."""

from collections.abc import Iterable, Sequence
from typing import Any

ORIGINS_SHOWN_MAX = 3
DOCUMENTS_SHOWN_MAX = 20
"""Of one database, in the text; `--json` has all that the nodes told."""
ELSEWHERE = "differs there"


def combined(reports: Sequence[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """For each database which of the nodes ``names`` hold the same, and what differs.

    Nodes that hold the same as a third one hold the same; the vector is what all of them contain.
    """
    known = {name for report in reports for one in report["compared"] for name in one["databases"]}
    told = [one for report in reports for one in (*report["findings"], *report["open"])]
    known |= {one["database"] for one in told}
    return [_database(name, reports, names) for name in sorted(known)]


def _database(name: str, reports: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    links = [
        (report["name"], one["peer"], one["databases"][name])
        for report in reports
        for one in report["compared"]
        if name in one["databases"]
    ]
    same = [(node, peer) for node, peer, verdict in links if verdict["state"] == "same"]
    group = max(_groups(same), key=len, default=set())
    used = [verdict for node, peer, verdict in links if verdict["state"] == "same"]
    differ = _documents(name, reports)
    apart = sorted({node for node, peer, verdict in links if verdict["state"] == "differs"})
    return {
        "name": name,
        "identical": group >= set(names) and not differ and not apart,
        "nodes": sorted(group & set(names)),
        "vector": _least([verdict["vector"] for verdict in used]),
        "left_out": max((verdict["left_out"] for verdict in used), default=0),
        "apart": apart,
        "documents": differ,
    }


def _groups(links: Iterable[tuple[str, str]]) -> list[set[str]]:
    """Who hangs together."""
    groups: list[set[str]] = []
    for one, other in links:
        touched = [group for group in groups if one in group or other in group]
        groups = [group for group in groups if group not in touched]
        groups.append({one, other}.union(*touched))
    return groups


def _least(vectors: Sequence[dict[str, int]]) -> dict[str, int]:
    if not vectors:
        return {}
    shared = set(vectors[0]).intersection(*vectors)
    return {origin: min(vector[origin] for vector in vectors) for origin in sorted(shared)}


def _documents(name: str, reports: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Each document that differs with the node at which it does: that node's own word first."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for report in reports:
        for one in report["findings"]:
            if one["database"] != name:
                continue
            is_elsewhere = one["what"] == ELSEWHERE
            node = one["peer"] if is_elsewhere else report["name"]
            entry = {"id": one["id"], "node": node, "what": one["what"], "at": one["at"]}
            if is_elsewhere:
                entry["what"] = f"differs from {report['name']}"
                found.setdefault((one["id"], node), entry)
                continue
            entry["what"] += f" from {one['peer']}" if one["peer"] else ""
            before = found.get((one["id"], node), {"what": "differs from"})["what"]
            if not before.startswith("differs from") and before != entry["what"]:
                entry["what"] = f"{before}; {entry['what']}"
            found[one["id"], node] = entry
        # What was found before this run, and is as it was.
        for one in report["open"]:
            if one["database"] == name:
                entry = {"id": one["id"], "node": report["name"], "what": one["what"], "at": ""}
                found.setdefault((one["id"], report["name"]), entry)
    return [found[place] for place in sorted(found)]


def as_text(found: dict[str, Any]) -> str:
    """The lines for what `--json` prints."""
    lines = []
    for one in found["databases"]:
        lines.append(f"{one['name']}: {_state(one, found['nodes'])}")
        documents = one["documents"]
        lines += [f"  {doc['id']} at {doc['node']}: {doc['what']}" for doc in documents][
            :DOCUMENTS_SHOWN_MAX
        ]
        if len(documents) > DOCUMENTS_SHOWN_MAX:
            lines.append(f"  and {len(documents) - DOCUMENTS_SHOWN_MAX} more")
    return "\n".join([*lines, *found["problems"]])


def _state(one: dict[str, Any], nodes: Sequence[str]) -> str:
    count = "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"
    if one["identical"]:
        later = f", but for {one['left_out']} documents written later" if one["left_out"] else ""
        return f"identical on {count} at vector {_vector(one['vector'])}{later}"
    if one["documents"]:
        differ = len({doc["id"] for doc in one["documents"]})
        return f"{differ} {'document differs' if differ == 1 else 'documents differ'}"
    if one["apart"]:
        return f"differs at {', '.join(one['apart'])}; no document was found that does"
    missing = sorted(set(nodes) - set(one["nodes"]))
    return f"identical on {len(one['nodes'])} of {count}; not known of {', '.join(missing)}"


def _vector(vector: dict[str, int]) -> str:
    """The origins with the most writes."""
    most = sorted(vector.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{origin}:{oseq}" for origin, oseq in most[:ORIGINS_SHOWN_MAX]]
    if len(most) > ORIGINS_SHOWN_MAX:
        shown.append(f"and {len(most) - ORIGINS_SHOWN_MAX} more")
    return " ".join(shown) or "0"
