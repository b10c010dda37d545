"""What `divandb verify` makes of what the nodes say."""

from typing import Any

from divandb.cli.verdicts import DOCUMENTS_SHOWN_MAX, as_text, combined

W = {"0a": 7, "0b": 3}


def verdict(state: str = "same", vector: dict[str, int] | None = None, left: int = 0) -> Any:
    return {"state": state, "vector": W if vector is None else vector, "left_out": left}


def report(name: str, findings: list[Any] | None = None, **peers: Any) -> dict[str, Any]:
    """What ``name`` says of ``x``, as compared with itself and these."""
    compared = [{"peer": name, "fault": None, "databases": {"x": verdict()}}]
    compared += [
        {"peer": peer, "fault": None, "databases": {"x": one}} for peer, one in peers.items()
    ]
    return {"name": name, "compared": compared, "findings": findings or [], "open": []}


def finding(what: str, peer: str = "", doc_id: str = "d") -> dict[str, str]:
    return {"at": "now", "database": "x", "id": doc_id, "what": what, "peer": peer}


def text(reports: list[dict[str, Any]], names: list[str], *problems: str) -> list[str]:
    found = {
        "nodes": names, "databases": combined(reports, names), "problems": list(problems),
    }  # fmt: skip
    return as_text(found).splitlines()


def test_nodes_that_hold_the_same_as_a_third_hold_the_same() -> None:
    later = verdict(vector={"0a": 9, "0b": 2})
    names = ["m1", "m2", "r1", "r2"]
    reports = [report("m1", m2=verdict()), report("r1", m1=later), report("r2", m2=verdict(left=4))]
    (one,) = combined([*reports, report("m2")], names)
    assert one["identical"]
    assert one["nodes"] == names
    assert (one["vector"], one["left_out"]) == ({"0a": 7, "0b": 2}, 4)
    assert text([*reports, report("m2")], names) == [
        "x: identical on 4 nodes at vector 0a:7 0b:2, but for 4 documents written later"
    ]


def test_a_lone_node_is_as_itself() -> None:
    assert text([report("m1")], ["m1"]) == ["x: identical on 1 node at vector 0a:7 0b:3"]


def test_who_was_not_compared_is_named() -> None:
    reports = [report("m1", m2=verdict("undecided")), report("m2")]
    (one,) = combined(reports, ["m1", "m2", "m3"])
    assert not one["identical"]
    assert text(reports, ["m1", "m2", "m3"], "m3 is down") == [
        "x: identical on 1 of 3 nodes; not known of m2, m3",
        "m3 is down",
    ]


def test_documents_that_differ_are_told_once_by_who_holds_them_wrong() -> None:
    reports = [
        report("m1"),
        report("m2", [finding("differs there", "r1")]),
        report("r1", [finding("a body is wrong"), finding("mended", "m1")], m1=verdict("differs")),
        report("r2", [finding("mended", "m1", "e")]),
    ]
    (one,) = combined(reports, ["m1", "m2", "r1", "r2"])
    assert not one["identical"]
    assert text(reports, ["m1", "m2", "r1", "r2"]) == [
        "x: 2 documents differ",
        "  d at r1: a body is wrong; mended from m1",
        "  e at r2: mended from m1",
    ]


def test_what_another_node_says_counts_until_the_node_says_it_itself() -> None:
    names = ["m1", "m2"]
    assert text([report("m2", [finding("differs there", "m1")])], names) == [
        "x: 1 document differs", "  d at m1: differs from m2",
    ]  # fmt: skip


def test_what_is_as_wrong_as_it_was_is_told_again() -> None:
    """The digest of a row whose body alone is damaged is that of the right one."""
    found = {"database": "x", "id": "d", "what": "a body is wrong"}
    reports = [report("m1"), {**report("m2", m1=verdict()), "open": [found]}]
    (one,) = combined(reports, ["m1", "m2"])
    assert not one["identical"]
    assert text(reports, ["m1", "m2"]) == ["x: 1 document differs", "  d at m2: a body is wrong"]


def test_digests_that_differ_without_a_document_are_said() -> None:
    reports = [report("m1", m2=verdict("differs")), report("m2", m1=verdict())]
    assert text(reports, ["m1", "m2"]) == ["x: differs at m1; no document was found that does"]


def test_long_lists_are_cut() -> None:
    some = [finding("mended", "m1", f"d{n:03}") for n in range(DOCUMENTS_SHOWN_MAX + 5)]
    lines = text([report("m2", some)], ["m2"])
    assert lines[0] == "x: 25 documents differ"
    assert lines[-1] == "  and 5 more"
    assert len(lines) == DOCUMENTS_SHOWN_MAX + 2
    many = {f"{n:02x}": n for n in range(1, 6)}
    reports = [{**report("m1"), "compared": [
        {"peer": "m1", "fault": None, "databases": {"x": verdict(vector=many)}}
    ]}]  # fmt: skip
    assert text(reports, ["m1"]) == ["x: identical on 1 node at vector 05:5 04:4 03:3 and 2 more"]


def test_a_database_that_is_nowhere_any_more_is_told_for_what_was_found_in_it() -> None:
    reports = [{**report("m1", [finding("mended", "m2")]), "compared": []}]
    assert text(reports, ["m1"]) == ["x: 1 document differs", "  d at m1: mended from m2"]
