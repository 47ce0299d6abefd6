"""The issue model's launches: which convolutions they have, and whether they rebuild x."""

from types import SimpleNamespace

import pytest

pytest.importorskip("triton")
from test_issue_model import ROOT, code, line, work

from benchmarks.issue_model import counts, launches, source, taps
from benchmarks.issue_model.launches import Shape


def place(*numbers):
    return (("k.cuh", numbers[0]), *(("", n) for n in numbers[1:]))


def test_instructions_of_a_convolution_are_told_by_the_lines_of_its_source():
    own = taps.lines("depthwise.cuh", "convolve_item")
    text = (ROOT / "csrc/cuda/depthwise.cuh").read_text().splitlines()
    assert "convolve_item(" in text[own[0] - 1]
    assert text[own[-1] - 1] == "}"
    assert sum("convolve_row<" in text[n - 1] for n in own) == 3
    with pytest.raises(LookupError, match="no function nothing"):
        taps.lines("depthwise.cuh", "nothing")
    row = ("cuda/depthwise.cuh", own[0] - 20)  # called by it, or by somebody else
    called, other = (row, ("cuda/depthwise.cuh", own[3])), (row, ("cuda/mix.cuh", own[3]))
    listing = code(
        line("FFMA R1, R2, R3, R1"), line("LDS R2, [R4]"), line("FFMA R1, R2, R3, R1"), line("NOP")
    )
    for number, frames in enumerate((called, called, other, ())):
        listing.instructions[number].frames = frames
    counted = work(listing, order=[0, 1, 0, 1, 2, 3], programs=3, warps=8)
    launch = SimpleNamespace(kernel="mix_up", counted=[counted])
    (found,) = taps.counted(launch, Shape(batch=2, side=4, channels=64))
    assert (found.instructions, found.multiplications) == (4 * 24, 2 * 24)
    assert found.needed == 2 * 16 * 49 * 2


def test_a_call_is_known_by_its_line_where_the_tables_name_another_file():
    called = (("cuda/depthwise.cuh", 67), ("cuda/mix.cuh", 35))
    listing = code(line("FFMA R1, R2, R3, R1"), line("FFMA R1, R2, R3, R1"))
    listing.instructions[0].frames = (called[0], ("cuda/depthwise.cuh", 35))
    listing.instructions[1].frames = (("cuda/mix.cuh", 67), called[1])
    found = counts.Counts(runs={("FMA", counts.where(called)): 6.0})
    assert counts.expected(listing, found)[0] == 6
    assert counts.key(listing.instructions[1]) not in found.runs


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ((5, 9), (5, 5, 9)),  # a call on a line of the same number has no entry
        ((5, 20), (5, 12, 20)),  # another that is missing
        ((7, 9), (7, 9)),  # as it is: it was counted
        ((5,), (5,)),  # two may be meant
        ((20, 5), (20, 5)),  # in another order it is another place
    ],
)
def test_frames_that_the_assembler_has_dropped_are_taken_from_what_was_counted(lines, found):
    listing = code(line("FFMA R1, R2, R3, R1"))
    listing.instructions[0].frames = place(*lines)
    runs = {("FMA", place(*n)): 1.0 for n in ((5, 5, 9), (5, 12, 20), (7, 9))}
    counts.renamed(listing, counts.Counts(runs=runs | {("LDS", place(20, 5)): 1.0}))
    assert listing.instructions[0].frames == place(*found)


def test_of_two_that_may_be_meant_frames_are_those_that_no_instruction_has():
    listing = code(line("LDGSTS.E [R1], [R2]"), line("LDGSTS.E [R1], [R2]"))
    listing.instructions[0].frames, listing.instructions[1].frames = place(5, 20), place(5, 12, 20)
    runs = {("LDGSTS", place(5, 12, 20)): 4.0, ("LDGSTS", place(5, 14, 20)): 6.0}
    counts.renamed(listing, counts.Counts(runs=runs))
    assert listing.instructions[0].frames == place(5, 14, 20)
    assert counts.expected(listing, counts.Counts(runs=runs))[:2] == [6, 4]


def test_counts_that_no_instruction_stands_under_are_played_by_the_nearest_of_their_kind():
    product = "HMMA.16816.F32.BF16 R4, R8, R12, R4"
    listing = code(line(product), line(product), line(product), line("LDS R2, [R4]"))
    kept, other, lost = place(5, 7, 20), place(5, 7, 30), place(5, 8, 20)
    for number, frames in enumerate((kept, kept, other, kept)):
        listing.instructions[number].frames = frames

    def counted():
        runs = {("HMMA", kept): 16.0, ("HMMA", other): 3.0, ("HMMA", lost): 4.0, ("LDS", kept): 1.0}
        near, lanes = {("HMMA", lost): 0.5}, {("HMMA", kept): 1.0, ("HMMA", lost): 0.5}
        touched = {("HMMA", lost): {64}}
        return counts.Counts(runs=runs, lanes=lanes, near=near, touched=touched)

    found = counted()
    assert sum(counts.expected(listing, found)[:3]) == 19  # without
    counts.adopted(listing, found)
    assert counts.expected(listing, found)[:4] == [10, 10, 3, 1]
    assert found.kinds() == counted().kinds()
    key = "HMMA", kept
    assert found.touched == {key: {64}}
    assert found.lanes[key] == pytest.approx((16 + 4 * 0.5) / 20)
    assert found.near[key] == pytest.approx(4 * 0.5 * 0.5 / (16 + 4 * 0.5))
    # Where no instruction is of the kind, there is nobody to play it.
    alone = counts.Counts(runs={("SHFL", lost): 4.0})
    counts.adopted(listing, alone)
    assert alone.runs == {("SHFL", lost): 4.0}


@pytest.mark.parametrize(
    ("keep", "numbers", "rebuilds"),
    [
        ("auto", "16", False),
        ("auto", "32>16", True),
        ("output", "16", True),
        ("input", "32", False),
    ],
)
def test_x_is_rebuilt_as_the_operator_does_it(keep, numbers, rebuilds):
    assert Shape(numbers=numbers, keep=keep).rebuilds == rebuilds


def test_what_a_kernel_seldom_does_is_left_out():
    path = str(ROOT / "fastht/ops/triton/down.py")
    at = {f.name: (path, f.lineno + 1) for f in source._functions(path)}
    assert launches.SELDOM["down"] in at
    second_pass = (at["_project"], at["_project_apart"], at["down_kernel"])
    listing = code(line("FADD R1, R2, R3"), line("FADD R1, R2, R3"), line("FADD R1, R2, R3"))
    for number, frames in enumerate(((at["_project"], at["down_kernel"]), second_pass, ())):
        listing.instructions[number].frames = frames
    assert launches._seldom(listing, "down") == {1}
    assert launches._seldom(listing, "up") == set()
