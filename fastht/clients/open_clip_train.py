"""open_clip's own training program on patched models: its command line, its checkpoints.

    python -m fastht.clients.open_clip_train [--ht FIELD=VALUE ...] OPTIONS OF open_clip_train.main

The model that open_clip creates gets adapters, and everything after is open_clip's: data,
precision, gradient checkpointing, accumulation, compiling, processes, checkpoints and resuming.
A checkpoint holds the base's keys, unchanged, and the adapters' beside them. At the end the
adapters alone are saved too, to ``LOGS/NAME/adapter``, for :func:`fastht.load_adapter`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

import fastht
from fastht.losses import ClipLoss, SigLipLoss

_REPLACED = ("create_model_and_transforms", "create_loss")


class _Run:
    """One run: what open_clip's program is given in place of its two factories."""

    def __init__(self, config: fastht.HTConfig, backend: str, own_loss: bool) -> None:
        self.config = config
        self.backend = backend
        self.own_loss = own_loss
        self.model: nn.Module | None = None
        self.arguments: argparse.Namespace | None = None

    def create_model(self, create: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Create a model and patch it; the second one of a run, distillation's teacher, is not."""
        if self.model is not None:
            return create(*args, **kwargs)
        script = kwargs.pop("jit", False)  # a scripted model cannot be patched any more
        model, *transforms = create(*args, **kwargs)
        self.model = fastht.patch(model, self.config, backend=self.backend)
        return (torch.jit.script(self.model) if script else self.model, *transforms)

    def create_loss(self, create: Callable[..., Any], arguments: argparse.Namespace) -> Any:
        """Create open_clip's loss, or fastht's of the same meaning."""
        self.arguments = arguments
        if not self.own_loss:
            return create(arguments)
        if arguments.distill or "coca" in arguments.model.lower():
            raise SystemExit(
                "--ht-loss fastht has no loss of distillation or of captions; leave it out"
            )
        place = {"rank": arguments.rank, "world_size": arguments.world_size}
        if arguments.siglip:
            return SigLipLoss(**place)
        return ClipLoss(arguments.local_loss, arguments.gather_with_grad, **place)


@contextmanager
def _replaced(program: Any, run: _Run) -> Iterator[None]:
    """Give the program our factories for as long as it runs."""
    missing = [name for name in _REPLACED if not hasattr(program, name)]
    if missing:
        raise SystemExit(
            f"this release of open_clip_train has no {', '.join(missing)}; "
            "fastht.clients.open_clip_train is for open_clip 3"
        )
    model, loss = (getattr(program, name) for name in _REPLACED)
    program.create_model_and_transforms = lambda *a, **k: run.create_model(model, *a, **k)
    program.create_loss = lambda arguments: run.create_loss(loss, arguments)
    try:
        yield
    finally:
        program.create_model_and_transforms, program.create_loss = model, loss


def _config(pairs: Sequence[str]) -> fastht.HTConfig:
    """Read ``FIELD=VALUE`` texts; a value is JSON, or else a word.

    Raises:
        SystemExit: a text has another form, or the config refuses it.
    """
    values = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise SystemExit(f"--ht {pair}: give FIELD=VALUE, such as variant=hybrid")
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:
            values[name] = value
    try:
        return fastht.HTConfig.from_dict(values)
    except (TypeError, ValueError) as error:
        raise SystemExit(f"--ht: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastht.clients.open_clip_train",
        description="open_clip's training program on a patched model",
        epilog="Everything else goes to open_clip_train.main; its own options follow.",
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--ht", action="append", default=[], metavar="FIELD=VALUE",
        help="a field of fastht.HTConfig, e.g. dropout=0 or layers=[8,9,10,11]; may be repeated",
    )  # fmt: skip
    parser.add_argument("--ht-backend", default="auto", help="of the adapters; default: auto")
    parser.add_argument(
        "--ht-loss", choices=("open_clip", "fastht"), default="open_clip",
        help="whose contrastive loss; fastht's never makes a B x B matrix; default: open_clip",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run open_clip's program with ``argv``, of which the options of ours are taken out.

    Raises:
        SystemExit: open_clip's training program is not installed or an option is wrong.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if {"-h", "--help"} & set(argv):
        parser.print_help()
    options, rest = parser.parse_known_args(argv)
    run = _Run(_config(options.ht), options.ht_backend, options.ht_loss == "fastht")
    try:
        from open_clip_train import main as program
    except ImportError as error:
        raise SystemExit(
            f'open_clip_train cannot be imported ({error}); pip install "open_clip_torch[training]"'
        ) from error
    with _replaced(program, run):
        program.main(rest)
    given = run.arguments
    if given is not None and run.model is not None and given.save_logs:
        folder = os.path.join(given.logs, given.name, "adapter")
        fastht.save_adapter(run.model, folder, base_model=f"{given.model}/{given.pretrained}")
        print(f"adapters: {folder}")


if __name__ == "__main__":
    main()
