"""What ``torch.jit.script`` compiles of a patched model.

TorchScript compiles sources, and neither hooks of ours nor the adapter's Python. So it is given a
copy of the model's structure, with the same parameters: in it each patched block calls its adapter
as the last thing of its ``forward``, and the adapter is a trace, of PyTorch's own operations.
"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import linecache
import textwrap
import types
import warnings
from typing import Any

import torch
from torch import nn

from fastht import attention_order
from fastht.adapter import HTAdapter
from fastht.hooks import RecordGrid, RunAdapter, find_hook, remove_hook
from fastht.tower import TowerState

_ATTRIBUTE = "__prepare_scriptable__"  # what torch.jit.script asks modules for
_BASE = "forward_without_adapter"
_CHECK_GRID = """
if adapted.shape[-2] != self.fastht_grid_height or adapted.shape[-1] != self.fastht_grid_width:
    raise ValueError(
        "the HT adapters of this model were scripted for one patch grid, and these images have "
        "another one: run images of this size before torch.jit.script"
    )
return adapted
"""
_ADAPT = """
if self.training:
    adapted = self.ht.in_training(adapted)
else:
    adapted = self.ht(adapted)
return adapted
"""
_ADAPT_SEQUENCE_FIRST = """
adapted = adapted.transpose(0, 1)
if self.training:
    adapted = self.ht.in_training(adapted)
else:
    adapted = self.ht(adapted)
return adapted.transpose(0, 1)
"""


def allow_script(root: nn.Module) -> None:
    """Let ``torch.jit.script`` take a patched model, or any part of it that holds adapters."""
    for module in _concerned(root):
        setattr(module, _ATTRIBUTE, functools.partial(scriptable, module))


def forget_script(root: nn.Module) -> None:
    """Take back what :func:`allow_script` did."""
    for module in root.modules():
        vars(module).pop(_ATTRIBUTE, None)


def scriptable(module: nn.Module) -> nn.Module:
    """Return what TorchScript can compile of a patched model, or of a part of it.

    The adapters take the patch grid of the latest images of this thread, or else the one that the
    tower was built for; the copy refuses images of another grid.

    Raises:
        RuntimeError: the adapters are disabled, belong to a backend by name, or follow a module
            whose source or arguments TorchScript cannot have.
    """
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    made = copy.deepcopy(module, tensors)
    forget_script(made)
    if isinstance(made, HTAdapter):  # a node of torch.fx, without its block
        assert made.tower is not None
        return _traced(made, made.tower, made.gamma)
    attention_order.remove((made,))
    part: Any
    for part in list(made.modules()):
        hook = find_hook(part)
        if isinstance(hook, RecordGrid):
            height, width = hook.state.grid_size
            part.fastht_grid_height, part.fastht_grid_width = height, width
            _append(part, _CHECK_GRID)
        elif isinstance(hook, RunAdapter):
            example = next(p for p in part.parameters() if p.is_floating_point())
            part.ht = _traced(part.ht, hook.state, example)
            _append(part, _ADAPT_SEQUENCE_FIRST if hook.state.sequence_first else _ADAPT)
    return made


def _concerned(root: nn.Module) -> list[nn.Module]:
    """Return the modules with a hook of ours, the adapters, and all that hold any of them."""
    named = dict(root.named_modules())
    own = (name for name, module in named.items() if _is_ours(module))
    paths = {".".join(path.split(".")[:i]) for path in own for i in range(path.count(".") + 2)}
    return [named[path] for path in sorted(paths)]


def _is_ours(module: nn.Module) -> bool:
    hooked = find_hook(module) is not None or attention_order.is_installed(module)
    return hooked or isinstance(module, HTAdapter)


class _OnOneGrid(HTAdapter):
    """An adapter to be traced: with its grid, and with a method for training."""

    state: TowerState

    def forward(self, x: Any, *_: Any) -> Any:
        return self._run(x, training=False)

    def in_training(self, x: Any) -> Any:
        return self._run(x, training=True)

    def _run(self, x: Any, training: bool) -> Any:
        self.training = training
        return super().forward(x, self.state.grid_size, self.state.num_prefix_tokens)


def _traced(adapter: HTAdapter, state: TowerState, like: torch.Tensor) -> nn.Module:
    """Trace an adapter for tokens of the dtype and device of ``like``."""
    if not state.enabled:
        raise RuntimeError(
            "torch.jit.script was called while the HT adapters are disabled; call it outside of "
            "fastht.disable_adapter, or script the base after fastht.unpatch"
        )
    if adapter.backend not in ("auto", "reference"):
        raise RuntimeError(
            f"backend {adapter.backend!r} is one operation of fastht's, which torch.jit.script is "
            "not to depend on; make the adapters with backend='auto' or 'reference' for it"
        )
    training = adapter.training
    adapter.__class__ = _OnOneGrid
    adapter.state = state  # type: ignore[assignment]
    adapter.tower = None
    height, width = state.grid_size
    tokens = torch.zeros(
        1, state.num_prefix_tokens + height * width, adapter.dim, dtype=like.dtype,
        device=like.device,
    )  # fmt: skip
    with (
        torch.no_grad(),
        warnings.catch_warnings(),
        torch.autocast(like.device.type, enabled=False),
    ):
        warnings.simplefilter("ignore")  # of sizes that are constants here, and to be
        traced = torch.jit.trace_module(
            adapter, {"forward": tokens, "in_training": tokens}, check_trace=False
        )
    return traced.train(training)


def _append(module: nn.Module, tail: str) -> None:
    """Let a module of a copy go on with ``tail`` after its ``forward``, instead of our hook."""
    remove_hook(module)
    kind: Any = type(module)
    module.__class__ = _continued(kind, tail)


@functools.cache
def _continued(kind: Any, tail: str) -> type[nn.Module]:
    """Return a subclass whose ``forward`` has the same arguments and ends with ``tail``.

    TorchScript wants sources and annotated arguments, so the new function's are written down.

    Raises:
        RuntimeError: the class has no source, or takes any arguments.
    """
    function: Any = inspect.unwrap(kind.forward)
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except OSError as error:
        raise RuntimeError(f"torch.jit.script needs the source of {kind.__name__}") from error
    tree = ast.parse(source).body[0]
    assert isinstance(tree, ast.FunctionDef)
    taken = tree.args
    if taken.vararg or taken.kwarg:
        raise RuntimeError(
            f"{kind.__name__}.forward takes any arguments, which TorchScript cannot compile; use "
            "torch.jit.trace or torch.export"
        )
    passed = [argument.arg for argument in (*taken.posonlyargs, *taken.args)][1:]
    passed += [f"{argument.arg}={argument.arg}" for argument in taken.kwonlyargs]
    tree.decorator_list = []
    tree.body = ast.parse(f"adapted = self.{_BASE}({', '.join(passed)})\n{tail}").body
    text = ast.unparse(ast.fix_missing_locations(tree))
    path = f"<fastht: {kind.__module__}.{kind.__qualname__}, {abs(hash(tail))}>"
    linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)
    names = {**function.__globals__, **inspect.getclosurevars(function).nonlocals}
    exec(compile(text, path, "exec", flags=annotations.compiler_flag, dont_inherit=True), names)
    base = types.FunctionType(
        function.__code__, function.__globals__, _BASE, function.__defaults__, function.__closure__
    )  # TorchScript compiles it under its own name
    base.__kwdefaults__ = function.__kwdefaults__
    members = {"forward": names[tree.name], _BASE: base, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), members)
