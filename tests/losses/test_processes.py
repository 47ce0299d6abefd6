"""Two gloo processes agree with one process that has the whole batch; cases in losses_worker.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).parent.parent / "losses_worker.py"


CASES = "open_clip,one_process,local_scope,ddp,upstream,errors,graph"


@pytest.mark.slow
def test_two_processes_agree_with_one(tmp_path):
    """All cases by the same two, since starting them takes longer than what they do."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), CASES, str(tmp_path), str(rank)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        printed = [worker.communicate(timeout=240)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    for worker, text in zip(workers, printed, strict=True):
        assert worker.returncode == 0, text
        assert [line for line in text.splitlines() if line.endswith(" agrees")] == [
            f"{case} agrees" for case in CASES.split(",")
        ]
