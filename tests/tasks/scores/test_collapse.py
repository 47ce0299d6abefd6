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
    "image_spread": 0.6,
    "text_spread": 0.7,
    "image_effective_rank": 20.0,
    "text_effective_rank": 20.0,
}
CHANCE = math.log(128)
# Nothing is told apart, and the embeddings still differ as they did.
GUESSING = HEALTHY | {"train_loss": CHANCE * 1.002, "paired": 0.2092, "unmatched": 0.2092}
LOST = {
    "same": {"image_spread": 0.0},
    "image spread": {"image_spread": 0.1},
    "text spread": {"text_spread": 1e-4},
    "image rank": {"image_effective_rank": 1.5},
    "text rank": {"text_effective_rank": 1.0},
}
COLLAPSED = GUESSING | LOST["image spread"]


def watched(rows, *, before=HEALTHY, chance=CHANCE, pairs=100):
    """The alarm and what it told after each epoch."""
    alarm = CollapseAlarm(chance, pairs)
    if before is not None:
        alarm.begin({name: value for name, value in before.items() if name != "train_loss"})
    return alarm, [alarm.watch({"epoch": i + 1.0, **row}) for i, row in enumerate(rows)]


def embeddings(n=40, width=16):
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.randn(2, n, width, generator=generator)
    texts = normalize(images + noise, dim=1)
    return normalize(images, dim=1), texts, [f"caption {i}" for i in range(n)]


@pytest.mark.parametrize("lost", LOST)
def test_a_spread_or_rank_that_is_lost_at_guessing_is_told_once_after_two_epochs(lost):
    bad = GUESSING | LOST[lost]
    alarm, told = watched([bad, bad, bad])
    assert [text is not None for text in told] == [False, True, False]
    assert told[1].startswith("WARNING: the run has collapsed: the training loss is 4.862")
    assert "lower --lr" in told[1]
    (found,) = alarm.record(1)["alarms"]
    assert (found["epoch"], found["recovered"], len(found["signs"])) == (2, None, 3)
    # Of a run that is told nothing by its loss, as of SigLIP's, the pairs decide.
    assert watched([bad, bad], chance=None)[0].states == ["collapsed"] * 2


@pytest.mark.parametrize("lost", LOST)
def test_the_same_embeddings_are_no_collapse_where_pairs_are_told_apart(lost):
    """Images that differ in their class alone lie on a line, and small spreads may be enough."""
    assert watched([HEALTHY | LOST[lost]] * 4)[0].states == ["learning"] * 4


def test_a_slow_start_is_no_collapse_and_one_that_learns_nothing_is_said_at_the_end():
    near = {"image_spread": 0.002, "text_spread": 0.001, "image_effective_rank": 1.4}
    near["text_effective_rank"] = 3.0
    start = GUESSING | near
    alarm, told = watched([start] * 3 + [HEALTHY] * 2, before=near)
    assert told == [None] * 5
    assert alarm.states == ["at guessing"] * 3 + ["learning"] * 2
    assert alarm.conclude(5) is None
    assert alarm.record(5) == {"state": "learning", "best_epoch_state": "learning", "alarms": []}
    alarm, told = watched([start] * 5, before=near)
    assert told == [None] * 5
    said = alarm.conclude(1)
    assert said.startswith("The run ended at guessing: the training loss is 4.862")
    assert "WARNING" not in said
    assert alarm.record(1)["state"] == "at guessing"
    # The negative control: with the spread that was there before, the same epochs are a collapse.
    assert watched([start] * 5)[0].states == ["collapsed"] * 5


@pytest.mark.parametrize("with_pairs", [True, False])
def test_a_run_that_falls_back_to_guessing_has_collapsed(with_pairs):
    """Also where its embeddings still differ, and where the loss is all that is known."""
    pairs = 100 if with_pairs else 9
    alarm, told = watched([HEALTHY, HEALTHY, GUESSING, GUESSING], pairs=pairs)
    assert alarm.states == ["learning"] * 2 + ["collapsed"] * 2
    assert "it had been 2.100" in told[3]
    ended = alarm.conclude(2)
    assert ended.startswith("WARNING: the run ended collapsed, as was told after epoch 4.")
    assert ended.endswith("The weights that are kept are of epoch 2, before that.")
    assert alarm.record(2)["state"] == "collapsed"
    assert alarm.record(2)["best_epoch_state"] == "learning"
    # A loss that was hardly below that of guessing is none to fall back from.
    barely = HEALTHY | {"train_loss": 0.97 * CHANCE}
    assert watched([barely, GUESSING, GUESSING], pairs=pairs)[0].states[1:] == ["at guessing"] * 2


def test_a_run_that_recovers_is_told_to_have_once():
    alarm, told = watched([COLLAPSED, COLLAPSED, GUESSING, HEALTHY, HEALTHY])
    # A spread that comes back has taught nothing yet.
    assert alarm.states == ["collapsed"] * 3 + ["learning"] * 2
    assert [text is not None for text in told] == [False, True, False, True, False]
    assert told[3] == "After epoch 4 the run is no longer collapsed, as was told after epoch 2."
    assert alarm.conclude(5) is None
    record = alarm.record(5)
    assert record["state"] == "learning"
    assert [(found["epoch"], found["recovered"]) for found in record["alarms"]] == [(2, 4)]


def test_one_epoch_is_not_told_unless_it_is_the_last():
    alarm, told = watched([COLLAPSED, HEALTHY, COLLAPSED, HEALTHY])
    assert told == [None] * 4
    assert alarm.record(4) == {"state": "learning", "best_epoch_state": "learning", "alarms": []}
    alarm, told = watched([HEALTHY, COLLAPSED])
    assert told == [None] * 2
    said = alarm.conclude(2)
    assert said.startswith("WARNING: the run ended collapsed: ")
    assert said.endswith("What helps: lower --lr, above all where whole towers train, or train "
                         "less of the model (--method ht); then start anew in another --out. The "
                         "weights that are kept are of epoch 2, collapsed too.")  # fmt: skip
    assert [found["epoch"] for found in alarm.record(2)["alarms"]] == [2]


def test_a_rank_that_falls_while_the_loss_rises_is_a_collapse_before_guessing():
    line = HEALTHY | {"image_effective_rank": 1.2}
    rising = line | {"train_loss": 3.0}
    alarm, told = watched([HEALTHY, rising, rising])
    assert alarm.states == ["learning", "collapsed", "collapsed"]
    assert "effective rank fell to 1.20 from 20.0; the training loss rose to 3.000" in told[2]
    assert watched([HEALTHY, line | {"train_loss": 1.0}] * 2)[0].alarms == []
    # Two captions alone never had a rank of 2.
    two = {"text_effective_rank": 1.0}
    rising = HEALTHY | {"train_loss": 3.0} | two
    assert watched([HEALTHY | two, rising, rising], before=HEALTHY | two)[0].alarms == []


def test_guessing_needs_all_of_its_signs():
    for change in ({"train_loss": CHANCE * 0.98}, {"paired": 0.22}):
        assert watched([COLLAPSED | change] * 3)[0].states == ["learning"] * 3, change
    # Diverged is not better than guessing.
    assert watched([COLLAPSED | {"train_loss": 2 * CHANCE}])[0].states == ["collapsed"]


def test_what_is_not_known_decides_nothing():
    assert watched([COLLAPSED] * 2, pairs=9)[0].states == ["at guessing"] * 2
    assert watched([COLLAPSED] * 2, pairs=10)[0].states == ["collapsed"] * 2
    assert watched([COLLAPSED] * 2, pairs=9, chance=None)[0].states == ["not judged"] * 2
    equal = {"unmatched": math.nan}  # all captions are equal
    assert watched([COLLAPSED | equal] * 2)[0].states == ["at guessing"] * 2
    # Epochs of an older version are watched by their loss alone.
    rows = [{"train_loss": 2.1}, {"train_loss": CHANCE}, {"train_loss": CHANCE}]
    assert watched(rows)[0].states == ["learning", "collapsed", "collapsed"]


@pytest.mark.parametrize("scale", [0.0, 1e-5])
def test_constant_features_raise_it_and_spread_ones_do_not(scale):
    """Whatever came before: features that are the same learn nothing."""
    images, texts, captions = embeddings()
    constant = normalize(torch.ones_like(images) + scale * images, dim=1)
    for kind, expected in (("spread", []), ("images", [2]), ("texts", [2]), ("both", [2])):
        found = spread_of_pairs(
            constant if kind in ("images", "both") else images,
            constant if kind in ("texts", "both") else texts,
            captions,
        )
        loss = 2.1 if kind == "spread" else CHANCE
        alarm, _ = watched([{"train_loss": loss, **found}] * 2, before=None)
        assert [alarm["epoch"] for alarm in alarm.alarms] == expected, kind


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
    for tower, features in (("image", images.double()), ("text", texts.double())):
        spread = 1 - (features @ features.T).mean().item()
        assert found[f"{tower}_spread"] == pytest.approx(spread, abs=1e-12)
    values = torch.linalg.svdvals(images.double() - images.double().mean(0))
    share = values / values.sum()
    rank = (-(share * share.log()).sum()).exp().item()
    assert found["image_effective_rank"] == pytest.approx(rank, rel=1e-9)
