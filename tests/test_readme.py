"""The README's snippets run as they stand, and CI runs its commands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(<!-- not run[^>]*-->\n)?```(\w+)\n(.*?)```", re.DOTALL)


def blocks(language):
    return [code for skip, kind, code in BLOCK.findall(TEXT) if kind == language and not skip]


def test_the_python_snippets_run_one_after_the_other(tmp_path, monkeypatch):
    pytest.importorskip("open_clip")
    monkeypatch.chdir(tmp_path)
    # No weights can be downloaded in a test: the architecture is the same without.
    code = "\n".join(blocks("python")).replace('pretrained="openai"', "pretrained=None")
    assert code.count("fastht.patch(") == 2
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    import fastht

    assert sorted(fastht.adapters(names["model"])) == [8, 9, 10, 11]
    assert (tmp_path / "runs" / "breast" / "adapter_model.safetensors").exists()


def test_the_continuous_integration_runs_the_commands_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    first, tests = (code.strip().split(" && ") for code in blocks("bash")[:2])
    assert first[1] in script
    assert re.search(rf'^alone "README\'s tests" {re.escape(tests[1])}$', script, re.MULTILINE)


def test_every_option_named_in_the_readme_exists():
    pytest.importorskip("tyro")
    import dataclasses

    from fastht.bench.command import BenchArguments
    from fastht.config import HTConfig
    from fastht.data.check import CheckArguments
    from fastht.tasks.image_text.retrieve import RetrieveArguments
    from fastht.tasks.image_text.train import TrainArguments
    from fastht.tasks.image_text.zeroshot import ZeroShotArguments
    from fastht.tasks.images.commands import FewShotArguments
    from fastht.tasks.images.evaluate import EvalArguments
    from fastht.tasks.models.methods import AdapterSettings
    from fastht.tasks.results.report import ReportArguments
    from fastht.tasks.training.trainer import TrainerConfig

    arguments = (
        AdapterSettings,
        BenchArguments,
        CheckArguments,
        EvalArguments,
        FewShotArguments,
        HTConfig,
        ReportArguments,
        RetrieveArguments,
        TrainArguments,
        TrainerConfig,
        ZeroShotArguments,
    )
    known = {f.name for c in arguments for f in dataclasses.fields(c)}
    named = {name.replace("-", "_") for name in re.findall(r"--([a-z][a-z-]+)", TEXT)}
    assert named - known <= {
        "help",
        "nproc_per_node",
        "dry",
        "benchmark_only",
        "benchmark_json",
        "seconds",  # of the benchmarks' conftest
        "against",  # of benchmarks.report
    }
    assert {"data", "resume", "precision"} <= named


def test_links_to_files_of_the_repository_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target
