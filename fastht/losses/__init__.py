"""Contrastive losses that never make a B x B matrix: CLIP, SigLIP, several positives, soft labels.

Usable alone: ``from fastht.losses import ClipLoss``.
"""

from fastht.losses.functional import SoftLabels, clip_loss, siglip_loss, soft_label_loss
from fastht.losses.modules import ClipLoss, SigLipLoss
from fastht.losses.registry import backends
from fastht.losses.sharpness import target_sharpness
from fastht.losses.targets import SoftTargets
from fastht.losses.terms import mean_log_positives

__all__ = [
    "ClipLoss",
    "SigLipLoss",
    "SoftLabels",
    "SoftTargets",
    "backends",
    "clip_loss",
    "mean_log_positives",
    "siglip_loss",
    "soft_label_loss",
    "target_sharpness",
]
