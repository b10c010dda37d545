"""Runs the scripts of JavaScript clients in `tests/system/js` against a node."""

import functools
import os
import subprocess
from pathlib import Path
from urllib.parse import quote, urlsplit

from tests.running import Cluster, Running

FOLDER = Path(__file__).parent / "js"
INSTALL_S_MAX = 300.0


def auth_url(node: Running) -> str:
    """The node's URL with the administrator's name and password in it."""
    credentials = f"{quote(node.admin, safe='')}:{quote(node.password, safe='')}"
    return f"http://{credentials}@{urlsplit(node.url).netloc}"


def run_script(node: Running, script: str, run_s_max: float) -> None:
    """Run ``script`` with node; an ``AssertionError`` with its output if it fails or is late."""
    problem = install()
    assert problem is None, problem
    try:
        command = ["node", "--test-reporter=spec", script]
        is_cluster = "1" if isinstance(node, Cluster) else "0"
        place = {"COUCH_URL": auth_url(node), "COUCH_IS_CLUSTER": is_cluster}
        done = _run(command, place, run_s_max)
    except subprocess.TimeoutExpired as late:
        output = (late.output or b"").decode(errors="replace")
        raise AssertionError(f"{script} took longer than {run_s_max:g} s:\n{output}") from None
    output = done.stdout.decode(errors="replace")
    assert done.returncode == 0, f"{script} failed ({done.returncode}):\n{output}"


def _run(
    command: list[str], environment: dict[str, str], run_s_max: float
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command,
        cwd=FOLDER,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=run_s_max,
        check=False,
    )


@functools.cache
def install() -> str | None:
    """`npm ci`, unless what `package-lock.json` names is there already; what went wrong, or None.

    The answer is kept, so that a failed installation is not tried again by every test.
    """
    installed = FOLDER / "node_modules" / ".package-lock.json"
    wanted = FOLDER / "package-lock.json"
    if installed.exists() and installed.stat().st_mtime >= wanted.stat().st_mtime:
        return None
    try:
        done = _run(["npm", "ci"], {}, INSTALL_S_MAX)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"npm ci in {FOLDER}: {error}"
    output = done.stdout.decode(errors="replace")
    return None if done.returncode == 0 else f"npm ci in {FOLDER} failed:\n{output}"
