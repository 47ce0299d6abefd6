"""The ``fastht`` command."""

from __future__ import annotations

import argparse
import importlib
import inspect
import io
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fastht.ending import run_to_end
from fastht.version import __version__

COMMANDS = {
    "train": "fine-tune adapters on images and captions",
    "segment": "learn to outline lesions and score it (segment train, segment eval)",
    "classify": "learn to tell classes apart and score it (classify train, classify eval)",
    "fewshot": "segment or classify with small shares of the training data",
    "zeroshot": "tell classes apart by prompts alone, before and after fine-tuning",
    "attributes": "tell shape, margins, echogenicity and others apart, before and after",
    "probe": "tell classes apart by logistic regression on frozen features, of few images too",
    "retrieve": "find images by captions and captions by images",
    "predict": "show images of your own to a finished run or an exported file",
    "export": "write a finished run's model to one file, for torch.export or ONNX",
    "align": "measure how near images and their captions lie, over all and within groups",
    "report": "compare runs: tables and pictures",
    "push": "put a run's adapter on the Hugging Face Hub, with a model card",
    "bench": "compare training steps with HT adapters, LoRA and others: time and memory",
    "data": "know data sets: data list, check, export, split by patients, and overlap",
    "captions": "write captions from the columns of a table",
    "taxonomy": "tag captions with what they say, check tags (taxonomy tag, check, record)",
    "doctor": "show versions, devices and which backends can run here",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        # Names of files must not stop a run on a console that has not their letters.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if argv is None else argv)
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="fastht",
        description="Fast HT adapters for vision transformers.",
        epilog=f"commands:\n{listing}\n\n`fastht COMMAND --help` tells a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fastht {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="command")
    parsed = parser.parse_args(arguments[:1])
    return _RUN[parsed.command](arguments[1:])


def _doctor(arguments: Sequence[str]) -> int:
    from fastht import doctor

    parser = argparse.ArgumentParser(prog="fastht doctor", description=COMMANDS["doctor"])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    if parser.parse_args(arguments).json:
        print(json.dumps(doctor.findings(), indent=2))
    else:
        print(doctor.report())
    return 0


def _train(arguments: Sequence[str]) -> int:
    module = _import("fastht.tasks.image_text.train", "train")
    options = _import("fastht.tasks.image_text.train_arguments", "train")
    recipes = _import("fastht.tasks.image_text.published", "train")
    recipe = _option("--recipe", arguments, "none")
    own, sample = (
        recipes.with_recipe(defaults, recipe)
        for defaults in (options.TrainArguments(), options.SAMPLE_ARGUMENTS)
    )
    text = _option("--text", arguments, own.text)
    parts = [_option("--method", arguments, own.method)]
    parts += [] if text == options.TrainArguments().text else [text]
    parts += [] if recipe == "none" else [recipe]
    own = _in_own_folder(own, "train", arguments, *parts)
    parsed = _parse_for_data(own, sample, "train", arguments)

    def run() -> int:
        if parsed.recipe.startswith("ultrasound-clip"):
            _import("fastht.tasks.image_text.recipe", "train").run_recipe(parsed)
        elif parsed.recipe == "echocare-clip-ablation":
            _import("fastht.tasks.image_text.dual_ablation", "train").run_ablation(parsed)
        else:
            module.train(parsed)
        return 0

    return run_to_end(
        "train", run, _mendable(), resume=f"; go on with --resume (folder {parsed.out})"
    )


def _segment(arguments: Sequence[str]) -> int:
    return _task("segment", arguments)


def _classify(arguments: Sequence[str]) -> int:
    return _task("classify", arguments)


def _task(task: str, arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog=f"fastht {task}", epilog=f"`fastht {task} train --help` tells the options of train."
    )
    parser.add_argument("action", choices=["train", "eval"], help="train and score, or score again")
    action = parser.parse_args(arguments[:1]).action
    command = f"{task} {action}"
    if action == "train":
        commands = _import("fastht.tasks.images.commands", command, "tasks")
        run = _option("--from-run", arguments[1:], "")
        started = [f"from-{Path(run).name}"] if run else []
        return _experiment(
            _in_own_folder(commands.ExperimentArguments(), task, arguments[1:], *started),
            command,
            arguments[1:],
            Path("runs", "-".join(["sample", task, *started])),
            lambda parsed: commands.train(task, parsed),
        )
    module = _import("fastht.tasks.images.evaluate", command, "tasks")
    parsed = _parse(module.EvalArguments, command, arguments[1:])
    return run_to_end(command, lambda: module.evaluate(task, parsed), _mendable())


def _fewshot(arguments: Sequence[str]) -> int:
    commands = _import("fastht.tasks.images.commands", "fewshot", "tasks")
    task = _option("--task", arguments, "classify")
    own = _in_own_folder(commands.FewShotArguments(), f"fewshot-{task}", arguments)
    out = Path(f"runs/sample-fewshot-{task}")
    return _experiment(own, "fewshot", arguments, out, commands.fewshot)


def _experiment(
    own: Any,
    command: str,
    arguments: Sequence[str],
    sample_out: Path,
    run: Callable[[Any], int],
) -> int:
    for_sample = _import("fastht.tasks.images.experiment", command).for_sample
    parsed = _parse_for_data(own, for_sample(own, sample_out), command, arguments)
    resume = f"; go on with --resume (folder {parsed.out})"
    return run_to_end(command, lambda: run(parsed), _mendable(), resume=resume)


def _judge(command: str, arguments: Sequence[str]) -> int:
    """Run a command that takes the options of one class, whatever its data."""
    name, options, function = _JUDGING[command]
    module = _import(name, command, "tasks")
    parsed = _parse(getattr(module, options), command, arguments)
    resume = "; go on with --resume" if hasattr(parsed, "resume") else ""
    return run_to_end(command, lambda: getattr(module, function)(parsed), _mendable(), resume)


# Of each its module, the class of its options, and what runs it.
_JUDGING = {
    "zeroshot": ("fastht.tasks.image_text.zeroshot", "ZeroShotArguments", "zeroshot"),
    "probe": ("fastht.tasks.image_text.probe", "ProbeArguments", "probe"),
    "attributes": ("fastht.tasks.image_text.attributes", "AttributesArguments", "attributes"),
    "retrieve": ("fastht.tasks.image_text.retrieve", "RetrieveArguments", "retrieve"),
    "align": ("fastht.tasks.image_text.align", "AlignArguments", "align"),
    "predict": ("fastht.tasks.inference.predict", "PredictArguments", "predict"),
    "export": ("fastht.tasks.inference.export", "ExportArguments", "export_run"),
}


def _report(arguments: Sequence[str]) -> int:
    module = _import("fastht.tasks.images.paired", "report", "tasks")
    parsed = _parse(module.ReportArguments, "report", arguments)
    return run_to_end("report", lambda: module.report(parsed), (OSError, ValueError))


def _push(arguments: Sequence[str]) -> int:
    module = _import("fastht.tasks.results.push", "push", "train")
    _import("huggingface_hub", "push", "hub")
    parsed = _parse(module.PushArguments, "push", arguments)
    return run_to_end("push", lambda: module.push(parsed), (OSError, ValueError))


def _bench(arguments: Sequence[str]) -> int:
    module = _import("fastht.bench.command", "bench")
    parsed = _parse(module.BenchArguments, "bench", arguments)
    command = shlex.join(["fastht", "bench", *arguments])
    return run_to_end("bench", lambda: module.bench(parsed, command), (OSError, ValueError))


def _data(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="fastht data", epilog="`fastht data check --help` tells the options of check."
    )
    actions = ", ".join(f"{name}: {text}" for name, text in _DATA_ACTIONS.items())
    parser.add_argument("action", choices=_DATA_ACTIONS, help=actions)
    action = parser.parse_args(arguments[:1]).action
    command = f"data {action}"
    if action == "check" and _option("--task", arguments[1:], "segment") == "pairs":
        pairs = _import("fastht.tasks.image_text.check_pairs", command, "train")
        parsed = _parse(pairs.PairsCheckArguments, command, arguments[1:])
        return run_to_end(command, lambda: pairs.check_pairs(parsed), (OSError, ValueError))
    module = _import(_DATA_MODULES[action], command, "tasks")
    parsed = _parse(getattr(module, f"{action.title()}Arguments"), command, arguments[1:])
    # `list` would hide Python's own inside its module.
    run = getattr(module, "list_sets" if action == "list" else action)
    return run_to_end(command, lambda: run(parsed), (OSError, ValueError))


def _taxonomy(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="fastht taxonomy", epilog="`fastht taxonomy tag --help` tells the options of tag."
    )
    actions = ", ".join(f"{name}: {text}" for name, (text, _) in _TAXONOMY_ACTIONS.items())
    parser.add_argument("action", choices=_TAXONOMY_ACTIONS, help=actions)
    action = parser.parse_args(arguments[:1]).action
    command = f"taxonomy {action}"
    module = _import(_TAXONOMY_ACTIONS[action][1], command, "tasks")
    parsed = _parse(getattr(module, f"{action.title()}Arguments"), command, arguments[1:])
    run = getattr(module, action)
    return run_to_end(command, lambda: run(parsed), (OSError, ValueError))


_TAXONOMY_ACTIONS = {
    "tag": ("find the tags of a table's captions", "fastht.taxonomy.command"),
    "check": ("list what is wrong with a set's tags and captions", "fastht.tasks.tags.command"),
    "record": ("record the ids of a taxonomy's file", "fastht.taxonomy.command"),
}


def _captions(arguments: Sequence[str]) -> int:
    module = _import("fastht.captions.command", "captions", "tasks")

    def counter(model: str) -> Any:  # imported where tokens are counted alone
        return _import("fastht.tasks.models.token_counts", "captions", "tasks").token_counter(model)

    def run() -> int:
        parsed = _parse(module.CaptionsArguments, "captions", arguments)
        return int(module.captions(parsed, counter))

    return run_to_end("captions", run, (OSError, ValueError))


_DATA_ACTIONS = {
    "list": "the sets that are known",
    "check": "list all problems of a set",
    "export": "write a set as one table",
    "overlap": "what sets share",
    "split": "give a set sides by patient or case",
}
_DATA_MODULES = {
    "list": "fastht.data.catalogue.command",
    "check": "fastht.data.check",
    "export": "fastht.data.export",
    "overlap": "fastht.data.overlap.command",
    "split": "fastht.data.split",
}
_RUN: dict[str, Callable[[Sequence[str]], int]] = {
    "train": _train,
    "segment": _segment,
    "classify": _classify,
    "fewshot": _fewshot,
    **{command: partial(_judge, command) for command in _JUDGING},
    "report": _report,
    "push": _push,
    "bench": _bench,
    "data": _data,
    "captions": _captions,
    "taxonomy": _taxonomy,
    "doctor": _doctor,
}


def _import(name: str, command: str, extra: str | None = None) -> Any:
    """Return a command's module, or exit and say what it needs that is not installed."""
    try:
        importlib.import_module("tyro")  # it reads the options of all of them
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        remedy = f"pip install 'fastht[{extra or command}]'"
        print(f"fastht {command} needs {error.name}: {remedy}", file=sys.stderr)
        raise SystemExit(1) from error


def _option(name: str, arguments: Sequence[str], default: str) -> str:
    """Return the value of an option before the arguments are parsed as a whole."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument(name, default=default, dest="value")
    return str(finder.parse_known_args(list(arguments))[0].value)


def _in_own_folder(defaults: Any, command: str, arguments: Sequence[str], *more: str) -> Any:
    """Return defaults whose folder is named after the data, the model and whatever else is given.

    So runs of other data, models or methods do not meet in one folder.
    """
    folders = _import("fastht.tasks.results.folders", command)
    data = _option("--data", arguments, "data")
    model = _option("--model", arguments, defaults.model)
    return replace(defaults, out=folders.run_folder(command, data, model, *more))


def _parse_for_data(own: Any, sample: Any, command: str, arguments: Sequence[str]) -> Any:
    """Return the options of a command whose defaults depend on the data.

    Args:
        own: defaults for data of the user's own.
        sample: those for the embedded sample, which has settings for minutes on two cores.
        command: its name.
        arguments: of the command line.
    """
    if _option("--data", arguments, "sample") != "sample":
        return _parse(type(own), command, arguments, own)
    of_sample = dict(_options(sample))
    differing = [f"{name} {text}" for name, text in _options(own) if of_sample[name] != text]
    note = (
        "The defaults below are for the simulated sample. With --data for images of your own they "
        f"are {', '.join(differing)}, and --out a folder named after the data and the model."
    )
    return _parse(type(sample), command, arguments, sample, note)


def _options(defaults: Any) -> Iterator[tuple[str, str]]:
    """Name the options of a dataclass as the command line does, with their values."""
    for field in fields(defaults):
        value = getattr(defaults, field.name)
        if is_dataclass(value):
            yield from _options(value)
        elif field.name not in ("data", "out"):
            text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            shown = {"None": "chosen to fit", "True": "on", "False": "off"}.get(text, text)
            yield f"--{field.name.replace('_', '-')}", shown


def _parse(
    kind: Any, command: str, arguments: Sequence[str], default: Any = None, note: str = ""
) -> Any:
    """Return a command's options; without a default they are those of their class.

    Args:
        kind: the class of the options.
        command: its name.
        arguments: of the command line.
        default: the options where nothing is given.
        note: what the help says beside the description of the class.
    """
    import tyro

    given = {} if default is None else {"default": default}
    description = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:")[0].strip()
    return tyro.cli(
        kind,
        prog=f"fastht {command}",
        description=f"{description}\n\n{note}".strip(),
        args=list(arguments),
        config=(tyro.conf.OmitArgPrefixes,),
        **given,
    )


def _mendable() -> tuple[type[Exception], ...]:
    """Return the errors of a training command that a user can mend."""
    from fastht.ops import BackendUnavailableError
    from fastht.tasks.training.loading import LoadingError
    from fastht.tasks.training.state import ResumeError
    from fastht.tasks.training.trainer import NonFiniteLossError

    return (
        BackendUnavailableError,
        LoadingError,
        NonFiniteLossError,
        OSError,
        ResumeError,
        ValueError,
    )


if __name__ == "__main__":
    sys.exit(main())
