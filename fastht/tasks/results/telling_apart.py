"""Runs of one method with the same seed, told apart by their folders and their settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastht.tasks.results.finished_runs import read_settings
from fastht.tasks.results.tables import KEYS, find_stranger

# What differs between repeats, or changes no number.
_FREE = ("out", "resume", "seed", "percent", "cases", "fastht_version", "workers")


def tell_apart(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Add its folder to the name of each run that would be taken for a repeat of another one.

    Args:
        runs: as ``find_runs`` returns them, each with the folder that was ``given``. Methods of
            which two have the same seed are renamed in place, as in ``"ht (runs/a)"``.

    Returns:
        A sentence for each method that was renamed: in which settings its runs differ.
    """
    methods: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in runs:
        key = tuple(run.get(name) for name in KEYS if name != "percent")
        methods.setdefault(key, []).append(run)
    told = []
    for found in methods.values():
        if find_stranger(found) is None:
            continue
        method = found[0]["method"]
        groups = _groups(found)
        for name, group in groups.items():
            for run in group:
                run["method"] = f"{method} ({name})"
        told.append(_differences(method, groups))
    return told


def _groups(runs: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Divide runs by the fewest levels of their folders that leave no two alike."""
    given = {run["given"] for run in runs}
    if len(given) > 1:
        groups: dict[str, list[dict[str, Any]]] = {}
        for run in runs:
            groups.setdefault(str(run["given"]), []).append(run)
        if not any(map(find_stranger, groups.values())):
            return groups
    paths = {id(run): run["folder"].parts for run in runs}
    shared = _shared(list(paths.values()))
    groups = {}
    for depth in range(shared + 1, max(map(len, paths.values())) + 1):
        groups = {}
        for run in runs:
            groups.setdefault(str(Path(*paths[id(run)][shared:depth])), []).append(run)
        if not any(map(find_stranger, groups.values())):
            break
    return groups


def _shared(paths: Sequence[Sequence[str]]) -> int:
    """Return how many parts all paths begin with, of which each has one more."""
    count = 0
    for parts in zip(*(path[:-1] for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        count += 1
    return count


def _differences(method: str, groups: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    names = ", ".join(groups)
    found = [_settings(group[0]["folder"]) for group in groups.values()]
    if any(settings is None for settings in found):
        return f"{method}: runs of {names} are apart; their settings are not known."
    known = [settings for settings in found if settings is not None]
    differing = []
    for name in dict.fromkeys(name for settings in known for name in settings):
        values = [settings.get(name) for settings in known]
        if any(value != values[0] for value in values):
            differing.append(f"{name} {', '.join(map(_plain, values))}")
    what = "; ".join(differing) or "nothing that they were set to"
    return f"{method} of {names}: differs in {what}."


def _settings(folder: Path) -> dict[str, Any] | None:
    """Return what a run was set to, without nesting; ``None`` if its folder does not tell."""
    content = read_settings(folder)
    if content is None:
        return None
    return {key: value for key, value in _flat(content) if key not in _FREE}


def _flat(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value)
        else:
            yield name, value


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
