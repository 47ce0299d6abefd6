"""``fastht bench``: training steps of one's own model and batch size, compared in one run."""

from __future__ import annotations

import dataclasses
import datetime
import json
import statistics
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import open_clip
import timm
import torch
from tqdm import tqdm

from fastht.backbones import find_backbone
from fastht.bench.fitting import Fitted, fit
from fastht.bench.front import front, front_text, plot_front
from fastht.bench.lineup import Case, LeftOut, is_out_of_memory, line_up, peak_bytes
from fastht.bench.machine import describe, multiplies_bf16
from fastht.bench.meter import Contestant, Limits, alternate
from fastht.bench.methods import METHODS, PAPER, find_method, front_names, remark
from fastht.bench.step import Precision
from fastht.bench.towers import ModelSpec
from fastht.budget import check_budget
from fastht.config import HTConfig
from fastht.files import write_atomically
from fastht.tasks.models.build import TINY_MODEL, model_source

WARM_UP = 2
BATCH_SIZES = {"cpu": 8, "cuda": 64}
PRECISIONS: dict[str, Precision] = {"cpu": "fp32", "cuda": "bf16"}
LEGEND = (
    "ms a step: the median. kept: what autograd keeps for the backward pass. peak: parameters, "
    "buffers and optimizer states, and what memory grows by in a step."
)

SLOW_BF16 = (
    "PyTorch has no fast products in bfloat16 on this processor, for they take AVX-512 or AMX: a "
    "step may take minutes. --precision fp32 is what to train in here."
)


@dataclass(frozen=True)
class BenchArguments:
    """Compare training steps of a vision tower with HT adapters, LoRA and others.

    The methods take turns in one run. Weights and images are random: times do not depend on them.

    Attributes:
        model: open_clip's name of the model, or timm's where open_clip has none of it; timm:NAME,
            hf-hub:ORG/REPO, local-dir:FOLDER, or "fastht-tiny".
        methods: of frozen, full, lora, lora-compiled, mona, ht-reference, ht-reference-compiled, ht
            and ht-compiled. ht-reference is HT in plain PyTorch, compiled is torch.compile. What
            computes activations of the base again (see fastht.patch): lora-mlp, lora-mlp-compiled,
            lora-block, lora-block-compiled, ht-mlp, ht-mlp-compiled, ht-block, ht-block-compiled;
            in six blocks alone: lora-mlp:6, ht-block:6-compiled and the like. ht-checkpointed has
            the library's own gradient checkpointing.
        front: measure HT and LoRA with every way to recompute, in all blocks and in some, compiled
            and not, and ht-checkpointed, in place of methods, and say which is faster within each
            budget of kept memory.
        picture: draw time against memory into this PNG file, which must not be there yet.
        memory_budget: MiB that the step of a method may hold, by itself (counted; working memory
            of single operations comes on top): what HT and LoRA compute again is chosen to fit,
            and without --batch-size the largest batch at which they all fit.
        batch_size: images a step; default: 8 on a CPU, 64 on a GPU.
        precision: fp32; bf16 (autocast); or bf16-base (autocast, with frozen weights in bf16);
            default: fp32 on a CPU, bf16 on a GPU.
        keep: which tokens adapters keep for the backward pass, input or output (see fastht.patch);
            auto: the output, of which the input is made again, where tokens are float32.
        image_size: side of the images in pixels; default: the model's.
        device: where to train.
        rounds: steps of each method that are timed.
        memory: measure memory too; on a CPU this takes one more process for every method.
        json: write everything to this file, which must not be there yet.
        adapter: what HT adapters are made of; Mona's are of the baseline variant always.
    """

    model: str = "ViT-B-16"
    methods: tuple[str, ...] = ("frozen", "lora", "mona", "ht-reference", "ht")
    front: bool = False
    picture: Path | None = None
    memory_budget: float | None = None
    batch_size: int | None = None
    precision: Precision | None = None
    keep: Literal["auto", "input", "output"] = "auto"
    image_size: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    rounds: int = 10
    memory: bool = True
    json: Path | None = None
    adapter: HTConfig = PAPER


@dataclass(frozen=True)
class Row:
    """What was measured of one method.

    Attributes:
        method: its name.
        detail: what it is.
        backend: what ``auto`` stands for, if the method asks for that.
        remark: what has to be known to read its times, if anything.
        seconds: of each step, one a round.
        trainable: how many numbers train.
        held_bytes: parameters, buffers and optimizer states.
        saved_bytes: activations kept for the backward pass; ``None`` if not measured.
        peak_bytes: the most memory of a step; ``None`` if not measured.
    """

    method: str
    detail: str
    backend: str | None
    remark: str | None
    seconds: list[float]
    trainable: int
    held_bytes: int
    saved_bytes: int | None = None
    peak_bytes: int | None = None

    @property
    def label(self) -> str:
        """The method's name, with the backend if it chose one."""
        return self.method if self.backend is None else f"{self.method} ({self.backend})"


def bench(arguments: BenchArguments, command: str) -> int:
    """Measure, print the table, and write the file that is asked for.

    Args:
        arguments: what to measure.
        command: the command line, for the file.

    Returns:
        The exit status: 1 if a method computes something else than its name says, or none could
        be measured.

    Raises:
        ValueError: an argument is out of range, the model is unknown or has no ViT, or memory does
            not suffice for the methods side by side.
        FileExistsError: the file to write exists.
    """
    target, picture = arguments.json, arguments.picture
    for option, path in (("--json", target), ("--picture", picture)):
        if path is not None and path.exists():
            raise FileExistsError(f"{option} {path} exists already; give another name")
        if path is not None and not path.parent.is_dir():
            raise FileNotFoundError(f"{option} {path}: there is no folder {path.parent}")
    if (arguments.front or picture is not None) and not arguments.memory:
        raise ValueError("--front and --picture are about memory: leave out --no-memory")
    check_budget(arguments.memory_budget)
    if arguments.front and arguments.memory_budget is not None:
        raise ValueError("--front is about every budget: leave out --memory-budget")
    case = make_case(arguments)
    names = _front(case.model) if arguments.front else _method_names(arguments.methods)
    if arguments.rounds < 2:
        raise ValueError(f"--rounds is {arguments.rounds}; a median with quartiles takes two")
    machine = describe(case.device)
    if case.precision != "fp32" and not multiplies_bf16(case.device):
        print(textwrap.fill(SLOW_BF16, 100), file=sys.stderr)  # before the minutes that it costs
    fitted: Fitted | None = None
    if arguments.memory_budget is not None:
        fitted = fit(case, names, arguments.memory_budget, arguments.batch_size)
        case, names = fitted.case, fitted.names
        print(fitted.describe(), flush=True)
    rows, left_out = measure(case, names, arguments.rounds, with_memory=arguments.memory)
    if fitted is not None:
        left_out |= fitted.left_out
    print(_introduction(arguments, case, machine))
    if rows:
        print(f"\n{table(rows, case.batch)}\n")
    if arguments.front and rows:
        print(f"{front_text(front(rows))}\n")
    if picture is not None and rows:
        plot_front(rows, f"{arguments.model}, batch {case.batch}, {case.precision}", picture)
    remarks = [
        f"{', '.join(row.method for row in rows if row.remark == text)}: {text}."
        for text in dict.fromkeys(row.remark for row in rows if row.remark is not None)
    ]
    missing = [f"{name} is left out: {why.reason}." for name, why in left_out.items()]
    for text in (*([LEGEND] if rows else []), *remarks, *missing):
        print(textwrap.fill(text, 100))
    if target is not None:
        content = {
            "command": command,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "machine": machine,
            "case": {**dataclasses.asdict(case), "config": case.config.to_dict()},
            "warm_up": WARM_UP,
            "memory": {} if fitted is None else _plain(fitted),
            "methods": [dataclasses.asdict(row) for row in rows],
            "left_out": {name: why.reason for name, why in left_out.items()},
            "front": [
                {
                    "kept_bytes": best.budget,
                    "ht": None if best.ht is None else best.ht.method,
                    "lora": None if best.lora is None else best.lora.method,
                    "of_loras_time": best.share,
                }
                for best in (front(rows) if arguments.front else ())
            ],
        }
        write_atomically(target, (json.dumps(content, indent=2) + "\n").encode())
    return int(not rows or any(why.incorrect for why in left_out.values()))


def make_case(arguments: BenchArguments) -> Case:
    """Return what the arguments ask for, with this machine's defaults.

    Raises:
        ValueError: there is no such model, or no GPU where one is asked for.
    """
    has_gpu = torch.cuda.is_available()
    if arguments.device == "cuda" and not has_gpu:
        raise ValueError("--device cuda: torch sees no CUDA GPU")
    device = arguments.device
    if device == "auto":
        device = "cuda" if has_gpu else "cpu"
    batch = BATCH_SIZES[device] if arguments.batch_size is None else arguments.batch_size
    precision = arguments.precision or PRECISIONS[device]
    model = find_model(arguments.model, arguments.image_size)
    return Case(model, batch, precision, device, arguments.adapter, arguments.keep)


def find_model(name: str, image_size: int | None = None) -> ModelSpec:
    """Return the model that ``--model`` names.

    Raises:
        ValueError: neither open_clip nor timm has it.
    """
    library, _, rest = name.rpartition(":")
    if library == "timm":
        return ModelSpec("timm", rest, image_size)
    source = model_source(name)
    if ":" in source or source in open_clip.list_models():
        return ModelSpec("open_clip", source, image_size)
    if timm.is_model(name):
        return ModelSpec("timm", name, image_size)
    raise ValueError(
        f"neither open_clip nor timm has a model {name!r}; open_clip.list_models() and "
        f"timm.list_models() name theirs, {TINY_MODEL!r} is fastht's own, and hf-hub:ORG/REPO or "
        "local-dir:FOLDER take others of open_clip's"
    )


def measure(
    case: Case, names: Sequence[str], rounds: int, *, with_memory: bool
) -> tuple[list[Row], dict[str, LeftOut]]:
    """Return a row for each method that can train the case, and why the others cannot.

    On a terminal a bar shows the progress.

    Raises:
        ValueError: the model cannot be built, or memory does not suffice for all methods at once.
    """
    steps_each = 2 + WARM_UP + rounds + 1  # built, run once, timed, memory
    with tqdm(total=len(names) * steps_each, disable=None, leave=False) as bar:
        bar.set_description("building")
        steps, left_out = line_up(case, names, bar.update)
        if not steps:
            return [], left_out
        bar.set_description("timing")
        contestants = {name: _ticking(step.contestant, bar) for name, step in steps.items()}
        limits = Limits(WARM_UP, rounds, 0.0, float("inf"))
        try:
            seconds = alternate(contestants, device=case.device, limits=limits)
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise ValueError(
                    "each method fits into memory, but not all of them side by side; give a "
                    "smaller --batch-size or fewer --methods"
                ) from None
            raise
        bar.set_description("memory")
        rows = []
        for name, step in steps.items():
            row = Row(
                method=name,
                detail=find_method(name).detail,
                backend=step.backend,
                remark=remark(step.model),
                seconds=seconds[name],
                trainable=step.trainable,
                held_bytes=step.held_bytes(),
                saved_bytes=step.saved_bytes() if with_memory else None,
                peak_bytes=peak_bytes(case, name, step) if with_memory else None,
            )
            rows.append(row)
            bar.update()
    return rows, left_out


def table(rows: Sequence[Row], batch: int) -> str:
    """Return the rows as text, with LoRA's time for comparison where it is among them."""
    lora = next((row.seconds for row in rows if row.method == "lora"), None)
    columns: dict[str, list[str]] = {
        "method": [row.label for row in rows],
        "ms a step": [_milliseconds(row.seconds)[0] for row in rows],
        "quartiles": [_milliseconds(row.seconds)[1] for row in rows],
        "images/s": [f"{batch / statistics.median(row.seconds):.1f}" for row in rows],
    }
    if lora is not None:
        # Round by round: methods can differ by less than the machine drifts within a run.
        shares = [
            statistics.median(a / b for a, b in zip(row.seconds, lora, strict=True)) for row in rows
        ]
        columns["of LoRA's time"] = [f"{100 * share:.0f} %" for share in shares]
    for name, found in (
        ("kept MiB", [row.saved_bytes for row in rows]),
        ("peak MiB", [row.peak_bytes for row in rows]),
    ):
        if any(number is not None for number in found):
            columns[name] = ["-" if n is None else f"{n / 2**20:.1f}" for n in found]
    columns["trainable"] = [f"{row.trainable:,}" for row in rows]
    widths = {name: max(map(len, (name, *cells))) for name, cells in columns.items()}

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths.values(), strict=True)
        return "   ".join([first[0].ljust(first[1]), *(c.rjust(width) for c, width in others)])

    head = line(list(columns))
    body = [line(cells) for cells in zip(*columns.values(), strict=True)]
    return "\n".join([head, "-" * len(head), *body])


def _milliseconds(seconds: Sequence[float]) -> tuple[str, str]:
    """Return the median and the quartiles."""
    low, middle, high = (1e3 * q for q in statistics.quantiles(seconds, n=4, method="inclusive"))
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 2
    return f"{middle:.{digits}f}", f"{low:.{digits}f} to {high:.{digits}f}"


def _ticking(contestant: Contestant, bar: Any) -> Contestant:
    """Return a contestant that moves the bar before each of its runs, off the clock."""

    def prepare() -> Any:
        bar.update()
        return contestant.prepare()

    return Contestant(contestant.run, prepare)


def _plain(fitted: Fitted) -> dict[str, Any]:
    """Return what was chosen for each method, as plain JSON types."""
    return {name: choice.plain() for name, choice in fitted.choices.items()}


def _method_names(given: Sequence[str]) -> list[str]:
    if not given:
        raise ValueError(f"--methods is empty; choose of {', '.join(METHODS)}")
    return [find_method(name).name for name in dict.fromkeys(given)]


def _front(model: ModelSpec) -> list[str]:
    return front_names(len(find_backbone(model.build()).blocks))


def _introduction(arguments: BenchArguments, case: Case, machine: dict[str, Any]) -> str:
    size = "" if case.model.image_size is None else f" at {case.model.image_size} px"
    what = f"{arguments.model}{size}, random weights, batch {case.batch}, {case.precision}"
    if case.keep != "auto":
        what += f", adapters keep their {case.keep}"
    where = machine["gpu"] or f"{machine['cpu']}, threads: {machine['threads']}"
    if machine["load"] is not None:  # of others: a busy machine tells nothing
        where += f", load before: {machine['load']:.1f}"
    versions = f"torch {machine['packages']['torch']}, fastht {machine['fastht']}"
    return f"{what}, {arguments.rounds} rounds\n{where}, {versions}"
