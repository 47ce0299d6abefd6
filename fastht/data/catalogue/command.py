"""``fastht data list``: the data sets that are known."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

import tyro

from fastht.data.catalogue.pages import describe, listing, markdown
from fastht.data.catalogue.sets import SETS
from fastht.data.images import DataError


@dataclass(frozen=True)
class ListArguments:
    """Tell which data sets are known, or all about one.

    Attributes:
        name: of a set, in any case.
        markdown: write the page of the documentation.
    """

    name: Annotated[str | None, tyro.conf.Positional] = None
    markdown: bool = False


def list_sets(arguments: ListArguments) -> int:
    """Print what is known. Raises DataError if there is no such set."""
    if arguments.markdown:
        print(markdown(), end="")
        return 0
    if arguments.name is None:
        print(listing())
        return 0
    chosen = [known for known in SETS if _bare(known.name) == _bare(arguments.name)]
    if not chosen:
        names = ", ".join(known.name for known in SETS)
        raise DataError(f"no set {arguments.name!r} is known; there are {names}")
    print(describe(chosen[0]))
    return 0


def _bare(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()
