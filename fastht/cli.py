"""The ``fastht`` command."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Callable, Sequence

from fastht.version import __version__

COMMANDS = {
    "train": "fine-tune adapters on images and captions",
    "bench": "compare training steps with HT adapters, LoRA and others: time and memory",
    "data": "read a data set with masks or labels and list what is wrong with it (data check)",
    "doctor": "show versions, devices and which backends can run here",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    listing = "\n".join(f"  {name:<8} {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="fastht",
        description="Fast HT adapters for vision transformers.",
        epilog=f"commands:\n{listing}\n\n`fastht COMMAND --help` tells a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fastht {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="command")
    parsed = parser.parse_args(arguments[:1])
    run = {"train": _train, "bench": _bench, "data": _data, "doctor": _doctor}[parsed.command]
    return run(arguments[1:])


def _doctor(arguments: Sequence[str]) -> int:
    from fastht.doctor import report

    argparse.ArgumentParser(prog="fastht doctor", description=COMMANDS["doctor"]).parse_args(
        arguments
    )
    print(report())
    return 0


def _train(arguments: Sequence[str]) -> int:
    try:
        import tyro

        from fastht.ops import BackendUnavailableError
        from fastht.tasks.state import ResumeError
        from fastht.tasks.train import SAMPLE_ARGUMENTS, TrainArguments, train
        from fastht.tasks.trainer import NonFiniteLossError
    except ModuleNotFoundError as error:
        return _missing("train", error)
    # The sample has settings of its own, so which data it is has to be known first.
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--data", default="sample")
    data = finder.parse_known_args(arguments)[0].data
    defaults = SAMPLE_ARGUMENTS if data == "sample" else TrainArguments()
    parsed = tyro.cli(
        TrainArguments,
        prog="fastht train",
        args=arguments,
        default=defaults,
        config=(tyro.conf.OmitArgPrefixes,),
    )

    def run() -> int:
        train(parsed)
        return 0

    return _told(
        "train",
        run,
        (BackendUnavailableError, NonFiniteLossError, OSError, ResumeError, ValueError),
        resume=f"; go on with --resume (folder {parsed.out})",
    )


def _bench(arguments: Sequence[str]) -> int:
    try:
        import tyro

        from fastht.bench.command import BenchArguments, bench
    except ModuleNotFoundError as error:
        return _missing("bench", error)
    parsed = tyro.cli(
        BenchArguments,
        prog="fastht bench",
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    command = shlex.join(["fastht", "bench", *arguments])
    return _told("bench", lambda: bench(parsed, command), (OSError, ValueError))


def _data(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="fastht data", epilog="`fastht data check --help` tells the options of check."
    )
    parser.add_argument("action", choices=["check"], help="list all problems of a data set")
    parser.parse_args(arguments[:1])
    try:
        import tyro

        from fastht.data.check import CheckArguments, check
    except ModuleNotFoundError as error:
        return _missing("data check", error, extra="tasks")
    parsed = tyro.cli(CheckArguments, prog="fastht data check", args=arguments[1:])
    return _told("data check", lambda: check(parsed), (OSError, ValueError))


def _missing(command: str, error: ModuleNotFoundError, extra: str | None = None) -> int:
    """Say what a command needs that is not installed; return the exit status."""
    remedy = f"pip install 'fastht[{extra or command}]'"
    print(f"fastht {command} needs {error.name}: {remedy}", file=sys.stderr)
    return 1


def _told(
    command: str,
    run: Callable[[], int],
    mendable: tuple[type[Exception], ...],
    resume: str = "",
) -> int:
    """Run a command; return its exit status.

    Args:
        command: its name.
        run: returns the exit status.
        mendable: what a user can mend, which is told in a line. Anything else is a bug and shows
            its traceback.
        resume: how to go on after an interruption.
    """
    logging.basicConfig(level=logging.ERROR)  # open_clip reports every step to the root logger
    try:
        return run()
    except mendable as error:
        print(f"fastht {command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nfastht {command}: interrupted{resume}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
