"""The page of benchmark results: its numbers, and that nothing is lost or mixed up on the way."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from fabricated_results import (
    CPU,
    CUDA,
    MAIN,
    adapter,
    case,
    entry,
    everything,
    memory,
    roofs,
    sweeps,
    threads,
    throughput,
    tower,
    training,
    without,
    write,
)

from benchmarks.report import __main__ as report
from benchmarks.report import folder, load, pages, pictures, tables

SUITES = {
    "roofs": roofs,
    "adapter": lambda: adapter(MAIN, "float32", "both"),
    "sweeps": sweeps,
    "threads": threads,
    "memory": memory,
    "tower": tower,
    "training": training,
    "throughput": throughput,
}


@pytest.fixture
def file(tmp_path: Path):
    """Write a run to a file of its own."""

    def make(*entries, name: str = "run.json", machine=CPU, **other) -> Path:
        return write(tmp_path / name, *entries, machine=machine, **other)

    return make


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in for benchmarks/results."""
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def page_of(path: Path) -> str:
    return pages.page(load.load([path]), ())


def table(page: str, heading: str, place: int = 0) -> list[dict[str, str]]:
    """Return the rows of a section's table by the names of their columns."""
    section = page.split(f"## {heading}\n\n")[1].split("\n## ")[0]
    blocks = [block for block in section.split("\n\n") if block.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]]
                        for line in blocks[place].strip().splitlines())  # fmt: skip
    return [dict(zip(header, row, strict=True)) for row in rows]


def content(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


# The numbers


def contest(**milliseconds: float) -> list[dict]:
    """One case of 1.2 GFLOP and 20 MB: 3 ms of computing and 1 ms of moving under the roofs."""
    info = case((2, 5, 8), "float32", "both") | {"flop": 1_200_000_000, "floor_bytes": 20_000_000}
    return [
        entry(f"test_adapter[{name}]", ms / 1e3, contestant=name, **info)
        for name, ms in milliseconds.items()
    ]


def test_times_and_ratios_of_one_adapter(file) -> None:
    page = page_of(file(*contest(cpu=4, published=14, eager=10, compile=9, gemms=2.5)))
    (row,) = table(page, "One adapter")
    assert row["B, N, D"] == "2, 5, 8"
    assert (row["C"], row["dtype"], row["pass"], row["rounds"]) == ("64", "float32", "both", "3")
    assert row["fused"] == "4.00 (0.40)"
    assert row["eager"] == "10.0 (1.0)"
    assert row["published / fused"] == "3.50"
    assert row["eager / fused"] == "2.50"
    assert row["compile / fused"] == "2.25"
    assert row["fused / gemms"] == "1.60"


def test_the_fused_backend_against_the_roofs(file) -> None:
    page = page_of(file(*roofs(), *contest(cpu=4)))
    assert [row["rate"] for row in table(page, "The machine's roofs")] == [
        "20.0 GB/s", "400 GFLOP/s", "1600 GFLOP/s",
    ]  # fmt: skip
    (row,) = table(page, "One adapter", 1)
    assert row["GB/s"] == "5.00"
    assert row["of the copy's"] == "25 %"
    assert row["GFLOP/s"] == "300"
    assert row["least time's share"] == "75 %"


def test_the_bytes_are_the_roof_where_moving_takes_longer(file) -> None:
    copy, *products = roofs()
    copy["stats"]["median"] = 0.5  # 4 GB/s: 20 MB take 5 ms
    (row,) = table(page_of(file(copy, *products, *contest(cpu=10))), "One adapter", 1)
    assert row["least time's share"] == "50 %"


def test_a_case_without_the_fused_backend_has_no_summary(file) -> None:
    page = page_of(file(*contest(eager=10)))
    assert "## Summary" not in page
    (row,) = table(page, "One adapter")
    assert (row["eager"], row["eager / fused"]) == ("10.0 (1.0)", "-")


def test_without_roofs_their_shares_are_unknown(file) -> None:
    (row,) = table(page_of(file(*contest(cpu=4))), "One adapter", 1)
    assert (row["GB/s"], row["of the copy's"], row["least time's share"]) == ("5.00", "-", "-")


def test_summary_is_of_the_main_shape_and_of_like_with_like(file) -> None:
    # The sums are those of the sections; these are the ratios that the made-up numbers have.
    page = page_of(file(*everything(shapes=(MAIN, (1, 197, 768)))))
    summary = {row.pop(""): row for row in table(page, "Summary")}
    assert "at 8, 197, 768 (B, N, D), C = 64" in page
    assert summary["time, published / fused"] == {"float32": "4.00", "bfloat16": "4.00"}
    assert summary["time, compile / fused"] == {"float32": "2.50", "bfloat16": "2.50"}
    assert summary["time, fused / gemms"] == {"float32": "1.25", "bfloat16": "1.25"}
    # 100 of 400 GFLOP/s, and 250 of 1600.
    assert summary["least time's share, fused"] == {"float32": "25 %", "bfloat16": "16 %"}
    assert summary["kept memory, eager / fused"] == {"float32": "3.00", "bfloat16": "3.00"}
    plain, compiled = table(page, "Summary", 1)[:2]
    assert [plain[k] for k in ("time", "kept memory", "peak memory")] == ["0.90", "0.80", "0.80"]
    assert [compiled[k] for k in ("time", "kept memory", "peak memory")] == ["0.95", "0.96", "0.90"]


def test_sweeps_show_the_size_that_varies(file) -> None:
    page = page_of(file(*sweeps()))
    columns = ("batch", "grid side", "width D", "channels C")
    for place, (column, values) in enumerate(
        zip(
            columns,
            ((1, 2, 4, 8, 16, 32), (4, 7, 14, 24, 32), (192, 384, 768, 1024, 1280),
             (16, 32, 64, 128)),
            strict=True,
        )
    ):  # fmt: skip
        rows = [row for row in table(page, "Sweeps", place) if row["dtype"] == "float32"]
        assert [int(row[column]) for row in rows] == list(values)


def test_threads_are_held_against_one(file) -> None:
    one, two = table(page_of(file(*threads())), "Threads")[:2]
    assert (one["threads"], one["fused, over one"], one["eager, over one"]) == ("1", "1.00", "1.00")
    assert (two["threads"], two["fused, over one"], two["eager, over one"]) == ("2", "1.60", "1.25")
    assert (two["fused"], two["eager"]) == ("10.0 (1.0)", "38.4 (3.8)")


def test_memory_in_mebibytes_and_bytes_a_token(file) -> None:
    # 4000 bytes for each of 8 x 197 tokens are 6.0 MiB, twice that at the peak.
    rows = {(row["dtype"], row[""]): row for row in table(page_of(file(*memory())), "Memory")}
    row = rows["float32", "fused"]
    found = (row["kept bytes a token"], row["kept MiB"], row["peak MiB"])
    assert found == ("4000", "6.0", "12.0")
    assert rows["bfloat16", "eager"]["kept bytes a token"] == "6000"


def test_what_adapters_add_to_a_frozen_tower(file) -> None:
    rows = table(page_of(file(*tower())), "Adapters in a frozen tower")
    assert [(row[""], row["adapters add"]) for row in rows] == [
        ("frozen", "-"), ("fused", "3.1 %"), ("published", "20 %"),
    ]  # fmt: skip


def test_a_training_step_against_lora(file) -> None:
    page = page_of(file(*training()))
    rows = {row["method"]: row for row in table(page, "Training step")}
    header = list(rows["ht"])
    assert header[6:12] == [
        "of LoRA's time", "kept MiB", "kept, of LoRA's", "held MiB", "peak MiB", "peak, of LoRA's",
    ]  # fmt: skip
    assert list(rows["ht"].values())[4:] == [
        "720 (72)", "44.4", "0.90", "512.0", "0.80", "400.0", "560.0", "0.80", "1,200,000",
    ]  # fmt: skip
    assert rows["frozen"]["kept, of LoRA's"] == "0.00"
    assert "- `lora`: r = 16" in page
    assert "- `ht`: backend `cpu`" in page


def test_throughput_against_loading_alone(file) -> None:
    rows = table(page_of(file(*throughput())), "Throughput of the trainer")
    assert [(row[""], row["images/s"], row["of loading alone"]) for row in rows] == [
        ("loading alone", "400", "100 %"), ("fused", "40.0", "10 %"),
        ("published", "32.0", "8.0 %"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01234, "0.0123"), (1.236, "1.24"), (9.996, "10.0"), (12345.6, "12346"),
     (None, "-")],
)  # fmt: skip
def test_three_significant_digits(value: float | None, text: str) -> None:
    assert tables.number(value) == text


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    assert list(tables.table(("a",), [("b|c",)]))[2] == "| b/c |"


# Where they come from


def test_provenance_of_a_processor(file) -> None:
    page = page_of(file(*roofs()))
    assert page.startswith("# The benchmarks on Example Xeon Processor\n")
    assert "- processor: Example(R) Xeon(R) Processor, 2 cores, torch uses 2" in page
    assert "- memory: 24.0 GiB" in page
    assert "- last-level cache: 32.0 MiB" in page
    assert "2026-11-22, fastht 0.1.0 at 0123456\n" in page
    assert "Python 3.11.7, torch 2.15.0, triton 3.9.0\n" in page
    assert "`pytest benchmarks --benchmark-only`" in page
    assert "not idle" not in page


def test_provenance_of_a_gpu(file) -> None:
    page = page_of(file(*roofs(), machine=CUDA))
    assert page.startswith("# The benchmarks on EXAMPLE H200\n")
    assert "compute capability 9.0, 132 multiprocessors, 139.0 GiB" in page
    assert "CUDA 13.2" in page
    assert "backend `triton`: fused Triton kernels" in page
    assert "GPU clocks sm 1980 MHz" in page


def test_a_busy_machine_is_named(file) -> None:
    assert "not idle" not in page_of(file(*roofs(), machine=CPU | {"load": 1.0}))
    assert "a load of 1.1 on 2 cores" in page_of(file(*roofs(), machine=CPU | {"load": 1.1}))


@pytest.mark.parametrize(
    ("commit", "text"),
    [
        ({"id": "0123456789abcdef", "dirty": True}, "at 0123456 with uncommitted changes\n"),
        ({"id": "unknown", "dirty": False}, "at an unknown commit\n"),
        ({}, "at an unknown commit\n"),
    ],
)
def test_the_commit_is_named(file, commit: dict, text: str) -> None:
    assert text in page_of(file(*roofs(), commit_info=commit))


def test_times_that_scatter_are_named(file) -> None:
    found = contest(cpu=4, eager=10)
    assert "interquartile range is above" not in page_of(file(*found))
    found[1]["stats"]["iqr"] = 0.003
    page = page_of(file(*found))
    assert "In 1 of 2 entries the interquartile range is above 25 % of the median" in page
    assert "the median: `test_adapter[eager]`.\n" in page


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


# What is missing or wrong


@pytest.mark.parametrize("name", ["cpu", "published", "eager", "compile", "gemms", "copy"])
def test_a_missing_contestant_leaves_dashes(file, name: str) -> None:
    few = [*sweeps()[:12], *threads()[:4], *memory()[:4], *tower(), *throughput()]
    few += [*roofs(), *adapter(MAIN, "float32", "both")]
    found = load.load([file(*without(few, name))])
    page = pages.page(found, pictures.draw(found))
    label = "fused" if name == "cpu" else name
    if name != "copy":
        assert label not in table(page, "One adapter")[0]
    assert ("roofline.png" in page) == (name != "copy")


def test_missing_methods_leave_dashes(file) -> None:
    page = page_of(file(*without(training(peak=False), "lora", "lora-compiled")))
    assert "A training step:" not in page
    row = table(page, "Training step")[-1]
    assert row["method"] == "ht-compiled"
    assert row["of LoRA's time"] == row["kept, of LoRA's"] == row["peak MiB"] == "-"


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_alone_makes_a_page(file, suite: str) -> None:
    found = load.load([file(*SUITES[suite]())])
    drawn = pictures.draw(found)
    page = pages.page(found, drawn)
    for name in folder.PICTURES:
        assert (f"({name})" in page) == (name in drawn)
    summaries = {"adapter", "memory", "training"}
    assert page.count("\n## ") == (2 if suite in summaries else 1)


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


# What is written


def test_each_machine_has_a_folder(file, results: Path, capsys) -> None:
    cpu = file(*everything(shapes=(MAIN,)), name="cpu.json")
    gpu = file(*everything("triton", (MAIN,)), name="gpu.json", machine=CUDA)
    assert report.main([str(cpu)]) == 0
    assert capsys.readouterr().out == f"{results / 'cpu-example-xeon-processor' / 'README.md'}\n"
    assert report.main([str(gpu)]) == 0
    found = {path.name: content(path) for path in results.iterdir()}
    assert found.keys() == {"cpu-example-xeon-processor", "cuda-example-h200"}
    everywhere = {"README.md", "results.json", *folder.PICTURES}
    assert found["cpu-example-xeon-processor"].keys() == everywhere
    assert found["cuda-example-h200"].keys() == everywhere - {"threads.png"}
    for files in found.values():
        for name, data in files.items():
            if name.endswith(".png"):
                assert data[:8] == b"\x89PNG\r\n\x1a\n"
                assert struct.unpack(">I", data[16:20])[0] == 1600
                assert len(data) > 10_000


def test_the_stored_results_reproduce_the_page(file, tmp_path: Path) -> None:
    noisy = everything(shapes=(MAIN,))
    for place, found in enumerate(noisy):
        found["stats"]["median"] *= 1 + 0.0123456789 * (place % 7)
    first, second = tmp_path / "first", tmp_path / "second"
    path = file(*noisy)
    assert report.main([str(path), "--out", str(first)]) == 0
    stored = first / "results.json"
    assert report.main([str(stored), "--out", str(second)]) == 0
    assert content(first) == content(second)
    (run,) = json.loads(stored.read_text())["runs"]
    # 0.04 times 1.0123...
    assert run["benchmarks"][1]["name"] == "test_product[float32]"
    assert run["benchmarks"][1]["stats"] == {"median": 0.04049, "iqr": 0.004, "rounds": 3}
    assert run["machine_info"]["cpu_mhz"] == 2600


def test_results_are_not_overwritten(file, results: Path, capsys) -> None:
    assert report.main([str(file(*roofs()))]) == 0
    before = content(results)
    assert report.main([str(file(*memory()))]) == 1
    error = capsys.readouterr().err
    assert "already holds results" in error
    assert "--replace" in error
    assert content(results) == before


def test_replacing_tells_what_changes_and_leaves_nothing_stale(file, results: Path, capsys) -> None:
    assert report.main([str(file(*contest(cpu=4, eager=10), *memory()))]) == 0
    out = results / "cpu-example-xeon-processor"
    (out / "kept.txt").write_text("by a person")
    assert (out / "memory.png").exists()
    capsys.readouterr()
    assert report.main([str(file(*contest(cpu=3, eager=10, gemms=2))), "--replace"]) == 0
    head, largest, other, total, path = capsys.readouterr().out.splitlines()
    assert head.split() == ["new/old", "old", "new"]
    assert largest.split() == ["0.75", "4.00", "3.00", "ms", "test_adapter[cpu]"]
    assert other.split() == ["1.00", "10.0", "10.0", "ms", "test_adapter[eager]"]
    assert total == (
        "2 entries in both, median of new/old in time 0.88; "
        "8 in the old ones alone, 1 in the new ones alone"
    )
    assert path == str(out / "README.md")
    assert "| 3.00 (0.30) |" in (out / "README.md").read_text()
    assert not (out / "memory.png").exists()
    assert (out / "kept.txt").read_text() == "by a person"
    assert [path.name for path in results.iterdir()] == [out.name]


def test_at_most_ten_changes_are_told(file, results: Path, capsys) -> None:
    assert report.main([str(file(*sweeps()))]) == 0
    capsys.readouterr()
    assert report.main([str(file(*sweeps())), "--replace"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 10 + 2


def test_another_machine_is_never_replaced(file, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert report.main([str(file(*roofs())), "--out", str(out)]) == 0
    before = content(out)
    other = file(*roofs(), machine=CPU | {"threads": 1})
    assert report.main([str(other), "--out", str(out), "--replace"]) == 1
    assert "different machines" in capsys.readouterr().err
    assert content(out) == before


def test_a_page_of_something_else_is_never_replaced(file, tmp_path: Path, capsys) -> None:
    (tmp_path / "README.md").write_text("# A project")
    path = str(file(*roofs()))
    assert report.main([path, "--out", str(tmp_path), "--replace"]) == 1
    assert "README.md but no results.json" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "# A project"


def test_notes_of_people_stay(file, results: Path) -> None:
    path = str(file(*roofs()))
    assert report.main([path]) == 0
    out = results / "cpu-example-xeon-processor"
    assert "What limits" not in (out / "README.md").read_text()
    (out / "notes.md").write_text("The copy is **slow**.\n")
    for _ in range(2):
        assert report.main([path, "--replace"]) == 0
        page = (out / "README.md").read_text()
        assert page.endswith("## What limits these numbers\n\nThe copy is **slow**.\n")
        assert (out / "notes.md").read_text() == "The copy is **slow**.\n"


def refuse(*args, **kwargs):
    raise OSError("disk full")


@pytest.mark.parametrize("place", ["drawing", "writing", "moving"])
def test_a_failure_leaves_the_old_page(
    file, results: Path, monkeypatch: pytest.MonkeyPatch, capsys, place: str
) -> None:
    assert report.main([str(file(*roofs()))]) == 0
    before = content(results)
    if place == "drawing":
        monkeypatch.setattr(pictures, "draw", refuse)
    elif place == "writing":
        monkeypatch.setattr(Path, "write_bytes", refuse)
    else:
        rename = Path.rename
        monkeypatch.setattr(
            Path, "rename", lambda self, to: refuse() if self.name == "new" else rename(self, to)
        )
    assert report.main([str(results.parent / "run.json"), "--replace"]) == 1
    assert "disk full" in capsys.readouterr().err
    assert content(results) == before


# Old against new


def test_against_compares_and_writes_nothing(file, results: Path, capsys) -> None:
    old = file(*contest(cpu=4, eager=10), *memory(), name="old.json")
    grown = memory()
    for found in grown:
        found["extra_info"]["saved_bytes"] *= 2
        found["stats"]["median"] *= 9  # a cold call's, of no interest
    new = file(*contest(cpu=6, eager=10), *grown, name="new.json")
    assert report.main([str(new), "--against", str(old)]) == 0
    _, fused, eager, kept, peak, *_, total = map(str.split, capsys.readouterr().out.splitlines())
    assert fused == ["1.50", "4.00", "6.00", "ms", "test_adapter[cpu]"]
    assert eager[0] == "1.00"
    assert kept == ["2.00", "6.01", "12.0", "MiB", "kept", "test_memory[float32-cpu]"]
    assert peak[0] == "1.00"
    assert total[:3] == ["10", "entries", "in"]
    assert not results.exists()


def test_against_matches_what_was_measured_not_its_name_alone(file, capsys) -> None:
    old = file(*contest(cpu=4), name="old.json")
    (found,) = contest(cpu=4)
    found["extra_info"]["channels"] = 32
    assert report.main([str(file(found)), "--against", str(old)]) == 0
    assert capsys.readouterr().out.startswith("0 entries in both, median of new/old in time -")


def test_against_another_machine_is_refused(file, capsys) -> None:
    old = file(*contest(cpu=4), name="old.json", machine=CPU | {"cores": 4})
    assert report.main([str(file(*contest(cpu=4))), "--against", str(old)]) == 1
    assert "cores: 4 and 2" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--replace"], ["--out", "x"]])
def test_against_writes_nothing_wherever(file, option: list[str]) -> None:
    path = str(file(*roofs()))
    with pytest.raises(SystemExit):
        report.main([path, "--against", path, *option])
