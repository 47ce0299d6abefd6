"""The losses as modules that can stand where open_clip's ``ClipLoss`` and ``SigLipLoss`` stand."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastht.losses import custom_op
from fastht.losses.functional import (
    ALONE,
    Processes,
    SoftLabels,
    clip_loss,
    losses,
    siglip_loss,
    soft_form,
    soft_label_loss,
)
from fastht.losses.registry import BACKEND_NAMES
from fastht.losses.sweeps import BOTH, Form
from fastht.losses.targets import SoftTargets
from fastht.losses.terms import Weights

Losses = Tensor | dict[str, Tensor]


class _Loss(nn.Module):
    """What both modules share: the processes, the soft labels, what a call returns."""

    def __init__(self, processes: Processes, soft_labels: SoftLabels | None, backend: str) -> None:
        super().__init__()
        if backend not in BACKEND_NAMES:
            options = ", ".join(map(repr, BACKEND_NAMES))
            raise ValueError(f"there is no backend {backend!r}; choose one of {options}")
        if not 0 <= processes.rank < processes.world_size:
            raise ValueError(
                f"rank is {processes.rank} of {processes.world_size} processes; it has to be from "
                f"0 to {processes.world_size - 1}"
            )
        self.processes = processes
        self.soft_labels = soft_labels
        self.backend = backend

    def _both(
        self,
        images: Tensor,
        texts: Tensor,
        scale: Tensor | float,
        bias: Tensor | float | None,
        keys: Tensor | None,
        targets: SoftTargets | None,
        form: Form,
        weights: Weights,
        output_dict: bool,
    ) -> Losses:
        """Return the loss with its soft labels, in one sweep over pairs where their pairs agree."""
        soft = self.soft_labels
        if (soft is None) != (targets is None):
            raise ValueError(
                "soft labels need both soft_labels (how they enter the loss) when the loss is "
                "made and soft_targets when it is called; one is missing"
            )
        common: dict[str, Any] = {"backend": self.backend, "processes": self.processes}
        together = soft is not None and (soft.scope == "global" or self.processes == ALONE)
        if soft is not None and targets is not None and together:
            contrastive, extra = losses(
                images, texts, scale, bias, keys=keys, form=soft_form(form, soft, targets),
                weights=Weights(weights.softmax, weights.sigmoid, soft.kl, soft.mse),
                targets=targets, temperature=soft.temperature, **common,
            ).unbind()  # fmt: skip
            return _result(contrastive, extra, output_dict)
        if form.sigmoid:
            contrastive = siglip_loss(images, texts, scale, bias, keys=keys, **common)
        else:
            contrastive = clip_loss(images, texts, scale, keys=keys, **common)
        if soft is None or targets is None:
            return _result(contrastive, None, output_dict)
        extra = soft_label_loss(images, texts, targets, soft, keys=keys, **common)
        return _result(contrastive, extra, output_dict)


def _result(contrastive: Tensor, soft: Tensor | None, output_dict: bool) -> Losses:
    if not output_dict:
        return contrastive if soft is None else contrastive + soft
    named = {"contrastive_loss": contrastive}
    return named if soft is None else named | {"soft_label_loss": soft}


class ClipLoss(_Loss):
    """Symmetric InfoNCE without a B x B matrix; a stand-in for ``open_clip.ClipLoss``.

    With several processes each owns its images and compares them with the texts of all, so that
    every pair is computed once, and batches may differ in size. The loss of the whole batch is that
    of one process with all samples, and so are the gradients that DistributedDataParallel averages.
    What a process returns, and the size of what it gives to its features, is open_clip's:

    | ``local_loss`` | ``gather_with_grad`` | returned loss            | features' gradients   |
    |----------------|----------------------|--------------------------|-----------------------|
    | True           | any                  | mean of own rows/columns | exact under DDP       |
    | False          | True                 | the whole batch's        | exact under DDP       |
    | False          | False                | the whole batch's        | 1/world_size of that  |

    open_clip's ``local_loss`` without ``gather_with_grad`` leaves out what other processes' losses
    say about a feature; here it does not. Gradients of the scale are averaged over processes.

    Args:
        local_loss: as above.
        gather_with_grad: as above.
        cache_labels: accepted; there are no labels to cache.
        rank: of this process.
        world_size: how many processes share a batch.
        use_horovod: refused.
        soft_labels: how semantic soft labels enter the loss; default: none.
        backend: one of :func:`fastht.losses.backends`, or "auto".
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        *,
        soft_labels: SoftLabels | None = None,
        backend: str = "auto",
    ) -> None:
        if use_horovod:
            raise ValueError("use_horovod is not supported: use torch.distributed")
        reduction = custom_op.LOCAL
        if not local_loss:
            reduction = custom_op.GLOBAL if gather_with_grad else custom_op.OWN
        super().__init__(Processes(rank, world_size, reduction), soft_labels, backend)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
        *,
        keys: Tensor | None = None,
        soft_targets: SoftTargets | None = None,
    ) -> Losses:
        """Return the loss, or ``{"contrastive_loss": ...}`` (and ``"soft_label_loss"``).

        Args, shapes and errors are those of :func:`fastht.losses.clip_loss`. ``logit_bias`` cancels
        in a softmax, so its gradient is 0.
        """
        form = Form(softmax=BOTH, keys=keys is not None)
        result = self._both(
            image_features, text_features, logit_scale, None, keys, soft_targets, form,
            Weights(softmax=1.0), output_dict,
        )  # fmt: skip
        if isinstance(logit_bias, Tensor) and logit_bias.requires_grad:
            nothing = 0.0 * logit_bias.sum()  # so that the bias has a gradient, as DDP wants
            if isinstance(result, Tensor):
                return result + nothing
            result["contrastive_loss"] = result["contrastive_loss"] + nothing
        return result


class SigLipLoss(_Loss):
    """The sigmoid loss without a B x B matrix; a stand-in for ``open_clip.SigLipLoss``.

    Several processes: as :class:`ClipLoss` with ``local_loss``. The texts are gathered, whichever
    way of exchanging them ``dist_impl`` names: all of open_clip's give the same numbers. Gradients
    of scale and bias are averaged over processes.

    Args:
        cache_labels: accepted; there are no labels to cache.
        rank: this process.
        world_size: how many there are.
        dist_impl: accepted: bidir, shift, reduce or gather.
        chunk_size: accepted: no logits are kept, whatever the number of rows at a time.
        soft_labels: how semantic soft labels enter the loss; default: none.
        backend: one of :func:`fastht.losses.backends`, or "auto".
    """

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: str | None = None,
        chunk_size: int = 0,
        *,
        soft_labels: SoftLabels | None = None,
        backend: str = "auto",
    ) -> None:
        if dist_impl not in (None, "bidir", "shift", "reduce", "gather"):
            raise ValueError(f"dist_impl is {dist_impl!r}; choose bidir, shift, reduce or gather")
        super().__init__(Processes(rank, world_size, custom_op.LOCAL), soft_labels, backend)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
        *,
        keys: Tensor | None = None,
        soft_targets: SoftTargets | None = None,
    ) -> Losses:
        """Return the loss, or ``{"contrastive_loss": ...}`` (and ``"soft_label_loss"``).

        Args, shapes and errors are those of :func:`fastht.losses.siglip_loss`.
        """
        form = Form(sigmoid=True, keys=keys is not None)
        return self._both(
            image_features, text_features, logit_scale, logit_bias, keys, soft_targets, form,
            Weights(sigmoid=1.0), output_dict,
        )  # fmt: skip
