"""The GPU machine's script with an interpreter that only takes notice: what it runs, and in which
order; that what fails or hangs costs no other phase."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.gpu import cuda_check

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None or shutil.which("timeout") is None, reason="needs bash and timeout"
)
# Writes its arguments down; fails or hangs where a variable names a part of them.
PYTHON = """#!/usr/bin/env bash
echo "$*" >>"$CALLS"
echo "said: $*"
[ -z "${FAILS:-}" ] || [[ "$*" != *"$FAILS"* ]] || exit 3
[ -z "${HANGS:-}" ] || [[ "$*" != *"$HANGS"* ]] || exec sleep 60
"""


@pytest.fixture
def script(tmp_path):
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)

    def run(*arguments, **environment):
        calls = tmp_path / "calls"
        calls.write_text("")
        done = subprocess.run(
            [ROOT / "benchmarks/run_gpu.sh", tmp_path / "out", *arguments],
            env=os.environ | {"PYTHON": str(python), "CALLS": str(calls)} | environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        names = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("-- ")]
        limits = dict(line.split()[::3] for line in _phases(tmp_path / "out"))
        return done, names, limits, calls.read_text()

    return run


def _phases(out):
    path = out / "phases"
    return path.read_text().splitlines() if path.exists() else []


def test_four_minutes_answer_what_is_most_wanted_in_its_order(script):
    _, names, limits, calls = script("first", FASTHT_SECONDS="240")
    assert names == ["tests", "more-tests", "losses-right", "cuda-gate", "adapter", "memcheck"]
    assert int(limits["tests"]) <= 240 / 3
    losses = next(line for line in calls.splitlines() if "losses_check" in line)
    assert "--right" in losses
    gate = next(line for line in calls.splitlines() if "cuda_check" in line)
    assert gate.endswith("--parts bits times")
    assert "benchmarks/test_adapter.py" in calls
    # One file for the tests of each of the kernels' two phases, none twice.
    first, more = (line for line in calls.splitlines() if " -m gpu " in line)
    files = [word for word in (first + " " + more).split() if word.startswith("tests/")]
    assert len(files) == len(set(files)) > 5
    assert "tests/losses/test_rule.py" in files


def test_all_phases_without_names_and_the_named_ones_in_their_order(script):
    _, names, _, _ = script()
    assert names[:8] == [
        "compile", "tests", "more-tests", "launches", "memcheck", "tune", "cuda", "losses",
    ]  # fmt: skip
    assert names[-1] == "sanitizer"
    assert {"machine", "adapter", "training"} <= set(names)
    assert script("cuda", "tests")[1] == ["cuda", "tests"]


def test_an_unknown_phase_is_named_before_anything_runs(script):
    done, names, _, calls = script("tests", "typo")
    assert done.returncode == 2
    assert "no phase 'typo'; there are: first compile" in done.stderr
    assert names == []
    assert calls == ""


@pytest.mark.parametrize(
    "wrong",
    [
        {"FAILS": "losses_check"},
        pytest.param({"HANGS": "losses_check"}, marks=pytest.mark.slow),  # its limit is 12 s
    ],
)
def test_what_fails_or_hangs_costs_no_other_phase(script, tmp_path, wrong):
    done, names, _, _ = script("losses-right", "cuda-gate", **wrong, FASTHT_SECONDS="24")
    assert done.returncode == 1
    assert names == ["losses-right", "cuda-gate"]
    assert "failed with status" in done.stdout
    statuses = {line.split()[0]: int(line.split()[1]) for line in _phases(tmp_path / "out")}
    assert statuses == {"losses-right": 3 if "FAILS" in wrong else 124, "cuda-gate": 0}
    assert "said: -m benchmarks.gpu.losses_check" in (tmp_path / "out/losses-right.log").read_text()


def test_a_part_that_was_not_reached_in_time_is_no_failure_and_what_a_tool_finds_is_one():
    late = "no time left"
    right, wrong = [{"wrong": []}], [{"wrong": []}, {"wrong": ["dx"]}]
    for bits, tools in ((late, late), (right, {"memcheck": late}), (right, {"memcheck": "clean"})):
        assert not cuda_check.is_wrong({"bits": bits, "tools": tools})
    for bits, tools in ((wrong, late), (right, {"racecheck": "ERROR"})):
        assert cuda_check.is_wrong({"bits": bits, "tools": tools})
    assert not cuda_check.is_wrong({})
    assert "have not been timed" in cuda_check.profile_worst(late, 10)["note"]
