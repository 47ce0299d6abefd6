"""Which methods can train a case here, ready to be timed, and why the others cannot."""

from __future__ import annotations

import functools
import gc
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from fastht.bench import memory
from fastht.bench.gate import IncorrectError
from fastht.bench.machine import cache_bytes
from fastht.bench.meter import Rotation
from fastht.bench.methods import PAPER, UnusableError, find_method
from fastht.bench.step import Precision, Step
from fastht.bench.towers import ModelSpec, image_size
from fastht.config import HTConfig

# Images are small beside what a step moves, so that a step leaves little of them in the cache;
# more sets would only take memory from the models.
MAX_IMAGE_SETS = 4


@dataclass(frozen=True)
class Case:
    """What is trained; the methods that are compared have all of it in common.

    Attributes:
        model: the vision tower.
        batch: images a step.
        precision: one of ``Precision``.
        device: ``"cpu"`` or ``"cuda"``.
        config: what HT adapters are made of; Mona's are the same with ``variant="baseline"``.
        keep: which tokens adapters keep for the backward pass, as :func:`fastht.patch` takes it.

    Raises:
        ValueError: the batch size or the precision is none.
    """

    model: ModelSpec
    batch: int
    precision: Precision
    device: str = "cpu"
    config: HTConfig = PAPER
    keep: str = "auto"

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"the batch size is {self.batch}; a step takes at least one image")
        if self.precision not in get_args(Precision):
            raise ValueError(
                f"there is no precision {self.precision!r}; choose one of {get_args(Precision)}"
            )

    def __str__(self) -> str:
        return f"{self.model} batch {self.batch} {self.precision}"


@dataclass(frozen=True)
class LeftOut:
    """Why a method has no times.

    Attributes:
        reason: one line for people.
        incorrect: whether it computes something else than its name says.
    """

    reason: str
    incorrect: bool = False


def line_up(
    case: Case, names: Sequence[str], tick: Callable[[], object] = lambda: None
) -> tuple[dict[str, Step], dict[str, LeftOut]]:
    """Return the steps of a case by method, checked and run once, and who is left out.

    What was compiled for another case is forgotten.

    Args:
        case: what is trained.
        names: as :func:`fastht.bench.methods.find_method` takes them.
        tick: is called twice a method.

    Raises:
        ValueError: the model cannot be built.
    """
    torch.compiler.reset()  # each case compiles for its own sizes and none counts as a recompile
    memory.return_free_memory()  # of the case before: two at once can be more than there is
    images = functools.cache(functools.partial(make_images, case, MAX_IMAGE_SETS))
    steps: dict[str, Step] = {}
    left_out: dict[str, LeftOut] = {}

    def build(name: str) -> None:
        steps[name] = make_step(case, name, images)

    def run(name: str) -> None:
        steps[name].check()
        steps[name].contestant.once()

    # All are built before one runs: fastht.patch makes torch.compile forget what it compiled.
    for action in (build, run):
        for name in names:
            if name not in left_out and (reason := _attempt(action, name)):
                left_out[name] = reason
                steps.pop(name, None)
                gc.collect()
            tick()
    return steps, left_out


def peak_bytes(case: Case, name: str, step: Step) -> int | None:
    """Return the most memory that one method's step takes, in bytes.

    It is ``step.peak_bytes()``; on a CPU that of an equal step in a fresh process.

    Returns:
        ``None`` where the system does not tell, or has no memory for that process.
    """
    if not memory.peak_is_measurable(case.device):
        return None
    if case.device == "cuda":
        return step.peak_bytes()
    try:
        return memory.in_fresh_process(_fresh_peak_bytes, case, name)
    except Exception as error:
        if isinstance(error, BrokenExecutor) or is_out_of_memory(error):
            return None
        raise


def make_step(case: Case, name: str, images: Callable[[tuple[int, int]], Rotation[Tensor]]) -> Step:
    """Build one method's step; ``images`` makes them for a height and width in pixels."""
    tower = case.model.build().to(case.device)
    made_for = images(image_size(tower))
    with torch.random.fork_rng(devices=[0] if case.device == "cuda" else []):
        torch.manual_seed(0)
        method = find_method(name)
        return Step(method, tower, made_for, case.precision, case.config, case.keep)


def make_images(case: Case, sets: int, size: tuple[int, int]) -> Rotation[Tensor]:
    """Return at most ``sets`` sets of the same random images, fewer if they outgrow the cache."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(case.batch, 3, *size, generator=generator).to(case.device)
    outgrown = min(cache_bytes(case.device), (sets - 1) * images.nbytes)
    return Rotation(images.clone, images.nbytes, outgrown)


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory did not suffice; on a CPU PyTorch has no type for that."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _fresh_peak_bytes(case: Case, name: str) -> int:
    logging.basicConfig(level=logging.ERROR)  # open_clip warns that the weights are random
    step = make_step(case, name, functools.partial(make_images, case, 1))
    images = step.images.next()
    # What a backend allocates for its calls and keeps belongs to the step, so one image alone warms
    # up. Compiled code is for the full batch, and keeps nothing.
    step.run(images if step.method.compiled else images[:1])
    return step.peak_bytes()


def _attempt(action: Callable[[str], None], name: str) -> LeftOut | None:
    """Do something for a method; return why it is left out, not the error, which holds tensors."""
    try:
        action(name)
    except Exception as error:
        # Two lines, for torch.compile tells the cause in the second.
        line = " ".join(str(error).split("\n")[:2]).strip(" .")
        if isinstance(error, IncorrectError):
            return LeftOut(f"incorrect: {line}", incorrect=True)
        if isinstance(error, UnusableError):
            return LeftOut(line)
        if is_out_of_memory(error):
            return LeftOut("out of memory; a smaller batch may fit")
        if find_method(name).compiled and isinstance(error, RuntimeError):
            return LeftOut(f"torch.compile fails: {line}")
        raise
    return None
