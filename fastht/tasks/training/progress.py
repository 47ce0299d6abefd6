"""How far long work is: a bar on a terminal, now and then a line in a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_EVERY = 30.0  # seconds between two lines


class ProgressBar(tqdm):  # type: ignore[type-arg]
    """A bar of tqdm on a terminal; a line every half minute where stderr goes elsewhere.

    Args:
        items: what is gone through.
        total: how many of them there are.
        title: in front of the numbers.
        initial: how many have been done before.
        shown: whether anything is shown, as by the main process alone.
    """

    def __init__(
        self,
        items: Iterable[Any],
        *,
        total: int,
        title: str,
        initial: int = 0,
        shown: bool = True,
    ) -> None:
        self._in_lines = not sys.stderr.isatty()
        lines = {"mininterval": _EVERY, "maxinterval": 2 * _EVERY, "delay": _EVERY, "ncols": 80}
        super().__init__(
            items,
            total=total,
            desc=title,
            initial=initial,
            leave=False,
            disable=not shown,
            **(lines if self._in_lines else {}),  # type: ignore[arg-type]
        )

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Show the state; tqdm calls it when it is time to."""
        if not self._in_lines:
            super().display(msg, pos)
        elif msg != "":  # that would clear the bar
            print(self, file=sys.stderr, flush=True)
