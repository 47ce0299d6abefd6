"""Exported files compute what the model does, without fastht, for any batch; or are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fresh
import pytest
import torch
from numerics import FACTOR, FLOOR
from tiny_towers import randomize, snapshot, tiny_tower
from torch import Tensor, nn
from vits import ALL_VITS, VITS, timm_vit

import fastht
from fastht.exporting import command, fold
from fastht.lora import add_lora

FORMATS = ["torch", "onnx"]
SUFFIX = {"torch": ".pt2", "onnx": ".onnx"}
CONFIG = fastht.HTConfig(bottleneck_dim=16)


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")


def patched(name: str, **config: Any) -> nn.Module:
    torch.manual_seed(1)
    made = fastht.HTConfig(**{"bottleneck_dim": 16, **config})
    model = fastht.patch(ALL_VITS[name].build(), made)
    randomize(fastht.adapter_parameters(model))
    return model


def off(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module")
def registers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A timm tower of five prefix tokens in both formats."""
    model = patched("registers", spectral="channel")
    folder = tmp_path_factory.mktemp("registers")
    made = {f: fastht.export(model, folder / f"m{SUFFIX[f]}", f) for f in FORMATS}
    return model, made


@pytest.mark.parametrize("form", FORMATS)
def test_the_numbers_are_the_models_at_any_batch(registers: Any, form: str) -> None:
    model, made = registers
    assert (made[form].adapters, made[form].error < 1e-5) == (2, True)
    file = fastht.load_exported(made[form].path)
    for batch in (1, 3, 7):
        image = VITS["registers"].image(batch=batch, seed=batch)
        with torch.no_grad():
            assert off(file(image=image)["output"], model(image)) < 1e-5
            with fastht.disable_adapter(model):
                assert off(file(image=image)["output"], model(image)) > 1e-2


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_says_what_it_takes(registers: Any, form: str) -> None:
    told = fastht.load_exported(registers[1][form].path).metadata
    assert told["inputs"]["image"]["height"] == 24
    assert (told["outputs"], told["dtype"], told["adapters_folded"]) == (["output"], "float32", 2)
    assert len(told["preprocess"]["mean"]) == 3
    with pytest.raises(fastht.ExportError, match="the file takes image, not text; give these"):
        fastht.load_exported(registers[1][form].path)(text=torch.zeros(1))


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_names_no_folder_of_who_exported_it(registers: Any, form: str) -> None:
    content = registers[1][form].path.read_bytes()
    for module in (fastht, torch):
        assert str(Path(module.__file__).parent).encode() not in content
    assert b"layer_norm" in content.lower() or b"LayerNormalization" in content


def test_operators_are_standard(registers: Any) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(registers[1]["onnx"].path)
    assert {node.domain for node in model.graph.node} == {""}
    assert "DFT" not in {node.op_type for node in model.graph.node}


@pytest.mark.slow
def test_a_file_runs_without_fastht(registers: Any, tmp_path: Path) -> None:
    model, made = registers
    image = VITS["registers"].image(batch=3)
    with torch.no_grad():
        torch.save((image, model(image)), tmp_path / "case.pt")
    script = f"""
import sys, torch
image, expected = torch.load({str(tmp_path / "case.pt")!r})
files = {{"fastht.json": ""}}
program = torch.export.load({str(made["torch"].path)!r}, extra_files=files)
torch.testing.assert_close(program.module()(image)["output"], expected, rtol=1e-4, atol=1e-5)
assert "fastht" not in sys.modules and "timm" not in sys.modules
assert b"fastht-export" in bytes(files["fastht.json"], "utf8")
"""
    found = fresh.run(script)
    assert found.returncode == 0, found.stderr


@pytest.mark.sweep
def test_aotinductor_compiles_it_on_a_cpu(registers: Any, tmp_path: Path) -> None:
    model, made = registers
    program = torch.export.load(made["torch"].path)
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "m.pt2"))
    run = torch._inductor.aoti_load_package(path)
    for batch in (1, 4):
        image = VITS["registers"].image(batch=batch, seed=batch)
        with torch.no_grad():
            assert off(run(image)["output"], model(image)) < 1e-5


def test_the_model_stays_as_it_is(tmp_path: Path) -> None:
    model = patched("openai")
    before = snapshot(model)
    with pytest.raises(fastht.ExportError, match="choose 'torch' or 'onnx'"):
        fastht.export(model, tmp_path / "m.pt2", "tensorflow")  # type: ignore[arg-type]
    fastht.export(model, tmp_path / "m.pt2")
    assert snapshot(model) == before
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt2"]


# Towers


@pytest.mark.slow
def test_another_grid_of_blocks_that_take_the_tokens_first(tmp_path: Path) -> None:
    model = patched("openai", spectral="full", variant="freq_enhanced")
    path = tmp_path / "m.onnx"
    fastht.export(model, path, "onnx", image_size=(40, 24))
    image = VITS["openai"].image(batch=3, grid=(5, 3))
    with torch.no_grad():
        assert off(fastht.load_exported(path)(image=image)["output"], model(image)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_a_tower_of_dynamic_sizes_takes_any_grid(form: Any, tmp_path: Path) -> None:
    model = timm_vit("vit_small_patch14_reg4_dinov2", dynamic_img_size=True)
    fastht.patch(model, CONFIG)
    randomize(fastht.adapter_parameters(model))
    path = tmp_path / f"m{SUFFIX[form]}"
    fastht.export(model, path, form, dynamic_grid=True)
    file = fastht.load_exported(path)
    for batch, grid in ((1, (3, 5)), (3, (5, 2)), (2, (6, 7))):
        image = VITS["registers"].image(batch=batch, grid=grid)
        with torch.no_grad():
            assert off(file(image=image)["output"], model(image)) < 1e-5


def test_a_tower_of_one_size_takes_no_other_grid(tmp_path: Path) -> None:
    with pytest.raises(fastht.ExportError, match="does not run on images of 24x40"):
        fastht.export(patched("registers"), tmp_path / "m.pt2", dynamic_grid=True)


@pytest.mark.slow
def test_both_towers_of_open_clip(tmp_path: Path) -> None:
    model = patched("clip")
    path = tmp_path / "m.onnx"
    told = fastht.export(model, path, "onnx").metadata
    assert told["inputs"]["text"] == {"context_length": 8, "vocabulary": 64}
    assert told["logit_scale"] == pytest.approx(float(model.logit_scale.exp()))  # type: ignore
    image, text = VITS["clip"].image(batch=4), torch.randint(1, 64, (2, 8))
    found = fastht.load_exported(path)(image=image, text=text)
    with torch.no_grad():
        assert off(found["image_features"], model.encode_image(image)) < 1e-5  # type: ignore
        assert off(found["text_features"], model.encode_text(text)) < 1e-5  # type: ignore


@pytest.mark.slow
def test_a_tower_alone_leaves_the_other_one_out(tmp_path: Path) -> None:
    model = patched("clip")
    told = fastht.export(model, tmp_path / "text.pt2", part="text").metadata
    assert (list(told["inputs"]), told["outputs"]) == (["text"], ["text_features"])
    assert told["adapters_folded"] == 0
    assert told["logit_scale"] == pytest.approx(float(model.logit_scale.exp()))  # type: ignore
    whole = sum(p.numel() for p in model.parameters())
    visual = sum(p.numel() for p in model.visual.parameters())  # type: ignore
    program = torch.export.load(tmp_path / "text.pt2")
    assert 0 < sum(p.numel() for p in program.parameters()) <= whole - visual


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transformers-clip", "transformers-dinov2-registers"])
def test_other_libraries(name: str, tmp_path: Path) -> None:
    model, vit = patched(name), ALL_VITS[name]
    grid = vit.built_grid
    fastht.export(model, tmp_path / "m.pt2")
    image = vit.image(batch=3, grid=grid)
    found = fastht.load_exported(tmp_path / "m.pt2")(image=image)
    with torch.no_grad():
        expected = vit.features(model, image)
    assert min(off(t, expected) for t in found.values() if t.shape == expected.shape) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["registers", "openai"])  # peft's layers, and parametrized ones
def test_lora_is_merged(name: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model = VITS[name].build()
    add_lora(model, 4, zeros=False)
    before = snapshot(model)
    model.eval()
    image = VITS[name].image(batch=3, grid=VITS[name].built_grid)
    fastht.export(model, tmp_path / "m.pt2")
    with torch.no_grad():
        found = fastht.load_exported(tmp_path / "m.pt2")(image=image)["output"]
        assert off(found, model(image)) < 1e-5
        assert off(found, VITS[name].build()(image)) > 1e-3
    assert snapshot(model)["tensors"] == before["tensors"]
    program = torch.export.load(tmp_path / "m.pt2")
    assert not [key for key in program.state_dict if "lora" in key or "parametrizations" in key]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "dtype"),
    [("torch", torch.bfloat16), ("torch", torch.float16), ("onnx", torch.float16)],
)
def test_in_16_bits_the_rule_of_correctness_holds(
    form: Any, dtype: torch.dtype, tmp_path: Path
) -> None:
    exact, vit = patched("registers").double(), VITS["registers"]
    model = patched("registers").to(dtype)
    # The same weights, rounded.
    exact.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
    path = tmp_path / f"m{SUFFIX[form]}"
    fastht.export(model, path, form)
    file = fastht.load_exported(path)
    ours, plain, scale = [], [], 0.0
    with torch.no_grad():
        for seed in range(6):
            image = vit.image(batch=2, seed=seed).to(dtype)
            true = exact(image.double())
            ours.append(float((file(image=image)["output"].double() - true).abs().max()))
            plain.append(float((model(image).double() - true).abs().max()))
            scale = max(scale, float(true.abs().max()))
    assert max(ours) <= FACTOR * max(plain) + FLOOR * torch.finfo(dtype).eps * scale


# Negative controls: the check of a file sees what a wrong one would compute


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["gamma", "spectral_filter"])
def test_a_file_of_other_numbers_is_not_written(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = fold.fold_weights

    def wrong(params: Any) -> Any:
        return right({**params, broken: torch.ones_like(params[broken])})

    monkeypatch.setattr(fold, "fold_weights", wrong)
    with pytest.raises(fastht.ExportError, match=r"which is no rounding of .*nothing was written"):
        fastht.export(patched("openai"), tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())


def test_a_file_of_zeros_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = command.read_program

    def zeros(path: Path) -> Any:
        run, text = right(path)
        return (lambda i: {k: torch.zeros_like(v) for k, v in run(i).items()}), text

    monkeypatch.setattr(command, "read_program", zeros)
    with pytest.raises(fastht.ExportError, match="off by 1 of its largest value"):
        fastht.export(tiny_tower(), tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())


# What is refused


def _training(model: nn.Module) -> nn.Module:
    model.transformer.resblocks[1].train()  # type: ignore[union-attr, index]
    return model


def _meta(model: nn.Module) -> nn.Module:
    return model.to("meta")


REFUSED: list[tuple[Callable[[nn.Module], nn.Module], dict[str, Any], str]] = [
    (lambda m: m.train(), {}, r"OpenAITower is in training mode.*call model.eval\(\)"),
    (_training, {}, r"transformer.resblocks.1 of OpenAITower is in training mode"),
    (_meta, {}, r"is on the meta device.*to_empty"),
    (lambda m: nn.Linear(3, 3).eval(), {}, r"no vision transformer.*give image_size"),
    (lambda m: m, {"part": "text"}, r"has no text tower.*give part='image'"),
    (lambda m: m, {"part": "vision"}, r"choose one of 'image', 'text', 'both'"),
    (lambda m: m, {"image_size": 3}, r"less than a patch"),
    (lambda m: m, {"metadata": {"format": 1}}, r"which fastht sets; rename"),
    (lambda m: m, {"metadata": {"a": {1, 2}}}, r"is no JSON"),
    (lambda m: m, {"preprocess": {"mean": [0.5]}}, r"standard deviation of dict are not found"),
    (lambda m: m.bfloat16(), {"format": "onnx"}, r"no bfloat16 on a CPU"),
]


@pytest.mark.parametrize(("change", "options", "message"), REFUSED)
def test_what_cannot_be_exported_is_told_with_the_remedy(
    change: Any, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = change(patched("openai"))
    name = "m.onnx" if options.get("format") == "onnx" else "m.pt2"
    with pytest.raises(fastht.ExportError, match=message):
        fastht.export(model, tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_adapters_that_are_off_are_not_exported(tmp_path: Path) -> None:
    model = patched("openai")
    with (
        fastht.disable_adapter(model),
        pytest.raises(fastht.ExportError, match=r"adapters are disabled.*unpatch"),
    ):
        fastht.export(model, tmp_path / "m.pt2")


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    model = patched("openai")
    (tmp_path / "there.pt2").write_bytes(b"1")
    with pytest.raises(FileExistsError, match="remove it, or give another path"):
        fastht.export(model, tmp_path / "there.pt2")
    assert (tmp_path / "there.pt2").read_bytes() == b"1"
    for path, form, message in (
        (tmp_path, "torch", "is a folder; name a file in it"),
        (tmp_path / "none" / "m.pt2", "torch", "there is no folder .*make it first"),
        (tmp_path / "m.pt2", "onnx", "call it m.onnx"),
    ):
        with pytest.raises(fastht.ExportError, match=message):
            fastht.export(model, path, form)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="takes a torch"):
        fastht.export("model", tmp_path / "m.pt2")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["m.pt2", "m.onnx"])
def test_a_file_that_is_none(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(json.dumps({"a": 1}).encode())
    with pytest.raises(fastht.ExportError, match=r"export .*again|cannot run the file"):
        fastht.load_exported(tmp_path / name)


def test_importing_fastht_does_not_import_the_exporters() -> None:
    script = "import sys, fastht; sys.exit('fastht.exporting' in sys.modules)"
    assert fresh.run(script).returncode == 0
