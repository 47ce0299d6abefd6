"""The README is short, CI runs its commands, and the options that pages name exist."""

import dataclasses
import importlib
import re

import pytest
from snippets import PAGES, ROOT, blocks

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = blocks(ROOT / "README.md")


def test_it_is_short_and_patches_once():
    assert len(TEXT.splitlines()) < 200
    assert sum(block.code.count("fastht.patch(") for block in BLOCKS) == 1


def test_the_continuous_integration_runs_the_commands_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    bash = [block.code for block in BLOCKS if block.language == "bash"]
    first, tests = (code.strip().split(" && ") for code in bash[:2])
    assert first[1] in script
    assert re.search(rf'^alone "README\'s tests" {re.escape(tests[1])}$', script, re.MULTILINE)


def test_every_option_named_in_a_page_exists():
    pytest.importorskip("tyro")
    modules = (
        "fastht.bench.command",
        "fastht.captions.command",
        "fastht.data.catalogue.command",
        "fastht.data.check",
        "fastht.data.export",
        "fastht.data.overlap.command",
        "fastht.data.source",
        "fastht.data.split",
        "fastht.taxonomy.command",
        "fastht.tasks.image_text.align",
        "fastht.tasks.image_text.attributes",
        "fastht.tasks.image_text.judged_records",
        "fastht.tasks.image_text.probe",
        "fastht.tasks.image_text.retrieve",
        "fastht.tasks.image_text.train",
        "fastht.tasks.image_text.train_arguments",
        "fastht.tasks.image_text.zeroshot",
        "fastht.tasks.images.commands",
        "fastht.tasks.images.evaluate",
        "fastht.tasks.inference.export",
        "fastht.tasks.inference.predict",
        "fastht.tasks.images.paired",
        "fastht.tasks.models.methods",
        "fastht.tasks.results.push",
        "fastht.tasks.tags.command",
        "fastht.tasks.training.trainer",
    )
    classes = [c for m in modules for c in vars(importlib.import_module(m)).values()]
    options = [c for c in classes if isinstance(c, type) and dataclasses.is_dataclass(c)]
    known = {f.name for c in options for f in dataclasses.fields(c)}
    texts = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = {name.replace("-", "_") for name in re.findall(r"(?<![\w-])--([a-z][a-z-]+)", texts)}
    of_scripts = {
        name.replace("-", "_")
        for folder in ("benchmarks", "fastht/clients", "tests/clients", "website")
        for file in (ROOT / folder).rglob("*.py")
        for name in re.findall(r'"--([a-z][a-z-]+)"', file.read_text(encoding="utf-8"))
    }
    others = {"help", "json", "nproc_per_node", "dry", "benchmark_only", "benchmark_json"}
    others |= {"strict", "check"}  # of mkdocs and ruff
    others |= {"no_images", "no_flip", "no_spread_captions"}  # images = False
    others |= {"train_data"}  # of open_clip's training program
    assert named <= known | of_scripts | others
    assert {"data", "resume", "precision"} <= named
