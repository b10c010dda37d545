"""`deploy/`: what its files name is there, and they have the form that their readers want."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from deploy import files
from divandb.cluster import trust
from divandb.config import BoardAccess, KafkaAccess, TopicSettings
from divandb.configfile import KafkaFile, NodeFile, read_boards, read_node
from divandb.layout import planned

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy" / "compose"
KUBERNETES = ROOT / "deploy" / "kubernetes"
KUBERNETES_VERSIONS = ["1.31", "1.34"]
"""The oldest that has all that is used, and a later one."""
NODES = [one.name for one in planned(3, 3)]
BOARD = "kafka://b1:9092,b2:9092"


def made(target: str, out: Path, *options: str) -> Path:
    """The folder of the files that `deploy.files` makes."""
    assert files.main([target, "--out", str(out), *options]) == 0
    return out


def node_of(path: Path) -> NodeFile:
    """A node's file."""
    return read_node(path, {})


def board_of(path: Path) -> KafkaFile:
    """The file of the boards."""
    found = read_boards(path, {})
    assert isinstance(found, KafkaFile)
    return found


def composed() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    return found


def manifests() -> Iterator[dict[str, Any]]:
    """All objects that the kustomization names."""
    for name in kustomization()["resources"]:
        yield from yaml.safe_load_all((KUBERNETES / name).read_text())


def kustomization() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    return found


def of_kind(kind: str) -> dict[str, Any]:
    """name → object."""
    return {one["metadata"]["name"]: one for one in manifests() if one["kind"] == kind}


def pods() -> dict[str, dict[str, Any]]:
    """Name of a pod → its StatefulSet."""
    return {
        f"{name}-{one['spec']['ordinals']['start'] + number}": one
        for name, one in of_kind("StatefulSet").items()
        for number in range(one["spec"]["replicas"])
    }


def template(stateful_set: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = stateful_set["spec"]["template"]
    return found


# The nodes' files


@pytest.mark.parametrize("options", [[], ["--tls"]])
@pytest.mark.parametrize("target", files.TARGETS)
def test_every_node_has_its_file_and_knows_where_all_others_are(
    tmp_path: Path, target: str, options: list[str]
) -> None:
    out = made(target, tmp_path, "--board", BOARD, *options)
    where = files.TARGETS[target]
    found: dict[str, NodeFile] = {}
    for name in NODES:
        path = out / f"{where.file_of(name)}.toml"
        assert path.stat().st_mode & 0o777 == 0o600
        found[name] = node_of(path)
        assert tomllib.loads(path.read_text())["board"]["url"] == BOARD
    for name, file in found.items():
        config = file.config
        assert (config.name, file.node_port, file.port) == (name, files.PORT, None)
        assert config.data == files.DATA
        assert {one.name: one.url for one in config.seeds} == {
            other: each.config.url for other, each in found.items() if other != name
        }
        scheme = "https" if options else "http"
        assert config.url == f"{scheme}://{where.host_of(name)}:{files.PORT}"
        assert (config.tls.ca is not None) == bool(options)
    board = board_of(out / "board.toml")
    assert {one.name: one.url for one in board.members} == {
        name: file.config.url for name, file in found.items()
    }
    for file in found.values():
        assert file.config.board is not None
        assert file.config.board == board.access(file.config.member)
        assert file.config.keys.cluster == board.cluster
        spare = file.config.spare  # a master comes back as a replica, and has to log in as one
        assert spare is not None
        assert board.secrets[spare.principal] == spare.secret
    assert board.admin.principal == files.BOARD_ADMIN
    assert board.admin.secret not in board.secrets.values()


def test_how_ones_own_brokers_are_spoken_to_is_taken_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        "SECURITY": "sasl_ssl",
        "MECHANISM": "SCRAM-SHA-512",
        "CA": "/etc/divandb/kafka/ca.crt",
        "ADMIN_PRINCIPAL": "operator",
        "ADMIN_SECRET": "the operator's",
        "REPLICATION_FACTOR": "3",
    }
    for key, value in given.items():
        monkeypatch.setenv(f"DIVANDB_BOARD_{key}", value)
    out = made("kubernetes", tmp_path / "kubernetes", "--board", BOARD)
    board, node = board_of(out / "board.toml"), node_of(out / "m1-r-1.toml").config.board
    ways = KafkaAccess("sasl_ssl", "SCRAM-SHA-512", Path("/etc/divandb/kafka/ca.crt"))
    assert board.admin == BoardAccess(BOARD, "operator", "the operator's", ways)
    assert board.topics == TopicSettings(replication_factor=3)
    assert node == BoardAccess(BOARD, "m1-r1", board.secrets["m1-r1"], ways)
    # Those of Compose are its own.
    out = made("compose", tmp_path / "compose")
    assert board_of(out / "board.toml").admin.kafka == KafkaAccess()


def test_the_files_of_a_larger_cluster_have_the_same_secrets(tmp_path: Path) -> None:
    out = made("compose", tmp_path)
    before = {path.name: path.read_text() for path in out.iterdir()}
    made("compose", tmp_path, "--masters", "4")
    assert node_of(out / "m4-r3.toml").config.keys.cluster in before["m1.toml"]
    for name in ("secret", "admin", "kafka-id", "kafka1.properties"):
        assert (out / name).read_text() == before[name]


def test_without_a_board_there_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        files.main(["kubernetes", "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_secrets_are_in_no_commit() -> None:
    assert "/deploy/*/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


# The image


def test_the_image_is_made_of_files_that_are_there() -> None:
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.M)
        for source in line.split()[:-1]
    ]
    kept = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.M)
    assert sorted(copied) == sorted(kept)
    assert all((ROOT / source).exists() for source in copied)
    assert f"--uid {files.CONTAINER_UID} " in text
    assert f"VOLUME {files.DATA}\n" in text
    assert f"EXPOSE {files.PORT}\n" in text


# Compose


def test_compose_has_all_nodes_brokers_and_a_proxy() -> None:
    services = composed()["services"]
    assert set(services) == {*NODES, *files.broker_names(), "proxy", "board-init"}


def test_what_compose_services_use_is_there(tmp_path: Path) -> None:
    compose, out = composed(), made("compose", tmp_path)
    used = set()
    for service in compose["services"].values():
        for secret in service.get("secrets", []):
            used.add(secret if isinstance(secret, str) else secret["source"])
    assert used == set(compose["secrets"])
    for name, secret in compose["secrets"].items():
        path = Path(secret["file"])
        assert path.parent == Path("secrets")
        assert (out / path.name).exists(), name
    volumes = set()
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (COMPOSE / source).exists()
            else:
                volumes.add(source)
    assert volumes == set(compose["volumes"])


def test_each_compose_node_runs_its_own_file_on_its_own_volume() -> None:
    compose = composed()
    for name in NODES:
        service = compose["services"][name]
        assert service["volumes"] == [f"{name}:{files.DATA}"]
        (secret,) = service["secrets"]
        assert secret == {"source": name, "target": "node.toml"}
        assert compose["secrets"][name] == {"file": f"secrets/{name}.toml"}
        assert service["command"] == ["node", "--config", "/run/secrets/node.toml"]
        program = service["healthcheck"]["test"][-1]
        ast.parse(program)
        assert f":{files.PORT}/_up" in program


def test_compose_builds_the_image_once_and_takes_it_from_nobody_else() -> None:
    """Several builds of one image at a time get in each other's way."""
    services = composed()["services"]
    assert [name for name, one in services.items() if "build" in one] == ["board-init"]
    build = services["board-init"]["build"]
    root = (COMPOSE / build["context"]).resolve()
    assert root == ROOT and (root / build["dockerfile"]).exists()
    for name in [*NODES, "board-init"]:
        assert (services[name]["image"], services[name]["pull_policy"]) == ("divandb", "never")


def test_compose_sets_the_boards_up_when_all_brokers_serve_and_waits_for_the_end_of_it() -> None:
    """`up --wait` takes a service that ends for a failure unless another one waits for its end."""
    services = composed()["services"]
    begins = {name: {"condition": "service_healthy"} for name in files.broker_names()}
    assert services["board-init"]["depends_on"] == begins
    ends = {"board-init": {"condition": "service_completed_successfully"}}
    assert services["proxy"]["depends_on"] == ends
    lasting = [one["restart"] for name, one in services.items() if name != "board-init"]
    assert set(lasting) == {"unless-stopped"}


def test_each_compose_broker_has_its_own_settings() -> None:
    compose = composed()
    for name in files.broker_names():
        service = compose["services"][name]
        assert service["secrets"] == [
            {"source": name, "target": "server.properties"}, "kafka-id",
        ]  # fmt: skip
        assert service["command"][2:] == ["/run/secrets/server.properties", "/run/secrets/kafka-id"]
        assert service["volumes"][0] == f"{name}:/var/lib/kafka/data"


def test_brokers_agree_and_refuse_who_has_no_right() -> None:
    settings = [files.broker_settings(number, f"kafka{number}", "s") for number in (1, 2, 3)]
    assert [one["node.id"] for one in settings] == ["1", "2", "3"]
    assert len({one["controller.quorum.voters"] for one in settings}) == 1
    for one in settings:
        assert one["allow.everyone.if.no.acl.found"] == "false"
        assert one["super.users"] == "User:board-admin"
        assert (one["default.replication.factor"], one["min.insync.replicas"]) == ("3", "2")


def test_the_brokers_script_finds_the_secret_in_their_settings() -> None:
    secret = b"s" * 32
    script = (COMPOSE / "broker.sh").read_text()
    pattern = re.search(r"s/(.+)/\\1/p", script)
    assert pattern is not None
    expression = pattern[1].replace(r"\(", "(").replace(r"\)", ")")
    text = files.broker_files(secret)["kafka2.properties"]
    assert re.findall(expression, text, re.M) == [trust.board_secret(secret, files.BOARD_ADMIN)]


def test_the_proxy_knows_all_nodes_and_masters_stand_back() -> None:
    text = (COMPOSE / "haproxy.cfg").read_text()
    servers = re.findall(r"^    server (\S+) (\S+):(\d+)( backup)?$", text, re.M)
    assert [name for name, *_ in servers if "-" in name] + [
        name for name, *_ in servers if "-" not in name
    ] == [name for name, *_ in servers]
    assert {name for name, *_ in servers} == set(NODES)
    for name, host, port, backup in servers:
        assert (host, int(port)) == (name, files.PORT)
        assert bool(backup) == ("-" not in name)
    assert "uri /_up " in text


# Kubernetes


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_kubernetes_takes_all_manifests(version: str) -> None:
    for one in manifests():
        kubernetes_validate.validate(one, version, strict=True)


def test_every_node_has_a_pod_and_its_file(tmp_path: Path) -> None:
    assert set(pods()) == {files.pod(name) for name in NODES}
    out = made("kubernetes", tmp_path, "--board", BOARD)
    secrets = {one["name"]: one["files"] for one in kustomization()["secretGenerator"]}
    for pod, stateful_set in pods().items():
        spec = template(stateful_set)["spec"]
        (volume,) = [one["secret"] for one in spec["volumes"] if "secret" in one]
        assert f"secrets/{pod}.toml" in secrets[volume["secretName"]]
        config = node_of(out / f"{pod}.toml").config
        assert template(stateful_set)["metadata"]["labels"]["divandb/role"] == config.role
    listed = [Path(path).name for paths in secrets.values() for path in paths]
    assert sorted(listed) == sorted(f"{pod}.toml" for pod in pods())


def test_a_pod_sees_its_own_file_alone() -> None:
    for stateful_set in of_kind("StatefulSet").values():
        spec = template(stateful_set)["spec"]
        (container,) = spec["containers"]
        (name,) = [one["name"] for one in spec["volumes"] if "secret" in one]
        (mount,) = [one for one in container["volumeMounts"] if one["name"] == name]
        assert mount["subPathExpr"] == "$(POD_NAME).toml"
        assert container["args"] == ["node", "--config", mount["mountPath"]]
        assert container["env"][0]["name"] == "POD_NAME"
        assert spec["automountServiceAccountToken"] is False


def test_volumes_and_ports_that_are_used_are_there() -> None:
    for stateful_set in of_kind("StatefulSet").values():
        spec = template(stateful_set)["spec"]
        (container,) = spec["containers"]
        claims = [one["metadata"]["name"] for one in stateful_set["spec"]["volumeClaimTemplates"]]
        volumes = {*claims, *(one["name"] for one in spec["volumes"])}
        mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
        assert set(mounts) == volumes
        assert mounts["data"] == str(files.DATA)
        assert container["ports"] == [{"name": "http", "containerPort": files.PORT}]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["port"] == "http"
        assert container["readinessProbe"]["httpGet"]["path"] == "/_up"
        # /_up is 404 in a cluster that begins: no reason to kill a node.
        assert container["livenessProbe"]["httpGet"]["path"] == "/"
        assert container["image"] in {one["name"] for one in kustomization()["images"]}
        assert stateful_set["spec"]["serviceName"] in of_kind("Service")


def chosen(selector: dict[str, str]) -> set[str]:
    """The pods with these labels."""
    return {
        pod
        for pod, stateful_set in pods().items()
        if selector.items() <= template(stateful_set)["metadata"]["labels"].items()
    }


def test_services_choose_readers_writers_and_all() -> None:
    services = of_kind("Service")
    masters = {files.pod(name) for name in NODES if "-" not in name}
    assert chosen(services["write"]["spec"]["selector"]) == masters
    assert chosen(services["read"]["spec"]["selector"]) == set(pods()) - masters
    assert chosen(services["nodes"]["spec"]["selector"]) == set(pods())
    assert services["nodes"]["spec"]["clusterIP"] == "None"
    for service in services.values():
        (port,) = service["spec"]["ports"]
        assert (port["port"], port["targetPort"]) == (files.PORT, "http")
    host = files.TARGETS["kubernetes"].host_of("m1-r2")
    assert host == f"m1-r-2.nodes.{kustomization()['namespace']}.svc"


def test_disruption_budgets_and_selectors_cover_each_pod_once() -> None:
    covered = [
        sorted(chosen(one["spec"]["selector"]["matchLabels"]))
        for one in of_kind("PodDisruptionBudget").values()
    ]
    assert sorted(pod for pods_of in covered for pod in pods_of) == sorted(pods())
    for name, stateful_set in of_kind("StatefulSet").items():
        own = {pod for pod in pods() if pod.rpartition("-")[0] == name}
        assert chosen(stateful_set["spec"]["selector"]["matchLabels"]) == own


def test_a_replica_never_shares_a_host_with_its_master() -> None:
    for pod, stateful_set in pods().items():
        affinity = template(stateful_set)["spec"].get("affinity")
        if "-r-" not in pod:
            assert affinity is None
            continue
        (rule,) = affinity["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        slot = template(stateful_set)["metadata"]["labels"]["divandb/slot"]
        master = rule["labelSelector"]["matchLabels"]["statefulset.kubernetes.io/pod-name"]
        assert (pod.partition("-")[0], master) == (slot, files.pod(slot))
        assert master in pods()


def test_the_groups_differ_by_their_number_alone() -> None:
    texts = {
        slot: (KUBERNETES / f"replicas-{slot}.yaml").read_text() for slot in ("m1", "m2", "m3")
    }
    for number, text in enumerate(texts.values(), 1):
        like_first = text.replace(f"m{number}", "m1").replace(f"m-{number}\n", "m-1\n")
        assert like_first == texts["m1"]


def test_no_manifest_has_a_secret_in_it() -> None:
    for path in [*KUBERNETES.glob("*.yaml"), *COMPOSE.glob("*.*")]:
        text = path.read_text()
        assert not re.search(r"[0-9a-f]{32}", text), path
        assert "kind: Secret" not in text
