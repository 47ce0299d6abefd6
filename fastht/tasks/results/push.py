"""``fastht push``: a run's adapter to the Hugging Face Hub, with what the run tells of itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from fastht.data.images import DataError
from fastht.hub.access import SCHEME
from fastht.hub.card import write_card
from fastht.hub.upload import push_to_hub
from fastht.saved import CONFIG_NAME, read_adapter
from fastht.tasks.results.card import about_run
from fastht.tasks.results.finished_runs import read_run

ADAPTER_NAME = "adapter"  # in a run's folder


@dataclass(frozen=True)
class PushArguments:
    """Put a finished run's adapter into a repository of the Hugging Face Hub, with a model card.

    Two files and the card go there in one commit; images, predictions, names of patients and
    paths of this machine do not. Log in before, by `hf auth login` or HF_TOKEN.

    Attributes:
        run: folder of one run with HT adapters, such as runs/experiment/ht/seed-0.
        repo: ORG/REPO; made if it is not there.
        public: make a new repository public; otherwise it is private.
        revision: a branch that is there; default: the main one.
        message: of the commit.
        show: print the model card and put nothing there.
    """

    run: tyro.conf.Positional[Path]
    repo: tyro.conf.Positional[str]
    public: bool = False
    revision: str | None = None
    message: str = "HT adapters"
    show: bool = False


def push(arguments: PushArguments) -> int:
    """Push a run's adapter; return the exit status.

    Raises:
        CheckpointError: the adapter is damaged, or of peft.
        DataError: the folder holds no finished run with HT adapters, or one whose towers trained
            too, in it or in the run that it started from.
        HubError: the Hub refuses or does not answer.
        OSError: the folder cannot be read.
        ValueError: the repository's name is none.
    """
    repository = arguments.repo.removeprefix(SCHEME)
    folder, about = describe_run(arguments.run)
    if arguments.show:
        print(write_card(read_adapter(folder), repository, about), end="")
        return 0
    address = push_to_hub(
        folder,
        repository,
        private=False if arguments.public else None,
        revision=arguments.revision,
        message=arguments.message,
        about=about,
    )
    print(f'{address}   load it by fastht.load_adapter(model, "{address}")')
    return 0


def describe_run(folder: Path) -> tuple[Path, str]:
    """Return the folder of a run's adapter, and what a model card says of the run.

    Raises:
        DataError: the folder holds no finished run, or none whose adapter stands for itself.
    """
    run = read_run(folder)
    adapter = folder / ADAPTER_NAME
    if not (adapter / CONFIG_NAME).is_file():
        raise DataError(
            f"{folder}: a run of the method {run['method']} leaves no HT adapter; give a run with "
            "--method ht, or --methods ht"
        )
    if run.get("train_towers", "none") != "none":
        raise DataError(
            f"{folder}: the run trained parts of the base too (--train-towers "
            f"{run['train_towers']}), without which its adapter is worth nothing; train with "
            "--train-towers none to share an adapter"
        )
    tower = run.get("tower")  # of the run of fastht train that it started from
    if tower is not None and (
        tower["method"].startswith("lora") or tower["train_towers"] in ("image", "both")
    ):
        raise DataError(
            f"{folder}: the run started from the image tower of {run['from_run']}, whose weights "
            "that run changed, and without which its adapter is worth nothing; start from a run of "
            "--method ht, or from the plain model, to share an adapter"
        )
    return adapter, about_run(run)
