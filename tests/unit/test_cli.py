import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from click.testing import CliRunner
from tqdm import tqdm

from divandb.cli import divandb, transfer
from divandb.cli.remote import AnswerTooLarge, Remote, RemoteError, connect, segment
from divandb.cli.rows import rows
from divandb.cli.transfer import Exporter, Importer, Tally, Target
from divandb.cli.up import greeting


class FakeNode:
    """One database behind the two methods of ``Remote`` that import and export use.

    A document that says `bad` makes the whole request a 400, one that says `never` is forbidden.
    """

    def __init__(self, docs: dict[str, dict[str, Any]] | None = None) -> None:
        self.docs = docs
        self.requests: list[str] = []

    def call(
        self, method: str, path: str, body: bytes | None = None, answer_bytes_max: int = 2**30
    ) -> bytes:
        self.requests.append(f"{method} {path}")
        answer = json.dumps(self._answer(method, urlsplit(path), body)).encode()
        if len(answer) > answer_bytes_max:
            raise AnswerTooLarge
        return answer

    def _answer(self, method: str, where: Any, body: bytes | None) -> Any:
        if method == "PUT":
            self.docs = {}
            return {"ok": True}
        if self.docs is None:
            raise RemoteError("missing", 404)
        if where.path.endswith("_bulk_docs"):
            return self._bulk(json.loads(body or b"")["docs"])
        if where.path.endswith("_all_docs"):
            return self._page(parse_qs(where.query))
        return {"doc_count": len(self.docs), "doc_del_count": 0}

    def _bulk(self, docs: list[dict[str, Any]]) -> list[dict[str, str]]:
        if any("bad" in doc for doc in docs):
            raise RemoteError("doc_validation: it says bad", 400)
        return [self._write(doc) for doc in docs]

    def _write(self, doc: dict[str, Any]) -> dict[str, str]:
        assert self.docs is not None
        name = doc["_id"]
        if "never" in doc:
            return {"id": name, "error": "forbidden", "reason": "never"}
        if self.docs.get(name, {}).get("_rev") != doc.get("_rev"):
            return {"id": name, "error": "conflict", "reason": "Document update conflict."}
        generation = int(doc.get("_rev", "0").partition("-")[0]) + 1
        self.docs[name] = {**doc, "_rev": f"{generation}-x"}
        return {"id": name, "rev": self.docs[name]["_rev"]}

    def _page(self, options: dict[str, list[str]]) -> Any:
        assert self.docs is not None
        start = json.loads(options.get("startkey", ['""'])[0])
        names = sorted(name for name in self.docs if name >= start)
        names = names[: int(options["limit"][0])]
        return {"rows": [{"id": name, "doc": self._shown(name)} for name in names]}

    def _shown(self, name: str) -> Any:
        assert self.docs is not None
        doc = self.docs[name]
        if "gone" in doc:
            return None
        return {key: value for key, value in doc.items() if key != "attachment"}

    def chunks(self, path: str) -> Iterator[bytes]:
        self.requests.append(f"GET {path}")
        assert self.docs is not None
        doc = self.docs[unquote(urlsplit(path).path.split("/", 2)[2])]
        if "lost" in doc:
            raise RemoteError("not_found: deleted", 404)
        text = json.dumps(doc, indent=1).encode() + b"\n"
        yield from (text[place : place + 7] for place in range(0, len(text), 7))


def run_import(
    fake: FakeNode, text: bytes, batch: int = 100, id_field: str | None = None
) -> tuple[Tally, str]:
    said = io.StringIO()
    bar: tqdm[None] = tqdm(disable=True)
    bar.write = lambda line, **_: said.write(f"{line}\n")  # type: ignore[method-assign]
    importer = Importer(Target(fake, "db"), bar, batch)  # type: ignore[arg-type]
    for row in rows(io.BytesIO(text)):
        importer.take(row, id_field)
    importer.flush()
    return importer.tally, said.getvalue()


def run_export(fake: FakeNode) -> list[dict[str, Any]]:
    out = io.BytesIO()
    exporter = Exporter(fake, "db")  # type: ignore[arg-type]
    assert sum(exporter.write_to(out)) >= exporter.written
    docs = [json.loads(line) for line in out.getvalue().splitlines()]
    assert len(docs) == exporter.written
    return docs


def lines(*docs: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(doc).encode() + b"\n" for doc in docs)


def test_import_makes_the_database_and_sends_batches() -> None:
    fake = FakeNode()
    tally, said = run_import(fake, lines(*({"_id": str(n)} for n in range(5))), batch=2)
    assert (tally, said) == (Tally(5, 0, 0), "")
    assert fake.requests == ["GET /db", "PUT /db", *["POST /db/_bulk_docs"] * 3]
    assert sorted(fake.docs or {}) == ["0", "1", "2", "3", "4"]


def test_import_sends_no_more_bytes_at_a_time_than_its_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transfer, "BATCH_BYTES_MAX", 120)
    fake = FakeNode()
    run_import(fake, lines(*({"_id": str(n), "text": "x" * 30} for n in range(6))))
    assert fake.requests[2:] == ["POST /db/_bulk_docs"] * 3


def test_rows_with_a_revision_become_new_documents_in_an_empty_database() -> None:
    fake = FakeNode({})
    tally, _ = run_import(fake, lines({"_id": "a", "_rev": "3-y"}))
    assert tally == Tally(written=1)
    assert fake.docs == {"a": {"_id": "a", "_rev": "1-x"}}
    assert len(fake.requests) == 2


def test_rows_with_a_revision_update_it_or_are_new_or_are_conflicts() -> None:
    fake = FakeNode({"a": {"_id": "a", "_rev": "1-x"}, "b": {"_id": "b", "_rev": "2-x"}})
    text = lines(*({"_id": name, "_rev": "1-x"} for name in "abc"))
    tally, said = run_import(fake, text)
    assert tally == Tally(written=2, conflicts=1)
    assert said == "row 2: b: Document update conflict.\n"
    assert {name: doc["_rev"] for name, doc in (fake.docs or {}).items()} == {
        "a": "2-x",
        "b": "2-x",
        "c": "1-x",
    }


def test_one_bad_row_does_not_stop_the_others_of_its_request() -> None:
    fake = FakeNode({})
    docs: list[dict[str, Any]] = [{"_id": str(n)} for n in range(9)]
    docs[4]["bad"] = True
    docs[7]["never"] = True
    tally, said = run_import(fake, lines(*docs) + b"nonsense\n")
    assert tally == Tally(written=7, conflicts=0, failed=3)
    assert "row 5: 4: refused: doc_validation: it says bad\n" in said
    assert "row 8: 7: forbidden: never\n" in said
    assert "row 10: not a JSON object" in said


def test_only_the_first_problems_are_told() -> None:
    tally, said = run_import(FakeNode({}), b"x\n" * 1000)
    assert tally == Tally(failed=1000)
    assert said.count("\n") == 21
    assert said.endswith("more problems are only counted\n")


def test_a_refusal_that_is_not_about_a_row_ends_the_import() -> None:
    class Refusing(FakeNode):
        def _bulk(self, docs: list[dict[str, Any]]) -> list[dict[str, str]]:
            raise RemoteError("unauthorized", 401)

    with pytest.raises(RemoteError, match="unauthorized"):
        run_import(Refusing({}), lines({"_id": "a"}))


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 250, 5000])
def test_export_gives_every_document_once(count: int) -> None:
    fake = FakeNode({f"{n:04}": {"_id": f"{n:04}", "n": n} for n in range(count)})
    assert [doc["n"] for doc in run_export(fake)] == list(range(count))


def test_export_takes_smaller_pages_when_documents_are_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transfer, "PAGE_BYTES_MAX", 20_000)
    monkeypatch.setattr(transfer, "PAGE_BYTES_AIM", 10_000)
    docs = {f"{n:03}": {"_id": f"{n:03}", "text": "x" * (n * 100)} for n in range(150)}
    assert [doc["_id"] for doc in run_export(FakeNode(docs))] == sorted(docs)


def test_export_says_which_document_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PAGE_BYTES_MAX", 100)
    monkeypatch.setattr(transfer, "LEAST_PAGE_BYTES_MAX", 100)
    docs = {name: {"_id": name, "text": "x" * 200} for name in "abc"}
    with pytest.raises(RemoteError, match="too large"):
        run_export(FakeNode(docs))


def test_export_loses_nothing_when_the_last_document_of_a_page_goes() -> None:
    class Shrinking(FakeNode):
        def _page(self, options: dict[str, list[str]]) -> Any:
            page = super()._page(options)
            assert self.docs is not None
            del self.docs[page["rows"][-1]["id"]]
            return page

    fake = Shrinking({f"{n:04}": {"_id": f"{n:04}"} for n in range(1000)})
    assert len(run_export(fake)) == 1000


def test_export_reads_documents_with_attachments_whole_and_on_one_line() -> None:
    inline = {"x": {"data": "aGk=", "content_type": "text/plain"}}
    docs: dict[str, dict[str, Any]] = {
        "_design/a/b": {"_id": "_design/a/b", "_attachments": inline, "attachment": 1},
        "plain/name": {"_id": "plain/name", "_attachments": inline, "attachment": 1},
        "mentions": {"_id": "mentions", "text": '"_attachments"'},
        "lost": {"_id": "lost", "_attachments": inline, "lost": True},
        "gone": {"_id": "gone", "gone": True},
    }
    fake = FakeNode(docs)
    found = {doc["_id"]: doc for doc in run_export(fake)}
    assert found == {name: docs[name] for name in ("_design/a/b", "plain/name", "mentions")}
    assert [path for path in fake.requests if "attachments=true" in path] == [
        "GET /db/_design/a%2Fb?attachments=true",
        "GET /db/lost?attachments=true",
        "GET /db/plain%2Fname?attachments=true",
    ]


def test_a_name_is_one_segment_of_a_path() -> None:
    assert segment("a/b c?ü") == "a%2Fb%20c%3F%C3%BC"


@pytest.mark.parametrize(
    "url", ["localhost:5984", "ftp://x", "http://", "nonsense", "http://x:y", "http://[x"]
)
def test_a_url_that_is_none_is_a_clear_error(url: str) -> None:
    with pytest.raises(RemoteError, match="URL"):
        Remote(url, None)


def test_without_a_running_node_there_is_nothing_to_connect_to(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="nothing runs in"):
        connect(None, None, tmp_path)


def test_the_greeting_tells_where_the_password_is() -> None:
    text = greeting("http://127.0.0.1:1", Path("my data"), "admin:secret", given=False)
    assert "secret" not in text
    assert """curl -u "$(cat 'my data/admin')" http://127.0.0.1:1/_session""" in text
    text = greeting("http://127.0.0.1:1", Path("data"), "root:secret", given=True)
    assert "secret" not in text
    assert "curl -u root http://127.0.0.1:1/_session" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["up", "--masters", "0"], "--masters"),
        (["up", "--replicas", "65"], "--replicas"),
        (["node"], "--config"),
        (["board"], "--config"),
        (["up", "--port", "65536"], "--port"),
        (["up", "--port", "-1"], "--port"),
        (["up", "--admin", "nopassword"], "USER:PASSWORD"),
        (["up", "--stop-timeout", "0"], "--stop-timeout"),
        (["import", "db"], "FILE"),
        (["import", "db", "-", "--batch", "0"], "--batch"),
        (["import", "db", "-", "--user", "nopassword"], "USER:PASSWORD"),
        (["nonsense"], "nonsense"),
    ],
)
def test_bad_usage_is_status_2_and_says_what_is_wrong(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(divandb, arguments)
    assert result.exit_code == 2
    assert words in result.output


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["status", "--data", "nowhere"], 1, "divandb: nothing runs in nowhere\n"),
        (["export", "db", "-", "--data", "nowhere"], 1, "divandb: nothing runs in nowhere"),
        (["import", "db", "nofile"], 1, "divandb: [Errno 2] No such file"),
        (["up", "--port", "x"], 2, "divandb: Invalid value for '--port'"),
        (["export", "db", "-", "--url", "http://127.0.0.1:1"], 1, "divandb: lost 127.0.0.1:1: "),
        (["node", "--config", "x.toml"], 1, "divandb: x.toml: No such file or directory\n"),
        (["board", "--config", "x.toml"], 1, "divandb: x.toml: No such file or directory\n"),
    ],
)
def test_an_error_is_one_line(tmp_path: Path, arguments: list[str], status: int, line: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "divandb", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


def test_up_does_not_load_what_only_other_commands_need() -> None:
    script = (
        "import sys; from divandb.cli import divandb; divandb.get_command(None, 'up');"
        "others = ('tqdm', 'divandb.cli.transfer', 'divandb.cli.status', 'divandb.cli.add');"
        "print([name for name in others if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
