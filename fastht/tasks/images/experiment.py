"""What an experiment on masks or labels is made of: its options, its data and its models."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from fastht.data.account import note_sides, one_class
from fastht.data.augment import PaperAugmentation
from fastht.data.cases import Case, CaseSet, Split, Task
from fastht.data.images import DataError
from fastht.data.resize import RESIZES, Resize
from fastht.data.source import DataSource
from fastht.data.splits import sample_sides, split_cases
from fastht.data.task_dataset import TaskDataset
from fastht.patch import adapters
from fastht.tasks.images.goals import ClassificationGoal, SegmentationGoal
from fastht.tasks.images.run_tower import keep_run_sides, read_run_tower
from fastht.tasks.images.supervised import Goal
from fastht.tasks.models.baselines import BASELINES, BaselineSettings
from fastht.tasks.models.build import TINY_MODEL, VisionModel, build_vision, tower_depth
from fastht.tasks.models.features import BlockFeatures, default_blocks
from fastht.tasks.models.heads import Classifier, Segmenter
from fastht.tasks.models.methods import METHODS, AdapterSettings, apply_method
from fastht.tasks.scores.native import Tolerances
from fastht.tasks.training.config import TrainerConfig
from fastht.tasks.training.seen import kept_sides

FEW_SHOT_PERCENTS = (1.0, 2.0, 5.0, 10.0, 20.0, 35.0, 50.0)
_DEPTH = 12  # of the towers that baselines bring
ArgumentsT = TypeVar("ArgumentsT", bound="ExperimentArguments")


@dataclass(frozen=True)
class ExperimentArguments(DataSource):
    """Train a head, and what each method adds to the vision tower under it; compare the methods.

    Each method, percentage and repeat is a run with a folder of its own below ``out``.

    Attributes:
        val_fraction: share of the data by which the best epoch is chosen, where the data comes
            without such a split.
        test_fraction: share of the data for the final numbers, likewise.
        methods: frozen, lora, mona, ht-noise, ht-filter, ht, ht-full; unet, clipseg (segment);
            resnet18, linear-probe, full (classify); dinov2.
        percents: shares of the training data, of every class alike.
        repeats: runs of each, with the seeds that follow --seed; the split is that of --seed.
        model: open_clip's name, hf-hub:ORG/REPO, local-dir:FOLDER, timm:NAME, or "fastht-tiny".
        pretrained: open_clip's tag, "timm" for timm's weights, the file of the weights, or "none"
            for random ones. Other baselines take their library's weights, but for "none".
        start: folder of a saved HT adapter that HT methods start from, as of fastht train.
        from_run: folder of a run of fastht train whose image tower methods start from, with what
            it trained, in place of --model and --pretrained: LoRA merged, HT adapters kept; HT
            methods go on with these. What it trained on stays in training.
        blocks: blocks of the tower whose features the head takes, from 0; default: at a quarter, a
            half and three quarters of its depth, of twelve 3, 6 and 9.
        width: features of the head.
        image_size: side of the images in pixels.
        resize: how images of other shapes become square: squash them, as in the paper, or
            letterbox: keep the shape and leave a black border, which counts in nothing.
        tolerance_px: how far from the true outline a predicted one is right, for the normalised
            surface Dice, in pixels of the image's own size.
        tolerance_mm: likewise in millimetres, for images of known spacing.
        augment: augment training images as in the paper.
        prompt: what clipseg is asked for.
        settings: sizes of adapters.
        trainer: how to train.
        out: folder of the experiment.
        resume: go on with the experiment in that folder.
    """

    val_fraction: float = 0.1
    test_fraction: float = 0.2
    methods: tuple[str, ...] = ("ht",)
    percents: tuple[float, ...] = (100.0,)
    repeats: int = 1
    model: str = "ViT-B-16"
    pretrained: str = "openai"
    start: Path | None = None
    from_run: Path | None = None
    blocks: tuple[int, ...] | None = None
    width: int = 512
    image_size: int = 224
    resize: Resize = "squash"
    tolerance_px: float = Tolerances.px
    tolerance_mm: float = Tolerances.mm
    augment: bool = True
    prompt: str = "a lesion in an ultrasound image"
    settings: AdapterSettings = field(default_factory=AdapterSettings)
    # The published code looks every tenth epoch and stops after fifteen looks without improvement.
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(epochs=200, patience=150))
    out: Path = Path("runs/experiment")
    resume: bool = False

    def __post_init__(self) -> None:
        for name in ("methods", "percents", "blocks"):
            values = getattr(self, name)
            if name == "blocks" and values is None:
                continue
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} is {list(values)}; name at least one, each once")
        for name in ("repeats", "width", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.resize not in RESIZES:
            raise ValueError(f"resize is {self.resize!r}; choose of {', '.join(RESIZES)}")
        if self.start is not None and self.from_run is not None:
            raise ValueError(
                "--start and --from-run are both given: a run has its own adapter; leave out one"
            )
        self.tolerances  # noqa: B018 (refuses what is out of range)
        if not (self.val_fraction > 0 < self.test_fraction):
            raise ValueError("val_fraction and test_fraction must both be above 0")
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction and test_fraction leave nothing to train on")

    @property
    def tolerances(self) -> Tolerances:
        """Those of the normalised surface Dice."""
        return Tolerances(self.tolerance_px, self.tolerance_mm)

    @property
    def resize_stated(self) -> dict[str, str]:
        """How results name what they do not have in common with the paper."""
        return {} if self.resize == "squash" else {"resize": self.resize}

    def plain(self) -> dict[str, Any]:
        """Return the options as plain JSON types."""
        options = dataclasses.asdict(self)
        for name in ("start", "from_run", "out"):
            options[name] = None if options[name] is None else str(options[name])
        return options

    def starts_from_run(self, method: str) -> bool:
        """Whether a method starts from the tower of ``from_run``."""
        own = method in METHODS or BASELINES[method].of_tower
        return own and self.from_run is not None

    def blocks_of(self, method: str) -> tuple[int, ...]:
        """Return the blocks whose features a method's head takes."""
        if self.blocks is not None:
            return self.blocks
        own = method in METHODS
        return default_blocks(tower_depth(self.model, self.image_size) if own else _DEPTH)

    @classmethod
    def from_plain(cls, options: dict[str, Any]) -> ExperimentArguments:
        """Return the options from :meth:`plain`, which may have been JSON meanwhile.

        Options that a run of an older version did not have are at their defaults, which are what it
        did.
        """
        made: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in options.items()
        }
        made["settings"] = AdapterSettings(**made["settings"])
        made["trainer"] = TrainerConfig(**made["trainer"])
        for name in ("start", "from_run"):
            made[name] = None if made.get(name) is None else Path(made[name])
        made["out"] = Path(made["out"])
        return cls(**made)


def for_sample(arguments: ArgumentsT, out: Path) -> ArgumentsT:
    """Return options with defaults for the embedded sample.

    Minutes on two cores instead of hours on a GPU: a small random base, which learns from few
    images by larger steps.
    """
    return dataclasses.replace(
        arguments,
        model=TINY_MODEL,
        pretrained="none",
        blocks=(1, 3, 5),
        width=128,
        image_size=112,
        trainer=TrainerConfig(epochs=30, batch_size=16, lr=1e-3, patience=0, workers=0),
        out=out,
    )


def check_methods(methods: Sequence[str], task: Task) -> None:
    """Raise ``ValueError`` for a method that there is not, or not for this task."""
    for name in methods:
        if name in METHODS or (name in BASELINES and task in BASELINES[name].tasks):
            continue
        known = [*METHODS, *(n for n, baseline in BASELINES.items() if task in baseline.tasks)]
        raise ValueError(f"there is no method {name!r} to {task}; choose of {', '.join(known)}")


def load_split(arguments: ExperimentArguments, task: Task, runs: Iterable[Path] = ()) -> CaseSet:
    """Return the cases of the data with the sides that they belong to.

    Args:
        arguments: the options.
        task: which cases.
        runs: folders of runs with these options. Where one of them is there, its sides stay:
            earlier versions dealt them otherwise.

    Raises:
        DataError: the data cannot be used.
    """
    fractions = (
        1 - arguments.val_fraction - arguments.test_fraction,
        arguments.val_fraction,
        arguments.test_fraction,
    )
    found = arguments.load(task)
    if task == "classify" and len(found.classes) == 1:
        raise DataError(one_class(found))
    of_run: dict[str, Split] = {}
    if arguments.from_run is not None:
        tower, seed = read_run_tower(arguments.from_run), arguments.trainer.seed
        found, of_run = keep_run_sides(tower, found, *fractions[1:], seed)
    kept = kept_sides(runs, found) or of_run
    if arguments.data == "sample":
        kept = kept or sample_sides(found, fractions, arguments.trainer.seed)
    divided = split_cases(found, fractions, seed=arguments.trainer.seed, kept=kept)
    sides = note_sides(divided) if task == "classify" else ()
    return dataclasses.replace(divided, notes=(*divided.notes, *sides))


def build_model(
    arguments: ExperimentArguments, task: Task, method: str, classes: int
) -> VisionModel:
    """Return a model from images to logits, of which what has ``requires_grad`` is to be trained.

    Args:
        arguments: the options.
        task: which logits: of two masks, or of ``classes``.
        method: a key of ``METHODS`` or ``BASELINES``.
        classes: how many classes there are.

    Raises:
        CheckpointError: an HT adapter to start from cannot be read or does not fit.
        ResumeError: the tower of the run to start from cannot be read.
        ValueError: the model is unknown, or does not fit the options.
    """
    run = None if arguments.from_run is None else read_run_tower(arguments.from_run)
    if method in BASELINES:
        return BASELINES[method].build(
            BaselineSettings(
                task=task,
                classes=classes,
                image_size=arguments.image_size,
                width=arguments.width,
                blocks=arguments.blocks,
                model=arguments.model,
                pretrained=arguments.pretrained,
                prompt=arguments.prompt,
                tower=None if run is None else functools.partial(run.build, arguments.image_size),
            )
        )
    start, chosen = arguments.start, METHODS[method]
    if run is None:
        vision = build_vision(arguments.model, arguments.pretrained, arguments.image_size)
    else:
        # An HT method goes on with the run's adapters, any other keeps them as they are.
        start = run.adapter if chosen.variant is not None else None
        vision = run.build(arguments.image_size, adapted=chosen.variant is None)
        if run.adapter is not None and start is None:
            for adapter in adapters(vision.module).values():  # they do not train: no dropout
                adapter.config = dataclasses.replace(adapter.config, dropout=0.0)
    features = BlockFeatures(vision.module, arguments.blocks)
    layers = range(features.deepest + 1)
    apply_method(vision.module, chosen, layers, arguments.settings, start)
    model: nn.Module = (
        Segmenter(features, width=arguments.width)
        if task == "segment"
        else Classifier(features, classes, arguments.width)
    )
    return dataclasses.replace(vision, module=model)


def make_goal(arguments: ExperimentArguments, task: Task, classes: Sequence[str]) -> Goal:
    """Return what is learnt and scored."""
    if task == "segment":
        return SegmentationGoal(arguments.tolerances)
    return ClassificationGoal(classes)


def make_dataset(
    arguments: ExperimentArguments,
    task: Task,
    cases: Sequence[Case],
    vision: VisionModel,
    classes: Sequence[str],
    *,
    seed: int = 0,
    training: bool = False,
) -> TaskDataset:
    """Return cases as a data set for a model, augmented if it is for training and they ask for it.

    Raises:
        DataError: a label is not among the classes.
    """
    return TaskDataset(
        cases,
        arguments.image_size,
        mean=vision.mean,
        std=vision.std,
        classes=classes if task == "classify" else None,
        with_masks=task == "segment",
        augment=PaperAugmentation() if training and arguments.augment else None,
        seed=seed,
        resize=arguments.resize,
    )
