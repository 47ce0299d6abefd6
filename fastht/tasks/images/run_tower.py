"""The image tower of a run of ``fastht train``, with what it trained: for masks and labels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from torch import Tensor, nn

from fastht.checkpoint import load_adapter
from fastht.data.cases import Case, CaseSet, Split, split_part
from fastht.data.images import DataError
from fastht.data.places import Group, place_of
from fastht.data.signature import read_entries_table
from fastht.lora import add_lora, merge_lora
from fastht.tasks.models.build import VisionModel, build_clip
from fastht.tasks.models.echocare import ECHOCARE
from fastht.tasks.models.encoders import NO_HEAD, OWN, EncoderNames
from fastht.tasks.training.run_files import (
    ADAPTER_NAME,
    LORA_NAME,
    TOWERS_NAME,
    check_weights,
    read_run_arguments,
)
from fastht.tasks.training.seen import SPLIT_NAME
from fastht.tasks.training.state import ResumeError

_VISION = "visual."
_LEFT_OUT = "of val or test whose patient the run of --from-run trained on"


@dataclass(frozen=True)
class RunTower:
    """What a run of ``fastht train`` made of an image tower.

    Attributes:
        run: its folder.
        arguments: its options.
        sha256: of its weights' files.
    """

    run: Path
    arguments: Mapping[str, Any]
    sha256: str

    @property
    def method(self) -> str:
        """What adapted the model: ht, lora, lora-text, or none."""
        return str(self.arguments["method"])

    @property
    def adapter(self) -> Path | None:
        """The folder of its HT adapters; ``None``: it has none."""
        return self.run / ADAPTER_NAME if self.method == "ht" else None

    def record(self) -> dict[str, Any]:
        """Return what results tell of it, as plain JSON types."""
        towers = self.arguments.get("train_towers", "none")
        return {
            "method": self.method,
            "train_towers": towers,
            "data": self.arguments["data"],
            "sha256": self.sha256,
        }

    def build(self, image_size: int, *, adapted: bool = True) -> VisionModel:
        """Return the tower in float32 on the CPU: LoRA is merged into its weights.

        Args:
            image_size: side of the images in pixels, which has to be the run's.
            adapted: keep HT adapters in the blocks; otherwise the tower is what they adapted.

        Raises:
            CheckpointError: the HT adapters cannot be read or do not fit.
            ResumeError: other weights cannot be read or do not fit.
            ValueError: the images are of another size, or the model cannot be had.
        """
        arguments = self.arguments
        model, _ = build_clip(arguments["model"], arguments["pretrained"])
        vision: Any = model.visual
        size = vision.image_size
        sides = (size, size) if isinstance(size, int) else tuple(size)
        if sides != (image_size, image_size):
            raise ValueError(
                f"the image tower of {self.run} takes images of {sides[0]} x {sides[1]} pixels, "
                f"and --image-size is {image_size}; give --image-size {sides[0]}"
            )
        if (towers := self.run / TOWERS_NAME).exists():
            _put(model, towers, {n: t for n, t in model.state_dict().items() if _of_vision(n)})
        if self.method.startswith("lora"):
            add_lora(model, arguments["lora_rank"])
            trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
            _put(model, self.run / LORA_NAME, trained, all_of_them=True)
            merge_lora(model)
        elif self.adapter is not None and adapted:
            load_adapter(vision, self.adapter)
        model.requires_grad_(False)
        return VisionModel(vision, vision.image_mean, vision.image_std)


def read_run_tower(run: Path) -> RunTower:
    """Return what a run made of its tower.

    Raises:
        ValueError: the folder holds no run of ``fastht train``, one without weights, or one of a
            model whose image tower is not open_clip's own.
    """
    arguments = read_run_arguments(run, "--start")
    _check_model(run, arguments)
    method = arguments["method"]
    wanted = {"ht": [ADAPTER_NAME], "none": []}.get(method, [LORA_NAME])
    if method == "none" or arguments.get("train_towers", "none") != "none":
        wanted.append(TOWERS_NAME)
    check_weights(run, wanted)
    return RunTower(run, arguments, _digest(run / name for name in wanted))


def _check_model(run: Path, arguments: Mapping[str, Any]) -> None:
    """Refuse the runs of models whose towers are kept in another form than open_clip's."""
    names = EncoderNames(
        arguments["model"],
        arguments["pretrained"],
        arguments.get("text", OWN),
        arguments.get("head", NO_HEAD),
    )
    echocare = names.model.startswith(ECHOCARE)
    if not (names.dual or echocare):
        return
    what = "EchoCare's encoder" if echocare else "a dual encoder"
    base = names.model if echocare else f"{names.model} --pretrained {names.pretrained}"
    raise ValueError(
        f"{run} trained {what} ({names.title}), and --from-run takes the image tower of a model of "
        "open_clip alone, with --text own and --head none; train such a run, or give the base, "
        f"without what the run trained: --model {base}"
    )


def keep_run_sides(
    tower: RunTower, cases: CaseSet, val: float, test: float, seed: int
) -> tuple[CaseSet, dict[str, Split]]:
    """Keep what the run trained on out of validation and test, patient by patient.

    Patients whom the run trained on train here too; those whom it held out validate and test. Where
    the data gives its cases sides, those of val and test that the run trained on are left out, and
    counted. Images are known by their files, and patients by their names where any file is known.

    Args:
        tower: of the run.
        cases: of a data set.
        val: share of the data for validation.
        test: share of the data for the test.
        seed: of the split.

    Returns:
        The cases, and sides by the names of those that the run knows.

    Raises:
        DataError: the run's record cannot be read, or it held out fewer than two patients.
    """
    table = tower.run / SPLIT_NAME
    if not table.exists():
        return cases, {}
    trained: set[Group] = set()
    held: set[Group] = set()
    for entry in read_entries_table(table):
        side = trained if entry.split == "train" else held
        side.add((False, _real(entry.file)))
        if entry.patient:
            side.add((True, entry.patient))
    known = trained | held
    if not any((False, _real(case.image)) in known for case in cases):
        return cases, {}
    groups: dict[Group, list[Case]] = {}
    for case in cases:
        groups.setdefault(_group(case), []).append(case)

    def any_in(group: Group, members: list[Case], side: set[Group]) -> bool:
        return group in side or any((False, _real(case.image)) in side for case in members)

    learned = {g for g, members in groups.items() if any_in(g, members, trained)}
    if any(case.split for case in cases):
        kept = tuple(c for c in cases if c.split in (None, "train") or _group(c) not in learned)
        left_out = dict(cases.left_out)
        if count := len(cases.cases) - len(kept):
            left_out[_LEFT_OUT] = left_out.get(_LEFT_OUT, 0) + count
        return replace(cases, cases=kept, left_out=left_out), {}
    unseen = [g for g, members in groups.items() if g not in learned and any_in(g, members, held)]
    dealt = _deal(unseen, val / (val + test), seed)
    if learned and len(unseen) == len(groups) - len(learned) < 2:
        raise DataError(
            f"{cases.source}: {tower.run} trained on all but {len(unseen)} of its patients or "
            "images, and two are needed that it has not seen, for validation and test; train it "
            "with a larger --val-fraction, or give other data"
        )
    sides: dict[Group, Split] = dict.fromkeys(learned, "train")
    sides |= dealt
    return cases, {c.name: sides[g] for g, members in groups.items() if g in sides for c in members}


def _deal(groups: list[Group], share: float, seed: int) -> dict[Group, Split]:
    """Give groups to validation and test by their places; of two and more each gets one."""
    ordered = sorted(groups, key=lambda group: place_of(group, seed))
    count = sum(place_of(group, seed) < share for group in ordered)
    if len(ordered) > 1:
        count = min(max(count, 1), len(ordered) - 1)
    return {group: "val" if i < count else "test" for i, group in enumerate(ordered)}


def _group(case: Case) -> Group:
    return (True, case.patient) if case.patient is not None else (False, _real(case.image))


def _real(file: str) -> str:
    return os.path.realpath(split_part(file)[0])


def _of_vision(name: str) -> bool:
    return name.startswith(_VISION)


@torch.no_grad()
def _put(
    model: nn.Module, path: Path, targets: Mapping[str, Tensor], *, all_of_them: bool = False
) -> None:
    """Put the image tower's part of a file into a model; all or nothing."""
    try:
        found = from_safetensors(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise ResumeError(
            f"{path} cannot be read ({error}); give the run's folder as fastht train left it"
        ) from error
    state = {n: t for n, t in found.items() if _of_vision(n) and (n in targets or not all_of_them)}
    wrong = sorted(state.keys() - targets.keys())
    wrong += sorted(targets.keys() - state.keys()) if all_of_them else []
    wrong += [n for n in state if n in targets and state[n].shape != targets[n].shape]
    if wrong:
        raise ResumeError(
            f"{path} is of another model than {type(model).__name__}: {', '.join(wrong[:3])}, ... "
            "differ; give the run's folder as fastht train left it"
        )
    for name, tensor in state.items():
        targets[name].copy_(tensor)


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            digest.update(f"{file.name}\n".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
