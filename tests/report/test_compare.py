"""Old results against new ones: what is compared, and that nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from fabricated_results import CPU, contest, losses, memory, roofs

from benchmarks.report import __main__ as report


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


def test_against_compares_peaks_of_losses_and_not_their_cold_calls(file, capsys) -> None:
    peaks = [entry for entry in losses() if "memory" in entry["name"]]
    old = file(*peaks, name="old.json")
    peaks[0]["stats"]["median"] *= 9
    peaks[0]["extra_info"]["peak_bytes"] *= 2
    assert report.main([str(file(*peaks)), "--against", str(old)]) == 0
    _, first, *rest, total = map(str.split, capsys.readouterr().out.splitlines())
    assert first[:5] == ["2.00", "4.00", "8.00", "MiB", "peak"]
    assert {line[0] for line in rest} == {"1.00"}
    assert total[:3] == ["14", "entries", "in"]


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
