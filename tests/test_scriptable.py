"""What torch.jit.script makes of a patched model: the adapters are in it, or it is refused."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fresh
import pytest
import torch
from tiny_towers import randomize, snapshot
from torch import Tensor, nn
from vits import VITS, Vit, loss

import fastht

# Plain, sequence first, a whole CLIP, rotary positions passed to each block.
NAMES = ["registers", "openai", "clip", "eva02"]


@pytest.fixture(autouse=True)
def _deprecation() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.")
        yield


def _patched(name: str, backend: str = "auto", **config: Any) -> tuple[Vit, nn.Module, Tensor]:
    torch.manual_seed(1)
    vit = VITS[name]
    model = fastht.patch(vit.build(), fastht.HTConfig(**config), backend=backend)
    randomize(fastht.adapter_parameters(model))
    return vit, model, vit.image(grid=vit.built_grid)


def _run(model: Any, *inputs: Tensor) -> Tensor:
    output = model(*inputs)
    return output[0] if isinstance(output, tuple) else output


def _agree(scripted: Any, model: nn.Module, *inputs: Tensor) -> None:
    with torch.no_grad():
        actual, expected = _run(scripted, *inputs), _run(model, *inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_scripted_model_is_the_adapted_one(name: str) -> None:
    _, model, image = _patched(name, dropout=0.0)
    before = snapshot(model)
    scripted = torch.jit.script(model)
    assert snapshot(model) == before
    _agree(scripted, model, image)
    _agree(scripted, model, torch.cat([image, image.flip(0), -image]))
    with torch.no_grad(), fastht.disable_adapter(model):
        assert not torch.allclose(_run(scripted, image), _run(model, image), atol=1e-3)
    # The keys and the tensors are the model's own.
    own = dict(model.named_parameters())
    assert all(p is own[name] for name, p in scripted.named_parameters())
    # (TorchScript makes buffers persistent that are not.)
    assert scripted.state_dict().keys() >= model.state_dict().keys()

    gradients = []
    for module in (scripted, model):
        model.zero_grad()
        loss(_run(module, image)).backward()
        gradients.append([p.grad.clone() for p in fastht.adapter_parameters(model)])
    largest = max(float(gradient.abs().max()) for gradient in gradients[1])
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5 * largest)
    fastht.unpatch(model)
    _agree(torch.jit.script(model), model, image)


@pytest.mark.parametrize("config", [{"spectral": "full"}, {"variant": "baseline"}])
def test_other_adapters(config: dict[str, Any]) -> None:
    _, model, image = _patched("registers", **config)
    for parameter in fastht.adapter_parameters(model):
        nn.init.normal_(parameter, std=0.3)
    _agree(torch.jit.script(model), model, image)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    _, model, image = _patched("registers")
    exact = _run(model, image).detach()
    model.to(dtype)
    with torch.no_grad():
        output = _run(torch.jit.script(model), image.to(dtype))
    assert output.dtype == dtype
    error = (output.float() - exact).norm() / exact.norm()
    assert error < (1e-5 if dtype == torch.float64 else 3e-2)


@pytest.mark.parametrize("part", ["blocks", "blocks.1", "patch_embed"])
def test_parts_of_a_model(part: str) -> None:
    vit, model, image = _patched("registers")
    own = model.get_submodule(part)
    tokens = torch.randn(2, 4, model.embed_dim)
    tokens = tokens.repeat(1, 100, 1)[
        :, : vit.prefix_tokens + vit.built_grid[0] * vit.built_grid[1]
    ]
    before = list(model.modules())
    given = image if part == "patch_embed" else tokens
    scripted = torch.jit.script(own)
    assert list(model.modules()) == before
    with torch.no_grad():
        actual, expected = scripted(given), own(given)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_copies_are_scripted_with_their_own_weights() -> None:
    _, model, image = _patched("registers")
    for duplicate in (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))):
        other = duplicate(model)
        randomize(fastht.adapter_parameters(other), seed=5)
        _agree(torch.jit.script(other), other, image)
        assert not torch.allclose(_run(other, image), _run(model, image), atol=1e-3)


def test_a_model_in_another_one() -> None:
    _, model, image = _patched("registers")
    around = nn.Sequential(model, nn.Softmax(dim=-1))
    scripted = torch.jit.script(around)
    _agree(scripted, nn.Sequential(model, nn.Softmax(dim=-1)), image)
    assert fastht.adapters(model).keys() == {0, 1}
    assert list(scripted.parameters())[-1] is list(model.parameters())[-1]


def test_dropout_acts_in_training_alone() -> None:
    _, model, image = _patched("registers", dropout=0.5)
    scripted = torch.jit.script(model.train())
    with torch.no_grad():
        assert not torch.equal(_run(scripted, image), _run(scripted, image))
        draws = torch.stack([_run(scripted, image) for _ in range(100)]).mean(0)
        own = torch.stack([_run(model, image) for _ in range(100)]).mean(0)
    _agree(scripted.eval(), model.eval(), image)
    with torch.no_grad():
        shift = (own - _run(model, image)).abs().mean()
    assert (draws - own).abs().mean() < 0.5 * shift  # of as much dropout


def test_images_of_another_grid_are_refused() -> None:
    vit, model, _ = _patched("openai")
    turned = vit.image(grid=(5, 3))
    with pytest.raises(torch.jit.Error, match="scripted for one patch grid"):
        torch.jit.script(model)(turned)
    _run(model, turned)  # the latest images tell the grid
    _agree(torch.jit.script(model), model, turned)


def test_what_is_refused_says_why() -> None:
    _, model, _ = _patched("registers")
    with fastht.disable_adapter(model), pytest.raises(RuntimeError, match="while the HT adapters"):
        torch.jit.script(model)
    with pytest.raises(RuntimeError, match=r"outside of a patched model.*torch\.jit\.trace"):
        torch.jit.script(fastht.HTAdapter(32))
    _, model, _ = _patched("transformers-clip-vision")
    with pytest.raises(RuntimeError, match=r"takes any arguments.*use torch\.jit\.trace"):
        torch.jit.script(model)
    if fastht.backends()["cpu"].usable:
        _, model, _ = _patched("registers", "cpu")
        with pytest.raises(RuntimeError, match=r"backend 'cpu'.*backend='auto' or 'reference'"):
            torch.jit.script(model)


def test_a_graph_of_torch_fx() -> None:
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    _, model, image = _patched("registers")
    graph = extraction.create_feature_extractor(model, ["norm"])
    expected = graph(image)["norm"]
    before = list(model.modules())
    scripted = torch.jit.script(graph)
    assert list(model.modules()) == before
    torch.testing.assert_close(scripted(image)["norm"], expected, rtol=1e-4, atol=1e-5)


_LOAD = """
import sys
import torch
image, expected = torch.load({folder!r} + "/case.pt")
for name in ("frozen", "scripted"):
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load({folder!r} + f"/{{name}}.pt")(image), expected)
assert "fastht" not in sys.modules
"""


def test_a_saved_file_needs_no_fastht(tmp_path: Path) -> None:
    _, model, image = _patched("registers")
    scripted = torch.jit.script(model)
    scripted.save(tmp_path / "scripted.pt")
    torch.jit.freeze(scripted).save(tmp_path / "frozen.pt")
    with torch.no_grad():
        torch.save((image, model(image)), tmp_path / "case.pt")
    buffer = io.BytesIO((tmp_path / "scripted.pt").read_bytes())
    with pytest.raises(fastht.UnsupportedModelError, match="patch the model itself"):
        fastht.patch(torch.jit.load(buffer))
    script = _LOAD.format(folder=str(tmp_path))
    found = fresh.run(script)
    assert found.returncode == 0, found.stderr
