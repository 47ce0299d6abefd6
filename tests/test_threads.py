"""One patched model in several threads: each has its own images and its own switch."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable

import pytest
import torch
from tiny_towers import randomize
from torch import Tensor, nn
from vits import VITS, openai_tower

import fastht
from fastht.hooks import find_hook
from fastht.tower import TowerState

VIT = VITS["openai"]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    model = fastht.patch(openai_tower(), fastht.HTConfig(dropout=0.0))
    randomize(fastht.adapter_parameters(model))
    return model


def _output(model: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        return model(image)


def _in_thread(work: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


# 2x8 and 8x2 have as many patches: a grid of the other thread's is no error, only wrong.
@pytest.mark.parametrize("grids", [((2, 8), (8, 2)), ((2, 8), (3, 3))])
def test_threads_may_have_images_of_different_sizes(
    model: nn.Module, grids: tuple[tuple[int, int], ...]
) -> None:
    images = [VIT.image(grid=grid) for grid in grids]
    expected = [_output(model, image) for image in images]
    block = model.transformer.resblocks[0]
    order: list[str] = []

    def other_images(*_: object) -> None:  # between the patch projection and the first adapter
        if not order:
            order.append("began")
            _in_thread(
                lambda: order.append(str(torch.equal(_output(model, images[1]), expected[1])))
            )

    handle = block.register_forward_pre_hook(other_images)
    assert torch.equal(_output(model, images[0]), expected[0])
    assert order == ["began", "True"]
    handle.remove()
    # The test would see one grid for all threads.
    state: TowerState = find_hook(model.conv1).state
    block.register_forward_pre_hook(lambda *_: state.record(*grids[1]))
    try:
        wrong = _output(model, images[0])
    except ValueError:
        return
    assert not torch.allclose(wrong, expected[0], atol=1e-4)


def test_disable_adapter_is_of_its_thread(model: nn.Module) -> None:
    image = VIT.image()
    adapted = _output(model, image)
    with fastht.disable_adapter(model):
        base = _output(model, image)
        _in_thread(lambda: torch.testing.assert_close(_output(model, image), adapted))
        assert torch.equal(_output(model, image), base)
    assert not torch.allclose(base, adapted, atol=1e-3)
    assert torch.equal(_output(model, image), adapted)


def test_compiled_code_asks_for_its_own_thread(model: nn.Module) -> None:
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    image = VIT.image()
    adapted = _output(model, image)
    with fastht.disable_adapter(model):
        base = _output(model, image)
        assert torch.equal(_output(compiled, image), base)

        def other() -> None:
            torch.testing.assert_close(_output(compiled, image), adapted)

        _in_thread(other)
        assert torch.equal(_output(compiled, image), base)


def test_a_tower_in_pieces_over_threads_is_refused(model: nn.Module) -> None:
    image = VIT.image(grid=(2, 8))
    _output(model, image)
    tokens = torch.randn(1 + 16, 2, 32)  # 2x8, as the thread before had, or the built 4x4?
    block = model.transformer.resblocks[0]
    with pytest.raises(RuntimeError, match="run the whole tower in one thread"):
        _in_thread(lambda: _output(block, tokens))


def test_replicas_and_recomputing_threads_follow_the_caller(model: nn.Module) -> None:
    state: TowerState = find_hook(model.conv1).state
    _output(model, VIT.image())
    seen = []

    def ask(**kind: bool) -> None:
        arguments = {"replica": False, "recomputing": False} | kind
        _in_thread(lambda: seen.append(state.enabled_for(**arguments)))

    ask(recomputing=True)
    with fastht.disable_adapter(model):
        ask()  # another user's thread
        ask(replica=True)
        ask(recomputing=True)
        _in_thread(lambda: _output(model, VIT.image()))  # and a second user
        with pytest.raises(RuntimeError, match="while some threads have the adapters"):
            ask(recomputing=True)
    assert seen == [True, True, False, False]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_has_threads_of_its_own(
    model: nn.Module, duplicate: Callable[[nn.Module], nn.Module]
) -> None:
    image = VIT.image()
    with fastht.disable_adapter(model):
        base = _output(model, image)
        twin = duplicate(model)
    assert torch.equal(_output(twin, image), base)  # as it was when it was taken
    assert not torch.equal(_output(model, image), base)
    assert find_hook(twin.conv1).state is find_hook(twin.transformer.resblocks[1]).state
