"""Run the test suites of open_clip and timm on patched models, and name what only those fail.

    python tests/clients/run.py            the models of SUITES
    python tests/clients/run.py --thin     the smallest of them, in minutes
    python tests/clients/run.py --thin --where-reachable    the same, left out without a network

The suites are not kept here: they are fetched from the libraries' repositories, at the revisions of
:data:`SUITES`, or taken from clones in ``--sources`` (README.md tells how to make them). Of a clone
the files of the suite alone are read, so that one without its large files serves too.

They run on the installed libraries, which have to be of the releases named there. Each suite runs
twice, without and with adapters. What the adapters change ends the run with status 1, unless the
suite's ``expected`` says which tests have to fail, and with which words; one of those that passes
does so as well, and so does a model that was not patched.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

HERE = Path(__file__).parent


class Outcome(NamedTuple):
    """What became of a test: ``passed``, ``failed`` (errors too) or ``skipped``, and its words."""

    kind: str
    words: str = ""


PASSED = Outcome("passed")


@dataclass(frozen=True)
class Expected:
    """Why a test has to fail on a patched model alone.

    Attributes:
        words: a regular expression that begins what it says then.
        why: in words.
    """

    words: str
    why: str


@dataclass(frozen=True)
class Suite:
    """One library's tests.

    Attributes:
        repository: on GitHub.
        revision: of the tests.
        release: the installed distribution and its version.
        file: the test file, in ``tests`` of the repository.
        models: names of models to run it for.
        thin: those of a short run.
        tests: which tests of the file, as pytest's ``-k`` has it.
        beside: files of ``tests`` that the test file imports.
        expected: the tests that have to fail on a patched model, by the name of their function.
    """

    repository: str
    revision: str
    release: tuple[str, str]
    file: str
    models: tuple[str, ...]
    thin: tuple[str, ...]
    tests: str
    beside: tuple[str, ...] = ()
    expected: Mapping[str, Expected] = field(default_factory=dict)


# The first parameter without a gradient is one of the base's, never one of an adapter's.
_FROZEN = Expected(
    r"AssertionError: No gradient for (?!\S*\.ht\.)",
    "wants a gradient for every parameter, and the base is frozen",
)


SUITES = {
    "open_clip": Suite(
        repository="mlfoundations/open_clip",
        revision="v3.3.0",
        release=("open_clip_torch", "3.3.0"),
        file="test_inference.py",
        models=(
            "ViT-B-32", "ViT-B-16", "ViT-M-16", "ViT-S-16", "ViT-S-32", "ViT-S-32-alt",
            "EVA02-B-16", "ViTamin-S", "ViTamin-S-LTT", "vit_relpos_medium_patch16_cls_224",
            "PE-Core-T-16-384", "PE-Core-S-16-384",
        ),
        thin=("ViT-S-32-alt",),
        tests="test_inference_with_data",
        beside=("util_test.py",),
    ),
    "timm": Suite(
        repository="huggingface/pytorch-image-models",
        revision="aa4b5850c1543fa488abf260f18390eda46cf85d",
        release=("timm", "1.0.31"),
        file="test_models.py",
        models=(
            "test_vit", "test_vit2", "test_vit3", "test_vit4", "vit_tiny_patch16_224",
            "vit_small_patch16_dinov3", "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224",
            "eva02_tiny_patch14_224", "vit_relpos_small_patch16_224", "vitamin_small_224",
            "vit_small_patch14_reg4_dinov2", "vit_wee_patch16_reg1_gap_256",
            "beit_base_patch16_224",
        ),
        thin=("test_vit", "test_vit3"),
        tests="not test_model_inference",  # it downloads weights
        expected={"test_model_backward": _FROZEN, "test_model_backward_fx": _FROZEN},
    ),
}  # fmt: skip


class NoNetworkError(Exception):
    """The host of the repositories does not answer."""


# What git says where a host does not answer, and not where a repository has gone.
_SILENT = re.compile(
    r"could not resolve|failed to connect|couldn't connect|timed out|connection (?:refused|reset)"
    r"|network is unreachable|returned error: (?:403|407|5\d\d)",
    re.IGNORECASE,
)


def fetch(suite: Suite, sources: Path | None, folder: Path) -> Path:
    """Bring the files of a suite into a folder within ``folder``, and return it.

    Raises:
        NoNetworkError: the host does not answer.
        SystemExit: they cannot be had otherwise.
    """
    if sources is None:
        clone, revision = _download(suite, folder / "clone"), "FETCH_HEAD"
    else:
        clone, revision = sources / suite.repository.replace("/", "+"), suite.revision
        clone = clone / "repo" if (clone / "repo").is_dir() else clone
        found = _git(clone, "rev-parse", "--quiet", "--verify", f"{revision}^{{commit}}")
        if found.returncode:
            said = found.stderr.decode().strip() or "no such revision"
            raise SystemExit(
                f"{clone} has no {revision} of {suite.repository} ({said}); "
                "tests/clients/README.md tells how to fetch it"
            )
    tests = folder / "tests"
    tests.mkdir()
    for name in (suite.file, *suite.beside):
        # Neither other files nor their blobs are touched, as an archive of the folder would.
        got = _git(clone, "cat-file", "blob", f"{revision}:tests/{name}")
        if got.returncode:
            raise SystemExit(
                f"{clone} lacks tests/{name} of {suite.revision} ({got.stderr.decode().strip()}); "
                "a clone without its large files serves, one without this file does not: fetch it "
                "again, without a filter"
            )
        (tests / name).write_bytes(got.stdout)
    return tests


def _download(suite: Suite, clone: Path) -> Path:
    url = f"https://github.com/{suite.repository}"
    subprocess.run(["git", "init", "-q", "--bare", str(clone)], check=True)
    got = _git(clone, "fetch", "-q", "--depth", "1", url, suite.revision)
    said = got.stderr.decode().strip()
    if got.returncode and _SILENT.search(said):
        raise NoNetworkError(said)
    if got.returncode:
        raise SystemExit(f"cannot fetch {suite.repository} ({said}); give clones by --sources")
    return clone


def _git(clone: Path, *command: str) -> subprocess.CompletedProcess[bytes]:
    plain = os.environ | {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    return subprocess.run(
        ["git", "-C", str(clone), *command], check=False, capture_output=True, env=plain
    )


def outcomes(
    tests: Path, suite: Suite, models: tuple[str, ...], adapters: bool
) -> tuple[dict[str, Outcome], Counter[str]]:
    """Run a suite; return the outcome of each test by its name, and how many models were what.

    Raises:
        SystemExit: no test ran.
    """
    wanted = tests / "models.txt"
    wanted.write_text("\n".join(models))
    report = tests / "report.xml"
    report.unlink(missing_ok=True)
    variables = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
        "FASTHT_CLIENTS": "1" if adapters else "",
        "FASTHT_CLIENTS_MODELS": " ".join(models),
        "HF_HUB_OFFLINE": "1",
        "OPEN_CLIP_TEST_REG_MODELS": str(wanted),
    }
    if "util_test.py" in suite.beside and not adapters:  # what open_clip's compare with
        make = [sys.executable, "util_test.py", "--model_list", str(wanted)]
        subprocess.run(make, cwd=tests, env=variables, check=True, stdout=subprocess.DEVNULL)
    command = [
        sys.executable, "-m", "pytest", suite.file, "-p", "patch_plugin", "-p", "no:cacheprovider",
        "-c", os.devnull, "--rootdir", str(tests), "-q", "--tb=line", "-W", "ignore",
        f"--junitxml={report}", "-k", suite.tests,
    ]  # fmt: skip
    run = subprocess.run(command, cwd=tests, env=variables, capture_output=True, text=True)
    found = read_report(report) if report.exists() else {}
    if not found:
        raise SystemExit(f"no test of {suite.file} ran:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    said = re.search(r"^models: (.*)$", run.stdout, re.M)
    made = Counter(ast.literal_eval(said[1]) if said else {})
    passed = sum(outcome == PASSED for outcome in found.values())
    skipped = sum(outcome.kind == "skipped" for outcome in found.values())
    print(
        f"  {'with' if adapters else 'without'} adapters: {passed} of {len(found)} passed, "
        f"{skipped} skipped; models: {dict(made)}",
        flush=True,
    )
    return found, made


def read_report(file: Path) -> dict[str, Outcome]:
    """Return the outcomes that pytest has written as JUnit XML, by the tests' names."""
    found = {}
    for case in ElementTree.parse(file).iter("testcase"):
        outcome = PASSED
        for part in case:
            if part.tag in ("failure", "error"):
                outcome = Outcome("failed", part.get("message", ""))
            elif part.tag == "skipped":
                outcome = Outcome("skipped", part.get("message", ""))
        found[case.get("name", "")] = outcome
    return found


def judge(
    base: Mapping[str, Outcome], patched: Mapping[str, Outcome], expected: Mapping[str, Expected]
) -> tuple[list[str], Counter[str]]:
    """Compare a suite's outcomes without and with adapters.

    What does not pass without them tells nothing of them, and is left out, unless nothing passes.

    Returns:
        What must not be, a line each, and how many tests failed as expected, by their function.
    """
    faults, allowed = [], Counter[str]()
    for test, outcome in base.items():
        function = test.partition("[")[0]
        due = expected.get(function)
        now = patched.get(test, Outcome("not run"))
        if outcome != PASSED:
            continue
        if now == PASSED and due is not None:
            faults.append(f"{test} passes with adapters, and has to fail: {due.why}")
        elif due is not None and now.kind == "failed" and re.match(due.words, now.words):
            allowed[function] += 1
        elif now != PASSED:
            words = "".join(now.words.splitlines()[:1])
            faults.append(f"{test} {now.kind} with adapters alone: {words}".rstrip(": "))
    if PASSED not in base.values():
        faults.append("no test passes without adapters, so that nothing is known of them")
    return faults, allowed


def compare(name: str, thin: bool, sources: Path | None) -> list[str]:
    """Run one suite twice; return what only patched models do, and must not, a line each."""
    suite = SUITES[name]
    distribution, version = suite.release
    installed = importlib.metadata.version(distribution)
    if installed != version:
        raise SystemExit(f"{distribution} {installed} is installed; these tests are of {version}")
    models = suite.thin if thin else suite.models
    print(
        f"{suite.repository} {suite.revision}, {suite.file}, on {distribution} {version}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        tests = fetch(suite, sources, Path(folder))
        base, _ = outcomes(tests, suite, models, adapters=False)
        patched, made = outcomes(tests, suite, models, adapters=True)
    faults, allowed = judge(base, patched, suite.expected)
    for function, count in sorted(allowed.items()):
        why = suite.expected[function].why
        print(f"  {count} of {function} fail with adapters alone, as expected: {why}")
    for test, outcome in base.items():
        if outcome.kind == "failed":
            words = "".join(outcome.words.splitlines()[:1])
            print(f"  fails without adapters too, and tells nothing: {test}: {words}")
    if not made["patched"] or made["refused"]:
        faults.append(f"{made['patched']} models were patched and {made['refused']} refused")
    return faults


def main() -> int:
    """Run the suites that were asked for."""
    parser = argparse.ArgumentParser(description="open_clip's and timm's tests on patched models")
    parser.add_argument("--suite", choices=SUITES, nargs="+", default=list(SUITES))
    parser.add_argument("--thin", action="store_true", help="a model or two of each")
    parser.add_argument("--sources", type=Path, help="a folder with clones of the repositories")
    parser.add_argument(
        "--where-reachable",
        action="store_true",
        help="leave a suite out, and say so, where the host of its tests does not answer",
    )
    arguments = parser.parse_args()
    failed, left_out = [], []
    for name in arguments.suite:
        try:
            found = compare(name, arguments.thin, arguments.sources)
        except NoNetworkError as error:
            print(f"  no network: {error}")
            if not arguments.where_reachable:
                raise SystemExit("give clones by --sources, or --where-reachable") from error
            left_out.append(name)
            continue
        failed += [f"{name}: {fault}" for fault in found]
    if left_out:
        print(f"LEFT OUT, NOT RUN: no network to fetch the tests of {', '.join(left_out)}")
    if left_out == arguments.suite:
        return 0
    print("\n".join(f"FAILED: {fault}" for fault in failed) or "no other failure")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
