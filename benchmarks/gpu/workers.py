"""One process for each contestant, asked in turn.

A contestant that runs out of memory or kills its CUDA context takes nothing else with it, and yet
the contestants alternate: each keeps its state between two questions.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
import traceback
from collections.abc import Callable
from typing import Any

Reply = dict[str, Any]
OUT_OF_TIME = "out of time"


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
        with contextlib.suppress(OSError):  # it has ended; receive says so
            self._pipe.send((method, parameters))

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
        return {"error": OUT_OF_TIME}

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


def failure(prepared: Reply, rounds: list[Reply]) -> str | None:
    """Return why a contestant has no result; rounds for which there was no time do not count."""
    if "error" in prepared:
        return prepared["error"]
    errors = [reply["error"] for reply in rounds if "error" in reply]
    fatal = [error for error in errors if error != OUT_OF_TIME]
    if fatal or len(errors) == len(rounds):
        return [*fatal, OUT_OF_TIME][0]
    return None
