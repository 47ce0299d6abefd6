"""The alarm that tells of collapsed contrastive training, and what it goes by."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from fastht.tasks.scores.collapse import CollapseAlarm, spread_of_pairs

HEALTHY = {
    "train_loss": 2.1,
    "paired": 0.3,
    "unmatched": 0.05,
    "image_effective_rank": 20.0,
    "text_effective_rank": 20.0,
}
CHANCE = math.log(128)


def told(rows, chance=CHANCE, pairs=100):
    alarm = CollapseAlarm(chance, pairs)
    return alarm, [alarm.watch({"epoch": i + 1.0, **row}) for i, row in enumerate(rows)]


def embeddings(n=40, width=16):
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.randn(2, n, width, generator=generator)
    texts = normalize(images + noise, dim=1)
    return normalize(images, dim=1), texts, [f"caption {i}" for i in range(n)]


SIGNS = {
    "loss": {"train_loss": CHANCE * 1.005},
    "cosine": {"paired": 0.99, "unmatched": 0.96},
    "gap": {"paired": 0.2092, "unmatched": 0.2092},
    "image rank": {"image_effective_rank": 1.5},
    "text rank": {"text_effective_rank": 1.0},
}


@pytest.mark.parametrize("sign", SIGNS)
def test_each_sign_alone_is_told_once_after_two_epochs(sign):
    bad = HEALTHY | SIGNS[sign]
    alarm, warnings = told([HEALTHY, bad, bad, bad])
    assert [w is not None for w in warnings] == [False, False, True, False]
    assert "lower --lr" in warnings[2]
    assert alarm.record() == {"epoch": 3, "signs": list(alarm.signs)}
    assert len(alarm.signs) == 1


@pytest.mark.parametrize("sign", SIGNS)
def test_one_epoch_of_a_sign_is_no_collapse(sign):
    bad = HEALTHY | SIGNS[sign]
    alarm, warnings = told([bad, HEALTHY, bad, HEALTHY])
    assert warnings == [None] * 4
    assert alarm.record() is None


def test_losses_away_from_that_of_guessing_are_no_sign():
    for loss in (CHANCE * 1.02, CHANCE * 0.98, 2 * CHANCE):
        assert told([HEALTHY | {"train_loss": loss}] * 3)[0].record() is None


def test_a_loss_without_chance_and_few_pairs_leave_signs_out():
    assert told([HEALTHY | SIGNS["loss"]] * 3, chance=None)[0].record() is None
    assert told([HEALTHY | SIGNS["gap"]] * 3, pairs=9)[0].record() is None
    assert told([HEALTHY | SIGNS["gap"]] * 3, pairs=10)[0].record() is not None


def test_epochs_of_an_older_version_are_watched_by_their_loss_alone():
    alarm, _ = told([{"train_loss": 2.1}, {"train_loss": CHANCE}, {"train_loss": CHANCE}])
    assert alarm.epoch == 3


def test_constant_features_raise_it_and_spread_ones_do_not():
    images, texts, captions = embeddings()
    for kind, expected in (("spread", None), ("images", 2), ("texts", 2), ("both", 2)):
        same = torch.ones_like(images) / images.shape[1] ** 0.5
        found = spread_of_pairs(
            same if kind in ("images", "both") else images,
            same if kind in ("texts", "both") else texts,
            captions,
        )
        alarm, _ = told([{"train_loss": 2.0, **found}] * 2)
        assert alarm.epoch == expected, kind


def test_cosines_are_those_of_brute_force():
    images, texts, captions = embeddings()
    captions[3] = captions[7]
    cosines = images.double() @ texts.double().T
    apart = torch.tensor([[a != b for b in captions] for a in captions])
    found = spread_of_pairs(images, texts, captions)
    assert found["paired"] == pytest.approx(cosines.diagonal().mean().item(), abs=1e-12)
    assert found["unmatched"] == pytest.approx(cosines[apart].mean().item(), abs=1e-12)
    # Twins are no unmatched pairs: with them the mean is another.
    assert found["unmatched"] != pytest.approx(
        cosines[~torch.eye(len(captions), dtype=torch.bool)].mean().item(), abs=1e-6
    )
    values = torch.linalg.svdvals(images.double() - images.double().mean(0))
    share = values / values.sum()
    rank = (-(share * share.log()).sum()).exp().item()
    assert found["image_effective_rank"] == pytest.approx(rank, rel=1e-9)
