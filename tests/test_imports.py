"""Imports run one way, as the design says: no module needs one that stands above it."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fastht"

# Of fastht.tasks: what each wing may import beside itself.
BELOW: dict[str, set[str]] = {
    "training": set(),
    "models": set(),
    "scores": set(),
    "results": set(),
    "images": {"results", "models", "scores", "training"},
    "tags": {"models", "results"},
    "inference": {"image_text", "images", "results", "models", "scores", "training"},
    "image_text": {"images", "results", "models", "scores", "training"},
}


@functools.cache
def parsed() -> dict[Path, ast.Module]:
    """Return every module of the package, read once for all tests."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}


def imported(module: str, tree: ast.Module, modules: set[str]) -> Iterator[str]:
    """Name the modules of the package that a module imports, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in modules)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively, which this test does not follow"
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                if inner in modules:
                    yield inner
                elif node.module in modules:
                    yield str(node.module)


@functools.cache
def found() -> dict[str, set[str]]:
    trees = {}
    for path, tree in parsed().items():
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        trees[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = tree
    return {module: set(imported(module, tree, set(trees))) for module, tree in trees.items()}


def graph() -> dict[str, set[str]]:
    """Return what each module of the package imports of it; the caller may change it."""
    return {module: set(targets) for module, targets in found().items()}


def within(edges: dict[str, set[str]], package: str) -> dict[str, set[str]]:
    """Return the part of the graph inside a package."""
    inside = {module for module in edges if f"{module}.".startswith(f"{package}.")}
    return {module: edges[module] & inside for module in inside}


def wing(module: str) -> str | None:
    """Return in which wing of fastht.tasks a module stands."""
    parts = module.split(".")
    return parts[2] if parts[:2] == ["fastht", "tasks"] and len(parts) > 2 else None


def astray(edges: dict[str, set[str]]) -> list[str]:
    """List the imports inside fastht.tasks that run against the order of its wings."""
    return [
        f"{module} imports {target}"
        for module, targets in sorted(edges.items())
        for target in sorted(targets)
        if (here := wing(module)) is not None
        and (there := wing(target)) is not None
        and there != here
        and there not in BELOW[here]
    ]


def test_every_module_of_the_tasks_stands_in_a_wing() -> None:
    assert {wing(module) for module in within(graph(), "fastht.tasks")} == {None, *BELOW}


def test_the_wings_of_the_tasks_import_one_way() -> None:
    edges = graph()
    assert astray(edges) == []
    # The check sees an import that runs back, and one between neighbours.
    edges["fastht.tasks.scores.retrieval"].add("fastht.tasks.images.run")
    edges["fastht.tasks.models.build"].add("fastht.tasks.training.state")
    assert astray(edges) == [
        "fastht.tasks.models.build imports fastht.tasks.training.state",
        "fastht.tasks.scores.retrieval imports fastht.tasks.images.run",
    ]


@pytest.mark.parametrize("package", ["fastht.data", "fastht.losses", "fastht.tasks"])
def test_a_package_has_no_circle(package: str) -> None:
    edges = within(graph(), package)
    assert len(edges) > 5
    TopologicalSorter(edges).prepare()
    if package == "fastht.data":
        edges["fastht.data.images"].add("fastht.data.shards")
        with pytest.raises(CycleError):
            TopologicalSorter(edges).prepare()


def test_the_losses_stand_on_what_chooses_backends_and_tiles_and_on_products_alone() -> None:
    """So that they are usable alone, and nothing below the tasks and the clients needs them."""
    edges = graph()
    inside = within(edges, "fastht.losses")
    outside = {target for module in inside for target in edges[module] - inside.keys()}
    assert outside <= {
        "fastht.dispatcher",
        "fastht.ops.registry",
        "fastht.ops.custom_op",
        "fastht.ops.triton.configs",
        "fastht.ops.triton.products",
    }
    for module, targets in edges.items():
        above = wing(module) is not None or module.startswith("fastht.clients.")
        if module not in inside and not above:
            assert not targets & inside.keys(), module


def test_the_taxonomy_is_read_without_torch_and_its_command_alone_reads_tables() -> None:
    edges = graph()
    inside = within(edges, "fastht.taxonomy")
    TopologicalSorter(inside).prepare()
    outside = {module: edges[module] - inside.keys() for module in inside if edges[module]}
    assert outside.pop("fastht.taxonomy.command") == {"fastht.data.tables", "fastht.files"}
    assert outside.pop("fastht.taxonomy.load") == {"fastht.files"}
    assert not any(outside.values())
    # The tag graph asks for torch itself; of fastht only tasks need any of it.
    for module, targets in edges.items():
        known = module in inside or wing(module) is not None
        assert known or not targets & inside.keys(), module


def test_only_the_tasks_know_of_the_tasks() -> None:
    above = {"fastht.cli", "fastht.bench.command"}
    for module, targets in graph().items():
        if wing(module) is None and module != "fastht.tasks":
            assert module in above or not any(wing(target) for target in targets), module


def test_only_the_command_line_knows_of_the_benchmarks_of_a_step() -> None:
    edges = graph()
    inside = within(edges, "fastht.bench")
    for module, targets in edges.items():
        if module not in inside and module != "fastht.cli":
            assert not targets & inside.keys(), module


def test_monai_is_imported_late() -> None:
    """It takes longer than all else, and those who predict need none of it."""
    for path, tree in parsed().items():
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "monai" not in ast.unparse(node), path
