"""DDP and FSDP2 over two processes on the CPU; tests/distributed_worker.py holds the cases."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

WORKER = Path(__file__).parent / "distributed_worker.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (dist.is_available() and dist.is_gloo_available()), reason="needs torch with gloo"
    ),
]


@pytest.mark.parametrize(
    "cases",
    [
        "ddp,ddp_checkpointed,ddp_recomputed,wrapped_models_are_refused",
        pytest.param(
            "fsdp2,fsdp2_checkpointed,fsdp2_recomputed,fsdp2_mixed_precision",
            marks=pytest.mark.skipif(
                torch.__version__.startswith("2.8."),
                reason="torch 2.8's FSDP2 over gloo adds gradients up instead of averaging them",
            ),
        ),
    ],
)
def test_two_processes_compute_what_one_does(cases: str, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), cases, str(tmp_path), str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:  # one that waits for a failed one would wait for long
            process.kill()
            process.wait()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
