"""EchoCare's image encoder: MONAI's Swin transformer, from the file of its weights."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from fastht.data.preprocess import Preprocess

ECHOCARE = "echocare:"
IMAGE_SIZE = 256
# Of the training split of EchoCare-CLIP. EchoCare itself was pretrained on values from 0 to 1.
MEAN, STD = (0.1909, 0.1927, 0.1964), (0.2000, 0.2014, 0.2043)
NO_ADAPTERS = (
    "EchoCare's encoder is a Swin transformer, which takes neither HT adapters nor LoRA: add "
    "--method none, and --train-towers image to train it whole"
)
_ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 128,
    "depths": (2, 2, 18, 2),
    "num_heads": (4, 8, 16, 32),
    "window_size": (8, 8),
}
_EXTRA = "mask_token"  # of the pretraining
_EXAMPLES = 3


class EchoCareEncoder(nn.Module):
    """MONAI's SwinTransformer, its last map averaged over the image (arXiv 2509.11752).

    Args:
        architecture: arguments of MONAI's class that differ from those of EchoCare.

    Raises:
        ValueError: MONAI, or einops that it needs for this, is not installed.
    """

    def __init__(self, **architecture: Any) -> None:
        super().__init__()
        try:
            import einops  # noqa: F401  # MONAI finds out at the first image only
            from monai.networks.nets.swin_unetr import SwinTransformer
        except ImportError as error:
            raise ValueError(
                f"{ECHOCARE}FILE needs MONAI and einops: pip install 'fastht[tasks]' ({error})"
            ) from error
        self.swin = SwinTransformer(
            in_chans=3,
            patch_size=(2, 2),
            mlp_ratio=4.0,
            qkv_bias=True,
            use_v2=True,
            spatial_dims=2,
            use_checkpoint=True,
            **(_ARCHITECTURE | architecture),
        )
        self.output_dim = 2 * int(self.swin.num_features)  # the last stage merges patches too

    def forward(self, images: Tensor) -> Tensor:
        """Return ``[B, 2048]`` of images ``[B, 3, H, W]``."""
        last: Tensor = self.swin(images)[-1]
        return last.mean(dim=(2, 3))


def build_echocare(name: str) -> EchoCareEncoder:
    """Return EchoCare's encoder in float32 on the CPU.

    Args:
        name: ``echocare:FILE``; the file holds a state dict and nothing else, of which tensors
            alone are read. The pretraining's mask token is left out.

    Raises:
        ValueError: the file is not there, or holds no such weights, or MONAI is missing.
    """
    file = Path(name.removeprefix(ECHOCARE))
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{name}: {file} cannot be read as weights ({error}); give EchoCare's "
            "echocare_encoder.pth, which its authors hand out"
        ) from error
    encoder = EchoCareEncoder()
    own = encoder.swin.state_dict()
    state = {n: t for n, t in content.items() if n != _EXTRA} if isinstance(content, dict) else {}
    wrong = [f"it lacks {name}" for name in own if name not in state]
    wrong += [f"{name} is none of the encoder's" for name in state if name not in own]
    wrong += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if wrong:
        more = f", and {len(wrong) - _EXAMPLES} more" if len(wrong) > _EXAMPLES else ""
        raise ValueError(
            f"{file} does not hold EchoCare's encoder: {'; '.join(wrong[:_EXAMPLES])}{more}; give "
            "echocare_encoder.pth as it was handed out"
        )
    encoder.swin.load_state_dict(state)
    return encoder.float()


def echocare_transform() -> Preprocess:
    """Return the transform of EchoCare-CLIP's evaluation: resize, cut out the middle, normalise."""
    return Preprocess(
        resize=IMAGE_SIZE,
        resample=int(Image.Resampling.BILINEAR),
        crop=(IMAGE_SIZE, IMAGE_SIZE),
        mean=MEAN,
        std=STD,
    )
