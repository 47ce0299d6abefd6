"""Processes of a test that begin with their imports done, and run a function.

A process that trains imports libraries for ten seconds of processor, and a test of what two of them
or a killed one do starts several. Here one server imports them, once for all tests of a run, and
forks: that of :mod:`multiprocessing`. It only imports. Each process has the environment that its
test has, and no memory of another. What an import itself does needs ``subprocess``.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path

import pytest

needed = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="needs fork"
)
_IMPORTED = [
    "fastht.cli", "fastht.tasks.image_text.train", "fastht.tasks.images.evaluate",
    "fastht.tasks.images.commands", "open_clip", "pytest", "timm", "torch.distributed.fsdp",
]  # fmt: skip


class Forked:
    """A process that runs ``module:function`` and ends with what that returns as its status."""

    def __init__(self, function: str, *arguments: object, **environment: str) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_IMPORTED)
        handle, name = tempfile.mkstemp(prefix="forked-")
        os.close(handle)
        self._said = Path(name)
        given = (function, arguments, {**os.environ, **environment}, name)
        self.process = context.Process(target=_run, args=given)
        self.process.start()

    def output(self) -> str:
        """Return what it wrote to its two streams so far."""
        return self._said.read_text(encoding="utf-8", errors="replace")

    def end(self) -> None:
        """Kill it, if it runs, and forget its output."""
        self.process.kill()
        self.process.join()
        self._said.unlink(missing_ok=True)


def _run(
    function: str, arguments: Sequence[object], environment: Mapping[str, str], said: str
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with open(said, "wb", buffering=0) as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    module, _, name = function.partition(":")
    sys.exit(getattr(importlib.import_module(module), name)(*arguments))


def run(started: Sequence[Forked], seconds: float = 600) -> list[str]:
    """Wait for processes that have to end well together; return what each wrote.

    One that waits for a failed one would wait for long: the first failure ends all.
    """
    end = time.monotonic() + seconds
    left = {each.process.sentinel: each for each in started}
    try:
        while left:
            ready = wait(list(left), max(0.0, end - time.monotonic()))
            assert ready, [each.output() for each in started]
            for each in map(left.pop, ready):
                each.process.join()
                assert each.process.exitcode == 0, each.output()
        return [each.output() for each in started]
    finally:
        for each in started:
            each.end()


def ranks(count: int, function: str, *arguments: object) -> list[str]:
    """Run processes that find one another as those of ``torchrun`` do; return what each wrote."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    both |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return run(
        [
            Forked(function, *arguments, RANK=str(rank), LOCAL_RANK=str(rank), **both)
            for rank in range(count)
        ]
    )
