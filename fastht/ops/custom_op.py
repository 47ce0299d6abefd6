"""The fused operator in PyTorch's dispatcher: schema, shapes, autograd.

Two ops, ``fastht::ht_adapter`` and ``fastht::ht_adapter_backward``. Everything that a call
depends on is an argument: the precision of the products (so autocast has been applied by
:func:`run`, the one caller) and the seed of the dropout mask, which is a tensor, so that CUDA
graphs, ``torch.compile`` and gradient checkpointing draw and repeat it as they do for any other
random number.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fastht.dispatcher import nobody_between
from fastht.ops.call import Call

# Each has allocate_saved, forward and backward of the same signatures.
_IMPLEMENTATIONS = {
    "triton": "fastht.ops.triton.calls",
    "cuda": "fastht.ops.cuda.adapter",
    "cpu": "fastht.ops.cpu",
}

_COMMON = ("norm.weight", "norm.bias", "gamma", "gammax", "down.weight", "down.bias")
_FILTER = ("spectral_filter",)
_GATE = ("noise_gate.0.weight", "noise_gate.0.bias", "noise_gate.2.weight", "noise_gate.2.bias")
_REST = (
    *(f"conv{k}.{name}" for k in (3, 5, 7) for name in ("weight", "bias")),
    "pointwise.weight",
    "pointwise.bias",
    "up.weight",
    "up.bias",
)


_NAMES = {
    (has_filter, has_gate): (
        *_COMMON, *(_FILTER if has_filter else ()), *(_GATE if has_gate else ()), *_REST
    )
    for has_filter in (False, True)
    for has_gate in (False, True)
}  # fmt: skip


def parameter_names(has_filter: bool, has_gate: bool) -> tuple[str, ...]:
    """Return the names of the ops' ``params``, in their order."""
    return _NAMES[has_filter, has_gate]


def run(
    backend: str,
    x: Tensor,
    params: Mapping[str, Tensor],
    *,
    grid_size: tuple[int, int],
    num_prefix_tokens: int,
    dropout: float = 0.0,
    eps: float = 1e-5,
    keep: str = "auto",
) -> Tensor:
    """Apply one HT adapter with the fused kernels of ``backend``: triton, cuda or cpu.

    Arguments and result are those of :func:`fastht.ops.ht_adapter`. Under autocast the matrix
    products and the bottleneck's maps are in autocast's dtype, and ``out`` keeps x's; elsewhere
    they are in x's dtype. Sums are in float32 always.
    """
    has_filter, has_gate = "spectral_filter" in params, "noise_gate.0.weight" in params
    device = x.device.type
    product_dtype = x.dtype
    if torch.is_autocast_enabled(device):
        product_dtype = torch.get_autocast_dtype(device)
    seed = None
    if dropout > 0.0:
        seed = torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=x.device)
    tensors = [params[name] for name in parameter_names(has_filter, has_gate)]
    tracing = torch.jit.is_tracing()
    # A trace outlives the mode that it is made in, and PyTorch checks it in another.
    save = tracing or (torch.is_grad_enabled() and any(t.requires_grad for t in (x, *tensors)))
    options = (
        grid_size[0], grid_size[1], num_prefix_tokens, has_filter, has_gate, dropout, eps,
        product_dtype, backend, save, keeps_output(keep, x.dtype),
    )  # fmt: skip
    # A tracer records operators of the dispatcher, and nothing of a Python function's.
    if save and not torch.compiler.is_compiling() and not tracing:
        return _Differentiable.apply(x, seed, options, *tensors)
    return torch.ops.fastht.ht_adapter(x, tensors, seed, *options)[0]


def keeps_output(keep: str, dtype: torch.dtype) -> bool:
    """Whether the output stands for x in the backward pass of tokens in ``dtype``."""
    return keep == "output" or (keep == "auto" and dtype == torch.float32)


def tensor_float_32() -> bool:
    """Whether PyTorch's settings allow TensorFloat-32 in float32 products on CUDA."""
    # torch >= 2.9; there the older question raises once the newer setting has been used.
    precision = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    if precision is None:
        return torch.get_float32_matmul_precision() != "highest"
    return precision == "tf32"


@functools.cache
def _implementation(backend: str) -> Any:
    return importlib.import_module(_IMPLEMENTATIONS[backend])


def _call(
    grid_height: int,
    grid_width: int,
    num_prefix_tokens: int,
    has_filter: bool,
    has_gate: bool,
    dropout: float,
    eps: float,
    product_dtype: torch.dtype,
) -> Call:
    return Call(
        (grid_height, grid_width), num_prefix_tokens, has_filter, has_gate, dropout, eps,
        product_dtype, product_dtype == torch.float32 and tensor_float_32(),
    )  # fmt: skip


def _named(tensors: Sequence[Tensor], call: Call) -> dict[str, Tensor]:
    names = parameter_names(call.has_filter, call.has_gate)
    return {name: t.contiguous() for name, t in zip(names, tensors, strict=True)}


def _run_forward(
    x: Tensor,
    params: Sequence[Tensor],
    seed: Tensor | None,
    grid_height: int,
    grid_width: int,
    num_prefix_tokens: int,
    has_filter: bool,
    has_gate: bool,
    dropout: float,
    eps: float,
    product_dtype: torch.dtype,
    backend: str,
    save: bool,
    keep_output: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return ``out`` and the tensors that the backward pass needs (u, u_norm, stats, pooled, gate).

    Args:
        x: ``[B, N, D]``, bf16, fp16 or fp32, any strides.
        params: the parameters in the order of :func:`parameter_names`.
        seed: ``[1]`` int64, the key of the dropout mask; ``None`` without dropout.
        grid_height, grid_width, num_prefix_tokens: the layout of the N tokens.
        has_filter, has_gate: which variant ``params`` belong to.
        dropout: probability of zeroing a bottleneck activation.
        eps: the LayerNorm's epsilon.
        product_dtype: dtype of the matrix products and of the bottleneck's maps.
        backend: whose kernels, ``"triton"``, ``"cuda"`` or ``"cpu"``.
        save: whether a backward pass may follow.
        keep_output: whether that pass is given ``out`` for ``x``, and rebuilds x.
    """
    call = _call(
        grid_height, grid_width, num_prefix_tokens, has_filter, has_gate, dropout, eps,
        product_dtype,
    )  # fmt: skip
    return _implementation(backend).forward(x, _named(params, call), seed, call, save)


ht_adapter = torch.library.custom_op("fastht::ht_adapter", _run_forward, mutates_args=())


@ht_adapter.register_fake
def _(x: Tensor, params: Sequence[Tensor], seed: Tensor | None, *options: Any) -> Any:
    backend, save = options[8:10]
    call = _call(*options[:8])
    saved = _implementation(backend).allocate_saved(x, _named(params, call), call, save)
    return torch.empty_like(x), *saved


def _run_backward(
    dout: Tensor,
    x: Tensor,
    params: Sequence[Tensor],
    seed: Tensor | None,
    saved: Sequence[Tensor],
    grid_height: int,
    grid_width: int,
    num_prefix_tokens: int,
    has_filter: bool,
    has_gate: bool,
    dropout: float,
    eps: float,
    product_dtype: torch.dtype,
    backend: str,
    need_input: bool,
    need_params: bool,
    keep_output: bool = False,
) -> list[Tensor]:
    """Return the gradients of x and of ``params``, in that order, as far as they are needed.

    With ``keep_output``, ``x`` is the forward pass's output: x itself is that less the update.
    """
    call = _call(
        grid_height, grid_width, num_prefix_tokens, has_filter, has_gate, dropout, eps,
        product_dtype,
    )  # fmt: skip
    named = _named(params, call)
    dx, grads = _implementation(backend).backward(
        dout, x, named, seed, saved, call, need_input, need_params, keep_output
    )
    gradients = [] if dx is None else [dx]
    if need_params:
        gradients += [grads[name] for name in named]
    return gradients


ht_adapter_backward = torch.library.custom_op(
    "fastht::ht_adapter_backward", _run_backward, mutates_args=()
)


@ht_adapter_backward.register_fake
def _(dout: Tensor, x: Tensor, params: Sequence[Tensor], *options: Any) -> list[Tensor]:
    need_input, need_params = options[11:13]
    grads = [torch.empty(p.shape, dtype=p.dtype, device=p.device) for p in params]
    return [*([torch.empty_like(x)] if need_input else []), *(grads if need_params else [])]


@ht_adapter_backward.register_vmap
def _(info: Any, in_dims: Any, dout: Tensor, *arguments: Any) -> tuple[list[Tensor], list[int]]:
    """Take the gradients of many output gradients at once (``is_grads_batched``) one by one.

    Raises:
        RuntimeError: something else than the output's gradient is batched.
    """
    where, *others = in_dims
    if any(dim is not None for dim in tree_leaves(others, is_leaf=lambda dim: dim is None)):
        raise RuntimeError(
            "the backward pass of a fused HT adapter ran before the transform of torch.func that "
            'batches it; use backend="reference" there'
        )
    found = [ht_adapter_backward(each, *arguments) for each in dout.unbind(where)]
    return [torch.stack(gradients) for gradients in zip(*found, strict=True)], [0] * len(found[0])


def _keep(
    ctx: Any,
    x: Tensor,
    out: Tensor,
    seed: Tensor | None,
    options: Sequence[Any],
    params: Sequence[Tensor],
    saved: Sequence[Tensor],
) -> None:
    ctx.set_materialize_grads(False)
    *ctx.options, _, ctx.keep_output = options
    tokens = out if ctx.keep_output else x
    ctx.save_for_backward(tokens, *params, *saved, *([] if seed is None else [seed]))
    ctx.num_params = len(params)


def _saved_tensors(ctx: Any) -> tuple[Tensor, ...]:
    """Return what was kept, unless somebody has written into the output meanwhile."""
    try:
        return ctx.saved_tensors  # type: ignore[no-any-return]
    except RuntimeError as error:
        if ctx.keep_output and "modified by an inplace operation" in str(error):
            raise RuntimeError(
                "the output of an HT adapter, or one of its parameters, was changed in place "
                "before the backward pass, which rebuilds the adapter's input from its output: "
                "make a new tensor instead (x = x + y), or have the adapter keep its input, with "
                'keep="input" in fastht.patch'
            ) from error
        raise


def _gradients(
    ctx: Any, dout: Tensor | None, need_input: bool, need_each: Sequence[bool]
) -> tuple[Tensor | None, list[Tensor | None]]:
    grads: list[Tensor | None] = [None] * ctx.num_params
    need_params = any(need_each)
    if dout is None or not (need_input or need_params):
        return None, grads
    if not torch.compiler.is_compiling() and torch._C._functorch.is_legacy_batchedtensor(dout):
        return _one_by_one(ctx, dout, need_input, need_each)
    x, *rest = _saved_tensors(ctx)
    params, rest = rest[: ctx.num_params], rest[ctx.num_params :]
    saved, seed = rest[:5], rest[5] if len(rest) > 5 else None
    backward: Any = torch.ops.fastht.ht_adapter_backward
    if not torch.is_grad_enabled() and nobody_between((dout, x, *params)):
        backward = _run_backward
    needs = need_input, need_params
    results = backward(dout, x, params, seed, saved, *ctx.options, *needs, ctx.keep_output)
    if need_params:
        grads = [
            g if needed else None
            for g, needed in zip(results[int(need_input) :], need_each, strict=True)
        ]
    return results[0] if need_input else None, grads


def _one_by_one(
    ctx: Any, dout: Tensor, need_input: bool, need_each: Sequence[bool]
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Do as :func:`_gradients` for a batch of output gradients (``is_grads_batched``).

    They come as one tensor of the vmap that torch.autograd has of its own, without torch.func.
    """
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    batch = torch._remove_batch_dim(dout, level, 0, 0)
    found = [_gradients(ctx, each, need_input, need_each) for each in batch]

    def together(gradients: Sequence[Tensor | None]) -> Tensor | None:
        given = [g for g in gradients if g is not None]
        return torch._add_batch_dim(torch.stack(given), 0, level) if given else None

    inputs, params = zip(*found, strict=True)
    return together(inputs), [together(each) for each in zip(*params, strict=True)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, params, seed, *options = inputs
    out, *saved = output
    ctx.mark_non_differentiable(*saved)
    _keep(ctx, x, out, seed, options, params, saved)


def _backward(ctx: Any, dout: Tensor | None, *_: Any) -> tuple[Any, ...]:
    dx, grads = _gradients(ctx, dout, *ctx.needs_input_grad[:2])
    # One for each argument of the call, from which the dispatcher drops those at their defaults:
    # releases before 2.15 want no more.
    return dx, grads, *(None,) * (len(ctx.needs_input_grad) - 2)


ht_adapter.register_autograd(_backward, setup_context=_setup_context)


class _Differentiable(torch.autograd.Function):
    """The same derivative outside of graphs, with less time spent around the kernels.

    What an op that takes a list of tensors gets from ``register_autograd`` walks through nested
    lists at each call; for a small call that and the dispatcher take as long as the kernels.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, seed: Tensor | None, options: tuple[Any, ...], *params: Tensor
    ) -> Tensor:
        direct = nobody_between((x, *params))
        forward = _run_forward if direct else torch.ops.fastht.ht_adapter
        out, *saved = forward(x, params, seed, *options)
        _keep(ctx, x, out, seed, options, params, saved)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None) -> tuple[Any, ...]:
        need_input, _, _, *need_each = ctx.needs_input_grad
        dx, grads = _gradients(ctx, dout, need_input, need_each)
        return dx, None, None, *grads


def _no_second_derivative(ctx: Any, *_: Any) -> None:
    raise RuntimeError(
        "the fused HT adapter has no second derivative; "
        'use backend="reference" where gradients of gradients are needed'
    )


ht_adapter_backward.register_autograd(_no_second_derivative)
