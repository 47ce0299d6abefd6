"""Both passes as the operator calls them: repeated where a call of the kind has been recorded."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from torch import Tensor

from fastht.ops.call import Call
from fastht.ops.triton import adapter
from fastht.ops.triton.launch import Params
from fastht.ops.triton.replay import Replay, find

allocate_saved = adapter.allocate_saved


def forward(
    x: Tensor, params: Params, seed: Tensor | None, call: Call, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Do what :func:`fastht.ops.triton.adapter.forward` does."""
    inputs = [t.data_ptr() for t in (x, *params.values())]
    if seed is not None:
        inputs.append(seed.data_ptr())
    key = "forward", save, *_kind((x,), params, seed, call)
    recording = find(x.device, key, inputs)
    if isinstance(recording, Replay):
        out, u, u_norm, stats, sums, gate = recording.run(inputs)
        return out, u, u_norm, stats, sums, gate
    results = adapter.forward(x, params, seed, call, save, recording)
    if recording is not None:
        recording.finish(results)
    return results


def backward(
    dout: Tensor,
    x: Tensor,
    params: Params,
    seed: Tensor | None,
    saved: Sequence[Tensor],
    call: Call,
    need_input: bool,
    need_weights: bool,
    rebuild: bool = False,
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Do what :func:`fastht.ops.triton.adapter.backward` does."""
    inputs = [t.data_ptr() for t in (dout, x, *params.values(), *saved)]
    if seed is not None:
        inputs.append(seed.data_ptr())
    key = (
        "backward",
        need_input,
        need_weights,
        rebuild,
        *_kind((x, dout, *saved), params, seed, call),
    )
    recording = find(x.device, key, inputs)
    if isinstance(recording, Replay):
        results = recording.run(inputs)
        dx = results.pop(0) if need_input else None
        return dx, dict(zip(params, results, strict=need_weights))
    dx, grads = adapter.backward(
        dout, x, params, seed, saved, call, need_input, need_weights, rebuild, recording
    )
    if recording is not None:
        recording.finish([*([] if dx is None else [dx]), *grads.values()])
    return dx, grads


def _kind(
    tensors: Sequence[Tensor], params: Params, seed: Tensor | None, call: Call
) -> tuple[Hashable, ...]:
    """Return all that launches depend on besides addresses, also what hooks may have changed."""
    given = (*tensors, *params.values())
    return (
        call,
        None if seed is None else seed.get_device(),
        *[t.stride() for t in tensors],
        *[t.shape for t in given],
        *[t.dtype for t in given],
        *[t.get_device() for t in given],
    )
