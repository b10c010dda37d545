"""The documentation against the code: what is there is said, and what is said is there."""

import dataclasses
import importlib
import importlib.util
import re
import sqlite3
from importlib import resources
from pathlib import Path

import click
import pytest
from starlette.routing import compile_path

import divandb
from divandb import client, errors, settings
from divandb.cli import COMMANDS, tables
from divandb.cli import divandb as command
from divandb.config import Limits
from divandb.entry import NAME_CHARS_MAX
from divandb.errors import DivanError
from divandb.httpd import info
from divandb.server import TABLES
from divandb.store.changes import PENDING_SCAN_MAX
from divandb.store.file import FORMAT, PAGE_BYTES
from divandb.store.ledger import Alarms
from tests.running import Running

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "bench" / "README.md"])
DECISIONS = sorted((DOCS / "decisions").glob("[0-9]*.md"))

Table = list[list[str]]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def section(page: str, heading: str) -> str:
    """What stands below a heading of the second level; an ``AssertionError`` without it."""
    text = (DOCS / page).read_text()
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found is not None, f"{page} has no heading {heading!r}"
    return found[1]


def rows(text: str) -> Table:
    """The cells of all table rows in a text, without heads and rules."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    heads = {index - 1 for index, line in enumerate(lines) if re.fullmatch(r"[|\- ]+", line)}
    return [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for index, line in enumerate(lines)
        if index not in heads and index - 1 not in heads
    ]


def codes(text: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`\n]+)`", text)


def without_blocks(text: str) -> str:
    """Markdown without its fenced and indented blocks."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    kept = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in kept}


def test_tables_are_read() -> None:
    text = "| a | b |\n|---|---|\n| `x` | 1 |\n| `y\\|z` | 2 |\n\nno row\n\n| c |\n|---|\n| 3 |\n"
    assert rows(text) == [["`x`", "1"], ["`y|z`", "2"], ["3"]]


# Links and paths


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


PATH = re.compile(r"(?:src|tests|docs|bench|\.ci)/[\w./*-]*")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_are_there(page: Path) -> None:
    missing = []
    for code in codes(page.read_text()):
        path, _, test = code.partition("::")
        if not PATH.fullmatch(path) or "NNNN" in path or "*" in path:
            continue
        file = ROOT / path
        if not file.exists() or (test and f"def {test}(" not in file.read_text()):
            missing.append(code)
    assert not missing


def test_every_promise_names_its_test_or_says_that_there_is_none() -> None:
    promises = rows((DOCS / "guarantees.md").read_text())
    assert promises
    unproved = [
        row[0]
        for row in promises
        if row[1] and "tests/" not in row[1] and "no test yet" not in row[1]
    ]
    assert not unproved


TRACES = 30


def test_every_trace_has_a_test_of_its_name() -> None:
    table = {
        int(row[0]): codes(row[2])
        for row in rows(section("simulation.md", "Scenarios"))
        if row[0].isdigit()
    }
    assert list(table) == list(range(1, TRACES + 1))
    wrong = [n for n, told in table.items() if not all(f"::test_trace_{n}_" in one for one in told)]
    assert not wrong and all(table.values())


# HTTP


def shown_path(path: str) -> str:
    """A route as the docs write it."""
    return path.replace(":path}", "}")


def all_routes() -> dict[str, set[str]]:
    """path → methods."""
    routes: dict[str, set[str]] = {}
    for table in TABLES:
        for path, methods in table:
            routes.setdefault(shown_path(path), set()).update(methods)
    return routes


OURS = [(path, compile_path(path)[0], set(methods)) for table in TABLES for path, methods in table]
"""(path, pattern, methods) of all routes, in the order in which they are tried."""
ALL = "Every endpoint of CouchDB"


def documented_routes() -> dict[str, set[str]]:
    """path → methods, of all tables of routes but the last."""
    text = (DOCS / "http-api.md").read_text().partition(f"## {ALL}")[0]
    found: dict[str, set[str]] = {}
    for row in rows(text):
        for path in codes(row[0]):
            if path.startswith("/"):
                found[path] = set(row[1].replace(",", " ").split()) - {"HEAD"}
    return found


def test_every_route_is_documented_with_its_methods() -> None:
    not_here = {shown_path(path) for path in info.NOT_HERE}
    routes = {path: methods for path, methods in all_routes().items() if path not in not_here}
    assert documented_routes() == routes


def couchdbs_endpoints() -> list[tuple[str, str, str]]:
    """(method, path, what is said of it), as the table has them."""
    return [
        (method, path, row[2])
        for row in rows(section("http-api.md", ALL))
        for path in codes(row[0])
        for method in row[1].split(", ")
    ]


def plain_path(path: str) -> str:
    return re.sub(r"{\w+(:path)?}", "x", path)


def route_of(path: str, method: str) -> str | None:
    """Which of our routes answers that; None if it is none."""
    plain = plain_path(path)
    found = [one for one in OURS if one[1].match(plain)]
    if not found:
        return None
    first = found[0][0]
    return first if any(method in methods for one, _, methods in found if one == first) else None


def test_every_endpoint_of_couchdb_is_the_same_or_different_or_not_here() -> None:
    told = couchdbs_endpoints()
    assert len({(method, path) for method, path, _ in told}) == len(told)
    wrong = [one for one in told if not re.match(r"same|different|not here \(\d+\)", one[2])]
    unanswered = [
        (method, path)
        for method, path, said in told
        if not said.startswith("not here") and route_of(path, method) != route_for(path)
    ]
    assert not wrong and not unanswered


def route_for(path: str) -> str:
    """The route of exactly that path."""
    return next(one for one, _, _ in OURS if shown_path(one) == path)


def test_every_route_of_ours_is_among_couchdbs_endpoints() -> None:
    told = {(route_of(path, method), method) for method, path, _ in couchdbs_endpoints()}
    ours = {(path, method) for path, _, methods in OURS for method in methods}
    missing = {
        (path, method)
        for path, method in ours - told
        if "_divan" not in path and path not in NOT_COUCHDBS | set(info.NOT_HERE)
    }
    assert missing == {(path, method) for path in ONE_HANDLER for method in ("PUT", "DELETE")}


NOT_COUCHDBS = {"/{db}/_local/{local}/{att:path}"}
"""What is refused there as well."""
ONE_HANDLER = [f"/{{db}}/_design/{{ddoc}}/{kind}/{{rest:path}}" for kind in ("_show", "_list")]
"""They say so whatever the method."""


@pytest.fixture(scope="module")
def furnished(node: Running) -> Running:
    """A node with a database, a document and a design document, all of the name that is asked
    for.
    """
    for path in ("/x", "/x/x", "/x/_design/x"):
        assert node.request("PUT", path, {})[0] in (201, 409, 412)
    return node


def test_what_is_not_here_answers_as_the_table_says(furnished: Running) -> None:
    wrong = []
    for method, path, said in couchdbs_endpoints():
        found = re.match(r"not here \((\d+)\)", said)
        status, answer = (0, None) if found is None else furnished.request(
            method, plain_path(path).replace("/_node/x", "/_node/_local"), {}
        )  # fmt: skip
        if found is not None and (status != int(found[1]) or not answer["reason"]):
            wrong.append((method, path, status, answer))
    assert not wrong


def test_no_route_stands_in_the_way_of_another() -> None:
    paths = [path for table in TABLES for path, _ in table]
    patterns = [compile_path(path)[0] for path in paths]
    hidden = []
    for index, path in enumerate(paths):
        plain = plain_path(path)
        before = zip(paths[:index], patterns[:index], strict=True)
        hidden += [(path, other) for other, one in before if other != path and one.match(plain)]
    assert not hidden


def test_every_documented_method_is_answered(node: Running) -> None:
    refused = []
    for path, methods in all_routes().items():
        for method in sorted(methods):
            if node.request(method, re.sub(r"{\w+}", "x", path))[0] == 405:
                refused.append((method, path))
    assert not refused


def test_routes_need_a_login(node: Running) -> None:
    open_to_all = {"/", "/_up", "/_session", "/_utils", "/_utils/"}
    wrong = []
    for path, methods in all_routes().items():
        plain = re.sub(r"{\w+}", "x", path)
        for method in methods:
            if path == "/_session" and method != "GET":
                continue
            status, _ = node.request(method, plain, admin=False)
            if (status == 401) == (path in open_to_all):
                wrong.append((method, path, status))
    assert not wrong


def subclasses(kind: type[DivanError]) -> set[type[DivanError]]:
    below = {one for child in kind.__subclasses__() for one in subclasses(child)}
    return {kind, *below}


def documented_errors() -> set[tuple[int, str]]:
    return {(int(row[0]), codes(row[1])[0]) for row in rows(section("http-api.md", "Errors"))}


def test_every_error_is_documented() -> None:
    assert {(kind.status, kind.error) for kind in subclasses(DivanError)} <= documented_errors()


def test_special_error_codes_are_documented() -> None:
    places = [ROOT / "src/divandb/entry.py", *(ROOT / "src/divandb/httpd").glob("*.py")]
    used = {code for file in places for code in re.findall(r'error="(\w+)"', file.read_text())}
    assert used - {"true"} <= {code for _, code in documented_errors()}


def test_no_error_is_documented_that_is_not_there() -> None:
    source = "".join(file.read_text() for file in (ROOT / "src").rglob("*.py"))
    assert not [code for _, code in documented_errors() if f'"{code}"' not in source]


def test_the_tree_of_errors_shows_every_class() -> None:
    tree = re.findall(r"(\w+) +(\d{3}) (\w+)", errors.__doc__ or "")
    shown = {kind for kind in subclasses(DivanError) if kind.__module__ == errors.__name__}
    assert {(kind.__name__, str(kind.status), kind.error) for kind in shown} == set(tree)


def test_json_is_as_documented(node: Running) -> None:
    """The examples of the table in http-api."""
    assert node.request("PUT", "/docs-json")[0] == 201
    sent = b'{"most":18446744073709551615,"e":1e5,"twice":1,"twice":2}'
    assert node.request("PUT", "/docs-json/a", sent)[0] == 201
    _, _, body = node.exchange("GET", "/docs-json/a")
    assert body.endswith(b'"most":18446744073709551615,"e":100000.0,"twice":2}\n')
    deep = {depth: b'{"a":' * depth + b"1" + b"}" * depth for depth in (254, 255)}
    assert node.request("PUT", "/docs-json/deep", deep[254])[0] == 201
    big = (b'{"n":18446744073709551616}', b'{"n":-9223372036854775809}')
    for refused in (*big, b'{"n":1e400}', b'{"s":"\\ud800"}', b'{"n":NaN}', deep[255]):
        assert node.request("PUT", "/docs-json/b", refused)[0] == 400


def test_numbers_in_the_text_are_the_codes() -> None:
    api = (DOCS / "http-api.md").read_text()
    assert f"at most {PENDING_SCAN_MAX:,} places" in api
    assert f"more than {NAME_CHARS_MAX} characters" in api
    operations = (DOCS / "operations.md").read_text()
    assert f"of {PAGE_BYTES} bytes" in operations
    assert f"format number ({FORMAT} today)" in operations


# Operations


def test_every_limit_is_documented_with_its_default() -> None:
    documented = {codes(row[0])[0]: row[1] for row in rows(section("operations.md", "Bounds"))}
    fields = {field.name: str(field.default) for field in dataclasses.fields(Limits)}
    assert documented == fields


def test_every_limit_has_a_unit() -> None:
    assert all(
        len(row) == 4 and row[2] and row[3] for row in rows(section("operations.md", "Bounds"))
    )


def test_every_setting_is_documented_with_its_default() -> None:
    documented = {
        codes(row[0])[0]: "" if row[1] == "empty" else codes(row[1])[0]
        for row in rows(section("operations.md", "Settings"))
    }
    known = {
        f"{name}/{key}": value
        for name, values in settings.DEFAULTS.items()
        for key, value in values.items()
    }
    assert documented == known


def test_every_metric_is_documented(node: Running) -> None:
    status, _, text = node.exchange("GET", "/_node/_local/_prometheus")
    assert status == 200
    given = set(re.findall(r"^(divandb_\w+) ", text.decode(), re.M))
    assert given
    assert {codes(row[0])[0] for row in rows(section("operations.md", "Metrics"))} == given


def test_every_line_of_status_is_documented() -> None:
    numbers = dict.fromkeys(Alarms.__struct_fields__, 1)
    node = {
        "name": "m1",
        "board": {
            "failing": "why", "relay_failing": "why", "reading": {"m2": {"failing": "why"}},
        },
        "silent": {"m2": 5300},
        "holes": {"count": 1, "reasons": ["why"]},
        "missing_blobs": 1,
        "verify": {
            "failing": "why", "open": 1,
            "examples": [{"database": "x", "id": "d", "what": "why"}],
        },
        "alarms": numbers,
    }  # fmt: skip
    text = section("operations.md", "Holes and alarms")
    told = [code for row in rows(text) for code in codes(row[0])]
    lines = tables.notes([node])[0].splitlines()
    assert len(lines) == 8 + len(numbers)
    for line in lines:
        said = line.removeprefix("m1 ")
        assert [one for one in told if said.startswith(one.partition("…")[0])], line
    assert {*numbers, "holes", "missing_blobs"} <= set(told)


def test_tables_of_the_file_are_documented() -> None:
    schema = resources.files("divandb.store").joinpath("schema.sql").read_text()
    connection = sqlite3.connect(":memory:")
    connection.executescript(schema)
    tables = {
        name
        for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        if not name.startswith("sqlite_")
    }
    connection.close()
    documented = {
        name for row in rows(section("architecture.md", "The file")) for name in codes(row[0])
    }
    assert documented == tables


# Commands


def subcommand(name: str) -> click.Command:
    found = command.get_command(click.Context(command), name)
    assert found is not None
    return found


def options_of(name: str) -> set[str]:
    found = subcommand(name)
    parameters = list(found.params)
    if isinstance(found, click.Group):
        context = click.Context(found)
        for inner in found.list_commands(context):
            one = found.get_command(context, inner)
            assert one is not None
            parameters += one.params
    options = [one for one in parameters if isinstance(one, click.Option)]
    return {text for one in options for text in (*one.opts, *one.secondary_opts)}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_documented(name: str) -> None:
    text = (DOCS / "quickstart.md").read_text()
    found = re.search(rf"^### divandb {name}\n(.*?)(?=^##|\Z)", text, re.M | re.S)
    assert found is not None, f"quickstart.md has no heading for divandb {name}"
    # What import and export share stands below the second of them.
    told = found[1] if name != "export" else text
    assert not [option for option in options_of(name) if option not in told]


TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_are_there(page: Path) -> None:
    text = page.read_text()
    commands = [
        *codes(text),
        *(line.strip() for line in text.splitlines() if line.startswith("    ")),
    ]
    used = {found[1] for one in commands if (found := re.match(r"make ([a-z-]+)", one))}
    assert used <= TARGETS


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_divandb_commands_are_there(page: Path) -> None:
    text = page.read_text()
    block = re.findall(r"^(?:    |\$ )\s*(?:\S*/)?(divandb .+)$", text, re.M)
    wrong = []
    for line in [*block, *(code for code in codes(text) if code.startswith("divandb "))]:
        words = line.split()
        if words[1].startswith("-"):
            continue
        used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", line))
        if words[1] not in COMMANDS or used - options_of(words[1]) - {"--help"}:
            wrong.append(line)
    assert not wrong


def test_every_make_target_is_documented() -> None:
    told = (ROOT / "CONTRIBUTING.md").read_text() + (ROOT / "Makefile").read_text().partition(
        "\nup:"
    )[0]
    assert not [target for target in TARGETS - {"help", "clean"} if f"make {target}" not in told]


# The Python client


def test_every_option_of_the_client_is_documented_with_its_default() -> None:
    documented = {
        codes(row[0])[0]: "" if row[1] == "empty" else codes(row[1])[0]
        for row in rows(section("client.md", "Options"))
    }
    fields = {field.name: str(field.default) for field in dataclasses.fields(client.Options)}
    assert documented == fields


def test_every_error_of_the_client_is_documented() -> None:
    documented = {codes(row[0])[0] for row in rows(section("client.md", "Errors"))}
    kinds = {
        name
        for name in client.__all__
        if isinstance(kind := getattr(client, name), type) and issubclass(kind, Exception)
    }
    assert documented == kinds - {"ClientError"}


# The map and the decisions


def test_the_map_names_modules_that_are_there() -> None:
    text = divandb.__doc__ or ""
    steps = re.findall(r"^ ?(\d+)\. (.+)$", text, re.M)
    assert [int(number) for number, _ in steps] == list(range(1, 11))
    assert all("``" in step for _, step in steps)
    names = re.findall(r"``([a-z_.]+)``", text)
    assert len(names) > 10
    assert not [name for name in names if importlib.util.find_spec(f"divandb.{name}") is None]


def test_every_module_has_its_docstring() -> None:
    bare = [
        str(file)
        for file in (ROOT / "src").rglob("*.py")
        if file.name != "__main__.py" and not file.read_text().startswith(('"""', 'r"""'))
    ]
    assert not bare


@pytest.mark.parametrize("package", ["auth", "client", "httpd", "store"])
def test_a_package_lists_its_modules(package: str) -> None:
    module = importlib.import_module(f"divandb.{package}")
    there = {file.stem for file in (ROOT / "src/divandb" / package).glob("*.py")} - {"__init__"}
    cells = re.findall(r"^ *(\S+(?:, \S+)*)  +\S", module.__doc__ or "", re.M)
    listed = {name.removesuffix(".py") for cell in cells for name in cell.split(", ")}
    assert there == {name for name in listed if "." not in name}


def test_decisions_are_numbered_and_listed() -> None:
    numbers = [int(page.name[:4]) for page in DECISIONS]
    assert numbers == list(range(1, len(numbers) + 1))
    index = (DOCS / "decisions" / "README.md").read_text()
    assert re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", index) == [page.name for page in DECISIONS]


@pytest.mark.parametrize("page", DECISIONS, ids=name_of)
def test_a_decision_says_why_and_at_what_cost(page: Path) -> None:
    text = page.read_text()
    assert text.startswith(f"# {page.name[:4]}: ")
    assert all(f"**{part}.**" in text for part in ("Context", "Decision", "Cost"))


def test_the_changelog_has_its_form() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (.+)$", text, re.M)
    assert versions[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", one) for one in versions[1:])
