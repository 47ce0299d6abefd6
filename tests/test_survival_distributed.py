"""DDP and FSDP2 over two processes on the CPU; tests/distributed_worker.py holds the cases."""

from __future__ import annotations

from pathlib import Path

import forked
import pytest
import torch
import torch.distributed as dist

pytestmark = [
    pytest.mark.slow,
    forked.needed,
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
    workers = ("distributed_worker:main", cases, str(tmp_path))
    forked.run([forked.Forked(*workers, str(rank)) for rank in range(2)])
