"""Cases of the losses' sweeps: forms, operands, coefficients, and plain PyTorch in their dtype."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastht.losses import sweeps
from fastht.losses.sweeps import BOTH, COLUMNS, ROWS, Coefficients, Form, Gradients, Operands

FORMS = {
    "clip": Form(softmax=BOTH),
    "rows": Form(softmax=ROWS),
    "columns": Form(softmax=COLUMNS),
    "clip keys": Form(softmax=BOTH, keys=True),
    "siglip": Form(sigmoid=True),
    "siglip keys": Form(sigmoid=True, keys=True),
    "semantic": Form(softmax=BOTH, kl=ROWS, mse=True),
    "semantic keys": Form(kl=BOTH, mse=True, keys=True),
    "shares": Form(softmax=BOTH, kl=BOTH, mse=True, shares=True, keys=True),
    "kl columns": Form(kl=COLUMNS),
    "mse": Form(mse=True),
}


def make(
    rows: int, columns: int, dim: int, dtype: torch.dtype, *,
    offset: int = 0, scale: float = 14.3, device: str = "cpu", seed: int = 0,
) -> Operands:  # fmt: skip
    """Return random operands for every form: unit features, few keys, tags that some lack."""
    generator = torch.Generator().manual_seed(seed)
    wide = sweeps.sum_dtype(dtype)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def tags(count: int, number: int) -> Tensor:
        return (torch.rand(count, number, generator=generator) < 0.3).to(wide)

    def keys(count: int) -> Tensor:
        return torch.randint(-3, 1 + max(rows, columns) // 4, (count,), generator=generator)

    a, b = (F.normalize(normal(count, dim), dim=1).to(dtype) for count in (rows, columns))
    similarity = torch.rand(11, 11, generator=generator, dtype=torch.float64).to(wide) / 8
    operands = Operands(
        a, b, torch.tensor(scale, dtype=wide), torch.tensor(-2.5, dtype=wide), offset,
        keys(rows), keys(columns), tags(rows, 11) @ similarity, tags(columns, 11),
        tags(rows, 3), tags(columns, 3), 0.07,
    )  # fmt: skip
    return operands._replace(
        **{k: v.to(device) for k, v in operands._asdict().items() if isinstance(v, Tensor)}
    )


def widened(values: Operands | Coefficients) -> Operands | Coefficients:
    """Return the same numbers in float64."""
    return values._replace(
        **{
            name: v.double()
            for name, v in values._asdict().items()
            if isinstance(v, Tensor) and v.is_floating_point()
        }
    )


def coefficients(form: Form, operands: Operands, seed: int = 1) -> Coefficients:
    """Return coefficients as a loss has them, with upstream gradients that differ all over."""
    statistics = sweeps.forward(form, widened(operands))
    generator = torch.Generator().manual_seed(seed)
    rows, columns = len(operands.rows), len(operands.columns)
    device, wide = operands.rows.device, operands.scale.dtype

    def random(count: int) -> Tensor:
        return 0.5 + torch.rand(count, generator=generator, dtype=torch.float64).to(device)

    def softmax(s: Tensor, count: int) -> Tensor:
        if not s.shape[1]:
            return torch.zeros(3, 0, device=device)
        return torch.stack([s[0], random(count) / (s[1] + s[2]), random(count)])

    def kl(s: Tensor, count: int) -> Tensor:
        if not s.shape[1]:
            return torch.zeros(4, 0, device=device)
        return torch.stack([s[0], random(count) / s[1], s[2], random(count) / s[3]])

    made = Coefficients(
        torch.tensor(0.37, device=device),
        softmax(statistics.softmax_rows, rows),
        softmax(statistics.softmax_columns, columns),
        -random(rows), random(rows), random(rows),
        kl(statistics.kl_rows, rows), kl(statistics.kl_columns, columns),
    )  # fmt: skip
    return Coefficients(*(v.to(wide) for v in made))


def plain_forward(form: Form, operands: Operands) -> sweeps.Statistics:
    """Return the statistics of similarities that plain PyTorch makes in the features' dtype."""
    return sweeps.forward(form, _given_similarities(operands))


def plain_backward(form: Form, operands: Operands, given: Coefficients) -> Gradients:
    """Return the gradients as plain PyTorch makes them, its products in the features' dtype."""
    one = given._replace(gain=torch.ones_like(given.gain))
    made = sweeps.backward(form, _given_similarities(operands), one)
    assert made.rows is not None
    assert made.scale is not None
    dc, gain = made.rows.to(operands.rows.dtype), given.gain
    return Gradients(
        gain * plain_product(dc, operands.columns),
        gain * plain_product(dc.T, operands.rows),
        gain * made.scale,
        None if made.bias is None else gain * made.bias,
    )


def plain_product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a @ b`` in their own dtype: with TensorFloat-32 where PyTorch may and can."""
    tf32 = torch.backends.cuda.matmul.allow_tf32 and a.dtype == torch.float32
    if tf32 and a.device.type == "cpu":  # what a GPU would do
        a, b = (_nearest_tf32(t) for t in (a, b))
    return a @ b


def _nearest_tf32(x: Tensor) -> Tensor:
    return ((x.contiguous().view(torch.int32) + 0x1000) & -8192).view(torch.float32)


def _given_similarities(operands: Operands) -> Operands:
    """Return operands whose rows are the similarities, each column being a unit vector."""
    similarities = plain_product(operands.rows, operands.columns.T).to(operands.scale.dtype)
    unit = torch.eye(len(operands.columns), dtype=similarities.dtype, device=similarities.device)
    return operands._replace(rows=similarities, columns=unit)


def named(form: Form, statistics: sweeps.Statistics, gradients: Gradients) -> dict[str, Tensor]:
    """Return all that both sweeps return, in float64, each statistic by itself.

    A sum is compared as the sum around the largest value of its row or column, whatever shift it
    came with; shifts are then nothing that can be right or wrong.
    """
    found: dict[str, Tensor] = {}
    for name, s in (("rows", statistics.softmax_rows), ("columns", statistics.softmax_columns)):
        if s.numel():
            shift, others, own, dot = s.double()
            found[f"softmax {name} others"] = torch.where(others > 0, shift + others.log(), 0.0)
            found[f"softmax {name} total"] = shift + (others + own).log()
            found[f"softmax {name} dot"] = dot
    for name, s in (("rows", statistics.kl_rows), ("columns", statistics.kl_columns)):
        if s.numel():
            logit_shift, logit_sum, target_shift, target_sum, divergence = s.double()
            found[f"kl {name} logits"] = logit_shift + logit_sum.log()
            found[f"kl {name} targets"] = target_shift + target_sum.log()
            found[f"kl {name} divergence"] = divergence
    for name, s in (("sigmoid", statistics.sigmoid), ("mse", statistics.mse)):
        if s.numel():
            found[name] = s.double()
    for name, g in gradients._asdict().items():
        if g is not None and (form.logits or name not in ("scale", "bias")):
            found[f"d {name}"] = g.double()
    return found
