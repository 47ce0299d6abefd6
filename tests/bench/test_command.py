"""`fastht bench` as a user runs it: the table, the file, and what it says when it cannot."""

import dataclasses
import json

import fresh
import pytest
import torch

import fastht
from fastht.bench import command
from fastht.bench.command import BenchArguments, Row, find_model, make_case, table
from fastht.bench.gate import IncorrectError
from fastht.bench.methods import METHODS, Method, front_names
from fastht.bench.towers import ModelSpec
from fastht.cli import main
from fastht.lora import NoLoraError

pytest.importorskip("peft")

QUICK = ("bench", "--model", "fastht-tiny", "--batch-size", "2", "--rounds", "2", "--device", "cpu")


def row(method, seconds, **kwargs):
    return Row(method, "what it is", None, None, seconds, 1234, 5, **kwargs)


def test_it_prints_a_table_and_writes_everything(tmp_path, capsys):
    target = tmp_path / "results.json"
    options = ["--no-memory", "--methods", "lora", "ht", "--keep", "output", "--json", str(target)]
    assert main([*QUICK, *options, "--bottleneck-dim", "16"]) == 0
    printed = capsys.readouterr()
    backend = fastht.ops.resolve_backend("auto", "cpu").name
    lines = printed.out.splitlines()
    case = "fastht-tiny, random weights, batch 2, fp32, adapters keep their output"
    assert lines[0] == f"{case}, 2 rounds"
    assert f"torch {torch.__version__.partition('+')[0]}" in lines[1]
    assert "load before: " in lines[1]
    assert lines[3].split("   ")[0].strip() == "method"
    assert lines[5].startswith("lora ")
    assert "100 %" in lines[5]
    assert lines[6].startswith(f"ht ({backend}) ")
    assert "kept MiB" not in lines[3]
    assert "lora: this tower has nn.MultiheadAttention" in printed.out

    content = json.loads(target.read_text())
    assert content["command"].startswith("fastht bench --model fastht-tiny --batch-size 2")
    assert content["date"].endswith("+00:00")
    assert content["machine"]["device"] == "cpu"
    assert content["case"]["precision"] == "fp32"
    assert content["case"]["keep"] == "output"
    assert content["case"]["config"] == fastht.HTConfig(init="paper", bottleneck_dim=16).to_dict()
    assert [entry["method"] for entry in content["methods"]] == ["lora", "ht"]
    assert [len(entry["seconds"]) for entry in content["methods"]] == [2, 2]
    assert content["methods"][1]["backend"] == backend
    assert content["methods"][1]["peak_bytes"] is None
    assert content["left_out"] == {}


@pytest.fixture
def clip(tmp_path):
    """An open_clip model whose vision tower has four blocks."""
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": 4, "width": 32, "head_width": 16, "patch_size": 8}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    content = {"model_cfg": config, "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    return f"local-dir:{tmp_path}"


def front(clip, tmp_path, monkeypatch):
    """Run the front of a small open_clip tower; return what it wrote."""
    monkeypatch.setattr(command, "peak_bytes", lambda case, name, step: None)
    target, picture = tmp_path / "front.json", tmp_path / "front.png"
    options = ("--front", "--json", str(target), "--picture", str(picture))
    assert main([*QUICK, "--model", clip, *options]) == 0
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return json.loads(target.read_text())


def test_the_front_of_an_open_clip_tower(clip, tmp_path, monkeypatch, capsys):
    names = [name for name in front_names(4) if not name.endswith("-compiled")]
    monkeypatch.setattr(command, "front_names", lambda depth: names if depth == 4 else [])
    content = front(clip, tmp_path, monkeypatch)
    kept = {entry["method"]: entry["saved_bytes"] for entry in content["methods"]}
    assert list(kept) == names
    for kind in ("ht", "lora"):
        own = [kept[kind + s] for s in ("", "-mlp:1", "-mlp:2", "-mlp", "-block:2", "-block")]
        assert own[0] > own[1] > own[2] > own[3] > own[5]
        assert own[0] > own[4] > own[5]
    lines = capsys.readouterr().out.splitlines()
    budgets = [line for line in lines if line.startswith("kept <= ")]
    assert len(budgets) == len(content["front"]) >= 3
    assert "HT is faster" in lines[lines.index(budgets[-1]) + 1]


@pytest.mark.slow
def test_the_front_compiled(clip, tmp_path, monkeypatch):
    names = ["lora", "ht-mlp:2-compiled"]
    monkeypatch.setattr(command, "front_names", lambda depth: names)
    content = front(clip, tmp_path, monkeypatch)
    assert [entry["method"] for entry in content["methods"]] == names
    assert content["left_out"] == {}


def test_more_blocks_than_the_tower_has_are_told_in_a_line(clip, capsys):
    assert main([*QUICK, "--no-memory", "--model", clip, "--methods", "ht-mlp:5"]) == 1
    assert "'mlp:5', and the tower has 4 blocks" in capsys.readouterr().err


def test_memory_is_measured_unless_it_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr(command, "peak_bytes", lambda case, name, step: 7 * 2**20)
    assert main([*QUICK, "--methods", "frozen"]) == 0
    head, _, line = capsys.readouterr().out.splitlines()[3:6]
    assert head.split("   ")[-3:] == ["kept MiB", "peak MiB", "trainable"]
    assert line.split()[-3:] == ["0.0", "7.0", "0"]


@pytest.fixture
def no_lora(monkeypatch):
    def refuse(*args, **options):
        raise NoLoraError("LoRA needs peft: pip install 'peft>=0.15'")

    monkeypatch.setattr("fastht.bench.methods.add_lora", refuse)


def test_without_peft_the_others_are_measured(no_lora, capsys):
    assert main([*QUICK, "--no-memory", "--methods", "frozen", "lora"]) == 0
    printed = capsys.readouterr().out
    assert "lora is left out: LoRA needs peft: pip install 'peft>=0.15'" in printed
    assert "of LoRA's time" not in printed


def test_what_computes_something_else_is_left_out_and_ends_with_1(monkeypatch, capsys):
    def prepare(model, config, keep):
        raise IncorrectError("out - x is off by 2")

    monkeypatch.setitem(METHODS, "ht", Method("ht", "wrong", prepare, fused=True))
    assert main([*QUICK, "--no-memory", "--methods", "frozen", "ht"]) == 1
    printed = capsys.readouterr().out
    assert "ht is left out: incorrect: out - x is off by 2." in printed
    assert "\nfrozen" in printed


def test_nothing_measured_ends_with_1(no_lora, capsys):
    assert main([*QUICK, "--methods", "lora"]) == 1
    printed = capsys.readouterr().out
    assert "lora is left out" in printed
    assert "ms a step" not in printed


@pytest.mark.parametrize(
    ("precision", "fast", "warned"),
    [("bf16", False, True), ("bf16", True, False), ("fp32", False, False)],
)
def test_it_warns_where_bfloat16_takes_minutes(precision, fast, warned, monkeypatch, capsys):
    monkeypatch.setattr(command, "multiplies_bf16", lambda device: fast)
    monkeypatch.setattr(command, "measure", lambda *_, **__: ([], {}))
    main([*QUICK, "--precision", precision])
    assert ("--precision fp32 is what to train in here" in capsys.readouterr().err) == warned


def test_a_file_is_not_overwritten(tmp_path, capsys):
    target = tmp_path / "results.json"
    target.write_text("precious")
    assert main([*QUICK, "--json", str(target)]) == 1
    assert capsys.readouterr().err == (
        f"fastht bench: --json {target} exists already; give another name\n"
    )
    assert target.read_text() == "precious"
    assert main([*QUICK, "--json", str(tmp_path / "missing" / "results.json")]) == 1
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "ViT-B-61"], "neither open_clip nor timm has a model 'ViT-B-61'"),
        (["--model", "RN50"], "found no vision transformer"),
        (["--model", "timm:nothing"], "timm cannot build nothing"),
        (["--methods", "ht", "adalora"], "there is no method 'adalora'; choose of frozen, full,"),
        (["--methods"], "--methods is empty"),
        (["--batch-size", "0"], "the batch size is 0"),
        (["--rounds", "1"], "--rounds is 1"),
        (["--bottleneck-dim", "8", "--layers", "99", "--methods", "ht"], "HTConfig.layers names"),
    ],
)
def test_what_a_user_can_mend_is_told_in_a_line(options, message, capsys):
    assert main([*QUICK, "--no-memory", *options]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("fastht bench: ")
    assert message in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_not_replaced(capsys):
    assert main(["bench", "--device", "cuda"]) == 1
    assert "torch sees no CUDA GPU" in capsys.readouterr().err


def test_an_interruption_ends_with_130(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "measure", interrupted)
    assert main([*QUICK]) == 130
    assert capsys.readouterr().err == "\nfastht bench: interrupted\n"


def test_memory_that_ends_between_the_methods_is_told(monkeypatch, capsys):
    def exhausted(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(command, "alternate", exhausted)
    assert main([*QUICK, "--methods", "frozen"]) == 1
    assert "not all of them side by side" in capsys.readouterr().err


def test_without_the_extra_it_says_how_to_get_it():
    code = "import sys; sys.modules['tyro'] = None\nfrom fastht.cli import main\nmain(['bench'])"
    done = fresh.run(code)
    assert "fastht bench needs tyro: pip install 'fastht[bench]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_help_names_all_methods():
    for name in METHODS:
        assert f" {name}" in BenchArguments.__doc__
    defaults = BenchArguments().methods
    assert set(defaults) <= set(METHODS)
    assert not any(METHODS[name].compiled for name in (*defaults, "full"))


@pytest.mark.parametrize(
    ("name", "library", "source"),
    [
        ("ViT-B-16", "open_clip", "ViT-B-16"),
        ("vit_base_patch16_224", "timm", "vit_base_patch16_224"),
        ("timm:vit_base_patch16_224.augreg", "timm", "vit_base_patch16_224.augreg"),
        ("hf-hub:timm/ViT-B-16", "open_clip", "hf-hub:timm/ViT-B-16"),
    ],
)
def test_models_are_looked_up_in_open_clip_first(name, library, source):
    assert find_model(name, 64) == ModelSpec(library, source, 64)


def test_a_device_brings_its_defaults():
    arguments = BenchArguments(device="cpu")
    case = make_case(arguments)
    assert (case.batch, case.precision, case.device) == (8, "fp32", "cpu")
    assert case.config == fastht.HTConfig(init="paper")
    case = make_case(dataclasses.replace(arguments, batch_size=3, precision="bf16-base"))
    assert (case.batch, case.precision) == (3, "bf16-base")
    assert make_case(dataclasses.replace(arguments, keep="output")).keep == "output"


def test_lora_is_compared_with_round_by_round():
    """Both slow down a hundredfold from round to round; the ratio does not."""
    rows = [row("lora", [0.01, 1.0, 0.1]), row("ht", [0.005, 0.5, 0.05])]
    lines = table(rows, batch=8).splitlines()
    assert lines[2].split() == ["lora", "100", "55", "to", "550", "80.0", "100", "%", "1,234"]
    assert lines[3].split()[-3:] == ["50", "%", "1,234"]


def test_a_number_that_is_missing_is_a_dash():
    measured = row("ht", [1e-3, 2e-3], saved_bytes=2**20, peak_bytes=3 * 2**20)
    text = table([row("mona", [1e-3, 1e-3]), measured], batch=1)
    head, _, first, second = text.splitlines()
    assert "of LoRA's time" not in head
    assert first.split()[-3:] == ["-", "-", "1,234"]
    assert second.split() == ["ht", "1.50", "1.25", "to", "1.75", "666.7", "1.0", "3.0", "1,234"]
    assert len({len(line) for line in text.splitlines()}) == 1
