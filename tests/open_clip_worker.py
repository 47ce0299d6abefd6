"""One process of open_clip's training program: ``open_clip_worker.py FOLDER NAME:OPTIONS ...``.

Each run of the program begins and ends a group of processes of its own.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any

import torch
from open_clip_runs import options
from torch.nn.parallel import DistributedDataParallel

from fastht.clients import open_clip_train


def main() -> None:
    folder, *runs = sys.argv[1:]
    kind = DistributedDataParallel

    @functools.wraps(kind)
    def on_a_cpu(model: Any, device_ids: Any = None, **more: Any) -> Any:
        return kind(model, **more)  # open_clip names the CPU there, which torch refuses

    torch.nn.parallel.DistributedDataParallel = on_a_cpu
    port = int(os.environ["MASTER_PORT"])
    for place, run in enumerate(runs):
        name, _, words = run.partition(":")
        os.environ["MASTER_PORT"] = str(port + place)
        arguments = options(Path(folder), name, *words.split())
        open_clip_train.main(["--ht", "dropout=0", *arguments])
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
