"""Reading results: nothing is lost or mixed up on the way, and what is none is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fabricated_results import CPU, CUDA, contest, entry, memory, roofs
from report_pages import table

from benchmarks.report import __main__ as report
from benchmarks.report import load, pages


def test_runs_of_one_machine_are_merged_oldest_first(file) -> None:
    newer = file(
        *memory(),
        name="newer.json",
        datetime="2026-11-23T08:00:00",
        commit_info={"id": "feedfacefeedface", "dirty": True},
        machine=CPU | {"packages": {"torch": "2.16.0"}, "load": 0.5},
        command="pytest benchmarks/test_memory.py",
    )
    merged = load.load([newer, file(*roofs(), name="older.json")])
    page = pages.page(merged, ())
    assert "\n1. 2026-11-22, fastht 0.1.0 at 0123456\n" in page
    assert "\n2. 2026-11-23, fastht 0.1.0 at feedfac with uncommitted changes\n" in page
    assert "torch 2.16.0" in page
    assert "`pytest benchmarks/test_memory.py`" in page
    assert table(page, "The machine's roofs")
    assert table(page, "Memory")


def test_results_of_two_machines_are_refused(file) -> None:
    one = file(*roofs(), name="one.json")
    two = file(*memory("triton"), name="two.json", machine=CUDA)
    with pytest.raises(load.ReportError, match=r"different machines.*device: cpu and cuda; cores"):
        load.load([one, two])
    other = file(*memory(), name="three.json", machine=CPU | {"threads": 1})
    with pytest.raises(load.ReportError, match=r"one.json and .*three.json.*\(threads: 2 and 1\)"):
        load.load([one, other])


def test_an_entry_in_two_files_is_refused(file) -> None:
    one, two = file(*roofs(), name="one.json"), file(roofs()[1], name="two.json")
    with pytest.raises(load.ReportError, match=r"both hold test_product\[float32\]"):
        load.load([one, two])
    renamed = file({**roofs()[1], "name": "test_product[fp32]"}, name="three.json")
    with pytest.raises(load.ReportError, match=r"both hold test_product\[fp32\]"):
        load.load([one, renamed])


def test_unknown_suites_are_no_error_but_named(file, tmp_path: Path, capsys) -> None:
    path = file(*roofs(), entry("test_new[a]", 1.0), entry("test_new[b]", 1.0))
    assert report.main([str(path), "--out", str(tmp_path / "out")]) == 0
    assert "not shown: 2 of test_new" in capsys.readouterr().err
    assert "test_new" not in (tmp_path / "out" / "results.json").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no JSON"),
        ('{"benchmarks": [', "is no JSON"),
        ("[]", "is no result of pytest-benchmark"),
        ("{}", "is no result of pytest-benchmark"),
        ('{"runs": []}', "is no result of pytest-benchmark"),
        ('{"runs": 3}', "is no result of pytest-benchmark"),
        ('{"benchmarks": [1]}', "is no result of pytest-benchmark"),
        ('{"benchmarks": [], "machine_info": {"node": "x"}}', "machine_info lacks device"),
        (json.dumps({"benchmarks": [], "machine_info": CPU}), "holds nothing to show"),
        (json.dumps({"benchmarks": [], "machine_info": CPU | {"device": "tpu"}}), "unknown device"),
        (
            json.dumps({"benchmarks": [{"name": "test_copy"}], "machine_info": CPU}),
            "test_copy lacks median, iqr, rounds, contestant, bytes",
        ),
        (
            json.dumps(
                {
                    "benchmarks": [{"name": "test_copy", "stats": None, "extra_info": None}],
                    "machine_info": CPU,
                }
            ),
            "test_copy lacks median, iqr, rounds, contestant, bytes",
        ),
    ],
)
def test_other_files_are_refused(tmp_path: Path, capsys, text: str, message: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    assert report.main([str(path), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("median", [0, -1.0, float("nan"), float("inf"), "1", None])
def test_a_median_that_is_none_is_refused(file, median) -> None:
    (found,) = contest(cpu=1)
    found["stats"]["median"] = median
    with pytest.raises(load.ReportError, match=r"the median of test_adapter\[cpu\] is"):
        load.load([file(found)])


def test_no_file_is_refused(tmp_path: Path, capsys) -> None:
    assert report.main([str(tmp_path / "none.json")]) == 1
    assert "cannot read" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        report.main([])
