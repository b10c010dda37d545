"""PouchDB against a node and a cluster: what each script checks is said in its tests' names."""

import pytest

from tests.running import Running
from tests.system.js_clients import INSTALL_S_MAX, run_script

RUN_S_MAX = 180.0


@pytest.mark.timeout_s(INSTALL_S_MAX + RUN_S_MAX + 30)
@pytest.mark.parametrize(
    "script", ["pouchdb_http.mjs", "pouchdb_replication.mjs", "pouchdb_sync.mjs"]
)
def test_pouchdb(couch: Running, script: str) -> None:
    run_script(couch, script, RUN_S_MAX)
