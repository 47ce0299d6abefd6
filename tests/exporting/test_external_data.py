"""ONNX files whose weights are too many for one file: written, read, refused as two."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_towers import randomize
from vits import VITS

import fastht
from fastht.exporting import command, onnx

NAMES = {"m.onnx", "m.onnx.data"}


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    torch.manual_seed(1)
    made = fastht.patch(VITS["openai"].build(), fastht.HTConfig(bottleneck_dim=16))
    randomize(fastht.adapter_parameters(made))
    return made


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let any weights be too many."""
    monkeypatch.setattr(onnx, "_IN_ONE_FILE", 0)


@pytest.mark.usefixtures("_small")
def test_two_files_are_one_model(model: torch.nn.Module, tmp_path: Path) -> None:
    made = fastht.export(model, tmp_path / "m.onnx", "onnx")
    files = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert files.keys() == NAMES
    assert (made.data, made.size_bytes) == (tmp_path / "m.onnx.data", sum(files.values()))
    weights = sum(p.numel() for p in model.state_dict().values())
    assert files["m.onnx.data"] > 2 * weights  # of 4 bytes each, less what is folded

    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.move(tmp_path / "m.onnx", moved / "m.onnx")
    with pytest.raises(fastht.ExportError, match="put both into one folder"):
        fastht.load_exported(moved / "m.onnx")
    shutil.move(tmp_path / "m.onnx.data", moved / "m.onnx.data")
    image = VITS["openai"].image(batch=3, grid=VITS["openai"].built_grid)
    with torch.no_grad():
        expected = model(image)
    found = fastht.load_exported(moved / "m.onnx")(image=image)["output"]
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.usefixtures("_small")
def test_two_files_of_another_computation_are_not_written(
    model: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = command.read_onnx

    def doubled(path: Path) -> Any:
        assert {file.name for file in path.parent.iterdir()} == NAMES
        run, text = right(path)
        return (lambda inputs: {k: 2 * v for k, v in run(inputs).items()}), text

    monkeypatch.setattr(command, "read_onnx", doubled)
    with pytest.raises(fastht.ExportError, match="off by 1 of its largest value"):
        fastht.export(model, tmp_path / "m.onnx", "onnx")
    assert not list(tmp_path.iterdir())


def test_weights_that_are_there_are_not_replaced(model: torch.nn.Module, tmp_path: Path) -> None:
    (tmp_path / "m.onnx.data").write_bytes(b"of another model")
    with pytest.raises(FileExistsError, match=r"m\.onnx\.data exists; remove it, or give another"):
        fastht.export(model, tmp_path / "m.onnx", "onnx")
    assert (tmp_path / "m.onnx.data").read_bytes() == b"of another model"
    assert len(list(tmp_path.iterdir())) == 1
