"""Releases of Triton: the page of what spills, the promise, the environments, the proposals."""

import dataclasses
import itertools
import json
import subprocess
import sys

import pytest

pytest.importorskip("triton")

from benchmarks import compile_releases, propose
from benchmarks.compile_table import NEWEST, SHARED_LIMIT, Row

SOUND = Row(
    triton="3.6", arch="sm_90", channels=64, numbers="bf16", kernel="up_kernel", options="BM=64",
    registers=200, stack=0, local=0, shared=1024, mma="wgmma", widths=(768,),
)  # fmt: skip


def row(**changes):
    return dataclasses.replace(SOUND, **changes)


SPILLS = {"local": 4, "stack": 16}


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({}, False),
        (SPILLS, True),
        (SPILLS | {"numbers": "fp16", "channels": 16, "arch": "sm_120"}, True),
        (SPILLS | {"channels": 128}, False),
        (SPILLS | {"numbers": "32>bf16"}, False),
        (SPILLS | {"numbers": "32", "triton": NEWEST}, True),
        (SPILLS | {"numbers": "32", "triton": NEWEST, "arch": "sm_86"}, False),
        ({"stack": 8}, False),  # a frame that is not used
        ({"shared": SHARED_LIMIT["sm_90"] + 1, "channels": 128}, True),
    ],
)
def test_what_is_promised_of_spills(changes, broken):
    assert row(**changes).breaks_promise() == broken
    if broken:
        assert row(**changes).remark()


def test_the_page_counts_and_names_what_spills():
    rows = [
        row(),
        row(kernel="down_kernel", **SPILLS),
        row(triton="3.4", kernel="down_kernel", **SPILLS),
        row(triton="3.4", arch="sm_86", kernel="down_kernel", local=1, stack=8),
        row(channels=128, numbers="32", arch="sm_100", triton="3.9"),
    ]
    lines = list(compile_releases.page(rows))
    tables = [line for line in lines if line.startswith("| ")]
    assert tables[0] == "| x > products | Triton | sm_86 | sm_90 | sm_100 |"
    assert "| C = 64, bf16 | 3.4 | 1 of 1 | 1 of 1 | refused |" in tables
    assert "| C = 64, bf16 | 3.6 | - | 1 of 2 | refused |" in tables
    assert "| C = 128, 32 | 3.9 | - | - | 0 of 1 |" in tables
    # The same stack with two releases is one line; another set of chips is another.
    named = [line for line in tables if "`down_kernel`" in line]
    assert named == [
        "| `down_kernel` BM=64 | 64 | bf16 | sm_86: 8, sm_90: 16 | 3.4 |",
        "| `down_kernel` BM=64 | 64 | bf16 | sm_90: 16 | 3.6 |",
    ]


def test_releases_that_make_the_same_are_one_line_of_the_page():
    rows = [row(triton=release, channels=c) for release in ("3.4", "3.6") for c in (16, 64)]
    rows.append(row(triton="3.9", channels=64, **SPILLS))
    tables = [line for line in compile_releases.page(rows) if line.startswith("| C")]
    assert tables == [
        "| C = 16, bf16 | 3.4, 3.6 | 0 of 1 |",
        "| C = 64, bf16 | 3.4, 3.6 | 0 of 1 |",
        "| C = 64, bf16 | 3.9 | 1 of 1 |",
    ]


@pytest.mark.parametrize(("changes", "said"), [({}, True), ({"registers": 201}, False)])
def test_a_chip_stands_for_another_only_where_all_kernels_were_alike(changes, said):
    rows = [row(arch="sm_86"), row(arch="sm_89"), row(kernel="down_kernel", arch="sm_86")]
    rows += [row(arch="sm_86", shared=8), row(arch="sm_89", shared=8, **changes)]
    assert ("sm_86 stands for sm_89" in "\n".join(compile_releases.page(rows))) == said


def test_rows_are_read_back_by_release(tmp_path):
    for release in ("3.4", "3.9"):
        line = json.dumps(dataclasses.asdict(row(triton=release)))
        (tmp_path / f"{release}.jsonl").write_text(line + "\n")
    assert list(compile_releases.read(tmp_path)) == [row(triton="3.4"), row(triton="3.9")]


def test_a_release_is_fetched_once_and_stands_first_in_the_path(tmp_path, monkeypatch):
    calls = []

    def fetch(command, check):
        calls.append(command)
        (tmp_path / "triton-3.4.0/triton-3.4.0.dist-info").mkdir(parents=True)

    monkeypatch.setattr(subprocess, "run", fetch)
    monkeypatch.setattr(compile_releases.importlib.metadata, "version", lambda name: "3.9.0")
    for _ in range(2):
        variables = compile_releases.environment("3.4.0", tmp_path)
        assert variables["PYTHONPATH"].startswith(str(tmp_path / "triton-3.4.0"))
        assert "TRITON_INTERPRET" not in variables
    assert len(calls) == 1
    assert {sys.executable, "--no-deps", "triton==3.4.0"} <= set(calls[0])
    assert "triton-" not in compile_releases.environment("3.9.0", tmp_path)["PYTHONPATH"]
    assert len(calls) == 1  # what is installed needs no fetching


def test_proposals_begin_with_what_differs_least_and_never_grow_tiles():
    default = {"BM": 64, "BD": 64, "num_warps": 8, "num_stages": 3, "UNROLL": 1}
    found = list(itertools.islice(propose.candidates(default, 1000), 1000))
    assert found[0] == default
    assert len({tuple(sorted(options.items())) for options in found}) == len(found)
    changes = [sum(default.get(k) != v for k, v in options.items()) for options in found]
    assert changes == sorted(changes)
    assert max(changes) == 2
    for options in found:
        assert options["BM"] <= 64
        assert options["BD"] <= 64
        assert options.get("maxnreg", 0) * 32 * options["num_warps"] <= 65_536
    assert len(list(propose.candidates(default, 5))) == 5
