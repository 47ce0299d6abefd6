"""Bad input: one clear error each, or what the dense form computes."""

import pytest
import torch
from loss_cases import CANDIDATES, CASES, evaluate, make_batch
from torch import nn

from fastht.losses import SoftLabels, SoftTargets, backends, clip_loss, siglip_loss, soft_label_loss
from fastht.losses.registry import resolve
from fastht.ops.registry import BackendUnavailableError

A = torch.ones(4, 8)


@pytest.mark.parametrize(
    ("images", "texts", "what"),
    [
        (A, A[:3], r"\(4, 8\).*\(3, 8\).*\[B, E\]"),
        (A, torch.ones(4, 7), r"\[B, E\]"),
        (A[0], A[0], r"\[B, E\]"),
        (A, A.double(), "one floating dtype"),
        (A.int(), A.int(), "one floating dtype"),
        (A[:0], A[:0], "empty batch"),
        (A[:, :0], A[:, :0], "empty batch"),
    ],
)
@pytest.mark.parametrize("loss", [clip_loss, siglip_loss])
def test_features_that_do_not_fit(loss, images, texts, what):
    with pytest.raises(ValueError, match=what):
        loss(images, texts, 1.0)


@pytest.mark.parametrize("keys", [torch.zeros(3), torch.zeros(4), torch.zeros(4, dtype=torch.bool),
                                  torch.zeros(4, 1, dtype=torch.long)])  # fmt: skip
def test_keys_that_do_not_fit(keys):
    with pytest.raises(ValueError, match=r"have to be \[4\] integers"):
        clip_loss(A, A, 1.0, keys=keys)


def test_scales_and_biases_that_do_not_fit():
    with pytest.raises(ValueError, match="logit_scale is"):
        clip_loss(A, A, torch.ones(2))
    with pytest.raises(ValueError, match="logit_bias is"):
        siglip_loss(A, A, torch.ones(1), torch.ones(4))
    torch.testing.assert_close(clip_loss(A, A, torch.ones(1)), clip_loss(A, A, 1.0))


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ((A.numpy(), A, 1.0), "image_features is a ndarray; it has to be a tensor"),
        ((A, None, 1.0), "text_features is a NoneType"),
        ((A.to_sparse(), A.to_sparse(), 1.0), "both have to be dense"),
        ((A, A, None), "logit_scale is None; it has to be one real number"),
        ((A, A, "14.3"), "logit_scale is '14.3'"),
        ((A, A, 1 + 2j), "logit_scale is"),
        ((A, A, torch.tensor(1 + 2j)), "logit_scale is of torch.complex64"),
    ],
)
def test_what_is_no_tensor_or_no_number(arguments, what):
    with pytest.raises(ValueError, match=what):
        clip_loss(*arguments)
    with pytest.raises(ValueError, match="keys is a list"):
        clip_loss(A, A, 1.0, keys=[1, 2, 3, 4])


@pytest.mark.parametrize("number", [6, -2, 99])
@pytest.mark.parametrize("backend", ["blocked", "reference"])
def test_tags_out_of_range(backend, number):
    batch = make_batch(9)
    batch.tags[3, 1] = number
    with pytest.raises(ValueError, match="out of range: it has to be from 0 to 5, or -1"):
        soft_label_loss(batch.images.cpu(), batch.texts.cpu(),
                        SoftTargets.from_tags(batch.tags.cpu(), batch.similarity.cpu(), [0] * 6),
                        backend=backend)  # fmt: skip


def test_soft_targets_that_do_not_fit():
    tags, eye = torch.zeros(4, 2, dtype=torch.long), torch.eye(3)
    inf = float("inf")
    skewed = torch.tensor([[1.0, 0.5, 0], [0, 1, 0], [0, 0, 1]])
    for match, call in {
        "integers": lambda: SoftTargets.from_tags(tags.float(), eye, [0, 0, 0]),
        "symmetric": lambda: SoftTargets.from_tags(tags, skewed, [0, 0, 0]),
        r"\[V, V\]": lambda: SoftTargets.from_tags(tags, eye[:2], [0, 0, 0]),
        "whole numbers from 0": lambda: SoftTargets.from_tags(tags, eye, [0, -1, 0]),
        "have to be whole": lambda: SoftTargets.from_tags(tags, eye, [0, 0.5, 1]),
        "not all zero": lambda: SoftTargets.from_tags(tags, eye, [0, 0, 1], weights=[1.0, inf]),
        "missing is 'drop'": lambda: SoftTargets.from_tags(tags, eye, [0] * 3, missing="drop"),
        "weights are": lambda: SoftTargets.from_tags(tags, eye, [0, 0, 1], weights=[1.0]),
        "no gradient": lambda: SoftTargets.from_factors(nn.Parameter(A), A),
        r"both have to be \[B, V\]": lambda: SoftTargets.from_factors(A, A[:3]),
        "of 3 samples, and the batch has 4": lambda: soft_label_loss(
            A, A, SoftTargets.from_factors(A[:3], A[:3])
        ),
        "temperature is 0": lambda: SoftLabels(temperature=0),
        "temperature is inf": lambda: SoftLabels(temperature=inf),
        "none may be": lambda: SoftLabels(kl=-1),
        "kl=nan": lambda: SoftLabels(kl=float("nan")),
        "mse=inf": lambda: SoftLabels(mse=inf),
        "directions is 'up'": lambda: SoftLabels(directions="up"),
        "directions is 'down'; choose image, text or both": lambda: clip_loss(
            A, A, 1.0, directions="down"
        ),
        "scope is": lambda: SoftLabels(scope="here"),
    }.items():
        with pytest.raises(ValueError, match=match):
            call()


def same(found, expected):
    """Tell whether results agree, those that are not finite included."""
    return all(
        torch.allclose(found[n], x, rtol=1e-9, atol=1e-12, equal_nan=True)
        for n, x in expected.items()
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("case", ["clip", "clip keys", "siglip", "soft factors"])
@pytest.mark.parametrize("backend", CANDIDATES)
def test_features_that_are_not_finite_give_no_finite_loss(backend, case, value):
    batch = make_batch(20)
    batch.images[3, 5] = value
    expected = evaluate(case, batch, "reference")
    found = evaluate(case, batch, backend)
    assert not expected["loss"].isfinite()
    for name, x in expected.items():
        assert found[name].isfinite().all() == x.isfinite().all(), name


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 1e300])
@pytest.mark.parametrize("case", ["clip", "clip keys"])
@pytest.mark.parametrize("backend", CANDIDATES)
def test_a_scale_that_overflows(backend, case, scale):
    batch = make_batch(20, scale=scale)
    found, expected = (evaluate(case, batch, name) for name in (backend, "reference"))
    assert found["loss"].isfinite() == expected["loss"].isfinite()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", CANDIDATES)
def test_one_pair(backend, case):
    batch = make_batch(1)
    assert same(evaluate(case, batch, backend), evaluate(case, batch, "reference"))


def test_backends_say_what_they_can_and_refuse_what_they_cannot():
    assert backends()["blocked"].usable
    assert resolve("auto", "cpu", torch.float32) == "blocked"
    assert resolve("reference", "cpu", torch.float64) == "reference"
    with pytest.raises(ValueError, match="no backend 'cpu'; choose one of 'auto', 'triton'"):
        resolve("cpu", "cpu", torch.float32)
    if not backends()["triton"].usable:
        with pytest.raises(BackendUnavailableError, match="'triton' cannot run here"):
            resolve("triton", "cpu", torch.float32)
