"""The ``fastht`` command."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from fastht.version import __version__

COMMANDS = {
    "train": "fine-tune adapters on images and captions",
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
    run = {"train": _train, "doctor": _doctor}[parsed.command]
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
        print(
            f"fastht train needs {error.name}: pip install 'fastht[train]'",
            file=sys.stderr,
        )
        return 1
    # What a user can mend is told in a line; anything else is a bug and shows its traceback.
    mendable = (BackendUnavailableError, NonFiniteLossError, OSError, ResumeError, ValueError)
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
    logging.basicConfig(level=logging.ERROR)  # open_clip reports every step to the root logger
    try:
        train(parsed)
    except mendable as error:
        print(f"fastht train: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"\nfastht train: interrupted; go on with --resume (folder {parsed.out})",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
