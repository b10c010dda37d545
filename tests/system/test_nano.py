"""nano against a node and a cluster: what the script checks is said in its tests' names."""

import pytest

from tests.running import Running
from tests.system.js_clients import INSTALL_S_MAX, run_script

RUN_S_MAX = 90.0


@pytest.mark.timeout_s(INSTALL_S_MAX + RUN_S_MAX + 30)
def test_nano(couch: Running) -> None:
    run_script(couch, "nano.mjs", RUN_S_MAX)
