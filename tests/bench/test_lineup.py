"""Who can train a case, who is left out and why, and the peak in a process of its own."""

import dataclasses
import functools
import pickle

import pytest
import torch

from fastht.bench import lineup, memory
from fastht.bench.gate import IncorrectError
from fastht.bench.lineup import Case, line_up, make_images, peak_bytes
from fastht.bench.methods import METHODS, Method, UnusableError
from fastht.bench.towers import TINY, ModelSpec

MIB = 2**20
CASE = Case(TINY, 2, "fp32")


def failing(error, **kwargs):
    def prepare(model, config, keep):
        raise error

    return Method("failing", "fails", prepare, **kwargs)


def test_all_that_can_are_ready():
    ticks = []
    steps, left_out = line_up(CASE, ["ht", "frozen", "mona"], lambda: ticks.append(1))
    assert list(steps) == ["ht", "frozen", "mona"]
    assert left_out == {}
    assert len(ticks) == 6
    # All share their images, and have taken a step.
    assert len({id(step.images) for step in steps.values()}) == 1
    assert steps["ht"].held_bytes() > sum(p.nbytes for p in steps["ht"].model.parameters())


def test_the_same_case_has_the_same_weights_every_time():
    before = torch.random.get_rng_state()
    images = functools.partial(make_images, CASE, 1)
    one, other = (lineup.make_step(CASE, "ht", images).model for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("error", "compiled", "reason", "incorrect"),
    [
        (UnusableError("there is no such layer"), False, "there is no such layer", False),
        (IncorrectError("out - x is off"), False, "incorrect: out - x is off", True),
        (torch.OutOfMemoryError("CUDA"), False, "out of memory; a smaller batch may fit", False),
        (MemoryError(), False, "out of memory; a smaller batch may fit", False),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"),
            False,
            "out of memory; a smaller batch may fit",
            False,
        ),
        (
            RuntimeError("backend raised:\nno such graph\n\nSet ..."),
            True,
            "torch.compile fails: backend raised: no such graph",
            False,
        ),
    ],
)
def test_who_cannot_is_left_out_and_the_others_go_on(
    monkeypatch, error, compiled, reason, incorrect
):
    monkeypatch.setitem(METHODS, "failing", failing(error, compiled=compiled))
    steps, left_out = line_up(CASE, ["frozen", "failing", "full"])
    assert list(steps) == ["frozen", "full"]
    assert left_out == {"failing": lineup.LeftOut(reason, incorrect)}


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ValueError("a bad argument"), KeyError()])
def test_other_errors_are_not_swallowed(monkeypatch, error):
    monkeypatch.setitem(METHODS, "failing", failing(error))
    with pytest.raises(type(error)):
        line_up(CASE, ["frozen", "failing"])


def test_what_fails_in_its_first_run_is_left_out_too(monkeypatch):
    def check(self):
        if self.method.name == "ht":
            raise IncorrectError("out - x is off")

    monkeypatch.setattr(lineup.Step, "check", check)
    steps, left_out = line_up(CASE, ["ht", "mona"])
    assert list(steps) == ["mona"]
    assert left_out["ht"].incorrect


def test_a_model_that_cannot_be_built_ends_it():
    case = dataclasses.replace(CASE, model=ModelSpec("timm", "no_such_model"))
    with pytest.raises(ValueError, match="no_such_model"):
        line_up(case, ["frozen", "ht"])


@pytest.mark.parametrize(("batch", "precision"), [(0, "fp32"), (2, "fp8")])
def test_cases_are_checked(batch, precision):
    with pytest.raises(ValueError, match=r"batch size is 0|no precision 'fp8'"):
        Case(TINY, batch, precision)


def test_images_are_few_and_of_the_same_values():
    images = make_images(CASE, 4, (32, 48))
    assert 2 <= len(images.sets) <= 4
    assert {tuple(one.shape) for one in images.sets} == {(2, 3, 32, 48)}
    assert all(torch.equal(one, images.sets[0]) for one in images.sets)
    assert len({one.data_ptr() for one in images.sets}) == len(images.sets)
    assert len(make_images(CASE, 1, (32, 32)).sets) == 1


def test_a_case_can_go_to_another_process():
    assert pickle.loads(pickle.dumps(CASE)) == CASE


@pytest.mark.skipif(not memory.peak_is_measurable("cpu"), reason="needs Linux's clear_refs")
def test_the_peak_holds_what_is_held_and_kept():
    case = Case(TINY, 256, "fp32")
    step = line_up(case, ["full"])[0]["full"]
    least = step.held_bytes() + step.saved_bytes()
    assert step.saved_bytes() > 32 * MIB  # else it would drown in what libraries take
    assert least < peak_bytes(case, "full", step) < least + 48 * MIB


def test_no_peak_where_the_system_does_not_tell_or_kills_the_process(monkeypatch):
    step = line_up(CASE, ["frozen"])[0]["frozen"]

    def killed(*arguments):
        raise lineup.BrokenExecutor

    monkeypatch.setattr(memory, "peak_is_measurable", lambda device: True)
    monkeypatch.setattr(memory, "in_fresh_process", killed)
    assert peak_bytes(CASE, "frozen", step) is None
    monkeypatch.setattr(memory, "peak_is_measurable", lambda device: False)
    assert peak_bytes(CASE, "frozen", step) is None
