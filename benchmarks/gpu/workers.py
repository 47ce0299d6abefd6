"""One process for each contestant, asked in turn.

A contestant that runs out of memory or kills its CUDA context takes nothing else with it, and yet
the contestants alternate: each keeps its state between two questions.
"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable
from typing import Any

Reply = dict[str, Any]


def serve(pipe: Any, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Answer questions until the pipe closes. Runs in the contestant's process."""
    contestant = None
    while True:
        try:
            method, parameters = pipe.recv()
        except EOFError:
            return
        try:
            contestant = contestant or make(*arguments)
            pipe.send(getattr(contestant, method)(*parameters))
        except Exception as error:
            traceback.print_exc()
            text = (str(error).strip() or "no message").splitlines()[0]
            pipe.send({"error": f"{type(error).__name__}: {text[:300]}"})


class Worker:
    """A contestant in a process of its own.

    Args:
        make: makes the contestant there; a class or function of a module.
        arguments: what ``make`` is called with.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other, make, arguments))
        self._process.start()
        other.close()

    def send(self, method: str, *parameters: Any) -> None:
        """Ask for a method of the contestant without waiting; the answers come in this order."""
        try:
            self._pipe.send((method, parameters))
        except OSError:  # it has ended; receive says so
            pass

    def receive(self, deadline: float) -> Reply:
        """Return the next answer, or ``{"error": …}``; past ``deadline`` the process is ended.

        ``deadline`` is a time of ``time.monotonic()``.
        """
        try:
            if self._pipe.poll(max(0.0, deadline - time.monotonic())):
                return self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(10)
            return {"error": f"its process ended (exit code {self._process.exitcode})"}
        self.close()
        return {"error": "out of time"}

    def ask(self, deadline: float, method: str, *parameters: Any) -> Reply:
        """Send a question and wait for its answer."""
        self.send(method, *parameters)
        return self.receive(deadline)

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
