"""Run the test suites of open_clip and timm on patched models, and name what only those fail.

    python tests/clients/run.py            the models of SUITES
    python tests/clients/run.py --thin     the smallest of them, in minutes
    python tests/clients/run.py --thin --where-reachable    the same, left out without a network

The suites are not kept here: they are fetched from the libraries' repositories, at the revisions of
:data:`SUITES`, or taken from clones in ``--sources`` (``OWNER+NAME`` or ``OWNER+NAME/repo``).
They run on the installed libraries, which have to be of the releases named there. Each suite runs
twice, without and with adapters; what fails with them alone ends the run with status 1, unless
:data:`EXPECTED` says why it has to.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


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
    """

    repository: str
    revision: str
    release: tuple[str, str]
    file: str
    models: tuple[str, ...]
    thin: tuple[str, ...]
    tests: str


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
    ),
}  # fmt: skip

# What may fail on a patched model alone, by the test's name.
EXPECTED = {
    "test_model_backward": "wants a gradient for every parameter, and the base is frozen",
    "test_model_backward_fx": "the same",
}


class NoNetworkError(Exception):
    """The host of the repositories does not answer."""


# What git says where a host does not answer, and not where a repository has gone.
_SILENT = re.compile(
    r"could not resolve|failed to connect|couldn't connect|timed out|connection (?:refused|reset)"
    r"|network is unreachable|returned error: (?:403|407|5\d\d)",
    re.IGNORECASE,
)


def fetch(suite: Suite, sources: Path | None, folder: Path) -> Path:
    """Bring the tests of a suite into ``folder``.

    Raises:
        NoNetworkError: the host does not answer.
        SystemExit: they cannot be had otherwise.
    """
    if sources is None:
        clone, revision = folder / "clone", "FETCH_HEAD"
        url = f"https://github.com/{suite.repository}"
        subprocess.run(["git", "init", "-q", "--bare", str(clone)], check=True)
        get = ["git", "-C", str(clone), "fetch", "-q", "--depth", "1", url, suite.revision]
        got = subprocess.run(
            get,
            check=False,
            capture_output=True,
            text=True,
            env=os.environ | {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"},
        )
        if got.returncode and _SILENT.search(got.stderr):
            raise NoNetworkError(got.stderr.strip())
        if got.returncode:
            raise SystemExit(
                f"cannot fetch {suite.repository} ({got.stderr.strip()}); give clones by --sources"
            )
    else:
        clone, revision = sources / suite.repository.replace("/", "+"), suite.revision
        clone = clone / "repo" if (clone / "repo").is_dir() else clone
    archive = folder / "tests.tar"
    take = ["git", "-C", str(clone), "archive", "-o", str(archive), revision, "tests"]
    if subprocess.run(take, check=False).returncode:
        raise SystemExit(f"{clone} has no {revision} of {suite.repository}")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / "tests"


def outcomes(tests: Path, suite: Suite, models: tuple[str, ...], adapters: bool) -> dict[str, str]:
    """Run a suite; return the outcome of each test by its name.

    Raises:
        SystemExit: no test ran.
    """
    wanted = tests / "models.txt"
    wanted.write_text("\n".join(models))
    variables = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
        "FASTHT_CLIENTS": "1" if adapters else "",
        "FASTHT_CLIENTS_MODELS": " ".join(models),
        "HF_HUB_OFFLINE": "1",
        "OPEN_CLIP_TEST_REG_MODELS": str(wanted),
    }
    if (tests / "util_test.py").exists() and not adapters:  # what open_clip's compare with
        make = [sys.executable, "util_test.py", "--model_list", str(wanted)]
        subprocess.run(make, cwd=tests, env=variables, check=True, stdout=subprocess.DEVNULL)
    command = [
        sys.executable, "-m", "pytest", suite.file, "-p", "patch_plugin", "-p", "no:cacheprovider",
        "-c", os.devnull, "--rootdir", str(tests), "-rA", "-q", "--tb=line", "-W", "ignore",
        "-k", suite.tests,
    ]  # fmt: skip
    run = subprocess.run(command, cwd=tests, env=variables, capture_output=True, text=True)
    lines = re.findall(r"^(PASSED|FAILED|ERROR|SKIPPED) \S*?::(\S+)", run.stdout, re.M)
    if not lines:
        raise SystemExit(f"no test of {suite.file} ran:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    said = re.search(r"^models: .*$", run.stdout, re.M)
    passed = sum(outcome == "PASSED" for outcome, _ in lines)
    print(
        f"  {'with' if adapters else 'without'} adapters: {passed} of {len(lines)} passed", end="; "
    )
    print(said[0] if said else "")
    return {test: outcome for outcome, test in lines}


def compare(name: str, thin: bool, sources: Path | None) -> list[str]:
    """Run one suite twice; return the tests that only patched models fail, and must not."""
    suite = SUITES[name]
    distribution, version = suite.release
    installed = importlib.metadata.version(distribution)
    if installed != version:
        raise SystemExit(f"{distribution} {installed} is installed; these tests are of {version}")
    models = suite.thin if thin else suite.models
    print(f"{suite.repository} {suite.revision}, {suite.file}, on {distribution} {version}")
    with tempfile.TemporaryDirectory() as folder:
        tests = fetch(suite, sources, Path(folder))
        base = outcomes(tests, suite, models, adapters=False)
        patched = outcomes(tests, suite, models, adapters=True)
    new = [test for test, found in patched.items() if found != base.get(test) == "PASSED"]
    allowed = [test for test in new if test.partition("[")[0] in EXPECTED]
    for kind in sorted({test.partition("[")[0] for test in allowed}):
        count = sum(test.startswith(f"{kind}[") for test in allowed)
        print(f"  {count} of {kind} fail with adapters alone, as expected: {EXPECTED[kind]}")
    return [test for test in new if test not in allowed]


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
        failed += [f"{name}: {test}" for test in found]
    if left_out:
        print(f"LEFT OUT, NOT RUN: no network to fetch the tests of {', '.join(left_out)}")
    if left_out == arguments.suite:
        return 0
    print("\n".join(f"FAILED with adapters alone: {test}" for test in failed) or "no other failure")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
