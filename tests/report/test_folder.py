"""The folder of a machine: what is written, stays and is replaced there."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from fabricated_results import CPU, CUDA, MAIN, contest, everything, memory, roofs, sweeps

from benchmarks.report import __main__ as report
from benchmarks.report import folder, pictures, style


def content(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_each_machine_has_a_folder(
    file, results: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    cpu = file(*everything(shapes=(MAIN,)), name="cpu.json")
    gpu = file(*everything("triton", (MAIN,)), name="gpu.json", machine=CUDA)
    assert report.main([str(cpu)]) == 0
    page = results / "cpu-example-xeon-processor-avx512" / "README.md"
    assert capsys.readouterr().out == f"{page}\n"
    monkeypatch.setattr(style, "DPI", 30)  # the pixels of one machine's pictures are enough
    assert report.main([str(gpu)]) == 0
    found = {path.name: content(path) for path in results.iterdir()}
    assert found.keys() == {"cpu-example-xeon-processor-avx512", "cuda-example-h200"}
    everywhere = {"README.md", "results.json", *folder.PICTURES}
    assert found["cpu-example-xeon-processor-avx512"].keys() == everywhere
    assert found["cuda-example-h200"].keys() == everywhere - {"threads.png", "export.png"}
    for machine, files in found.items():
        for name, data in files.items():
            if name.endswith(".png"):
                assert data[:8] == b"\x89PNG\r\n\x1a\n"
                whole = machine.startswith("cpu")
                assert struct.unpack(">I", data[16:20])[0] == (1600 if whole else 240)
                assert len(data) > (10_000 if whole else 1_000)


@pytest.mark.usefixtures("coarse")
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


@pytest.mark.usefixtures("coarse")
def test_results_are_not_overwritten(file, results: Path, capsys) -> None:
    assert report.main([str(file(*roofs()))]) == 0
    before = content(results)
    assert report.main([str(file(*memory()))]) == 1
    error = capsys.readouterr().err
    assert "already holds results" in error
    assert "--replace" in error
    assert content(results) == before


@pytest.mark.usefixtures("coarse")
def test_replacing_tells_what_changes_and_leaves_nothing_stale(file, results: Path, capsys) -> None:
    assert report.main([str(file(*contest(cpu=4, eager=10), *memory()))]) == 0
    out = results / "cpu-example-xeon-processor-avx512"
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


@pytest.mark.usefixtures("coarse")
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
    out = results / "cpu-example-xeon-processor-avx512"
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
