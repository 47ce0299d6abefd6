"""Numbers of tags: how far splits differ, and how sharp soft targets are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fastht.losses.targets import Missing, SoftTargets, factors
from fastht.tasks.tags.findings import Finding, Records, finding
from fastht.taxonomy import similarity as s

_SHUFFLES = 200
_MOST = 0.05  # total variation below which a shift is not worth a word
_BATCHES = 8
_HARD, _FLAT = 0.95, 0.05  # mass on the diagonal


def shifts(records: Records, seed: int = 0) -> tuple[list[Finding], dict[str, Any]]:
    """How far the tags of the other splits are from those of training, by dimension.

    The distance is the total variation of the values' shares, from 0 to 1. Beside it stands what
    chance gives: the 95 % quantile over shuffles of whole patients between the two sides, the
    fewest of which still matter (_MOST).
    """
    table: dict[str, Any] = {}
    places = []
    rng = np.random.default_rng(seed)
    if "train" not in records.sides:
        return [], table
    for name, dimension in records.taxonomy.dimensions.items():
        column = {value: index for index, value in enumerate(dimension.values)}
        for side in records.sides:
            if side == "train":
                continue
            counts: dict[tuple[str, bool], np.ndarray] = {}
            for record in records:
                if record.side in ("train", side):
                    key = (record.patient, record.side == "train")
                    row = counts.setdefault(key, np.zeros(len(column)))
                    for value in records.tags(record).get(name, ()):
                        row[column[value]] += 1
            rows, first = np.array(list(counts.values())), np.array([f for _, f in counts])
            distance = _variation(rows, first[None])[0]
            if not np.isfinite(distance):
                continue
            shuffled = np.stack([rng.permutation(first) for _ in range(_SHUFFLES)])
            chance = float(np.nanquantile(_variation(rows, shuffled), 0.95))
            table.setdefault(name, {})[side] = {"distance": float(distance), "chance": chance}
            if distance > max(chance, _MOST):
                places.append(f"{name} in {side}: {distance:.2f} (by chance up to {chance:.2f})")
    remedy = "scores of this side are of another mixture"
    return finding("shifts", "warning", "shifts of tags from train", remedy, places), table


def _variation(rows: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Total variation between two sides, [n]; NaN where a side has no tag.

    rows: counts of patients, [G, V]. first: whether a patient is of the first side, [n, G].
    """
    sides = np.stack([first @ rows, ~first @ rows])  # [2, n, V]
    totals = sides.sum(axis=2, keepdims=True)
    shares = np.divide(sides, totals, out=np.full_like(sides, np.nan), where=totals > 0)
    return np.abs(shares[0] - shares[1]).sum(axis=1) / 2


def sharpness(
    records: Records,
    similarity: np.ndarray,
    tau: float,
    batch: int,
    missing: Missing,
    seed: int = 0,
) -> tuple[list[Finding], dict[str, Any]]:
    """How sharp the softmax of soft targets over tau is in random batches of the training side.

    Gives the mean mass on the diagonal, from 1 / batch (nothing is told apart) to 1 (a hard
    label), and the mean entropy in nats beside that of even targets.

    similarity: of all tags, [N, N] by id.
    """
    side = "train" if "train" in records.sides else records.sides[0]
    chosen = [records.tags(record) for record in records if record.side == side]
    size = min(batch, len(chosen))
    taxonomy = records.taxonomy
    numbers = torch.from_numpy(s.tag_numbers(taxonomy, chosen))
    fixed = (torch.from_numpy(similarity), torch.from_numpy(s.dimension_numbers(taxonomy)))
    weights = torch.from_numpy(s.weights_of(taxonomy, taxonomy.weights))
    rng = np.random.default_rng(seed)
    masses, entropies = [], []
    for _ in range(min(_BATCHES, -(-len(chosen) // size))):
        tags = numbers[rng.choice(len(chosen), size, replace=False)]
        target = dense(SoftTargets.from_tags(tags, *fixed, missing=missing, weights=weights))
        log_p = torch.log_softmax(target / tau, dim=1)
        masses.append(float(log_p.diagonal().exp().mean()))
        entropies.append(float(-(log_p.exp() * log_p).sum(1).mean()))
    mass, entropy = float(np.mean(masses)), float(np.mean(entropies))
    table = {
        "tau": tau,
        "batch": size,
        "batches": len(masses),
        "missing": missing,
        "diagonal_mass": mass,
        "entropy": entropy,
        "entropy_of_even": float(np.log(size)),
    }
    places = [f"{100 * mass:.1f} % of the mass on the diagonal at tau {tau}, batch {size}"]
    wrong: Sequence[Finding] = ()
    if mass > _HARD:
        remedy = "they are hard labels: a larger tau, or missing: ignore"
        wrong = finding("sharpness", "warning", "sharp soft targets", remedy, places)
    elif mass < max(_FLAT, 2 / size) and size > 2:
        remedy = "they tell hardly anything apart: a smaller tau"
        wrong = finding("sharpness", "warning", "flat soft targets", remedy, places)
    return list(wrong), table


def dense(targets: SoftTargets) -> torch.Tensor:
    """The soft targets of a batch as a matrix, [B, B], with 1 on the diagonal."""
    q, p, u, w = factors(targets.rows, targets.columns, targets.table, torch.float64)
    assert q is not None
    assert p is not None
    target = q @ p.T
    if u is not None and w is not None:
        share = u @ w.T
        target = torch.where(share > 0, target / share.clamp(min=1e-300), 0)
    return target.fill_diagonal_(1)
