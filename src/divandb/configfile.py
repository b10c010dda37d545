"""The files that nodes and boards on separate machines are started with, and back to text again.

TOML; ``docs/operations.md`` lists the keys. An environment variable goes over each key but
``[[members]]``: ``node_port`` is ``DIVANDB_NODE_PORT``, ``url`` in ``[board]`` is
``DIVANDB_BOARD_URL``, keys in ``[spare]`` begin with ``DIVANDB_SPARE_``, those in ``[keys]``,
``[limits]`` and ``[topics]`` go without the table's name
(``DIVANDB_TOKEN``); in a board's file all of them begin with ``DIVANDB_BOARD_``.

A secret may stand in a file of its own: ``token_file = "token"`` instead of ``token``. Paths are
relative to the folder of the configuration file.
"""

import dataclasses
import json
import os
import tomllib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from divandb.board.access import SECRET_CHARS_MAX, SECRET_CHARS_MIN
from divandb.board.base import PRINCIPAL_NAME
from divandb.board.broker import BrokerLimits
from divandb.board.embedded_server import BoardConfig
from divandb.board.log import LogSettings
from divandb.board.wire import WireLimits
from divandb.cluster import trust
from divandb.cluster.topics import (
    check_reader,
    partition_of,
    principal_as_replica,
    principal_of,
    principals_of,
)
from divandb.config import (
    KAFKA,
    MASTER,
    MECHANISMS,
    REPLICA,
    SECURITIES,
    BoardAccess,
    Config,
    KafkaAccess,
    Keys,
    Limits,
    Member,
    Spare,
    TlsFiles,
    TopicSettings,
    is_allowed,
    number,
)
from divandb.datadir import is_admin

BOARD_ADMIN = "board-admin"
"""The principal that arranges topics."""
HOST = "127.0.0.1"
ANY_HOST = ("0.0.0.0", "::", "")
FILE_BYTES_MAX = 2**20
CLUSTER_CHARS = 32
COOKIE_CHARS = 32
KEY_BYTES = 32
NODE_PREFIX = "DIVANDB_"
BOARD_PREFIX = "DIVANDB_BOARD_"
SPARE_PREFIX = "DIVANDB_SPARE_"
Read = Callable[[Path], str]
"""The text of a small file; raises ``OSError`` or ``ValueError``."""
_MISSING: Final = object()


class ConfigFileError(ValueError):
    """Something in the file or over it is wrong; the text is one line that names key and file."""


@dataclasses.dataclass(frozen=True)
class NodeFile:
    """A node's file."""

    config: Config
    host: str
    """The address to listen on."""
    node_port: int
    """The node's own."""
    port: int | None
    """For clients, shared by the nodes of a machine; ``None``: the node's own serves them."""


@dataclasses.dataclass(frozen=True)
class BoardFile:
    """An embedded board's file."""

    config: BoardConfig
    """Without ``arrange``."""
    host: str
    port: int
    url: str
    """Under which nodes reach it."""
    cluster: str
    members: tuple[Member, ...]
    """For whom it makes topics; a URL is a note for people and `divandb add`."""
    secrets: Mapping[str, str]
    """The secret of each principal that a member is or may become."""
    readers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Name → secret of those who may read the Masters' Event Board besides."""


@dataclasses.dataclass(frozen=True)
class KafkaFile:
    """Boards on Apache Kafka, and for whom they are: what `divandb board init` makes."""

    admin: BoardAccess
    """Of a principal that may make topics, principals and rights; without a name there is none."""
    cluster: str
    members: tuple[Member, ...]
    """For whom there are topics; a URL is a note for people and `divandb add`."""
    secrets: Mapping[str, str]
    """The secret of each principal that a member is or may become, as far as known."""
    topics: TopicSettings
    readers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Name → secret of those who may read the Masters' Event Board besides."""

    def reading(self, name: str) -> BoardAccess:
        """How this reader opens the boards."""
        return dataclasses.replace(self.admin, principal=name, secret=self.readers[name])

    def access(self, member: Member) -> BoardAccess:
        """How this member opens the boards."""
        principal = principal_of(member)
        secret = self.secrets.get(principal, "")
        return dataclasses.replace(self.admin, principal=principal, secret=secret)


@dataclasses.dataclass(frozen=True)
class ReaderFile:
    """A file of one who reads the Masters' Event Board and is no node."""

    access: BoardAccess
    cluster: str
    ca: Path | None = None
    """Whom it trusts behind the embedded board's https URL; ``None``: whom the system trusts."""


def read_node(path: Path, environment: Mapping[str, str]) -> NodeFile:
    """A node's file with the environment over it; raises ``ConfigFileError``."""
    return node_from(_read_table(path), str(path), path.parent, environment, read_text)


def read_board(path: Path, environment: Mapping[str, str]) -> BoardFile:
    """A board's file with the environment over it; raises ``ConfigFileError``."""
    return board_from(_read_table(path), str(path), path.parent, environment, read_text)


def read_boards(path: Path, environment: Mapping[str, str]) -> BoardFile | KafkaFile:
    """A board's file, of either kind; raises ``ConfigFileError``."""
    table = _read_table(path)
    is_kafka = is_kafka_url(environment.get(f"{BOARD_PREFIX}URL", table.get("url")))
    make = kafka_from if is_kafka else board_from
    return make(table, str(path), path.parent, environment, read_text)


def read_reader(path: Path, environment: Mapping[str, str]) -> ReaderFile:
    """Who may read the boards by any file of this package, with the environment over it: a reader,
    a node, or the boards' admin. Raises ``ConfigFileError``.
    """
    table = _read_table(path)
    if "role" in table:
        return _reader_in_node(path, read_node(path, environment))
    if "board" not in table:
        ca = environment.get(f"{NODE_PREFIX}CA")
        return _admin_in(path, read_boards(path, environment), None if ca is None else Path(ca))
    return reader_from(table, str(path), path.parent, environment, read_text)


def _reader_in_node(path: Path, file: NodeFile) -> ReaderFile:
    config = file.config
    if config.board is None:
        raise ConfigFileError(f"{path}: there is no board.url: the node is alone")
    return ReaderFile(config.board, config.keys.cluster, config.tls.ca)


def _admin_in(path: Path, file: BoardFile | KafkaFile, ca: Path | None) -> ReaderFile:
    if isinstance(file, BoardFile):
        secret = file.config.admins[BOARD_ADMIN]
        return ReaderFile(BoardAccess(file.url, BOARD_ADMIN, secret), file.cluster, ca)
    if not file.admin.principal and file.admin.kafka.has_principals:
        raise ConfigFileError(f"{path}: admin_secret is missing: set DIVANDB_BOARD_ADMIN_SECRET")
    return ReaderFile(file.admin, file.cluster)


def is_of_a_node(path: Path) -> bool:
    """Is it a node's file, and not one of boards? Raises ``ConfigFileError``."""
    return "role" in _read_table(path)


def is_kafka_url(url: object) -> bool:
    """Is it the URL of boards on Apache Kafka?"""
    return isinstance(url, str) and url.startswith(KAFKA)


def read_text(path: Path) -> str:
    """The text of a small file; raises ``OSError`` or ``ValueError``."""
    with open(path, "rb") as file:
        data = file.read(FILE_BYTES_MAX + 1)
    if len(data) > FILE_BYTES_MAX:
        raise ValueError(f"it has more than {FILE_BYTES_MAX} bytes")
    return data.decode()


def _read_table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(path))
    except (OSError, ValueError) as problem:
        raise ConfigFileError(f"{path}: {_reason(problem)}") from None


def _reason(problem: OSError | ValueError) -> str:
    return problem.strerror or str(problem) if isinstance(problem, OSError) else str(problem)


# What is in them


def node_from(
    table: Mapping[str, Any], name: str, folder: Path, environment: Mapping[str, str], read: Read
) -> NodeFile:
    """A node's file from its table. ``name`` is the file's, for errors; ``folder`` the one that
    paths are relative to.
    """
    top = _Table(table, _Source(name, folder, environment, read), "", NODE_PREFIX)
    role = top.one_of("role", (MASTER, REPLICA))
    node_name, slot = top.name("name"), top.slot("slot")
    host, node_port = top.text("host", HOST), top.port("node_port")
    limits = top.numbers("limits", Limits())
    tls = _tls(top, top.path("ca", None))
    # A slot's principal has the slot's name, whoever holds it.
    board = _board_access(top, slot if role == MASTER else node_name)
    spare, spare_certificate = _spare(top, role)
    found = NodeFile(
        Config(
            data=top.path("data"),
            name=node_name,
            role=role,
            slot=slot,
            url=top.url("url", _default_url(host, node_port, tls)),
            zone=top.zone("zone"),
            admin=top.admin("admin"),
            board=board,
            keys=_keys(top, role) if board is not None or top.has("keys") else Keys(),
            spare=spare,
            spare_certificate=spare_certificate,
            tls=tls,
            seeds=tuple(one for one in _members(top) if one.name != node_name),
            limits=limits,
        ),
        host,
        node_port,
        top.port("port", None),
    )
    top.end()
    _check_node(top, found)
    return found


def _tls(top: "_Table", ca: Path | None) -> TlsFiles:
    found = TlsFiles(top.path("certificate", None), top.path("certificate_key", None), ca)
    if found.certificate_key is not None and found.certificate is None:
        raise top.wrong("certificate", "is missing: certificate_key is given")
    return found


def _board_access(top: "_Table", principal: Any) -> BoardAccess | None:
    board = top.table("board", BOARD_PREFIX)
    access = None
    if board.is_given("url"):
        access = _access(board, board.board_url("url"), "principal", principal, "secret")
    board.end()
    return access


def _access(table: "_Table", url: str, name_key: str, name: Any, secret_key: str) -> BoardAccess:
    """How boards are opened, by what stands in this table."""
    if not is_kafka_url(url):
        return BoardAccess(url, table.name(name_key, name), table.principal_secret(secret_key))
    kafka = _kafka(table)
    given = table.text(name_key, name)
    secret = table.secret(secret_key, _MISSING if kafka.has_sasl else "")
    return BoardAccess(url, given, secret, kafka)


def _kafka(table: "_Table") -> KafkaAccess:
    default = KafkaAccess()
    return KafkaAccess(
        table.one_of("security", SECURITIES, default.security),
        table.one_of("mechanism", MECHANISMS, default.mechanism),
        table.path("ca", None),
        table.path("certificate", None),
        table.path("certificate_key", None),
    )


def _keys(top: "_Table", role: str) -> Keys:
    keys = top.table("keys", NODE_PREFIX)
    found = Keys(
        cluster=keys.hexadecimal("cluster", CLUSTER_CHARS),
        cookies=keys.hexadecimal("cookies", COOKIE_CHARS),
        token=keys.secret("token"),
        members=bytes.fromhex(keys.hexadecimal("members", 2 * KEY_BYTES)),
        masters=(
            bytes.fromhex(keys.hexadecimal("masters", 2 * KEY_BYTES)) if role == MASTER else b""
        ),
    )
    keys.end()
    return found


def _spare(top: "_Table", role: str) -> tuple[Spare | None, TlsFiles]:
    spare = top.table("spare", SPARE_PREFIX)
    certificate = _tls(spare, None)
    if not spare.has_secret("token"):
        spare.end()
        return None, certificate
    masters = spare.hexadecimal("masters", 2 * KEY_BYTES) if role == REPLICA else ""
    found = Spare(
        spare.secret("token"),
        bytes.fromhex(masters),
        spare.name("principal"),
        spare.principal_secret("secret"),
    )
    spare.end()
    return found, certificate


def _members(top: "_Table") -> list[Member]:
    found = []
    for one in top.tables("members"):
        found.append(
            Member(
                one.name("name"),
                one.one_of("role", (MASTER, REPLICA)),
                one.slot("slot"),
                one.url("url"),
                one.zone("zone"),
            )
        )
        one.end()
    _check_names(top, found)
    return found


def _check_node(top: "_Table", found: NodeFile) -> None:
    config = found.config
    if found.port == found.node_port:
        raise top.wrong("port", "must be another than node_port")
    if config.tls.certificate is not None and not config.url.startswith("https://"):
        raise top.wrong("url", "must begin with https://, since there is a certificate")
    if config.board is None and config.seeds:
        raise top.wrong("board.url", "is missing: a node with others needs a board")
    if not config.keys.token:
        return
    holder = trust.holder(config.keys, trust.SCHEME + config.keys.token)
    if holder is None:
        raise top.wrong("keys.token", "does not belong to the other keys")
    if holder != (config.name, config.role, config.slot):
        raise top.wrong("keys.token", f"is for {' '.join(holder)}: not this name, role and slot")


def reader_from(
    table: Mapping[str, Any], name: str, folder: Path, environment: Mapping[str, str], read: Read
) -> ReaderFile:
    """A reader's file from its table; see ``node_from``."""
    top = _Table(table, _Source(name, folder, environment, read), "", NODE_PREFIX)
    access = _board_access(top, _MISSING)
    if access is None:
        raise top.wrong("board.url", "is missing")
    found = ReaderFile(access, top.hexadecimal("cluster", CLUSTER_CHARS), top.path("ca", None))
    top.end()
    return found


def board_from(
    table: Mapping[str, Any], name: str, folder: Path, environment: Mapping[str, str], read: Read
) -> BoardFile:
    """A board's file from its table; see ``node_from``."""
    top = _Table(table, _Source(name, folder, environment, read), "", BOARD_PREFIX)
    host, port = top.text("host", HOST), top.port("port")
    members, secrets = _board_members(top)
    limits = top.numbers("limits", BrokerLimits(), WireLimits(), LogSettings())
    tls = _tls(top, None)
    found = BoardFile(
        BoardConfig(
            top.path("data"),
            {BOARD_ADMIN: top.principal_secret("admin_secret")},
            tls=tls,
            broker=limits[0],
            wire=limits[1],
            log=limits[2],
        ),
        host,
        port,
        top.url("url", _default_url(host, port, tls)),
        top.hexadecimal("cluster", CLUSTER_CHARS),
        members,
        secrets,
        _readers(top, members),
    )
    top.end()
    return found


def kafka_from(
    table: Mapping[str, Any], name: str, folder: Path, environment: Mapping[str, str], read: Read
) -> KafkaFile:
    """A file of boards on Kafka from its table; see ``node_from``."""
    top = _Table(table, _Source(name, folder, environment, read), "", BOARD_PREFIX)
    admin = _kafka_admin(top)
    members, secrets = _board_members(top, are_needed=admin.kafka.has_sasl)
    found = KafkaFile(
        admin,
        top.hexadecimal("cluster", CLUSTER_CHARS),
        members,
        secrets,
        top.numbers("topics", TopicSettings()),
        _readers(top, members, admin.principal),
    )
    top.end()
    return found


def _kafka_admin(top: "_Table") -> BoardAccess:
    """The admin, or, without a secret for one who needs it, nobody."""
    url = top.board_url("url")
    if not top.has_secret("admin_secret"):
        kafka = _kafka(top)
        name = top.text("admin_principal", "" if kafka.has_sasl else BOARD_ADMIN)
        return BoardAccess(url, "" if kafka.has_sasl else name, "", kafka)
    return _access(top, url, "admin_principal", BOARD_ADMIN, "admin_secret")


def kafka_given(url: str, environment: Mapping[str, str]) -> tuple[BoardAccess, TopicSettings]:
    """Boards on Kafka as the environment alone describes them: the admin, and how topics are made.

    Raises ``ConfigFileError``.
    """
    around = {**environment, f"{BOARD_PREFIX}URL": url}
    top = _Table({}, _Source("the environment", Path(), around, read_text), "", BOARD_PREFIX)
    return _kafka_admin(top), top.numbers("topics", TopicSettings())


def zone_given(environment: Mapping[str, str]) -> str:
    """The zone that the environment names, if any; raises ``ConfigFileError``."""
    source = _Source("the environment", Path(), environment, read_text)
    return _Table({}, source, "", NODE_PREFIX).zone("zone")


def _board_members(
    top: "_Table", *, are_needed: bool = True
) -> tuple[tuple[Member, ...], dict[str, str]]:
    """Members and their secrets; the latter are left aside if they are not needed."""
    members, secrets = [], {}
    for one in top.tables("members"):
        role = one.one_of("role", (MASTER, REPLICA))
        member = Member(
            one.name("name"), role, one.slot("slot"), one.url("url", ""), one.zone("zone")
        )
        if are_needed:
            secrets[principal_of(member)] = one.principal_secret("secret")
            if one.is_given("replica_secret"):
                secrets[principal_as_replica(member)] = one.principal_secret("replica_secret")
        else:
            one.secret("secret", None)
            one.secret("replica_secret", None)
        members.append(member)
        one.end()
    _check_names(top, members)
    return tuple(members), secrets


def _readers(
    top: "_Table", members: Collection[Member], admin: str = BOARD_ADMIN
) -> dict[str, str]:
    """Readers and their secrets."""
    taken = {admin, BOARD_ADMIN, *(one.name for one in members)}
    taken.update(*map(principals_of, members))
    found: dict[str, str] = {}
    for one in top.tables("readers"):
        name = one.name("name")
        try:
            check_reader(name, {*taken, *found})
        except ValueError as problem:
            raise one.wrong("name", f"is wrong: {problem}") from None
        found[name] = one.principal_secret("secret")
        one.end()
    return found


def _check_names(top: "_Table", members: list[Member]) -> None:
    names = [one.name for one in members]
    twice = next((one for one in names if names.count(one) > 1), None)
    if twice is not None:
        raise top.wrong("members", f"has {twice} twice")


def _default_url(host: str, port: int, tls: TlsFiles) -> str | None:
    """``None`` if others cannot reach this machine by what it listens on."""
    if host in ANY_HOST:
        return None
    scheme = "http" if tls.certificate is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


# How they are read


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where a file's values come from."""

    name: str
    folder: Path
    environment: Mapping[str, str]
    read: Read


class _Table:
    """A table of the file, with what the environment says over it; each key is taken once."""

    def __init__(
        self, values: Mapping[str, Any], source: _Source, where: str, prefix: str | None
    ) -> None:
        """``where`` is the table's name with its dot; without ``prefix`` no variable goes over."""
        self._values = dict(values)
        self._source = source
        self._where = where
        self._prefix = prefix

    def wrong(self, key: str, what: str) -> ConfigFileError:
        """The error to raise."""
        return ConfigFileError(f"{self._source.name}: {self._where}{key} {what}")

    def end(self) -> None:
        """All keys are taken; raises for one that is left."""
        for key in self._values:
            raise self.wrong(key, "is no key of this file")

    # Tables in it

    def has(self, key: str) -> bool:
        """Is the key in the file?"""
        return key in self._values

    def table(self, key: str, prefix: str) -> "_Table":
        """The table of this name; empty if it is not there."""
        value = self._values.pop(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, "must be a table")
        return _Table(value, self._source, f"{self._where}{key}.", prefix)

    def tables(self, key: str) -> list["_Table"]:
        """The list of tables of this name."""
        value = self._values.pop(key, [])
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise self.wrong(key, f"must be tables: [[{key}]]")
        return [
            _Table(one, self._source, f"{key}[{place}].", None)
            for place, one in enumerate(value, 1)
        ]

    def numbers(self, key: str, *kinds: Any) -> Any:
        """Dataclasses of numbers with what the table of this name changes in them."""
        table = self.table(key, self._prefix or "")
        found = [dataclasses.replace(one, **table._changes(one)) for one in kinds]
        table.end()
        return found if len(found) > 1 else found[0]

    def _changes(self, numbers: Any) -> dict[str, Any]:
        fields = dataclasses.fields(numbers)
        return {
            field.name: self._number(field.name, type(field.default))
            for field in fields
            if self.is_given(field.name)
        }

    # Values in it

    def _variable(self, key: str) -> str:
        return f"{self._prefix}{key.upper()}"

    def _environment(self) -> Mapping[str, str]:
        return {} if self._prefix is None else self._source.environment

    def is_given(self, key: str) -> bool:
        """Is there a value, in the file or over it?"""
        return key in self._values or self._variable(key) in self._environment()

    def text(self, key: str, default: Any = _MISSING) -> Any:
        """A text; raises if it is missing and there is no default."""
        value = self._values.pop(key, default)
        value = self._environment().get(self._variable(key), value)
        if value is _MISSING:
            raise self.wrong(key, "is missing")
        if value is not default and not isinstance(value, str):
            raise self.wrong(key, "must be a text")
        return value

    def _number(self, key: str, kind: type[Any]) -> Any:
        value = self._values.pop(key, None)
        variable = self._variable(key)
        if variable in self._environment():
            try:
                return number(variable, self._environment()[variable], kind)
            except ValueError as problem:
                raise ConfigFileError(str(problem)) from None
        fits = isinstance(value, int if kind is int else (int, float))
        if isinstance(value, bool) or not fits or not is_allowed(key, value):
            words = "whole number" if kind is int else "number"
            raise self.wrong(key, f"must be a {words} greater than 0")
        return kind(value)

    def port(self, key: str, default: Any = _MISSING) -> Any:
        """A port, 1 to 65535."""
        if not self.is_given(key):
            if default is _MISSING:
                raise self.wrong(key, "is missing")
            return default
        found = self._number(key, int)
        if found > 65535:
            raise self.wrong(key, "must be a port, 1 to 65535")
        return found

    def one_of(self, key: str, words: Collection[str], default: Any = _MISSING) -> str:
        """One of these texts."""
        value: str = self.text(key, default)
        if value not in words:
            raise self.wrong(key, f"must be {' or '.join(words)}, not {value!r}")
        return value

    def name(self, key: str, default: Any = _MISSING) -> str:
        """A name as nodes and principals have one."""
        value: str = self.text(key, default)
        if not PRINCIPAL_NAME.fullmatch(value):
            raise self.wrong(key, f"cannot be {value!r}")
        return value

    def slot(self, key: str) -> str:
        """A slot."""
        value: str = self.text(key)
        try:
            partition_of(value)
        except ValueError as problem:
            raise self.wrong(key, f"is wrong: {problem}") from None
        return value

    def zone(self, key: str) -> str:
        """A name, or nothing."""
        value: str = self.text(key, "")
        if value and not PRINCIPAL_NAME.fullmatch(value):
            raise self.wrong(key, f"cannot be {value!r}")
        return value

    def url(self, key: str, default: Any = _MISSING) -> str:
        """A URL of a server, without a path. ``None`` as the default: it cannot be guessed."""
        value: str | None = self.text(key, default)
        if value is None:
            raise self.wrong(key, "is missing: under which URL do others reach it?")
        if value and value is not default and not _is_url(value):
            raise self.wrong(key, f"must be http://HOST:PORT or https://HOST:PORT, not {value!r}")
        return value.rstrip("/")

    def board_url(self, key: str) -> str:
        """A URL of boards, embedded or on Kafka."""
        value: str = self.text(key)
        if not (_is_kafka(value) if is_kafka_url(value) else _is_url(value)):
            forms = f"http://HOST:PORT, https://HOST:PORT or {KAFKA}HOST:PORT[,HOST:PORT]"
            raise self.wrong(key, f"must be {forms}, not {value!r}")
        return value.rstrip("/")

    def path(self, key: str, default: Any = _MISSING) -> Any:
        """A path."""
        value = self.text(key, default)
        return self._source.folder / value if isinstance(value, str) else value

    def has_secret(self, key: str) -> bool:
        """Is there a secret of this name, here or in a file of its own?"""
        return self.is_given(key) or self.is_given(f"{key}_file")

    def secret(self, key: str, default: Any = _MISSING) -> Any:
        """A text that stands here, or in the file that the key with ``_file`` names. The
        environment goes before the file.
        """
        in_file, path_in_file = self._values.pop(key, None), self._values.pop(f"{key}_file", None)
        around = self._environment()
        variable = self._variable(key)
        given, path_given = around.get(variable), around.get(f"{variable}_FILE")
        if given is not None or path_given is not None:
            in_file, path_in_file = given, path_given
        if in_file is not None and path_in_file is not None:
            raise self.wrong(key, f"and {key}_file are both given")
        if path_in_file is not None:
            return self._read_secret(key, path_in_file)
        if in_file is None and default is _MISSING:
            raise self.wrong(key, "is missing")
        if in_file is not None and not isinstance(in_file, str):
            raise self.wrong(key, "must be a text")
        return default if in_file is None else in_file

    def _read_secret(self, key: str, path: Any) -> str:
        if not isinstance(path, str):
            raise self.wrong(f"{key}_file", "must be a text")
        try:
            return self._source.read(self._source.folder / path).strip()
        except (OSError, ValueError) as problem:
            raise self.wrong(f"{key}_file", f"{path} cannot be read: {_reason(problem)}") from None

    def hexadecimal(self, key: str, chars: int) -> str:
        """A secret of so many hex digits."""
        value: str = self.secret(key)
        if len(value) != chars or not set(value) <= set("0123456789abcdef"):
            raise self.wrong(key, f"must be {chars} hex digits in lower case")
        return value

    def principal_secret(self, key: str) -> str:
        """A secret that the board takes."""
        value: str = self.secret(key)
        if not SECRET_CHARS_MIN <= len(value) <= SECRET_CHARS_MAX or not value.isprintable():
            raise self.wrong(
                key, f"must have {SECRET_CHARS_MIN} to {SECRET_CHARS_MAX} printable characters"
            )
        return value

    def admin(self, key: str) -> str | None:
        """`USER:PASSWORD`, or ``None``."""
        value: str | None = self.secret(key, None)
        if value is not None and not is_admin(value):
            raise self.wrong(key, "must be USER:PASSWORD")
        return value


def _is_kafka(text: str) -> bool:
    places = text.removeprefix(KAFKA).split(",")
    return all(_is_url(f"http://{one}") and not one.endswith("/") for one in places) and all(
        urlsplit(f"http://{one}").port for one in places
    )


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        has_place = bool(parts.hostname) and parts.port != 0
    except ValueError:  # from a bad address or port
        return False
    is_bare = parts.path in ("", "/") and not (parts.query or parts.fragment or parts.username)
    return parts.scheme in ("http", "https") and has_place and is_bare and text.isascii()


# How they are written


def node_text(file: NodeFile) -> str:
    """The file from which ``node_from`` makes this again."""
    config = file.config
    top: dict[str, Any] = {
        "name": config.name,
        "role": config.role,
        "slot": config.slot,
        "data": os.fspath(config.data),
        "host": file.host,
        "node_port": file.node_port,
        "port": file.port,
        "url": config.url,
        "zone": config.zone,
        "admin": config.admin,
        **_tls_values(config.tls),
    }
    parts = [_pairs(top)]
    if config.board is not None:
        parts.append(f"[board]\n{_pairs(_access_keys(config.board))}")
    if config.keys.token:
        parts.append(f"[keys]\n{_pairs(dataclasses.asdict(config.keys))}")
    spare = {} if config.spare is None else dataclasses.asdict(config.spare)
    spare |= _tls_values(config.spare_certificate)
    if spare:
        parts.append(f"[spare]\n{_pairs(spare)}")
    parts += _limits_text((config.limits, Limits()))
    parts += [f"[[members]]\n{_pairs(dataclasses.asdict(one))}" for one in config.seeds]
    return "\n".join(parts)


def board_text(file: BoardFile) -> str:
    """The file from which ``board_from`` makes this again."""
    config = file.config
    top = {
        "data": os.fspath(config.data),
        "host": file.host,
        "port": file.port,
        "url": file.url,
        "cluster": file.cluster,
        "admin_secret": config.admins[BOARD_ADMIN],
        **_tls_values(config.tls),
    }
    parts = [_pairs(top)]
    parts += _limits_text(
        (config.broker, BrokerLimits()), (config.wire, WireLimits()), (config.log, LogSettings())
    )
    parts += [member_text(one, file.secrets) for one in file.members]
    parts += [reader_entry(name, secret) for name, secret in file.readers.items()]
    return "\n".join(parts)


def _tls_values(files: TlsFiles) -> dict[str, str]:
    paths = dataclasses.asdict(files)
    return {key: os.fspath(path) for key, path in paths.items() if path is not None}


def kafka_text(file: KafkaFile) -> str:
    """The file from which ``kafka_from`` makes this again."""
    keys = _access_keys(file.admin)
    top = {
        "url": keys.pop("url"),
        "cluster": file.cluster,
        "admin_principal": keys.pop("principal"),
        "admin_secret": keys.pop("secret"),
        **keys,
    }
    parts = [_pairs(top), *_limits_text((file.topics, TopicSettings()), name="topics")]
    parts += [member_text(one, file.secrets) for one in file.members]
    parts += [reader_entry(name, secret) for name, secret in file.readers.items()]
    return "\n".join(parts)


def _access_keys(access: BoardAccess) -> dict[str, Any]:
    """The keys of a table about boards; those of Kafka as far as they are not the defaults."""
    kafka = access.kafka
    changed = {
        field.name: os.fspath(value) if isinstance(value, Path) else value
        for field in dataclasses.fields(kafka)
        if (value := getattr(kafka, field.name)) != field.default
    }
    return {"url": access.url, "principal": access.principal, "secret": access.secret, **changed}


def member_text(member: Member, secrets: Mapping[str, str]) -> str:
    """A member in a board's file, with the secrets of its principals."""
    keys = {**dataclasses.asdict(member), "secret": secrets.get(principal_of(member), "")}
    if member.role == MASTER:
        keys["replica_secret"] = secrets.get(principal_as_replica(member), "")
    return f"[[members]]\n{_pairs(keys)}"


def reader_entry(name: str, secret: str) -> str:
    """A reader in a board's file."""
    return f"[[readers]]\n{_pairs({'name': name, 'secret': secret})}"


def reader_text(file: ReaderFile) -> str:
    """The file from which ``reader_from`` makes this again."""
    top = {"cluster": file.cluster, "ca": None if file.ca is None else os.fspath(file.ca)}
    return f"{_pairs(top)}\n[board]\n{_pairs(_access_keys(file.access))}"


def _limits_text(*kinds: tuple[Any, Any], name: str = "limits") -> list[str]:
    """A table of what differs from the defaults, if anything does."""
    changed = {
        field.name: value
        for numbers, defaults in kinds
        for field in dataclasses.fields(numbers)
        if (value := getattr(numbers, field.name)) != getattr(defaults, field.name)
    }
    return [f"[{name}]\n{_pairs(changed)}"] if changed else []


def _pairs(values: Mapping[str, Any]) -> str:
    """Lines of keys and values, without those that are empty."""
    kept = {key: value for key, value in values.items() if value not in (None, "", b"")}
    return "".join(f"{key} = {_value(value)}\n" for key, value in kept.items())


def _value(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.hex()
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
