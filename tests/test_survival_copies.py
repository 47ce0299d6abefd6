"""Copies, pickles and other precisions of a patched model."""

from __future__ import annotations

import copy
import io
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import fresh
import pytest
import torch
from tiny_towers import randomize, snapshot
from torch import Tensor, nn
from vits import VITS, Vit, loss

import fastht

CONFIG = fastht.HTConfig(dropout=0.0)
LIBRARIES = ["native", "coca", "siglip", "vitamin", "transformers-clip", "openai"]


@pytest.fixture(params=LIBRARIES)
def vit(request: pytest.FixtureRequest) -> Vit:
    return VITS[request.param]


def _patched(vit: Vit) -> nn.Module:
    torch.manual_seed(1)
    model = fastht.patch(vit.build(), CONFIG)
    randomize(fastht.adapter_parameters(model))
    return model


def _features(vit: Vit, model: nn.Module) -> Tensor:
    with torch.no_grad():
        return vit.features(model, vit.image())


def test_the_keys_of_the_base_do_not_change(vit: Vit) -> None:
    model = vit.build()
    base = model.state_dict()
    fastht.patch(model)
    patched = model.state_dict()
    adapters = {name for name in patched if ".ht." in name}
    assert list(base) == [name for name in patched if name not in adapters]
    # A checkpoint of the base loads into the patched model, one of the patched model into another.
    assert set(model.load_state_dict(base, strict=False).missing_keys) == adapters
    randomize(fastht.adapter_parameters(model))
    other = fastht.patch(vit.build())
    other.load_state_dict(model.state_dict())
    assert torch.equal(_features(vit, other), _features(vit, model))


def _pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def _saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, _pickled, _saved])
def test_a_copy_is_whole_and_its_own(vit: Vit, duplicate: Callable[[nn.Module], nn.Module]) -> None:
    model = _patched(vit)
    expected = _features(vit, model)
    twin = duplicate(model)
    assert torch.equal(_features(vit, twin), expected)

    # Its own weights ...
    randomize(fastht.adapter_parameters(twin), seed=2)
    changed = _features(vit, twin)
    assert not torch.allclose(changed, expected, rtol=0, atol=1e-3)
    assert torch.equal(_features(vit, model), expected)

    # ... switch, lock and gradients ...
    with fastht.disable_adapter(model):
        assert torch.equal(_features(vit, twin), changed)
    loss(vit.features(twin, vit.image())).backward()
    assert all(p.grad is not None for p in fastht.adapter_parameters(twin))
    assert all(p.grad is None for p in model.parameters())
    tower = getattr(twin, "visual", twin)
    if hasattr(tower, "lock"):
        tower.lock()
        own = {id(p) for p in fastht.adapter_parameters(twin)}
        assert {id(p) for p in twin.parameters() if p.requires_grad} == own

    # ... and way back.
    fastht.unpatch(twin)
    base = vit.build()
    assert list(twin.state_dict()) == list(base.state_dict())
    assert torch.equal(_features(vit, twin), _features(vit, base))
    assert all(p.requires_grad for p in twin.parameters())
    assert torch.equal(_features(vit, model), expected)


def test_a_copy_taken_while_disabled_is_disabled_alone() -> None:
    vit = VITS["openai"]
    model = _patched(vit)
    with fastht.disable_adapter(model):
        twin = copy.deepcopy(model)
    assert not torch.equal(_features(vit, model), _features(vit, twin))


_IN_A_FRESH_PROCESS = """
import sys
import torch
import fastht

for file in sys.argv[1:]:
    model, image, expected, base = torch.load(file, weights_only=False)
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(image), expected)
        # Hooks are numbered anew in a new process: whatever its number, none may take the
        # adapter's place.
        seen, handles = [], []
        for module in model.modules():
            torch.utils.hooks.RemovableHandle.next_id = 0
            for _ in range(50):
                handles.append(module.register_forward_hook(lambda *args: seen.append(1)))
        assert torch.equal(model(image), expected)
        assert seen
        for handle in handles:
            handle.remove()
        with fastht.disable_adapter(model):
            assert torch.equal(model(image), base)
        assert torch.equal(model(image), expected)
        fastht.unpatch(model)
        model.requires_grad_(False)  # as `base` was: torch 2.8 moves a last bit otherwise
        assert torch.equal(model(image), base)
"""


def test_saved_models_load_in_a_fresh_process(tmp_path: Path) -> None:
    files = []
    for name in ("openai", "siglip"):
        vit = VITS[name]
        model = _patched(vit)
        with fastht.disable_adapter(model):
            base = _features(vit, model)
        files.append(str(tmp_path / f"{name}.pt"))
        torch.save((model, vit.image(), _features(vit, model), base), files[-1])
    script = f"sys_path = {sys.path!r}\nimport sys\nsys.path[:] = sys_path\n{_IN_A_FRESH_PROCESS}"
    result = fresh.run(script, *files)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["native", "siglip", "vitamin", "transformers-clip", "openai"])
def test_a_model_cast_after_patching(name: str, dtype: torch.dtype) -> None:
    vit = VITS[name]
    model = _patched(vit)
    exact = _features(vit, model)
    model.to(dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    features = vit.features(model, vit.image().to(dtype))
    assert features.dtype == dtype
    assert _distance(features, exact) < 0.1
    loss(features.float()).backward()
    assert all(p.grad is not None for p in fastht.adapter_parameters(model))
    model.float()
    assert _distance(_features(vit, model), exact) < 0.1


def test_autocast(vit: Vit) -> None:
    model = _patched(vit)
    exact = _features(vit, model)
    kept: list[bool] = []
    for adapter in fastht.adapters(model).values():
        adapter.register_forward_hook(lambda _, args, out: kept.append(args[0].dtype == out.dtype))
    before = snapshot(model)
    with torch.autocast("cpu", torch.bfloat16):
        features = vit.features(model, vit.image())
    assert kept == [True, True]
    assert _distance(features, exact) < 0.1
    assert snapshot(model) == before
    loss(features.float()).backward()
    for parameter in fastht.adapter_parameters(model):
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


def _distance(features: Tensor, exact: Tensor) -> float:
    difference = features.detach().double() - exact.double()
    return float(difference.norm() / exact.double().norm())
