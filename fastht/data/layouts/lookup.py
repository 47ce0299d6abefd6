"""Images that a table names, looked up below folders; never guessed."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from fastht.data.images import DataError

_SHOWN = 4  # candidates in a message


class Lookup:
    """The files below some folders, found by the ends of their paths."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Nothing is read yet. Raises DataError if a folder does not exist."""
        for folder in folders:
            if not folder.is_dir():
                raise DataError(f"{folder}: no such folder of images; correct the path")
        self.folders = tuple(folders)
        self._by_base: dict[str, list[Path]] | None = None

    def find(self, named: str, where: str) -> Path:
        r"""The file that is named.

        That is the one at this path in a folder; where there is none, the one below the folders
        whose path ends in the name, by whole components: "a/1.png" is no name of b/1.png.

        named: a path with / or \, relative or absolute. where: what names it, for messages.

        Raises DataError, with the candidates, if there is none or more than one.
        """
        parts = PurePosixPath(named.replace("\\", "/")).parts
        if not parts or ".." in parts:
            raise DataError(f"{where}: {named!r} names no image; correct it")
        direct = [path for folder in self.folders if (path := folder.joinpath(*parts)).is_file()]
        found = direct or [
            path for path in self._named(parts[-1]) if path.parts[-len(parts) :] == parts
        ]
        different = list(dict.fromkeys(path.resolve() for path in found))
        if len(different) == 1:
            return found[0]
        if not different:
            other = self._named(parts[-1])
            hint = f"; of that base name there is {_list(other)}" if other else ""
            below = ", ".join(map(str, self.folders))
            raise DataError(f"{where}: no image {named} below {below}{hint}; correct the path")
        raise DataError(
            f"{where}: {named} may be {_list(found)}; name the image with its folder, so that only "
            "one is meant"
        )

    def _named(self, base: str) -> list[Path]:
        """The files of a base name."""
        if self._by_base is None:
            self._by_base = defaultdict(list)
            for folder in self.folders:
                for parent, folders, files in os.walk(folder, followlinks=True):
                    folders.sort()
                    for name in files:
                        self._by_base[name].append(Path(parent, name))
        return self._by_base.get(base, [])


def _list(paths: Sequence[Path]) -> str:
    more = f" or {len(paths) - _SHOWN:,} others" if len(paths) > _SHOWN else ""
    return " or ".join(map(str, paths[:_SHOWN])) + more
