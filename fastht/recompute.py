"""Activations of the frozen base that are computed again in the backward pass instead of kept.

Both ways are PyTorch's own non-reentrant checkpoint, put around less than a library's own:

- ``"mlp"``: around each block's MLP, from what its LayerNorm was given, which the LayerNorm's own
  derivative keeps anyway. Of a ViT's 11 rows of D numbers a token and block, four are the input of
  the GELU: they cost one product of the block's frozen twelve, and no second one, as the
  recomputation stops where the last tensor is there.
- ``"block"``: around each block without its adapter, which keeps its own small state: no adapter
  runs twice, and neither does the last product of the MLP, whose result nobody asks for.

Either can be for some of the blocks alone, ``"mlp:6"``: for the first of those that keep anything.
All of them keep equally much; the first ones keep theirs the longest. When they compute it again,
the later ones have given theirs back, so that it is never on top of the most that a step holds.

A module's ``forward`` is replaced in the instance, and given back by :func:`remove`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastht.hooks import add_hook, remove_hook
from fastht.ops.context import FLOP_COUNT, composite_reason

RECOMPUTE = ("none", "mlp", "block")
# What a block calls its second LayerNorm, and what comes after it up to the activation or further.
_NAMES = (
    ("norm2", "mlp"),  # timm; DINOv2 and DINOv3 of transformers
    ("ln_2", "mlp"),  # open_clip, OpenAI's clip
    ("layer_norm2", "mlp"),  # CLIP and SigLIP of transformers
    ("layernorm_after", "intermediate"),  # ViT and its kin of transformers
    ("layernorm_after", "mlp"),  # InternVL, I-JEPA and newer ViTs of transformers
    ("rms_norm2", "ffn"),  # AIMv2
)
_SETTING = re.compile(r"(none|mlp|block)|(mlp|block):([1-9][0-9]*)")
_ADAPTER = "ht."  # begins the names of an adapter's parameters in its block
_SOURCE = "_fastht_source"  # of a LayerNorm's result: what it was given


def parse_recompute(recompute: str) -> tuple[str, int | None]:
    """Return which of ``RECOMPUTE`` a setting is, and for how many blocks; ``None``: for all.

    Raises:
        ValueError: there is no such setting.
    """
    found = _SETTING.fullmatch(recompute) if isinstance(recompute, str) else None
    if found is None:
        shown = ", ".join(map(repr, RECOMPUTE))
        raise ValueError(
            f"recompute is {recompute!r}; choose one of {shown}, or for some blocks alone one such "
            "as 'mlp:6', 'block:6'"
        )
    whole, part, number = found.groups()
    return (whole, None) if part is None else (part, int(number))


def check_blocks(blocks: Sequence[nn.Module], recompute: str) -> None:
    """Raise unless every block has the parts that ``recompute`` is about.

    Raises:
        ValueError: one has not, or something else has replaced its ``forward``, or there are fewer
            blocks, or no such setting.
    """
    what, number = parse_recompute(recompute)
    if number is not None and number > len(blocks):
        raise ValueError(
            f"recompute is {recompute!r}, and the tower has {len(blocks)} blocks; give at most so "
            f"many, or {what!r} for all of them"
        )
    for index, block in enumerate(blocks if what != "none" else ()):
        part = block if what == "block" else _parts(block)[1]
        if part is None:
            raise ValueError(
                f"recompute={recompute!r}: block {index} ({type(block).__name__}) has no LayerNorm "
                'and MLP by the names that fastht knows; take recompute="block"'
            )
        if "forward" in vars(part):
            raise ValueError(
                f"recompute={recompute!r}: the forward of a {type(part).__name__} in block {index} "
                "was replaced already, by gradient checkpointing of another library perhaps; "
                "switch that off first"
            )


def cannot_recompute(blocks: Sequence[nn.Module], recompute: str) -> str | None:
    """Return why the blocks cannot have a setting, or ``None`` if they can."""
    try:
        check_blocks(blocks, recompute)
    except ValueError as error:
        return str(error)
    return None


def reinstall(blocks: Sequence[nn.Module], recompute: str) -> None:
    """Give the blocks another setting than they have, taking that back first.

    Raises:
        ValueError: they cannot have it; they have ``"none"`` then.
    """
    remove(blocks)
    check_blocks(blocks, recompute)
    install(blocks, recompute)


def install(blocks: Sequence[nn.Module], recompute: str) -> None:
    """Have the blocks compute activations again, after :func:`check_blocks`.

    What trains has to be known by then: it decides which are the first blocks that keep anything.
    """
    what, _ = parse_recompute(recompute)
    for block in (blocks[index] for index in chosen_blocks(blocks, recompute)):
        if what == "block":
            block.forward = functools.partial(_run_block, block)  # type: ignore[method-assign]
        else:
            norm, mlp = _parts(block)
            assert norm is not None
            assert mlp is not None
            add_hook(norm, _remember)
            mlp.forward = functools.partial(_run_mlp, norm, mlp)  # type: ignore[method-assign]


def chosen_blocks(blocks: Sequence[nn.Module], recompute: str) -> range:
    """Return the indices of the blocks that a setting is for.

    Of a number of them the first is the first one with something that trains, or the one after it
    where that is its adapter alone, which comes last; or an earlier one if too few are left.
    """
    what, number = parse_recompute(recompute)
    if what == "none" or number is None:
        return range(0 if what == "none" else len(blocks))
    first = 0
    for index, block in enumerate(blocks):
        trained = [name for name, p in block.named_parameters() if p.requires_grad]
        if trained:
            first = index + all(name.startswith(_ADAPTER) for name in trained)
            break
    first = min(first, len(blocks) - number)
    return range(first, first + number)


def is_recorded(block: nn.Module, args: Iterable[Any]) -> bool:
    """Whether autograd keeps anything of a call of a block, its adapter apart."""
    own = (p for name, p in block.named_parameters() if not name.startswith(_ADAPTER))
    return _is_recorded((*args, *own))


def random_state_bytes(block: nn.Module) -> int:
    """Return the bytes of the state of random numbers that a block keeps, to draw them again.

    PyTorch keeps it in the host's memory: of a block on another device these are none of its bytes.
    """
    parameter = next(block.parameters(), None)
    if parameter is None or parameter.device.type != "cpu":
        return 0
    return torch.get_rng_state().nbytes


def remove(blocks: Sequence[nn.Module]) -> None:
    """Take :func:`install` back; blocks without it stay as they are."""
    for block in blocks:
        norm, mlp = _parts(block)
        for part in (block, mlp):
            forward = None if part is None else vars(part).get("forward")
            if getattr(forward, "func", None) in (_run_block, _run_mlp):
                del vars(part)["forward"]
        if norm is not None:
            remove_hook(norm)


def _parts(block: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    for names in _NAMES:
        norm, mlp = (getattr(block, name, None) for name in names)
        if isinstance(norm, nn.Module) and isinstance(mlp, nn.Module):
            return norm, mlp
    return None, None


def _remember(module: nn.Module, args: Any, output: Any) -> None:
    """Forward hook of a LayerNorm: its result knows what it was made of."""
    if isinstance(output, Tensor) and output.requires_grad and not torch.compiler.is_compiling():
        setattr(output, _SOURCE, args[0])


def _run_block(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = functools.partial(type(block).forward, block)
    if not is_recorded(block, (*args, *kwargs.values())):
        return forward(*args, **kwargs)
    _refuse_replicas(block, args)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _run_mlp(norm: nn.Module, mlp: nn.Module, x: Any, *args: Any, **kwargs: Any) -> Any:
    forward = functools.partial(type(mlp).forward, mlp)
    if not _is_recorded((x, *args, *kwargs.values(), *mlp.parameters())):
        return forward(x, *args, **kwargs)
    _refuse_replicas(mlp, (x,))
    source = getattr(x, _SOURCE, None)
    if source is None:
        return checkpoint(forward, x, *args, use_reentrant=False, **kwargs)
    normed = [x]  # taken out by the forward pass; what is computed again begins before it
    del x
    return checkpoint(
        functools.partial(_normed_mlp, norm, forward, normed),
        source,
        *args,
        use_reentrant=False,
        **kwargs,
    )


def _normed_mlp(
    norm: nn.Module, forward: Any, normed: list[Tensor], source: Tensor, *args: Any, **kwargs: Any
) -> Any:
    if normed:
        return forward(normed.pop(), *args, **kwargs)
    # Its derivative has been recorded in the forward pass, outside of the checkpoint.
    with torch.no_grad():
        again = norm.forward(source)
    return forward(again.requires_grad_(), *args, **kwargs)


def _is_recorded(values: tuple[Any, ...]) -> bool:
    """Whether autograd keeps anything of a call with these arguments and parameters."""
    if not torch.is_grad_enabled() or torch.jit.is_tracing():
        return False
    if composite_reason() not in (None, FLOP_COUNT):  # what is computed again counts too
        return False
    return any(isinstance(value, Tensor) and value.requires_grad for value in values)


def _refuse_replicas(module: nn.Module, args: tuple[Any, ...]) -> None:
    """Raise in replicas of nn.DataParallel, whose modules this would pass by."""
    tokens = next((value for value in args if isinstance(value, Tensor)), None)
    parameter = next(module.parameters(), None)
    if tokens is None or parameter is None or tokens.device == parameter.device:
        return
    raise RuntimeError(
        f"tokens are on {tokens.device} and a {type(module).__name__} on {parameter.device}; patch "
        'with recompute="none" for nn.DataParallel, or train with DistributedDataParallel'
    )
