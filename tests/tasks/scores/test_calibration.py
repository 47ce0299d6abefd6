"""Calibration: known temperatures and errors are found, bins are those of a slow direct form."""

import math

import pytest
import torch
from sklearn import metrics

from fastht.tasks.scores.calibration import (
    BOUNDS,
    Temperature,
    apply_temperature,
    bins_for,
    calibration_scores,
    describe_calibration,
    fit_temperature,
    negative_log_likelihood,
    reliability,
    resampled,
)


def simulated(n, temperature=1.0, classes=3, seed=0):
    """Labels drawn from calibrated probabilities, and those of logits a temperature too large."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, generator=generator).double()
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return (temperature * logits).softmax(1), labels


def slow_ece(p, labels, weights, bins):
    """ECE of equal-mass bins, image by image."""
    confidence, predicted = p.max(1)
    runs = {}
    for i in confidence.argsort().tolist():
        mass, gap = runs.get(confidence[i].item(), (0.0, 0.0))
        weight = weights[i].item()
        right = float(predicted[i] == labels[i])
        runs[confidence[i].item()] = (mass + weight, gap + weight * (right - confidence[i].item()))
    total, before = weights.sum().item(), 0.0
    gaps = [0.0] * bins
    for mass, gap in runs.values():
        middle = (before + mass / 2) / total
        gaps[min(math.floor(bins * middle), bins - 1)] += gap
        before += mass
    return sum(map(abs, gaps)) / total


@pytest.mark.parametrize("ties", [False, True])
def test_ece_is_that_of_a_slow_direct_form_also_weighted(ties):
    p, labels = simulated(150)
    if ties:
        p = (8 * p).round().clamp(min=0.5)
        p = p / p.sum(1, keepdim=True)
    weights = torch.randint(0, 4, (40, 150), generator=torch.Generator().manual_seed(1))
    found = resampled(p, labels, weights)["ece"]
    slow = [slow_ece(p, labels, row, 15) for row in weights]
    assert found.tolist() == pytest.approx(slow, abs=1e-12)
    once = calibration_scores(p, labels)["ece"]
    assert once == pytest.approx(slow_ece(p, labels, torch.ones(150), 15), abs=1e-12)
    # Negative controls: other bins, images that count once.
    assert once != pytest.approx(slow_ece(p, labels, torch.ones(150), 5), abs=1e-3)
    assert found[0].item() != pytest.approx(once, abs=1e-4)


def test_bins_hold_equally_many_images():
    p, labels = simulated(153)
    curve = reliability(p, labels)
    assert len(curve.images) == 15
    assert set(curve.images) == {10, 11}
    assert sum(curve.images) == 153
    assert curve.confidence == sorted(curve.confidence)
    gaps = [
        n * abs(a - c)
        for n, a, c in zip(curve.images, curve.accuracy, curve.confidence, strict=True)
    ]
    assert sum(gaps) / 153 == pytest.approx(calibration_scores(p, labels)["ece"])


def test_images_of_one_confidence_share_a_bin():
    p = torch.tensor([[0.75, 0.25]]).repeat(100, 1).double()
    p[:10] = torch.tensor([0.5, 0.5])
    labels = torch.tensor([0, 1] * 50)
    curve = reliability(p, labels, bins=10)
    assert curve.images == [10, 90]
    assert curve.accuracy == [0.5, 0.5]
    assert curve.confidence == pytest.approx([0.5, 0.75])


def test_few_images_have_few_bins():
    assert [bins_for(n) for n in (1, 19, 20, 149, 150, 10_000)] == [1, 1, 2, 14, 15, 15]


def test_repeating_images_is_weighting_them():
    p, labels = simulated(160)
    weights = torch.randint(1, 3, (2, 160), generator=torch.Generator().manual_seed(1))
    found = resampled(p, labels, weights)
    for row, counts in enumerate(weights):
        rows = torch.arange(160).repeat_interleave(counts)
        alone = calibration_scores(p[rows], labels[rows])
        assert alone == pytest.approx({name: v[row].item() for name, v in found.items()})


def test_calibrated_probabilities_have_no_error_and_overconfident_ones_the_known_one():
    n = 40_000
    assert calibration_scores(*simulated(n))["ece"] < 0.01
    # Three quarters right, always said with certainty of 0.95.
    labels = torch.tensor([0, 0, 0, 1]).repeat(n // 4)
    p = torch.tensor([[0.95, 0.05]]).double().expand(n, 2)
    assert calibration_scores(p, labels)["ece"] == pytest.approx(0.2)
    # The expected gap of a temperature, by the probabilities that made the labels.
    sure, labels = simulated(n, temperature=3)
    honest = apply_temperature(sure, 3)
    gap = (sure.max(1).values - honest.max(1).values).mean().item()
    assert gap > 0.1
    assert calibration_scores(sure, labels)["ece"] == pytest.approx(gap, abs=0.01)


def test_brier_score_is_scikit_learns():
    for classes in (2, 4):
        p, labels = simulated(100, classes=classes)
        weights = torch.randint(0, 4, (3, 100), generator=torch.Generator().manual_seed(1))
        found = resampled(p, labels, weights)["brier"]
        for row in range(3):
            theirs = metrics.brier_score_loss(
                labels, p, sample_weight=weights[row], labels=range(classes), scale_by_half=False
            )
            assert found[row].item() == pytest.approx(theirs)
    p, labels = simulated(100, classes=2)
    binary = metrics.brier_score_loss(labels, p[:, 1])
    assert calibration_scores(p, labels)["brier"] == pytest.approx(2 * binary)


def test_log_likelihood_is_scikit_learns():
    p, labels = simulated(100)
    assert negative_log_likelihood(p, labels) == pytest.approx(metrics.log_loss(labels, p))
    assert math.isfinite(negative_log_likelihood(torch.eye(2), torch.tensor([1, 0])))


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
def test_a_known_temperature_is_recovered(temperature):
    p, labels = simulated(20_000, temperature=temperature)
    found = fit_temperature(p, labels)
    assert found.value == pytest.approx(temperature, rel=0.05)
    assert (found.images, found.at_bound) == (20_000, False)
    # Nothing near it is likelier.
    best = negative_log_likelihood(apply_temperature(p, found.value), labels)
    for other in (0.97, 1.03):
        near = apply_temperature(p, other * found.value)
        assert negative_log_likelihood(near, labels) > best
    # Labels that have nothing to do with the images have no such temperature.
    stranger = fit_temperature(p, labels.roll(1))
    assert not 0.8 * temperature < stranger.value < 1.25 * temperature


def test_temperatures_without_optimum_end_at_a_bound_and_say_so():
    p, labels = simulated(50)
    right = fit_temperature(p, p.argmax(1))
    wrong = fit_temperature(p, p.argmin(1))
    assert (right.value, right.at_bound) == (BOUNDS[0], True)
    assert (wrong.value, wrong.at_bound) == (BOUNDS[1], True)
    with pytest.raises(ValueError, match="no image to fit"):
        fit_temperature(p[:0], labels[:0])


def test_a_temperature_changes_no_prediction_and_no_rank():
    p, _ = simulated(500)
    for temperature in (0.05, 0.5, 2.0, 20.0):
        changed = apply_temperature(p, temperature)
        assert changed.argmax(1).equal(p.argmax(1))
        torch.testing.assert_close(changed.sum(1), torch.ones(500, dtype=torch.float64))
        assert not torch.allclose(changed, p, atol=1e-2)
    torch.testing.assert_close(apply_temperature(p, 1.0), p)


def test_a_temperature_of_validation_mends_the_test_side():
    found = fit_temperature(*simulated(5_000, temperature=3, seed=1))
    told = describe_calibration(*simulated(5_000, temperature=3, seed=2), found, "fitted on val")
    assert told["bins"] == 15
    assert told["temperature"] == found.value
    assert (told["fitted_images"], told["at_bound"]) == (5_000, False)
    for score in ("ece", "brier", "nll"):
        assert told["calibrated"][score] < told["uncalibrated"][score]
    assert told["calibrated"]["ece"] < 0.03 < 0.1 < told["uncalibrated"]["ece"]


def test_without_a_temperature_the_note_says_why():
    told = describe_calibration(*simulated(30), None, "no validation side")
    assert (told["temperature"], told["calibrated"]) == (None, None)
    assert told["note"] == "no validation side"
    at_one = describe_calibration(*simulated(30), Temperature(1.0, 5, False), "")
    assert at_one["calibrated"] == pytest.approx(told["uncalibrated"])
