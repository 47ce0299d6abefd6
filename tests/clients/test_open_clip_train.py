"""open_clip's training program with adapters: what is saved, what is equal, what is refused."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from open_clip_runs import difference, options, prepare, result
from torch import Tensor

import fastht

open_clip = pytest.importorskip("open_clip")
program = pytest.importorskip("open_clip_train.main", exc_type=ImportError)

from fastht.clients import open_clip_train  # noqa: E402

Run = Callable[..., "tuple[dict[str, Tensor], Path]"]


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    # The program sets the levels of all loggers that there are: PyTorch's compiler then tells all.
    others = [logging.getLogger(name) for name in list(root.manager.loggerDict)]
    levels = [logger.level for logger in others]
    yield
    for logger, own in zip(others, levels, strict=True):
        logger.setLevel(own)
    for handler in set(root.handlers) - set(before):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Train a tiny model; return its last checkpoint's weights and its folder."""
    prepare(tmp_path, pytest.importorskip("PIL.Image"))

    def train(name: str, *more: str, adapters: bool = True) -> tuple[dict[str, Tensor], Path]:
        arguments = options(tmp_path, name, *more)
        if adapters:
            open_clip_train.main(["--ht", "dropout=0", *arguments])
        else:
            program.main(arguments)
        return result(tmp_path, name), tmp_path / name

    return train


def test_checkpoints_hold_the_base_and_the_adapters(run: Run, tmp_path: Path) -> None:
    weights, folder = run("run")
    plain, _ = run("plain", "--lr", "0", "--wd", "0", adapters=False)
    base = {name: tensor for name, tensor in weights.items() if ".ht." not in name}
    assert base.keys() == plain.keys()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in base.items())
    assert sum("up.weight" in name and bool(weights[name].any()) for name in weights) == 2

    model = open_clip.create_model(f"local-dir:{tmp_path}")
    model.load_state_dict(plain)
    fastht.load_adapter(model, folder / "adapter")
    assert all(torch.equal(model.state_dict()[name], weights[name]) for name in weights)


def test_what_must_be_equal_is(run: Run, tmp_path: Path) -> None:
    weights, _ = run("run")
    again, _ = run("again")
    assert difference(again, weights) == 0
    for name, *more in (
        ("checkpointed", "--grad-checkpointing"),
        ("accumulated", "--batch-size", "4", "--accum-freq", "2"),
        ("blocked", "--ht-loss", "fastht"),
    ):
        other, _ = run(name, *more)
        assert difference(other, weights) < 1e-2, name
    other, _ = run("hotter", "--lr", "2e-2")
    assert difference(other, weights) > 0.1


def test_resuming(run: Run, tmp_path: Path) -> None:
    """open_clip keeps no state of random numbers, so nothing random may be left in the second."""
    weights, folder = run("run", "--batch-size", "16")
    first = folder / "checkpoints" / "epoch_1.pt"
    resumed, _ = run("resumed", "--batch-size", "16", "--resume", str(first))
    assert difference(resumed, weights) < 1e-2
    assert difference(resumed, torch.load(first, weights_only=False)["state_dict"]) > 0.1


def test_siglip_and_scripted(run: Run) -> None:
    own, _ = run("siglip", "--siglip")
    other, _ = run("blocked", "--siglip", "--ht-loss", "fastht")
    assert difference(own, other) < 1e-2
    # One batch an epoch, since TorchScript draws a dropout's random numbers at zero, too.
    eager, _ = run("eager", "--batch-size", "16")
    scripted, _ = run("scripted", "--batch-size", "16", "--torchscript")
    assert difference(scripted, eager) < 1e-2


def test_bfloat16_with_checkpointing_and_accumulation(run: Run) -> None:
    exact, _ = run("exact")
    mixed, _ = run("mixed", "--precision", "amp_bf16")
    assert 0 < difference(mixed, exact) < 0.3
    checkpointed, _ = run("checkpointed", "--precision", "amp_bf16", "--grad-checkpointing")
    assert difference(checkpointed, mixed) < 1e-2
    both = ("--grad-checkpointing", "--batch-size", "4", "--accum-freq", "2", "--siglip")
    whole, _ = run("whole", "--precision", "amp_bf16", "--siglip")
    accumulated, _ = run("accumulated", "--precision", "amp_bf16", *both)
    assert difference(accumulated, whole) < 0.1
    pure, _ = run("pure", "--precision", "pure_bf16")
    assert {t.dtype for name, t in pure.items() if ".ht." in name} == {torch.float32}
    assert pure["visual.conv1.weight"].dtype == torch.bfloat16
    assert 0 < difference(pure, exact) < 0.3


def test_a_compiled_model_trains_the_same(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the inductor, which takes minutes; `open_clip_train` names no other backend."""
    compiled: list[Any] = []

    def compile_(model: Any) -> Any:
        compiled.append(model)
        return own(model, backend="eager")

    own = torch.compile
    expected, _ = run("eager", "--epochs", "2")
    monkeypatch.setattr(torch, "compile", compile_)
    weights, folder = run("compiled", "--torchcompile")
    assert len(compiled) == 1
    assert difference(weights, expected) < 1e-2
    assert weights.keys() == expected.keys()
    assert fastht.saved.read_adapter(folder / "adapter").weights.keys() == {
        f"blocks.{i}.{n}" for i, a in fastht.adapters(compiled[0]).items() for n in a.state_dict()
    }


@pytest.mark.slow
def test_what_the_inductor_compiles_trains_the_same(run: Run) -> None:
    expected, _ = run("eager")
    weights, _ = run("compiled", "--torchcompile")
    assert difference(weights, expected) < 1e-2
    assert weights.keys() == expected.keys()


WORKER = Path(__file__).parent.parent / "open_clip_worker.py"
# Of two processes with half of the images each, as in one with all of them.
WHOLE = ("--batch-size", "16")
JOINT = ("--local-loss", "--gather-with-grad")
TWO_PROCESSES = {
    "clip": ((*WHOLE,), (*JOINT,)),
    "clip-fastht": ((*WHOLE,), (*JOINT, "--ht-loss", "fastht")),
    "siglip": ((*WHOLE, "--siglip"), ("--siglip",)),
    "siglip-fastht": ((*WHOLE, "--siglip"), ("--siglip", "--ht-loss", "fastht")),
    "checkpointed": ((*WHOLE,), (*JOINT, "--grad-checkpointing", "--ddp-static-graph")),
}


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
def test_two_processes_train_what_one_does(run: Run, tmp_path: Path) -> None:
    words = [f"{name}:{' '.join(two)}" for name, (_, two) in TWO_PROCESSES.items()]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(tmp_path), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | place | {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"},
        )
        for rank in "01"
    ]
    try:
        outputs = [process.communicate(timeout=500)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    alone: dict[tuple[str, ...], dict[str, Tensor]] = {}
    for name, (one, _) in TWO_PROCESSES.items():
        if one not in alone:
            alone[one], _ = run(f"alone-{len(alone)}", *one)
        assert difference(result(tmp_path, name), alone[one]) < 1e-2, name
        saved = fastht.saved.read_adapter(tmp_path / name / "adapter").weights
        key = next(k for k in alone[one] if k.endswith(".0.ht.up.weight"))
        assert torch.equal(saved["blocks.0.up.weight"], result(tmp_path, name)[key])
    first, second = alone.values()
    assert difference(first, second) > 0.1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--ht", "dropout"], "give FIELD=VALUE"),
        (["--ht", "variant=mona"], "choose one of"),
        (["--ht", "depth=3"], "no field 'depth'"),
        (["--force-patch-dropout", "0.5"], "force_patch_dropout=0.0"),
    ],
)
def test_refusals_leave_the_program_as_it_was(run: Run, more: list[str], message: str) -> None:
    factories = program.create_model_and_transforms, program.create_loss
    with pytest.raises((SystemExit, ValueError), match=message):
        run("refused", *more)
    assert (program.create_model_and_transforms, program.create_loss) == factories
