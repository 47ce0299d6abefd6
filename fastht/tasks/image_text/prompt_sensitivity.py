"""How far zero-shot scores hang on the wording of prompts: the same images by other prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastht.tasks.image_text.prompts import class_embeddings
from fastht.tasks.image_text.prompts.variants import Variant
from fastht.tasks.results.prompt_pictures import DrawnVariant
from fastht.tasks.results.rank_stability import rank_stability
from fastht.tasks.scores.classification import resampled
from fastht.tasks.scores.intervals import Resampling

SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "auc")
_SHOWN = "balanced_accuracy"  # the score that is printed and drawn


def embed_variants(
    embedder: Callable[[Sequence[str]], Tensor], variants: Sequence[Variant]
) -> list[Tensor]:
    """Return the class embeddings ``[classes, E]`` of each variant; each text is embedded once."""
    texts = list(
        dict.fromkeys(text for v in variants for own in v.prompts.values() for text in own)
    )
    known = dict(zip(texts, embedder(texts), strict=True))

    def look_up(sentences: Sequence[str]) -> Tensor:
        return torch.stack([known[text] for text in sentences])

    return [class_embeddings(look_up, variant.prompts) for variant in variants]


@dataclass(frozen=True)
class Sensitivity:
    """Scores of a model's versions by each variant of the prompts.

    Args:
        variants: the ensemble first.
        probabilities: of each version by variant, ``[n, classes]`` each.
        labels: ``[n]``, class indices.
        resampling: of the images.
        trained: the wordings that trained are known.
        naming: how many prompts name the organ, and how many there are.
    """

    variants: Sequence[Variant]
    probabilities: Mapping[str, Sequence[Tensor]]
    labels: Tensor
    resampling: Resampling
    trained: bool
    naming: tuple[int, int]

    def record(self) -> dict[str, Any]:
        """Return what a ``results.json`` holds, as plain JSON types.

        Returns:
            ``variants``: of each its ``kind``, ``name``, the number of ``prompts``, the one prompt
            of each class where it is one, the labels whose wording was ``seen`` in training, and
            for each version ``scores``, ``intervals`` and, less the ensemble, ``difference`` on the
            same resamples. ``range``: of each version and score the lowest and the highest of a
            single prompt, and which those are. ``ranks``: of the versions, see
            :func:`rank_stability`.
        """
        judged = {v: [self._judge(p) for p in found] for v, found in self.probabilities.items()}
        rows: list[dict[str, Any]] = []
        for i, variant in enumerate(self.variants):
            single = all(len(own) == 1 for own in variant.prompts.values())
            row: dict[str, Any] = {
                "kind": variant.kind,
                "name": variant.name,
                "prompts": sum(map(len, variant.prompts.values())),
                "texts": {k: own[0] for k, own in variant.prompts.items()} if single else None,
                "seen": list(variant.seen),
            }
            for version, found in judged.items():
                scores, statistics = found[i]
                row[version] = {
                    "scores": scores,
                    "intervals": {
                        n: list(self.resampling.percentile(statistics[n])) for n in SCORES
                    },
                    "difference": {
                        n: list(self.resampling.difference(statistics[n], found[0][1][n]))
                        for n in SCORES
                    },
                }
            rows.append(row)
        alone = [row for row in rows if row["kind"] == "alone"]
        return {
            "variants": rows,
            "range": {v: {n: _range(alone, v, n) for n in SCORES} for v in judged}
            if alone
            else None,
            "ranks": self._ranks(alone, list(judged)),
            "wordings_known": self.trained,
            "prompts_naming_the_organ": list(self.naming),
        }

    def _judge(self, p: Tensor) -> tuple[dict[str, float], dict[str, Tensor]]:
        once = torch.ones(1, len(self.labels), dtype=torch.float64)
        found = resampled(p, self.labels, once)
        statistics = self.resampling.statistics(lambda w: resampled(p, self.labels, w))
        return {n: found[n].item() for n in SCORES}, {n: statistics[n] for n in SCORES}

    def _ranks(self, alone: list[dict[str, Any]], versions: list[str]) -> dict[str, Any] | None:
        if len(versions) < 2 or not alone:
            return None
        return {
            name: rank_stability(
                {v: [row[v]["scores"][name] for row in alone] for v in versions}
            ).plain()
            for name in SCORES
        }


def _range(rows: Sequence[Mapping[str, Any]], version: str, score: str) -> dict[str, Any] | None:
    """Return the lowest and the highest score, and the names of their prompts."""
    found = [(row[version]["scores"][score], row["name"]) for row in rows]
    defined = [(value, name) for value, name in found if not math.isnan(value)]
    if not defined:
        return None
    low = min(defined, key=lambda one: one[0])
    high = max(defined, key=lambda one: one[0])
    return {"low": low[0], "low_prompt": low[1], "high": high[0], "high_prompt": high[1]}


def sensitivity_rows(record: Mapping[str, Any], versions: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row of a CSV for each variant."""
    rows = []
    for variant in record["variants"]:
        row = {
            "kind": variant["kind"],
            "name": variant["name"],
            "prompts": variant["prompts"],
            "seen": "; ".join(variant["seen"]),
        }
        for version in versions:
            found = variant[version]
            for name in SCORES:
                column = f"{name} {version}"
                row[column] = found["scores"][name]
                row[f"{column} low"], row[f"{column} high"] = found["intervals"][name]
                row[f"{column} less ensemble"] = found["scores"][name] - _ensemble(
                    record, version, name
                )
        for label, text in (variant["texts"] or {}).items():
            row[f"prompt {label}"] = text
        rows.append(row)
    return rows


def sensitivity_text(record: Mapping[str, Any], versions: Sequence[str]) -> str:
    """Return what is printed: ranges over prompts, other organs, wordings seen in training."""
    lines = [f"{_label(_SHOWN)} by the wording of prompts"]
    several = len(versions) > 1
    for version in versions:
        heading = f"  {version}: " if several else "  "
        parts = [f"all together {_percent(_ensemble(record, version, _SHOWN))}"]
        if found := (record["range"] or {}).get(version, {}).get(_SHOWN):
            parts.append(
                f"each alone {_percent(found['low'])} (prompt {found['low_prompt']}) to "
                f"{_percent(found['high'])} (prompt {found['high_prompt']})"
            )
        out = [v[version]["scores"][_SHOWN] for v in record["variants"] if v["kind"] == "left out"]
        if out:
            parts.append(f"each left out {_percent(min(out))} to {_percent(max(out))}")
        for variant in record["variants"]:
            if variant["kind"] in ("organ swapped", "unseen"):
                name = variant["name"] or "without seen wordings"
                parts.append(f"{name} {_percent(variant[version]['scores'][_SHOWN])}")
        lines.append(heading + "; ".join(parts))
    if ranks := record["ranks"]:
        found = ranks[_SHOWN]
        lines.append(
            f"  {found['kept']} of {found['of']} prompts alone rank before and after as their mean "
            "does"
        )
    if any(v["kind"] == "organ swapped" for v in record["variants"]):
        named, every = record["prompts_naming_the_organ"]
        lines.append(f"  the organ is swapped in {named} of {every} prompts: those that name it")
    seen = [v for v in record["variants"] if v["seen"] and v["kind"] == "alone"]
    if seen:
        which = ", ".join(f"{v['name']} ({', '.join(v['seen'])})" for v in seen)
        lines.append(f"WARNING: prompts worded as captions that trained: {which}")
    elif record["variants"][0]["seen"]:
        labels = ", ".join(record["variants"][0]["seen"])
        lines.append(f"WARNING: prompts worded as captions that trained, of {labels}")
    elif not record["wordings_known"]:
        lines.append("  which wordings trained is not known")
    return "\n".join(lines)


def drawn_variants(record: Mapping[str, Any], versions: Mapping[str, str]) -> list[DrawnVariant]:
    """Return what the picture shows of each variant.

    Args:
        record: as of :meth:`Sensitivity.record`.
        versions: their names in the picture.
    """
    return [
        DrawnVariant(
            f"{variant['kind']} {variant['name']}".strip(),
            {
                name: (100 * variant[v]["scores"][_SHOWN], *_ends(variant[v]["intervals"][_SHOWN]))
                for v, name in versions.items()
            },
            bool(variant["seen"]),
        )
        for variant in record["variants"]
    ]


def _ends(interval: Sequence[float]) -> tuple[float, float]:
    return 100 * interval[0], 100 * interval[1]


def _ensemble(record: Mapping[str, Any], version: str, score: str) -> float:
    return float(record["variants"][0][version]["scores"][score])


def _label(score: str) -> str:
    return score.replace("_", " ")


def _percent(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{100 * value:.1f} %"
