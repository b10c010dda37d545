"""The files of nodes and boards: what is read, what is refused, and the way back to text."""

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divandb.board.broker import BrokerLimits
from divandb.board.embedded_server import BoardConfig
from divandb.board.log import LogSettings
from divandb.board.wire import WireLimits
from divandb.cluster import trust
from divandb.config import (
    BoardAccess,
    Config,
    KafkaAccess,
    Keys,
    Limits,
    Member,
    TlsFiles,
    TopicSettings,
)
from divandb.configfile import (
    BOARD_ADMIN,
    BOARD_PREFIX,
    NODE_PREFIX,
    BoardFile,
    ConfigFileError,
    KafkaFile,
    NodeFile,
    ReaderFile,
    board_from,
    board_text,
    is_of_a_node,
    kafka_from,
    kafka_given,
    kafka_text,
    node_from,
    node_text,
    read_board,
    read_boards,
    read_node,
    read_reader,
    reader_entry,
    reader_from,
    reader_text,
)

SECRET = b"s" * 32
PRINCIPAL = "0123456789abcdef"
TLS = TlsFiles(Path("/tls/tls.crt"), Path("/tls/tls.key"), Path("/tls/ca.crt"))
ALONE = 'name = "m1"\nrole = "master"\nslot = "m1"\ndata = "d"\nnode_port = 6985\n'


def refuse(path: Path) -> str:
    raise FileNotFoundError(2, "No such file or directory", str(path))


def node(text: str, **environment: str) -> NodeFile:
    return node_from(tomllib.loads(text), "m1.toml", Path("/etc/divandb"), environment, refuse)


def board(text: str, **environment: str) -> BoardFile:
    return board_from(tomllib.loads(text), "board.toml", Path("/etc/divandb"), environment, refuse)


def in_cluster(role: str = "replica", name: str = "m1-r1") -> NodeFile:
    keys = trust.keys_of(SECRET, name, role, "m1", is_master=role == "master")
    config = Config(
        data=Path("/data"),
        name=name,
        role=role,
        slot="m1",
        url="https://h1:6986",
        zone="eu-1",
        admin='admin:a"b\\c',
        board=BoardAccess("http://h1:6984", name, PRINCIPAL),
        keys=keys,
        spare=trust.spare_of(SECRET, Member(name, role, "m1", "")),
        spare_certificate=TlsFiles(Path("/spare.crt"), Path("/spare.key")),
        tls=TLS,
        seeds=(Member("m2", "master", "m2", "http://h2:6987", "eu-2"),),
    )
    return NodeFile(config, "0.0.0.0", 6986, 5984)


KAFKA_ACCESS = BoardAccess(
    "kafka://k1:9092,k2:9092",
    "m1",
    "short",
    KafkaAccess("sasl_ssl", "SCRAM-SHA-512", Path("/ca"), Path("/crt"), Path("/key")),
)


def a_board() -> BoardFile:
    members = (
        Member("m1", "master", "m1", "http://h1:6985", "eu-1"),
        Member("m1-r1", "replica", "m1", ""),
    )
    return BoardFile(
        BoardConfig(Path("/data/board"), {BOARD_ADMIN: PRINCIPAL}),
        "0.0.0.0",
        6984,
        "http://h1:6984",
        "ab" * 16,
        members,
        {"m1": PRINCIPAL, "m1-r1": PRINCIPAL[::-1]},
    )


# Nodes


def test_a_single_node_needs_five_keys() -> None:
    found = node(ALONE)
    assert found == NodeFile(
        Config(Path("/etc/divandb/d"), url="http://127.0.0.1:6985"), "127.0.0.1", 6985, None
    )


@pytest.mark.parametrize(("role", "name"), [("master", "m1"), ("replica", "m1-r1")])
def test_a_node_is_read_as_it_was_written(role: str, name: str) -> None:
    file = in_cluster(role, name)
    assert node(node_text(file)) == file


LINE = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)
NUMBERS = st.integers(1, 2**40)


@given(
    LINE.map("/".__add__),
    LINE.map("u:".__add__).filter(str.isprintable),
    st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(Limits)]), NUMBERS),
)
def test_whatever_is_in_it_is_read_as_it_was_written(
    data: str, admin: str, limits: dict[str, int]
) -> None:
    file = in_cluster()
    kinds = {field.name: type(field.default) for field in dataclasses.fields(Limits)}
    changed = {name: kinds[name](value) for name, value in limits.items()}
    config = dataclasses.replace(
        file.config,
        data=Path(data),
        admin=admin,
        limits=dataclasses.replace(Limits(), **changed),
    )
    file = dataclasses.replace(file, config=config)
    assert node(node_text(file)) == file


@pytest.mark.parametrize("text", ["a\x7fb", 'q"\\', "ü☃𝄞", "\t"])
def test_every_character_finds_its_way(text: str) -> None:
    file = in_cluster()
    config = dataclasses.replace(file.config, data=Path("/", text))
    assert node(node_text(dataclasses.replace(file, config=config))).config.data == Path("/", text)


def test_a_slots_principal_has_its_name() -> None:
    text = node_text(in_cluster("master", "m1")).replace('principal = "m1"\n', "")
    access = node(text).config.board
    assert access is not None
    assert access.principal == "m1"


def test_a_node_is_no_seed_of_its_own() -> None:
    file = in_cluster()
    config = dataclasses.replace(file.config, seeds=(*file.config.seeds, file.config.member))
    assert node(node_text(dataclasses.replace(file, config=config))) == file


WRONG = [
    ('name = "m1"', 'nmae = "m1"', "m1.toml: name is missing"),
    ("node_port = 6985", "node_port = 6985\nnode_prot = 1", "node_prot is no key of this file"),
    ("node_port = 6985", 'node_port = "6985"', "node_port must be a whole number greater than 0"),
    ("node_port = 6985", "node_port = true", "node_port must be a whole number"),
    ("node_port = 6985", "node_port = 65536", "node_port must be a port, 1 to 65535"),
    ("node_port = 6985", "node_port = 6985\nport = 6985", "port must be another than node_port"),
    ('data = "d"', "data = 1", "data must be a text"),
    ('role = "master"', 'role = "slave"', "role must be master or replica, not 'slave'"),
    ('slot = "m1"', 'slot = "x"', "slot is wrong: 'x' is no slot"),
    ('name = "m1"', 'name = "a b"', "name cannot be 'a b'"),
    ('name = "m1"', 'name = "m1"\nzone = "eu 1"', "zone cannot be 'eu 1'"),
    ("node_port = 6985", 'node_port = 6985\nhost = "0.0.0.0"', "url is missing: under which URL"),
    ("node_port = 6985", 'node_port = 6985\nurl = "h1:6985"', "url must be http://HOST:PORT"),
    ("node_port = 6985", 'node_port = 6985\nadmin = "root"', "admin must be USER:PASSWORD"),
    ("node_port = 6985", "node_port = 6985\nlimits = 1", "limits must be a table"),
    ("node_port = 6985", "node_port = 6985\nmembers = 1", "members must be tables: [[members]]"),
    ("node_port = 6985", "node_port = 6985\n[limits]\nuuids_max = 0", "limits.uuids_max must be"),
    ("node_port = 6985", "node_port = 6985\n[limits]\nx = 1", "limits.x is no key of this file"),
    ("node_port = 6985", 'node_port = 6985\ncertificate_key = "k"', "certificate is missing"),
    (
        "node_port = 6985",
        'node_port = 6985\ncertificate = "c"\nurl = "http://h1:6985"',
        "url must begin with https://, since there is a certificate",
    ),
    (
        "node_port = 6985",
        'node_port = 6985\n[[members]]\nname = "m2"\nrole = "master"\nslot = "m2"',
        "members[1].url is missing",
    ),
    (
        "node_port = 6985",
        'node_port = 6985\n[[members]]\nname = "m2"\nrole = "master"\nslot = "m2"\nurl = "http://x"',
        "board.url is missing: a node with others needs a board",
    ),
]


@pytest.mark.parametrize(("there", "instead", "words"), WRONG)
def test_what_is_wrong_is_said_with_key_and_file(there: str, instead: str, words: str) -> None:
    with pytest.raises(ConfigFileError) as caught:
        node(ALONE.replace(there, instead))
    assert words in str(caught.value)
    assert str(caught.value).startswith("m1.toml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("there", "instead", "words"),
    [
        ('token = "m1-r1,', 'token = "m1-r2,', "keys.token does not belong to the other keys"),
        ('name = "m1-r1"', 'name = "m1-r2"', "keys.token is for m1-r1 replica m1"),
        ('members = "', 'members = "0', "keys.members must be 64 hex digits"),
        ("[keys]", f'[keys]\nmasters = "{"0" * 64}"', "keys.masters is no key of this file"),
        (f'secret = "{PRINCIPAL}"', 'secret = "short"', "board.secret must have 16 to 256"),
        (f'secret = "{PRINCIPAL}"\n', "", "board.secret is missing"),
    ],
)
def test_credentials_that_do_not_fit_are_found_at_the_start(
    there: str, instead: str, words: str
) -> None:
    text = node_text(in_cluster())
    assert there in text
    with pytest.raises(ConfigFileError) as caught:
        node(text.replace(there, instead, 1))
    assert words in str(caught.value)
    assert PRINCIPAL not in str(caught.value)


def test_the_environment_goes_over_the_file() -> None:
    changed = node(
        node_text(in_cluster()),
        DIVANDB_DATA="/elsewhere",
        DIVANDB_PORT="6001",
        DIVANDB_NODE_PORT="6002",
        DIVANDB_HOST="10.0.0.1",
        DIVANDB_URL="https://10.0.0.1:6002/",
        DIVANDB_CERTIFICATE="tls.pem",
        DIVANDB_ADMIN="root:x",
        DIVANDB_BOARD_URL="http://10.0.0.9:1",
        DIVANDB_BOARD_SECRET="f" * 16,
        DIVANDB_COOKIES="1" * 32,
        DIVANDB_UUIDS_MAX="7",
        DIVANDB_BACKGROUND_SHARE="0.25",
    )
    config = changed.config
    assert (changed.host, changed.node_port, changed.port) == ("10.0.0.1", 6002, 6001)
    assert (config.data, config.url) == (Path("/elsewhere"), "https://10.0.0.1:6002")
    assert config.tls.certificate == Path("/etc/divandb/tls.pem")
    assert config.admin == "root:x"
    assert config.board == BoardAccess("http://10.0.0.9:1", "m1-r1", "f" * 16)
    assert config.keys.cookies == "1" * 32
    assert (config.limits.uuids_max, config.limits.background_share) == (7, 0.25)


@pytest.mark.parametrize(
    ("variable", "text"),
    [("DIVANDB_PORT", "x"), ("DIVANDB_UUIDS_MAX", "0"), ("DIVANDB_NODE_PORT", "")],
)
def test_a_bad_variable_is_named(variable: str, text: str) -> None:
    with pytest.raises(ConfigFileError, match=variable):
        node(ALONE, **{variable: text})


def test_all_of_a_node_but_its_members_can_come_from_the_environment() -> None:
    file = in_cluster("master", "m1")
    found: dict[str, str] = {}

    def gather(values: Mapping[str, Any], prefix: str) -> None:
        for key, value in values.items():
            if key == "members" and isinstance(value, list):
                continue
            if isinstance(value, dict):
                inner = f"{prefix}{key.upper()}_" if key in ("board", "spare") else prefix
                gather(value, inner)
            else:
                found[f"{prefix}{key.upper()}"] = str(value)

    gather(tomllib.loads(node_text(file)), NODE_PREFIX)
    alone = dataclasses.replace(file.config, seeds=())
    assert node("", **found) == dataclasses.replace(file, config=alone)


@pytest.mark.parametrize(
    ("certificate", "url"),
    [("", "http://127.0.0.1:6985"), ('certificate = "c"\n', "https://127.0.0.1:6985")],
)
def test_a_node_with_a_certificate_is_reached_by_https(certificate: str, url: str) -> None:
    assert node(ALONE + certificate).config.url == url


# Secrets


def test_a_secret_may_stand_in_a_file_of_its_own(tmp_path: Path) -> None:
    file = in_cluster()
    text = node_text(file).replace(f'token = "{file.config.keys.token}"', 'token_file = "t"')
    (tmp_path / "m1-r1.toml").write_text(text)
    with pytest.raises(ConfigFileError, match=r"m1-r1\.toml: keys\.token_file t cannot be read"):
        read_node(tmp_path / "m1-r1.toml", {})
    (tmp_path / "t").write_text(f"{file.config.keys.token}\n")
    assert read_node(tmp_path / "m1-r1.toml", {}) == file
    (tmp_path / "other").write_text("nonsense")
    with pytest.raises(ConfigFileError, match=r"keys\.token does not belong"):
        read_node(tmp_path / "m1-r1.toml", {"DIVANDB_TOKEN_FILE": "other"})


def test_a_secret_is_given_once() -> None:
    text = node_text(in_cluster()).replace("[board]", '[board]\nsecret_file = "x"')
    with pytest.raises(ConfigFileError, match=r"board\.secret and secret_file are both given"):
        node(text)
    assert node(text, DIVANDB_BOARD_SECRET="f" * 16).config.board


def test_an_admin_may_stand_in_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "m1.toml").write_text(f'{ALONE}admin_file = "admin"\n')
    (tmp_path / "admin").write_text("root:pass word\n")
    found = read_node(tmp_path / "m1.toml", {})
    assert found.config.admin == "root:pass word"
    assert found.config.data == tmp_path / "d"


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"name = ", "board.toml: "), (b"\xff", "board.toml: "), (b"a" * 2**21, "more than")],
)
def test_a_file_that_is_no_toml_is_a_clear_error(
    tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "board.toml").write_bytes(content)
    with pytest.raises(ConfigFileError, match=words):
        read_board(tmp_path / "board.toml", {})


def test_a_file_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigFileError, match=r"x\.toml: No such file or directory$"):
        read_node(tmp_path / "x.toml", {})


# Boards


def test_a_board_is_read_as_it_was_written() -> None:
    assert board(board_text(a_board())) == a_board()


def test_a_boards_bounds_are_read_as_they_were_written() -> None:
    config = dataclasses.replace(
        a_board().config,
        tls=dataclasses.replace(TLS, ca=None),
        broker=BrokerLimits(retention_check_s=0.5),
        wire=WireLimits(connections_max=3),
        log=LogSettings(retention_bytes=10**12),
    )
    file = dataclasses.replace(a_board(), config=config)
    assert board(board_text(file)) == file


def test_the_environment_goes_over_a_boards_file() -> None:
    found = board(
        board_text(a_board()),
        DIVANDB_BOARD_PORT="1",
        DIVANDB_BOARD_RETENTION_MS="5",
        DIVANDB_BOARD_ADMIN_SECRET="x" * 16,
        DIVANDB_PORT="2",
        DIVANDB_CONNECTIONS_MAX="7",
    )
    assert (found.port, found.config.log.retention_ms) == (1, 5)
    assert found.config.admins == {BOARD_ADMIN: "x" * 16}
    assert found.config.wire == WireLimits()


@pytest.mark.parametrize(
    ("there", "instead", "words"),
    [
        ("port = 6984\n", "", "port is missing"),
        (f'admin_secret = "{PRINCIPAL}"\n', "", "admin_secret is missing"),
        ('cluster = "ab', 'cluster = "AB', "cluster must be 32 hex digits in lower case"),
        (f'secret = "{PRINCIPAL[::-1]}"', "", "members[2].secret is missing"),
        ('name = "m1-r1"', 'name = "m1"', "members has m1 twice"),
        ('role = "replica"', 'role = "board"', "members[2].role must be"),
        ("[[members]]", "[limits]\nwait_ms_max = 1\n[[members]]", "limits.wait_ms_max is no key"),
        ('url = "http://h1:6984"\n', "", "url is missing: under which URL"),
    ],
)
def test_what_is_wrong_in_a_boards_file_is_said(there: str, instead: str, words: str) -> None:
    text = board_text(a_board())
    assert there in text
    with pytest.raises(ConfigFileError) as caught:
        board(text.replace(there, instead, 1))
    assert str(caught.value).startswith(f"board.toml: {words}")


def test_no_two_settings_have_one_variable() -> None:
    nodes = [f"{NODE_PREFIX}{field.name.upper()}" for field in dataclasses.fields(Limits)]
    nodes += [f"{NODE_PREFIX}{field.name.upper()}" for field in dataclasses.fields(Keys)]
    nodes += [f"{NODE_PREFIX}BOARD_{f.name.upper()}" for f in dataclasses.fields(BoardAccess)]
    nodes += [
        f"{NODE_PREFIX}{key}"
        for key in ("DATA", "NAME", "ROLE", "SLOT", "URL", "HOST", "PORT", "NODE_PORT", "ADMIN")
    ]
    nodes += [f"{NODE_PREFIX}{field.name.upper()}" for field in dataclasses.fields(TlsFiles)]
    boards = [
        f"{BOARD_PREFIX}{field.name.upper()}"
        for kind in (BrokerLimits, WireLimits, LogSettings)
        for field in dataclasses.fields(kind)
    ]
    boards += [f"{BOARD_PREFIX}{key}" for key in ("DATA", "HOST", "PORT", "CLUSTER")]
    boards += [f"{BOARD_PREFIX}{field.name.upper()}" for field in dataclasses.fields(TlsFiles)]
    assert len(set(nodes)) == len(nodes)
    assert len(set(boards)) == len(boards)
    # They name the same thing in both.
    assert set(nodes) & set(boards) == set()


# Readers


@pytest.mark.parametrize("access", [BoardAccess("https://h1:6984", "warehouse", PRINCIPAL), None])
def test_a_reader_is_read_as_it_was_written(access: BoardAccess | None) -> None:
    file = ReaderFile(access or KAFKA_ACCESS, "c" * 32, Path("/ca.crt"))
    found = reader_from(tomllib.loads(reader_text(file)), "r.toml", Path(), {}, refuse)
    assert found == file


def test_a_reader_needs_a_board_and_a_name() -> None:
    for text in ('cluster = "%s"\n' % ("c" * 32), '[board]\nurl = "http://h:1"\nsecret = "s"\n'):
        with pytest.raises(ConfigFileError, match=r"board\.(url|principal) is missing"):
            reader_from(tomllib.loads(text), "r.toml", Path(), {}, refuse)


def test_readers_are_kept_in_a_board_file_of_either_kind() -> None:
    readers = {"warehouse": PRINCIPAL, "audit.1": PRINCIPAL[::-1]}
    mine = dataclasses.replace(a_board(), readers=readers)
    assert board(board_text(mine)) == mine
    on = dataclasses.replace(on_kafka(), readers=readers)
    assert kafka(kafka_text(on)) == on
    access = on.reading("audit.1")
    assert (access.url, access.principal, access.secret) == (
        KAFKA_ACCESS.url, "audit.1", PRINCIPAL[::-1],
    )  # fmt: skip


@pytest.mark.parametrize("name", ["m1", "m7", "m1-r1", "m2-r9", BOARD_ADMIN, "twice"])
def test_a_reader_is_called_as_nobody_else(name: str) -> None:
    text = board_text(dataclasses.replace(a_board(), readers={"twice": PRINCIPAL}))
    with pytest.raises(ConfigFileError, match=r"readers\[2\]\.name is wrong: .*name of a node"):
        board(f"{text}\n{reader_entry(name, PRINCIPAL)}")


def test_whoever_has_a_file_may_read_by_it(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(node_text(in_cluster("master", "m1")))
    found = read_reader(path, {})
    assert (found.access.principal, found.access.secret) == ("m1", PRINCIPAL)
    assert found.ca == TLS.ca
    path.write_text(board_text(a_board()))
    found = read_reader(path, {"DIVANDB_CA": "/my/ca"})
    assert found.access == BoardAccess("http://h1:6984", BOARD_ADMIN, PRINCIPAL)
    assert found.ca == Path("/my/ca") and found.cluster == "ab" * 16
    path.write_text(kafka_text(on_kafka()))
    assert read_reader(path, {}).access == KAFKA_ACCESS
    without = kafka_text(on_kafka()).replace('admin_secret = "short"\n', "")
    path.write_text(without)
    with pytest.raises(ConfigFileError, match="DIVANDB_BOARD_ADMIN_SECRET"):
        read_reader(path, {})
    path.write_text(ALONE)
    with pytest.raises(ConfigFileError, match="the node is alone"):
        read_reader(path, {})


# Boards on Apache Kafka


def on_kafka(access: BoardAccess = KAFKA_ACCESS) -> KafkaFile:
    members = (Member("m1", "master", "m1", "http://h1:6985"),)
    settings = TopicSettings(3, 2, retention_ms=1000, message_bytes_max=2_000_000)
    return KafkaFile(access, "c" * 32, members, {"m1": PRINCIPAL}, settings)


def kafka(text: str, **environment: str) -> KafkaFile:
    return kafka_from(tomllib.loads(text), "board.toml", Path("/etc/divandb"), environment, refuse)


@pytest.mark.parametrize(
    "access", [KAFKA_ACCESS, dataclasses.replace(KAFKA_ACCESS, kafka=KafkaAccess())]
)
def test_a_node_with_boards_on_kafka_is_read_as_it_was_written(access: BoardAccess) -> None:
    file = in_cluster("master", "m1")
    file = dataclasses.replace(file, config=dataclasses.replace(file.config, board=access))
    assert node(node_text(file)) == file
    assert access.is_kafka


def test_boards_on_kafka_are_read_as_they_were_written() -> None:
    assert kafka(kafka_text(on_kafka())) == on_kafka()


def test_the_environment_goes_over_a_file_of_boards_on_kafka() -> None:
    found = kafka(
        kafka_text(on_kafka()),
        DIVANDB_BOARD_URL="kafka://k3:9092",
        DIVANDB_BOARD_SECURITY="sasl_plaintext",
        DIVANDB_BOARD_ADMIN_SECRET="another",
        DIVANDB_BOARD_REPLICATION_FACTOR="5",
    )
    assert (found.admin.url, found.admin.secret) == ("kafka://k3:9092", "another")
    assert found.admin.kafka.security == "sasl_plaintext"
    assert found.topics.replication_factor == 5


def test_without_its_secret_there_is_no_admin() -> None:
    text = kafka_text(on_kafka()).replace('admin_secret = "short"\n', "")
    assert kafka(text).admin.principal == ""
    open_to_all = text.replace("sasl_ssl", "ssl")
    assert kafka(open_to_all).admin.principal == "m1", "its certificate proves who it is"


def test_each_member_opens_boards_on_kafka_as_itself() -> None:
    file = on_kafka()
    assert file.access(file.members[0]) == dataclasses.replace(KAFKA_ACCESS, secret=PRINCIPAL)


@pytest.mark.parametrize(
    "url",
    ["kafka://", "kafka://h", "kafka://h:1,", "kafka://h:1/x", "kafka://u@h:1", "kafka:h:1", "h"],
)
def test_what_is_no_url_of_kafka_is_refused(url: str) -> None:
    text = node_text(in_cluster()).replace("http://h1:6984", url)
    with pytest.raises(ConfigFileError, match=r"m1\.toml: board\.url must be"):
        node(text)


@pytest.mark.parametrize(
    ("there", "instead", "words"),
    [
        ('security = "sasl_ssl"', 'security = "tls"', "security must be plaintext or"),
        ('"SCRAM-SHA-512"', '"GSSAPI"', "mechanism must be"),
        ("[topics]", "[topics]\npartitions = 3", "topics.partitions is no key"),
        (f'secret = "{PRINCIPAL}"', "", "members[1].secret is missing"),
    ],
)
def test_what_is_wrong_in_a_file_of_boards_on_kafka_is_said(
    there: str, instead: str, words: str
) -> None:
    text = kafka_text(on_kafka())
    assert there in text
    with pytest.raises(ConfigFileError) as caught:
        kafka(text.replace(there, instead, 1))
    assert str(caught.value).startswith(f"board.toml: {words}")


def test_a_boards_file_is_told_by_its_url(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_text(board_text(a_board()))
    assert isinstance(read_boards(path, {}), BoardFile)
    assert not is_of_a_node(path)
    path.write_text(kafka_text(on_kafka()))
    assert isinstance(read_boards(path, {}), KafkaFile)
    path.write_text(node_text(in_cluster()))
    assert is_of_a_node(path)


def test_boards_on_kafka_can_be_given_by_the_environment_alone() -> None:
    admin, settings = kafka_given(
        "kafka://k1:9092", {"DIVANDB_BOARD_ADMIN_SECRET": "s", "DIVANDB_BOARD_RETENTION_MS": "5"}
    )
    assert admin == BoardAccess("kafka://k1:9092", BOARD_ADMIN, "s")
    assert settings == TopicSettings(retention_ms=5)
    assert kafka_given("kafka://k1:9092", {})[0].principal == ""
    with pytest.raises(ConfigFileError, match=r"the environment: url must be .*kafka://"):
        kafka_given("kafka://", {})


# The docs


def documented(what: str) -> dict[str, str]:
    """key → variable, of the table below ``what``."""
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    part = text.partition(f"\n{what}:\n")[2].partition("\n`[[members]]`")[0]
    return dict(re.findall(r"^\| `([\w.]+)`(?: †)? \| `(\w+)` \|", part, re.M))


def keys_of(text: str) -> list[str]:
    """The keys of a file but for lists of tables."""
    found = []
    for key, value in tomllib.loads(text).items():
        if isinstance(value, dict):
            found += [f"{key}.{inner}" for inner in value]
        elif not isinstance(value, list):
            found.append(key)
    return found


def test_every_key_of_a_node_is_documented_with_its_variable() -> None:
    keys = [*keys_of(node_text(in_cluster("master", "m1"))), "spare.masters"]
    variables = {key: f"DIVANDB_{key.removeprefix('keys.').replace('.', '_')}" for key in keys}
    expected = {key: variable.upper() for key, variable in variables.items()}
    assert documented("A node's") == expected


def test_every_key_of_boards_on_kafka_is_documented_with_its_variable() -> None:
    keys = [one for one in keys_of(kafka_text(on_kafka())) if not one.startswith("topics.")]
    keys += [f"topics.{field.name}" for field in dataclasses.fields(TopicSettings)]
    assert documented("Boards on Kafka") == {
        key: f"DIVANDB_BOARD_{key.removeprefix('topics.').upper()}" for key in keys
    }


def test_every_default_of_topics_on_kafka_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    told = dict(re.findall(r"^\| `topics\.(\w+)` \| `\w+` \|.*; (\d+|the brokers')", text, re.M))
    defaults = {
        field.name: str(field.default or "the brokers'")
        for field in dataclasses.fields(TopicSettings)
    }
    assert told == defaults


def test_every_key_of_a_board_is_documented_with_its_variable() -> None:
    config = dataclasses.replace(a_board().config, tls=dataclasses.replace(TLS, ca=None))
    keys = keys_of(board_text(dataclasses.replace(a_board(), config=config)))
    assert documented("A board's") == {key: f"DIVANDB_BOARD_{key.upper()}" for key in keys}
