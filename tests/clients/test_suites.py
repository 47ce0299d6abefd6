"""What run.py takes out of a clone, reads in pytest's report and calls a fault; no suite is run."""

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from clients.run import PASSED, SUITES, Outcome, fetch, judge, read_report

SUITE = SUITES["open_clip"]
FILES = {
    f"tests/{SUITE.file}": b"import util_test\n",
    "tests/util_test.py": b"made = 1\n",
    "tests/recording.bin": bytes(2000),
    "docs/large.ipynb": b"{}",
}


def git(folder: Path, *command: str) -> str:
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    run = ["git", "-C", str(folder), *who, *command]
    return subprocess.run(run, check=True, capture_output=True, text=True).stdout.strip()


def lose(clone: Path, name: str) -> None:
    """Remove the contents of a file from a clone, as a mirror does that keeps no large files."""
    blob = git(clone, "rev-parse", f"{SUITE.revision}:{name}")
    Path(clone, ".git", "objects", blob[:2], blob[2:]).unlink()


@pytest.fixture(params=["", "repo"])
def clone(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The suite's repository in ``tmp_path/sources``, without what the suite does not need."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    clone = tmp_path / "sources" / "mlfoundations+open_clip" / request.param
    for name, contents in FILES.items():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes(contents)
    git(clone, "init", "-q")
    git(clone, "add", ".")
    git(clone, "commit", "-q", "-m", "tests")
    git(clone, "tag", SUITE.revision)
    lose(clone, "docs/large.ipynb")
    lose(clone, "tests/recording.bin")
    return clone


def test_a_clone_without_its_large_files_serves(clone: Path, tmp_path: Path) -> None:
    tests = fetch(SUITE, tmp_path / "sources", tmp_path)
    found = {f"tests/{file.name}": file.read_bytes() for file in tests.iterdir()}
    assert found == {name: FILES[name] for name in list(FILES)[:2]}


def test_what_a_clone_lacks_is_named(clone: Path, tmp_path: Path) -> None:
    lose(clone, "tests/util_test.py")
    with pytest.raises(SystemExit, match=r"lacks tests/util_test\.py of v3\.3\.0 .* fetch it"):
        fetch(SUITE, tmp_path / "sources", tmp_path)
    git(clone, "tag", "-d", SUITE.revision)
    with pytest.raises(SystemExit, match=r"has no v3\.3\.0 of mlfoundations/open_clip"):
        fetch(SUITE, tmp_path / "sources", tmp_path)
    with pytest.raises(SystemExit, match=r"elsewhere.* has no v3\.3\.0 .*README"):
        fetch(SUITE, tmp_path / "elsewhere", tmp_path)


def test_the_report_of_pytest_is_read_with_its_words(tmp_path: Path) -> None:
    (tmp_path / "test_all.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('model_name', ['vit', 'eva'])\n"
        "def test_backward(model_name):\n"
        "    assert model_name == 'vit', f'No gradient for ' + 'a_long_name.' * 20\n"
        "def test_skipped(): pytest.skip('too large')\n"
        "@pytest.fixture\n"
        "def broken(): raise OSError('gone')\n"
        "def test_error(broken): pass\n"
    )
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(tmp_path)]
    command += ["-p", "no:cacheprovider", "--tb=line", f"--junitxml={report}", "test_all.py"]
    subprocess.run(command, cwd=tmp_path, check=False, capture_output=True)
    found = read_report(report)
    assert found.pop("test_backward[vit]") == PASSED
    assert found.pop("test_skipped") == Outcome("skipped", "too large")
    kind, words = found.pop("test_backward[eva]")
    assert (kind, words.splitlines()[0]) == (
        "failed",
        "AssertionError: No gradient for " + "a_long_name." * 20,
    )
    kind, words = found.pop("test_error")
    assert kind == "failed"
    assert "OSError: gone" in words
    assert not found


def failed(words: str) -> Outcome:
    return Outcome("failed", words)


FROZEN = failed("AssertionError: No gradient for blocks.0.norm1.weight\nassert None is not None")


@pytest.mark.parametrize(
    ("now", "fault"),
    [
        (FROZEN, None),
        (PASSED, "passes with adapters, and has to fail: wants a gradient"),
        (failed("RuntimeError: x has 2 tokens"), "failed with adapters alone: RuntimeError: x has"),
        (failed("AssertionError: No gradient for blocks.0.ht.norm.weight"), "blocks.0.ht.norm"),
        (Outcome("skipped", "too large"), "skipped with adapters alone: too large"),
        (None, "not run with adapters alone"),
    ],
)
def test_an_expected_failure_is_one_by_its_words(now: Outcome | None, fault: str | None) -> None:
    test = "test_model_backward[2-test_vit]"
    faults, allowed = judge({test: PASSED}, {test: now} if now else {}, SUITES["timm"].expected)
    assert allowed == Counter(test_model_backward=1) if fault is None else not allowed
    assert [fault in said for said in faults] == ([] if fault is None else [True])
    # What fails without adapters too tells nothing of them, and all of it together is no result.
    base = {test: FROZEN, "test_other": PASSED}
    assert judge(base, dict.fromkeys(base, PASSED), SUITES["timm"].expected) == ([], Counter())
    (said,) = judge({test: FROZEN}, {test: PASSED}, SUITES["timm"].expected)[0]
    assert said.startswith("no test passes without adapters")


def test_any_other_failure_is_a_fault() -> None:
    faults, allowed = judge(
        {"test_model_forward[1-test_vit]": PASSED, "test_model_forward[1-other]": PASSED},
        {"test_model_forward[1-test_vit]": FROZEN, "test_model_forward[1-other]": PASSED},
        SUITES["timm"].expected,
    )
    assert len(faults) == 1
    assert faults[0].startswith("test_model_forward[1-test_vit] failed with adapters alone")
    assert not allowed
