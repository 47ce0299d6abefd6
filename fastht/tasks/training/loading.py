"""Batches of a data set, read by worker processes."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from fastht.data import DataError

_IMPORTED = ("__main__", "fastht.data")


class LoadingError(RuntimeError):
    """The processes that load images cannot; the message says why and what to do."""


def make_loader(data: Dataset[Any], *, workers: int, **options: Any) -> DataLoader[Any]:
    """Return a loader that draws nothing from the global random number generator.

    Starting workers would otherwise draw from the generator that dropout uses, so that a run
    resumed within an epoch went on with other numbers. Workers stay alive from one epoch to the
    next: where processes are spawned, each start imports everything anew. Where they are forked
    from a server, it imports once for all of them.
    """
    if workers and multiprocessing.get_start_method() == "forkserver":
        multiprocessing.set_forkserver_preload([*_IMPORTED])  # nothing once it has started
    return DataLoader(
        data,
        num_workers=workers,
        generator=torch.Generator(),
        persistent_workers=workers > 0,
        worker_init_fn=_end_by_signal if workers else None,
        **options,
    )


def read_batches(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield a loader's batches.

    Raises:
        DataError: a sample cannot be read; in its own words, which PyTorch buries in the worker's
            traceback.
        LoadingError: a worker was ended, or has no memory to hand its batches on.
    """
    try:
        batches = iter(loader)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            yield batch
    except DataError as error:
        what = str(error).rpartition(f"{DataError.__name__}: ")[2].strip()
        raise DataError(
            f"{what}; run `fastht data check` on the data, which lists all such files at once"
        ) from error
    except (RuntimeError, OSError) as error:
        if told := _explain(str(error), loader.num_workers):
            raise LoadingError(told) from error
        raise


def _explain(message: str, workers: int) -> str | None:
    """What a user can do about an error of workers; None for other errors."""
    if not workers:
        return None
    if "shared memory" in message or "/torch_" in message or "Bus error" in message:
        return (
            f"the workers ({workers}) have too little shared memory{_shared_memory()}: add "
            "--workers 0, or give the container more (docker run --shm-size 1g, or --ipc host)"
        )
    if "worker" in message and ("Killed" in message or "exited unexpectedly" in message):
        return (
            "a worker that loads images was ended from outside, most often for lack of memory: "
            f"use fewer --workers (there are {workers}) or a smaller --batch-size"
        )
    if "Too many open files" in message or "received 0 items of ancdata" in message:
        return "the workers have too many files open: raise `ulimit -n`, or add --workers 0"
    return None


def _shared_memory() -> str:
    """How large /dev/shm is, where there is one."""
    try:
        return f" (/dev/shm has {shutil.disk_usage('/dev/shm').total / 2**20:,.0f} MiB)"
    except OSError:
        return ""


def _end_by_signal(worker: int) -> None:
    """Let a worker end on SIGTERM as processes do, whatever the main process makes of it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
