"""`make kafka-up`: a broker to try out."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from deploy.kafka.broker import ADMIN, START_S_MAX, free_ports

COMMAND = [sys.executable, "-m", "deploy.kafka"]
ROOT = Path(__file__).parent.parent.parent


def started(data: Path, port: int) -> tuple["subprocess.Popen[bytes]", str]:
    """The process, and what it prints when it is ready."""
    process = subprocess.Popen(
        [*COMMAND, "--data", str(data), "--port", str(port)], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    lines = []
    deadline = time.monotonic() + START_S_MAX
    while not lines or "--board" not in lines[-1]:
        lines.append(process.stdout.readline().decode())
        assert lines[-1] and time.monotonic() < deadline, lines
    return process, "".join(lines)


def test_a_broker_starts_ends_at_ctrl_c_and_starts_again_with_the_same_secret(
    tmp_path: Path,
) -> None:
    (port,) = free_ports(1)
    said = []
    for _ in range(2):
        process, greeting = started(tmp_path / "kafka", port)
        with process:
            assert f"kafka://127.0.0.1:{port}" in greeting and ADMIN in greeting
            said.append(greeting)
            process.send_signal(signal.SIGINT)
            assert process.wait(START_S_MAX) == 0
    assert said[0] == said[1]
    log = (tmp_path / "kafka" / "kafka-1" / "broker.log").read_text()
    assert "ERROR" not in log and "Exception" not in log
