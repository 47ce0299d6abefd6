"""A page as a whole: where its numbers come from, and which sections and pictures it has."""

from __future__ import annotations

import pytest
from fabricated_results import (
    CPU,
    CUDA,
    MAIN,
    SUITES,
    adapter,
    contest,
    losses,
    memory,
    roofs,
    sweeps,
    threads,
    throughput,
    tower,
    without,
)
from report_pages import page_of, table

from benchmarks.report import folder, line_pictures, load, pages, pictures, style


def test_provenance_of_a_processor(file) -> None:
    page = page_of(file(*roofs()))
    assert page.startswith("# The benchmarks on Example Xeon Processor, AVX512\n")
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


def test_the_time_of_a_cold_call_is_not_named(file) -> None:
    found = losses()
    for entry in found:
        entry["stats"]["iqr"] = entry["stats"]["median"]
    assert "In 14 of 14 entries the interquartile range" in page_of(file(*found))


def test_the_picture_of_losses_has_a_line_for_each_contestant(file) -> None:
    found = load.load([file(*losses())])
    figure = line_pictures.losses(found)
    clip, siglip, clip_peak, siglip_peak = figure.axes
    assert [axes.get_title() for axes in figure.axes] == 2 * ["clip", "siglip"]
    assert (clip.get_ylabel(), clip_peak.get_ylabel()) == ("ms", "peak, MiB")
    assert (len(clip.lines), len(siglip.lines), len(siglip_peak.lines)) == (3, 4, 4)
    fused, dense = clip_peak.lines[:2]
    assert list(fused.get_xdata()) == [1024, 4096]
    assert (list(fused.get_ydata()), list(dense.get_ydata())) == ([4, 16], [12, 192])
    assert [fused.get_color(), dense.get_color()] == list(map(style.colour, ("fused", "dense")))


def test_losses_without_peaks_have_a_row_of_times_alone(file) -> None:
    some = losses()
    for found in some:
        if "peak_bytes" in found["extra_info"]:
            found["extra_info"]["peak_bytes"] = None
    figure = line_pictures.losses(load.load([file(*some)]))
    assert {axes.get_ylabel() for axes in figure.axes} == {"ms"}
    some = [found for found in some if "peak_bytes" in found["extra_info"]]
    assert line_pictures.losses(load.load([file(*some)])) is None


@pytest.mark.usefixtures("coarse")
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


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_alone_makes_a_page(file, suite: str) -> None:
    found = load.load([file(*SUITES[suite]())])
    drawn = pictures.draw(found)
    page = pages.page(found, drawn)
    for name in folder.PICTURES:
        assert (f"({name})" in page) == (name in drawn)
    summaries = {"adapter", "memory", "training"}
    assert page.count("\n## ") == (2 if suite in summaries else 1)
