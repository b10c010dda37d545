"""What a server says of itself: ``/``, ``_up``, ``_all_dbs``, ``_uuids``, ``_node/…`` and their
kin.
"""

from functools import partial
from importlib import metadata

from starlette.responses import HTMLResponse, Response

from divandb.auth import passwords, policy
from divandb.catalog import Known
from divandb.errors import BadRequest, NotFound, NotImplementedHere
from divandb.httpd import respond
from divandb.httpd.call import Call, Methods, RouteTable, encode_json
from divandb.settings import ADMINS

COUCHDB_VERSION = "3.5.0"
VERSION = metadata.version("divandb")
NODE = "nonode@nohost"
SECRET = ("chttpd_auth", "secret")
"""What session cookies are signed with: never empty, and made anew when it is deleted."""

_CONSOLE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>DivanDB</title>
<body style="font-family: sans-serif; max-width: 40em; margin: 4em auto">
<h1>DivanDB</h1><p>The database is running. The console comes in a later release; until then the
HTTP API is all
there is: try <a href="/_all_dbs">/_all_dbs</a>.</p></body></html>
"""


async def welcome(call: Call) -> Response:
    """``GET /``."""
    return respond.json(
        {
            "couchdb": "Welcome",
            "version": COUCHDB_VERSION,
            "git_sha": VERSION,
            "uuid": call.services.cluster,
            "features": [],
            "vendor": {"name": "DivanDB", "version": VERSION},
        }
    )


async def up(call: Call) -> Response:
    """``GET /_up``: 404 until everything is here that a cluster has from the beginning, and while
    the node is drained (but with ``?drained=true``).
    """
    if call.services.drain.left() is not None and not call.flag("drained"):
        return respond.json({"status": "maintenance_mode", "seeds": {}}, 404)
    if not call.services.is_ready():
        return respond.json({"status": "starting", "seeds": {}}, 404)
    return respond.json({"status": "ok", "seeds": {}})


async def console(_: Call) -> Response:
    """``GET /_utils``."""
    return HTMLResponse(_CONSOLE)


async def uuids(call: Call) -> Response:
    """``GET /_uuids?count=N``."""
    count = call.number("count", 1) or 0
    most = call.services.limits.uuids_max
    if count > most:
        raise BadRequest(f"count parameter too large, at most {most}")
    values = [call.entry.new_id() for _ in range(count)]
    headers = {"cache-control": "must-revalidate, no-cache", "pragma": "no-cache"}
    return respond.json({"uuids": values}, headers=headers)


async def all_dbs(call: Call) -> Response:
    """``GET /_all_dbs``: names in order."""
    policy.check_server_admin(call.user)
    return respond.json(_span(call, call.services.catalog.names()))


def _span(call: Call, names: list[str]) -> list[str]:
    start = _name(call, "startkey", "start_key")
    end = _name(call, "endkey", "end_key")
    if call.flag("descending"):
        names = names[::-1]
        start, end = end, start
    inclusive = call.flag("inclusive_end", True)
    names = [
        name for name in names if (start is None or name >= start) and (end is None or name <= end)
    ]
    last = _name(call, "endkey", "end_key")
    if not inclusive and last in names:
        names.remove(last)
    skip, limit = call.number("skip", 0) or 0, call.number("limit")
    return names[skip:] if limit is None else names[skip : skip + limit]


def _name(call: Call, *parameters: str) -> str | None:
    for parameter in parameters:
        value = call.json_parameter(parameter)
        if isinstance(value, str):
            return value
    return None


async def dbs_info(call: Call) -> Response:
    """``GET`` and ``POST /_dbs_info``."""
    policy.check_server_admin(call.user)
    if call.method == "POST":
        keys = (await call.json_object()).get("keys")
        if not isinstance(keys, list):
            raise BadRequest("`keys` member must exist.")
        if len(keys) > call.services.limits.bulk_docs_max:
            raise BadRequest("Too many keys.")
        encode_json(keys)  # each is shown again
    else:
        keys = _span(call, call.services.catalog.names())
    return respond.json([_info_row(call, key) for key in keys])


def _info_row(call: Call, key: object) -> dict[str, object]:
    known = call.services.catalog.find(key) if isinstance(key, str) else None
    if known is None:
        return {"key": key, "error": "not_found"}
    return {"key": key, "info": database_info(call, known)}


def database_info(call: Call, known: Known) -> dict[str, object]:
    """What ``GET /{db}`` answers."""
    replica = call.services.replica
    counters = replica.counters(known)
    return {
        "instance_start_time": str(known.created_ms // 1000),
        "db_name": known.name,
        "purge_seq": str(counters.purge_seq),
        "update_seq": replica.sequence(known, counters.seq),
        "sizes": {
            "file": counters.body_bytes + counters.old_bytes,
            "external": counters.body_bytes,
            "active": counters.body_bytes,
        },
        "props": {key: known.options[key] for key in ("partitioned",) if known.options.get(key)},
        "doc_del_count": counters.tombstones,
        "doc_count": counters.docs,
        "disk_format_version": 8,
        "compact_running": call.services.compacting(known.num),
        "cluster": {"q": known.options.get("q", 1), "n": known.options.get("n", 1), "w": 1, "r": 1},
    }


async def active_tasks(call: Call) -> Response:
    """``GET /_active_tasks``."""
    policy.check_server_admin(call.user)
    return respond.json(call.services.tasks())


async def membership(call: Call) -> Response:
    """``GET /_membership``."""
    policy.check_known(call.user)
    name = call.services.config.name
    return respond.json({"all_nodes": [name], "cluster_nodes": [name]})


# Settings


def _check_node(call: Call) -> None:
    policy.check_server_admin(call.user)
    _check_name(call)


def _check_name(call: Call) -> None:
    if call.path("node") not in ("_local", NODE, call.services.config.name):
        raise NotFound("no such node: " + call.path("node"))


async def node(call: Call) -> Response:
    """``GET /_node/{node}``."""
    _check_node(call)
    return respond.json({"name": call.services.config.name})


async def config(call: Call) -> Response:
    """``GET /_node/{node}/_config``."""
    _check_node(call)
    return respond.json(call.services.settings.sections())


async def config_section(call: Call) -> Response:
    """``GET /_node/{node}/_config/{section}``."""
    _check_node(call)
    return respond.json(call.services.settings.section(call.path("section")))


async def config_reload(call: Call) -> Response:
    """``POST /_node/{node}/_config/_reload``: settings are never stale."""
    _check_node(call)
    return respond.ok()


async def get_setting(call: Call) -> Response:
    """``GET /_node/{node}/_config/{section}/{key}``."""
    _check_node(call)
    return respond.json(call.services.settings.get(call.path("section"), call.path("key")))


async def put_setting(call: Call) -> Response:
    """``PUT /_node/{node}/_config/{section}/{key}``: answers the old value."""
    _check_node(call)
    section, key, value = call.path("section"), call.path("key"), await call.json()
    if not isinstance(value, str):
        raise BadRequest("Config value must be a JSON string")
    if not section or not key or "/" in section:
        raise BadRequest("Config sections and keys must not be empty or contain a slash")
    if any(not " " <= char <= "~" for char in value):  # values stand in headers and in signatures
        raise BadRequest("Config values must be printable ASCII")
    if (section, key) == SECRET and not value:
        raise BadRequest("The secret must not be empty")
    old = call.services.settings.find(section, key)
    if section == ADMINS and passwords.parse_admin(value) is None:
        value = await call.entry.admin_line(value, call.services.authenticator.password_settings())
    await call.entry.set_setting(f"{section}/{key}", value.encode())
    return respond.json(old)


async def delete_setting(call: Call) -> Response:
    """``DELETE /_node/{node}/_config/{section}/{key}``: answers the old value."""
    _check_node(call)
    section, key = call.path("section"), call.path("key")
    old = call.services.settings.get(section, key)
    new = call.entry.new_id().encode() if (section, key) == SECRET else None
    await call.entry.set_setting(f"{section}/{key}", new)
    return respond.json(old)


async def stats(call: Call) -> Response:
    """``GET /_node/{node}/_stats`` and ``_system``: numbers of this process."""
    policy.check_metrics(call.user)
    _check_name(call)
    return respond.json(call.services.numbers())


async def prometheus(call: Call) -> Response:
    """``GET /_node/{node}/_prometheus``: the same numbers as text."""
    policy.check_metrics(call.user)
    _check_name(call)
    lines = []
    for name, value in call.services.numbers().items():
        lines.append(f"# TYPE divandb_{name} gauge\ndivandb_{name} {value}\n")
    return Response("".join(lines), media_type="text/plain; version=2.0")


_NO_SEARCH = "There is no full-text search; `$regex` and `$beginsWith` of `_find` look into texts."
_NO_PARTITIONS = "Databases have no partitions: ask the database itself."
_NO_SHARDS = "There are no shards: every node has all of every database."
NOT_HERE = {
    "/_cluster_setup": "Clusters are set up by `divandb up` or from configuration files.",
    "/_db_updates": "There is no feed of databases; `_changes` of each database tells of its own.",
    "/_nouveau_analyze": _NO_SEARCH,
    "/_search_analyze": _NO_SEARCH,
    "/_reshard": _NO_SHARDS,
    "/_reshard/{rest:path}": _NO_SHARDS,
    "/_node/{node}/_restart": "Nodes are restarted by what runs them.",
    "/_node/{node}/_smoosh/status": "Compaction runs by itself: look at `_active_tasks`.",
    "/_node/{node}/_stats/{path:path}": "Numbers are not a tree here: ask for `_stats`.",
    "/_node/{node}/_versions": "The release is at `/`; nothing else needs to be known of a node.",
    "/{db}/_auto_purge": "Deleted documents are kept; `_purge` removes them.",
    "/{db}/_nouveau_cleanup": _NO_SEARCH,
    "/{db}/_search_cleanup": _NO_SEARCH,
    "/{db}/_partition/{rest:path}": _NO_PARTITIONS,
    "/{db}/_purged_infos": "Purges are remembered in their documents' contexts, not in a list.",
    "/{db}/_shards": _NO_SHARDS,
    "/{db}/_shards/{doc}": _NO_SHARDS,
    "/{db}/_sync_shards": _NO_SHARDS,
    "/{db}/_time_seq": "Places in `_changes` are not kept by time.",
    **{
        f"/{{db}}/_design/{{ddoc}}/{kind}/{{rest:path}}": _NO_SEARCH
        for kind in ("_search", "_search_info", "_nouveau", "_nouveau_info")
    },
}
"""Routes of CouchDB that are not here, and what their clients are told."""


async def not_here(call: Call, why: str) -> Response:
    """What CouchDB has and a node has not; who may not ask is told so already."""
    if "db" in call.request.path_params:
        call.database()
    else:
        policy.check_known(call.user)
    raise NotImplementedHere(why)


def _nothing(why: str) -> Methods:
    return dict.fromkeys(("GET", "POST", "PUT", "DELETE"), partial(not_here, why=why))


ROUTES: RouteTable = [
    ("/", {"GET": welcome}),
    ("/_up", {"GET": up}),
    ("/_utils", {"GET": console}),
    ("/_utils/", {"GET": console}),
    ("/_uuids", {"GET": uuids}),
    ("/_all_dbs", {"GET": all_dbs}),
    ("/_dbs_info", {"GET": dbs_info, "POST": dbs_info}),
    ("/_active_tasks", {"GET": active_tasks}),
    ("/_membership", {"GET": membership}),
    ("/_node/{node}", {"GET": node}),
    ("/_node/{node}/_stats", {"GET": stats}),
    ("/_node/{node}/_system", {"GET": stats}),
    ("/_node/{node}/_prometheus", {"GET": prometheus}),
    ("/_node/{node}/_config", {"GET": config}),
    ("/_node/{node}/_config/_reload", {"POST": config_reload}),
    ("/_node/{node}/_config/{section}", {"GET": config_section}),
    (
        "/_node/{node}/_config/{section}/{key}",
        {"GET": get_setting, "PUT": put_setting, "DELETE": delete_setting},
    ),
    *[(path, _nothing(why)) for path, why in NOT_HERE.items()],
]
