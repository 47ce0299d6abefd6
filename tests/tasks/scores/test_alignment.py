"""Alignment of two embedding sets: against direct forms over all pairs, and what collapse does."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from fastht.tasks.scores.alignment import (
    Pairs,
    alignment_scores,
    effective_rank,
    spread_scores,
    uniformity,
)


def pairs(n, dim=12, noise=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shared, a, b = (torch.randn(n, dim, generator=generator) for _ in range(3))
    return normalize(shared + noise * a, dim=1), normalize(shared + noise * b, dim=1)


def directly(images, texts, captions, within):
    """The definitions, pair by pair."""
    images, texts = images.double(), texts.double()
    paired, unmatched, percentiles = [], [], []
    for i in range(len(images)):
        own = float(images[i] @ texts[i])
        paired.append(own)
        won = []
        for j in range(len(images)):
            if captions[i] != captions[j] and within[i] == within[j]:
                other = float(images[i] @ texts[j])
                unmatched.append(other)
                won.append(0.5 if other == own else float(other < own))
        if won:
            percentiles.append(sum(won) / len(won))
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    return mean(paired), mean(unmatched), mean(percentiles)


@pytest.mark.parametrize("captions", [list(range(30)), [i // 2 % 11 for i in range(30)]])
@pytest.mark.parametrize("sets", [1, 3])
def test_the_scores_are_their_definitions(captions, sets):
    images, texts = pairs(30)
    within = [i % sets for i in range(30)]
    found = alignment_scores(images, texts, captions, within)
    paired, unmatched, percentile = directly(images, texts, captions, [0] * 30)
    assert found["paired"] == pytest.approx(paired, abs=1e-12)
    assert found["unmatched"] == pytest.approx(unmatched, abs=1e-12)
    assert found["gap"] == pytest.approx(paired - unmatched, abs=1e-12)
    assert found["rank_percentile"] == pytest.approx(percentile, abs=1e-12)
    assert ("within_gap" in found) == (sets > 1)
    if sets > 1:
        _, unmatched, percentile = directly(images, texts, captions, within)
        assert found["within_unmatched"] == pytest.approx(unmatched, abs=1e-12)
        assert found["within_gap"] == pytest.approx(paired - unmatched, abs=1e-12)
        assert found["within_rank_percentile"] == pytest.approx(percentile, abs=1e-12)
    gap = (images.double().mean(0) - texts.double().mean(0)).norm().item()
    assert found["modality_gap"] == pytest.approx(gap, abs=1e-12)
    squared = ((images.double() - texts.double()) ** 2).sum(1).mean().item()
    assert found["alignment"] == pytest.approx(squared, abs=1e-6)  # rows are normalised in float32


def test_the_published_form_is_the_one_of_different_captions():
    images, texts = pairs(50)
    a, b = images.double(), texts.double()
    total = (a * b).sum().item()
    expected = (50**2 * (a.mean(0) @ b.mean(0)).item() - total) / (50**2 - 50)
    assert alignment_scores(images, texts)["unmatched"] == pytest.approx(expected, abs=1e-12)


def test_equal_captions_are_not_unmatched():
    """Counted as unmatched, twins would hide that the model finds its captions."""
    generator = torch.Generator().manual_seed(1)
    texts = normalize(torch.randn(2, 8, generator=generator), dim=1)[[0, 1] * 10]
    captions = ["normal liver", "simple cyst"] * 10
    found = alignment_scores(texts, texts, captions)
    assert found["rank_percentile"] == 1
    assert found["unmatched"] == pytest.approx(float(texts[0] @ texts[1]), abs=1e-6)
    assert alignment_scores(texts, texts)["unmatched"] > found["unmatched"] + 0.1


@pytest.mark.parametrize("rows", [1, 4])
def test_without_unmatched_pairs_they_are_undefined(rows):
    images, texts = pairs(rows)
    found = alignment_scores(images, texts, ["the same"] * rows)
    assert found["paired"] == pytest.approx(float((images * texts).sum(1).mean()), abs=1e-6)
    assert all(math.isnan(found[name]) for name in ("unmatched", "gap", "rank_percentile"))


def test_a_weight_is_a_copy():
    """Of a resample in which a row counts twice, its copies are no unmatched pair."""
    images, texts = pairs(9)
    captions = [0, 1, 2, 3, 4, 5, 6, 6, 7]
    counts = torch.tensor([[2, 0, 1, 1, 3, 1, 0, 1, 0], [1] * 9])
    found = Pairs(images, texts, captions).scores(counts)
    for row, count in enumerate(counts):
        copies = [i for i, times in enumerate(count.tolist()) for _ in range(times)]
        again = alignment_scores(images[copies], texts[copies], [captions[i] for i in copies])
        for name in ("paired", "unmatched", "gap", "modality_gap", "alignment"):
            assert found[name][row].item() == pytest.approx(again[name], abs=1e-12), name


def test_blocks_change_nothing(monkeypatch):
    images, texts = pairs(23)
    whole = alignment_scores(images, texts, within=[i % 2 for i in range(23)])
    monkeypatch.setattr("fastht.tasks.scores.alignment._BLOCK", 60)
    again = alignment_scores(images, texts, within=[i % 2 for i in range(23)])
    assert again == pytest.approx(whole, abs=1e-12)


def test_uniformity_is_its_definition_and_told_from_a_collapse():
    images, _ = pairs(20)
    x = images.double()
    values = [
        math.exp(-2 * float(((x[i] - x[j]) ** 2).sum()))
        for i in range(20)
        for j in range(20)
        if i != j
    ]
    assert uniformity(images) == pytest.approx(math.log(sum(values) / len(values)), abs=1e-12)
    assert uniformity(images[:1].expand(20, -1)) == pytest.approx(0, abs=1e-9)
    assert math.isnan(uniformity(images[:1]))


@pytest.mark.parametrize("constant", ["images", "texts", "both"])
def test_of_constant_features_nothing_is_told_apart(constant):
    """However near the pairs are: a high cosine alone says nothing."""
    images, texts = pairs(40)
    assert alignment_scores(images, texts)["gap"] > 0.1
    same = normalize(torch.ones(1, 12), dim=1).expand(40, -1)
    if constant != "texts":
        images = same
    if constant != "images":
        texts = same
    found = alignment_scores(images, texts)
    assert found["gap"] == pytest.approx(0, abs=1e-9)
    assert found["rank_percentile"] == pytest.approx(0.5, abs=1e-9)
    if constant == "both":
        assert found["paired"] == pytest.approx(1)


def test_effective_rank():
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0]
    # Centred rows of three directions of equal strength, more and fewer of them than features.
    for copies in (1, 20):
        rows = torch.cat([directions[:3], -directions[:3]]).repeat(copies, 1)
        assert effective_rank(rows) == pytest.approx(3, abs=1e-5)
    line = torch.linspace(-1, 1, 30)[:, None] * directions[:1]
    assert effective_rank(line) == pytest.approx(1, abs=1e-5)
    assert effective_rank(line + directions[1]) == pytest.approx(1, abs=1e-5)  # the mean is no rank
    assert math.isnan(effective_rank(torch.ones(5, 4)))


def test_the_jackknife_is_that_of_leaving_out_each_group():
    images, _ = pairs(40, dim=6)
    groups = [f"patient {i // 4}" for i in range(40)]
    found = spread_scores(images, groups)
    for name, score in (("uniformity", uniformity), ("effective_rank", effective_rank)):
        each = [score(images[[i for i in range(40) if i // 4 != p]]) for p in range(10)]
        values = torch.tensor(each, dtype=torch.float64)
        error = (9 / 10 * ((values - values.mean()) ** 2).sum()).sqrt().item()
        assert found[name].value == pytest.approx(score(images), abs=1e-9)
        assert found[name].high - found[name].value == pytest.approx(1.959964 * error, rel=1e-6)
        assert found[name].value - found[name].low == pytest.approx(1.959964 * error, rel=1e-6)
    assert math.isnan(spread_scores(images, ["one patient"] * 40)["uniformity"].low)


def test_the_jackknife_covers_the_truth():
    """Of a population whose uniformity is known; images that are taken for patients do not."""
    generator = torch.Generator().manual_seed(0)
    shares = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    same = (shares**2).sum().item()
    truth = math.log(same + (1 - same) * math.exp(-2 * 2))
    covered = {"patients": 0, "images": 0}
    for _ in range(40):
        kinds = shares.multinomial(60, replacement=True, generator=generator)
        rows = torch.eye(3)[kinds].repeat_interleave(4, dim=0)
        patients, images = [i // 4 for i in range(240)], list(range(240))
        for unit, groups in (("patients", patients), ("images", images)):
            found = spread_scores(rows, groups)["uniformity"]
            covered[unit] += found.low <= truth <= found.high
    assert covered["patients"] >= 34
    assert covered["images"] <= 28


def test_rows_must_agree():
    images, texts = pairs(5)
    with pytest.raises(ValueError, match=r"images are \[5, 12\] and texts \[4, 12\]"):
        alignment_scores(images, texts[:4])
    with pytest.raises(ValueError, match="give a row of both"):
        alignment_scores(images[:0], texts[:0])
