"""Intervals against scipy's, and whether they hold the truth as often as they say."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from fastht.tasks.scores import intervals
from fastht.tasks.scores.intervals import Interval, Resampling, shared_weights, weighted_means

ALONE = [None] * 50


def of_scipy(data, statistic, **options):
    """Return the interval that scipy finds with the draws of the same generator."""
    found = scipy.stats.bootstrap(
        data,
        statistic,
        n_resamples=500,
        method="percentile",
        vectorized=False,
        rng=np.random.default_rng(3),
        **options,
    )
    return pytest.approx(tuple(found.confidence_interval), rel=1e-12)


def test_a_mean_and_a_paired_difference_are_scipys():
    a, b = (np.random.default_rng(seed).normal(seed, 1, 50) for seed in (1, 2))
    ours = Resampling(ALONE, resamples=500, seed=3)
    mean_a, mean_b = (torch.from_numpy(values) for values in (a, b))
    assert ours.mean(mean_a) == of_scipy((a,), np.mean)
    found = ours.difference(ours.means(mean_a), ours.means(mean_b))
    assert found == of_scipy((a, b), lambda x, y: np.mean(x) - np.mean(y), paired=True)
    narrow = Resampling(ALONE, resamples=500, seed=3, level=0.5)
    assert narrow.mean(mean_a) == of_scipy((a,), np.mean, confidence_level=0.5)
    # Another seed draws other resamples: the equality is not of the data alone.
    assert Resampling(ALONE, resamples=500, seed=4).mean(mean_a) != of_scipy((a,), np.mean)


def test_a_patient_is_drawn_with_all_images():
    groups = ["a", "b", "a", None, "c", None]
    made = Resampling(groups, resamples=300)
    weights = made.weights
    assert weights.shape == (300, 6)
    assert weights.dtype == torch.float64
    assert torch.equal(weights[:, 0], weights[:, 2])
    # Five units are drawn five times; "a" has two images.
    assert (weights[:, [0, 1, 3, 4, 5]].sum(dim=1) == 5).all()
    assert not torch.equal(weights[:, 3], weights[:, 5])
    assert (made.unit, made.units, made.without_patient) == ("patient", 5, 2)
    assert weights.mean().item() == pytest.approx(1, abs=0.05)


def test_a_patient_may_be_called_anything():
    assert Resampling([0, (0,), "0", None]).units == 4


def test_frames_of_a_file_without_patient_are_drawn_together():
    files = ["a.dcm", "b.dcm", "a.dcm", "c.dcm"]
    made = Resampling([None] * 4, files, resamples=200)
    assert (made.unit, made.units) == ("image", 3)
    assert torch.equal(made.weights[:, 0], made.weights[:, 2])
    # A patient's images are theirs whatever files they are in.
    assert Resampling(["p", "p", None, None], files).units == 3


def test_the_order_of_the_images_does_not_matter():
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0)).tolist()
    patients, files = [f"p{i % 11}" if i < 25 else None for i in range(30)], [*map(str, range(30))]
    one = Resampling(patients, files, resamples=20).weights
    other = Resampling([patients[i] for i in order], [files[i] for i in order], resamples=20)
    assert torch.equal(other.weights, one[:, order])


CLUSTERS, SIZE, SIMULATIONS = 80, 5, 600


def coverage(made, values, truth):
    """Return how often the intervals of values [n, simulations] hold the truth."""
    found = [made.percentile(column) for column in made.means(values).T]
    return np.mean([low <= truth <= high for low, high in found])


def three_errors(share):
    return 3 * math.sqrt(share * (1 - share) / SIMULATIONS)


def test_intervals_over_patients_hold_a_known_binomial_share():
    generator = torch.Generator().manual_seed(0)
    # Each image repeats its patient's outcome with probability 0.8, else has its own: 0.7 of all.
    n = CLUSTERS * SIZE
    of_patient = torch.rand(CLUSTERS, SIMULATIONS, generator=generator).lt(0.7)
    own = torch.rand(n, SIMULATIONS, generator=generator).lt(0.7)
    repeats = torch.rand(n, SIMULATIONS, generator=generator).lt(0.8)
    right = torch.where(repeats, of_patient.repeat_interleave(SIZE, 0), own)
    patients = [i // SIZE for i in range(n)]
    held = coverage(Resampling(patients, resamples=1000), right, 0.7)
    assert abs(held - 0.95) < three_errors(0.95)
    # Negative control: who ignores the patients is far too sure.
    assert coverage(Resampling([None] * n, resamples=1000), right, 0.7) < 0.8
    # Where patients are of one image each, both are the same.
    assert abs(coverage(Resampling([None] * n, resamples=1000), own, 0.7) - 0.95) < three_errors(
        0.95
    )


def test_intervals_over_patients_hold_a_known_paired_difference():
    generator = torch.Generator().manual_seed(1)
    n, shape = CLUSTERS * SIZE, (CLUSTERS, SIMULATIONS)
    difficulty = torch.randn(n, SIMULATIONS, generator=generator)
    gain = 0.1 + 0.3 * torch.randn(shape, generator=generator).repeat_interleave(SIZE, 0)
    a, b = difficulty, difficulty + gain
    patients = Resampling([i // SIZE for i in range(n)], resamples=1000)
    images = Resampling([None] * n, resamples=1000)

    def held(made, second):
        found = [
            made.difference(y, x)
            for x, y in zip(made.means(a).T, made.means(second).T, strict=True)
        ]
        widths = np.mean([high - low for low, high in found])
        return np.mean([low <= 0.1 <= high for low, high in found]), widths

    share, width = held(patients, b)
    assert abs(share - 0.95) < three_errors(0.95)
    assert held(images, b)[0] < 0.75  # negative control
    # Not paired, the images' difficulty would be in it: the intervals would be wide.
    unpaired = torch.randn(n, SIMULATIONS, generator=generator) + gain
    assert held(patients, unpaired)[1] > 1.3 * width


def test_resamples_are_the_same_however_they_are_drawn(monkeypatch):
    groups = [f"patient {i % 7}" for i in range(30)]
    values = torch.rand(30, 2)
    whole = Resampling(groups, resamples=50)
    weights, means = whole.weights, whole.means(values)
    assert torch.equal(weights, Resampling(list(groups), resamples=50).weights)
    monkeypatch.setattr(intervals, "_LARGEST", 100)  # three resamples at a time
    parts = Resampling(groups, resamples=50)
    assert torch.equal(parts.weights, weights)
    assert torch.allclose(parts.means(values), means, rtol=1e-14)
    rows = []

    def total(chunk):
        rows.append(len(chunk))
        return {"total": chunk.sum(dim=1)}

    found = parts.statistics(total)
    assert torch.equal(found["total"], weights.sum(dim=1))
    assert rows == [3] * 16 + [2]
    assert parts.percentiles(found) == {"total": whole.percentile(weights.sum(dim=1))}


def test_what_is_undefined_is_left_out():
    values = torch.tensor([1.0, math.nan, 3.0, 5.0])
    weights = torch.tensor([[1.0, 1, 1, 1], [2, 1, 1, 0], [0, 4, 0, 0]]).double()
    assert weighted_means(values, weights).tolist()[:2] == [3, pytest.approx(5 / 3)]
    assert weighted_means(values, weights)[2].isnan()
    both = weighted_means(torch.stack([values, values.nan_to_num(0)], dim=1), weights)
    assert both[0].tolist() == [3, 2.25]
    made = Resampling([None] * 4, resamples=100)
    statistics = torch.linspace(0, 1, 100).double()
    whole = made.percentile(statistics)
    statistics[50:54] = math.nan
    assert made.percentile(statistics) == pytest.approx(whole, abs=0.01)
    # More of them than an interval leaves outside would make it one of something else.
    statistics[50:57] = math.nan
    assert all(map(math.isnan, made.percentile(statistics)))


def test_one_patient_gives_no_interval():
    made = Resampling(["a", "a"])
    assert all(map(math.isnan, made.mean(torch.tensor([1.0, 2.0]))))
    assert "of one there are none" in made.describe()


def test_the_unit_is_said():
    assert Resampling(["a"] * 3 + ["b"]).describe() == (
        "95 % intervals over 2 patients, percentile bootstrap of 2,000 resamples, seed 0; "
        "intervals of 2 patients are rough."
    )
    images = Resampling([None] * 20, resamples=100, seed=7, level=0.9)
    assert images.describe() == (
        "90 % intervals over 20 images, percentile bootstrap of 100 resamples, seed 7; no "
        "patient is named, so images count as if each were of another patient."
    )
    assert images.record() == {
        "level": 0.9,
        "resamples": 100,
        "seed": 7,
        "unit": "image",
        "units": 20,
        "without_patient": 0,
        "note": images.describe(),
    }
    assert "3 images without patient count as one each" in Resampling(["a", *[None] * 3]).describe()


def test_the_record_holds_both_versions_and_their_paired_difference():
    made = Resampling([f"{i // 2}" for i in range(40)], resamples=400)
    score = torch.linspace(0, 1, 40)
    before, after = made.means(score), made.means(score + 0.25)
    found = made.record(before={"dice": before, "old": before}, after={"dice": after, "new": after})
    assert found["before"]["dice"] == list(made.percentile(before))
    assert found["after"].keys() == {"dice", "new"}
    assert found["difference"] == {"dice": pytest.approx([0.25, 0.25])}  # the same resamples
    assert (found["unit"], found["units"]) == ("patient", 20)
    assert made.record(after={}).keys() == {*made.record(), "after"}


def test_what_images_share_counts_as_they_do():
    weights = torch.tensor([[1.0, 1, 1], [2, 0, 3]]).double()
    owner = torch.tensor([0, 1, 0])
    assert shared_weights(weights, owner, 2).tolist() == [[1, 1], [2.5, 0]]


@pytest.mark.parametrize(
    ("groups", "options"),
    [([], {}), (["a"], {"resamples": 0}), (["a"], {"level": 1.0}), (["a"], {"level": 0.0})],
)
def test_what_cannot_be_is_refused(groups, options):
    with pytest.raises(ValueError, match="at least"):
        Resampling(groups, **options)


def test_files_are_as_many_as_images():
    with pytest.raises(ValueError, match="1 files for 2 images"):
        Resampling([None, None], ["a"])


def test_intervals_are_pairs():
    assert Interval(0.0, 1.0) == (0.0, 1.0)
