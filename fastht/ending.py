"""How a command ends: its errors in a line each, its interruptions, and how to go on."""

from __future__ import annotations

import errno
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def run_to_end(
    command: str,
    run: Callable[[], int],
    mendable: tuple[type[Exception], ...],
    resume: str = "",
) -> int:
    """Run a command; return its exit status.

    Args:
        command: its name.
        run: returns the exit status.
        mendable: what a user can mend, which is told in a line. Anything else is a bug and shows
            its traceback.
        resume: how to go on after an interruption.
    """
    logging.basicConfig(level=logging.ERROR)  # open_clip reports every step to the root logger
    try:
        with _interrupted_by_sigterm():
            return run()
    except mendable as error:
        print(f"fastht {command}: {error}{_remedy(error, resume)}", file=sys.stderr)
        return 1
    except _Terminated:
        print(f"\nfastht {command}: ended by SIGTERM{resume}", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print(f"\nfastht {command}: interrupted{resume}", file=sys.stderr)
        return 130


class _Terminated(KeyboardInterrupt):
    """The process is to end, as schedulers and containers say it."""


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does: files closed, workers ended, and a word of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: Any) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


def _remedy(error: Exception, resume: str) -> str:
    """What to do about an error of the system, whose own words do not say it."""
    code = getattr(error, "errno", None) if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT):
        return f"; nothing that was saved is lost: free some space{resume}"
    if code in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "; give a folder that can be written, by --out"
    return ""
