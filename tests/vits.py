"""One small model, with random weights, for every structure of vision transformer."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

GRID = (3, 5)
PATCH = 8
HYBRID_PATCH = 16


@dataclass(frozen=True)
class Vit:
    """How to build a model, what to show it, and what fastht has to find in it.

    Attributes:
        build: makes the model, in evaluation mode and with seeded weights.
        family: the name of its entry in ``fastht.backbones.FAMILIES``.
        prefix_tokens: class and register tokens before the patches.
        patch: pixels along a side of a patch.
        built_grid: the grid at the image size that the model is built for.
        features: runs the model on images; the result is one tensor.
        tuples: whether its blocks return tuples.
    """

    build: Callable[[], nn.Module]
    family: str
    prefix_tokens: int
    patch: int = PATCH
    built_grid: tuple[int, int] = GRID
    features: Callable[[nn.Module, Tensor], Tensor] = lambda model, image: model(image)
    tuples: bool = False

    def image(self, batch: int = 2, grid: tuple[int, int] = GRID, seed: int = 7) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        shape = (batch, 3, self.patch * grid[0], self.patch * grid[1])
        return torch.randn(shape, generator=generator)


def loss(features: Tensor) -> Tensor:
    """Weigh every feature differently: a plain sum or norm can be constant after a LayerNorm."""
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(features.shape, generator=generator).to(features)
    return (features * weights).sum()


def _seeded(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Build a model once for all tests and give each a copy, which takes a part of the time."""
    models: dict[str, nn.Module] = {}

    def made(*args: Any, **kwargs: Any) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = build(*args, **kwargs).eval()
            # Some layers start as zeros (position tables, layer scale): a model in use has none.
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.02 * torch.randn_like(parameter))
        return model

    @functools.wraps(build)
    def copied(*args: Any, **kwargs: Any) -> nn.Module:
        key = repr((args, kwargs))
        if key not in models:
            models[key] = made(*args, **kwargs)
        return copy.deepcopy(models[key])

    return copied


@_seeded
def timm_vit(name: str, **kwargs: Any) -> nn.Module:
    import timm

    kwargs = {"patch_size": PATCH, "embed_dim": 32, "num_heads": 2, **kwargs}
    return _timm_model(timm, name, PATCH, kwargs)


@_seeded
def timm_hybrid(name: str, **kwargs: Any) -> nn.Module:
    """Build a tower whose patches come from convolutions: only its depth can be reduced."""
    import timm

    return _timm_model(timm, name, HYBRID_PATCH, kwargs)


def _timm_model(timm: Any, name: str, patch: int, kwargs: dict[str, Any]) -> nn.Module:
    size = (GRID[0] * patch, GRID[1] * patch)
    return timm.create_model(name, **{"num_classes": 0, "depth": 2, "img_size": size, **kwargs})


VISION = {"layers": 2, "width": 32, "head_width": 16, "patch_size": PATCH}
VISION["image_size"] = (GRID[0] * PATCH, GRID[1] * PATCH)
TEXT = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 2}
COCA_TEXT = {**TEXT, "embed_cls": True, "output_tokens": True}
COCA_VISION = {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}


@_seeded
def open_clip_tower(**vision: Any) -> nn.Module:
    import open_clip

    return open_clip.model._build_vision_tower(16, {**VISION, **vision})


@_seeded
def open_clip_model(cls: str = "CLIP", **kwargs: Any) -> nn.Module:
    import open_clip

    kwargs = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT, **kwargs}
    return getattr(open_clip, cls)(**kwargs)


@_seeded
def transformers_model(cls: str = "CLIPVisionModel") -> nn.Module:
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "projection_dim": 32}
    vision = {**sizes, "image_size": 4 * PATCH, "patch_size": PATCH}
    if cls == "CLIPModel":
        text = {**sizes, "vocab_size": 64, "max_position_embeddings": 8}
        text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)
        return transformers.CLIPModel(config)
    config = {"CLIPVisionModel": "CLIPVisionConfig", "SiglipVisionModel": "SiglipVisionConfig"}
    return getattr(transformers, cls)(getattr(transformers, config[cls])(**vision))


@_seeded
def transformers_vit(cls: str, config: str, **kwargs: Any) -> nn.Module:
    """Build one of the towers of transformers that are no CLIP."""
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "image_size": 4 * PATCH, "patch_size": PATCH}
    return getattr(transformers, cls)(getattr(transformers, config)(**{**sizes, **kwargs}))


class _OpenAIBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, 2)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class OpenAITower(nn.Module):
    """Laid out as in OpenAI's clip package, whose blocks take ``[N, B, D]``."""

    def __init__(self, resolution: int = 4 * PATCH, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.input_resolution = resolution
        self.conv1 = nn.Conv2d(3, width, kernel_size=PATCH, stride=PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(*(_OpenAIBlock(width) for _ in range(layers)))
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, 16) / 4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv1(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1), x], dim=1)
        x = self.transformer.resblocks(self.ln_pre(x).transpose(0, 1)).transpose(0, 1)
        return self.ln_post(x[:, 0]) @ self.proj


openai_tower = _seeded(OpenAITower)


def _pooled(model: Any, image: Tensor) -> Tensor:
    return model(pixel_values=image, interpolate_pos_encoding=True).pooler_output


def _image_features(model: Any, image: Tensor) -> Tensor:
    out = model.get_image_features(pixel_values=image, interpolate_pos_encoding=True)
    return out if isinstance(out, Tensor) else out.pooler_output


def _last_state(model: Any, image: Tensor) -> Tensor:
    wanted = inspect.signature(model.forward).parameters
    options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in wanted else {}
    return model(pixel_values=image, **options).last_hidden_state


def _flattened(model: Any, image: Tensor) -> Tensor:
    """Show images as SigLIP 2's processor does: patches cut and flattened, the grid beside them."""
    batch, _, height, width = image.shape
    rows, columns = height // PATCH, width // PATCH
    cut = image.unflatten(2, (rows, PATCH)).unflatten(4, (columns, PATCH))
    patches = cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)
    return model(
        pixel_values=patches,
        pixel_attention_mask=torch.ones(batch, rows * columns, dtype=torch.long),
        spatial_shapes=torch.tensor([[rows, columns]] * batch),
    ).last_hidden_state


def _encode_image(model: Any, image: Tensor) -> Tensor:
    return model.encode_image(image)


def _timm(name: str, prefix_tokens: int) -> Vit:
    return Vit(functools.partial(timm_vit, name), "timm", prefix_tokens)


def _transformers(name: str, prefix_tokens: int, config: str | None = None, **kwargs: Any) -> Vit:
    build = functools.partial(transformers_vit, name, config or name.replace("Model", "Config"))
    return Vit(
        functools.partial(build, **kwargs),
        "transformers",
        prefix_tokens,
        built_grid=(4, 4),
        features=_last_state,
        tuples=name in ("Data2VecVisionModel", "FlavaImageModel"),
    )


def _hybrid(name: str, prefix_tokens: int) -> Vit:
    return Vit(functools.partial(timm_hybrid, name), "timm", prefix_tokens, HYBRID_PATCH)


VITS = {
    "native": Vit(open_clip_tower, "openai", 1),
    "native-avg": Vit(
        functools.partial(
            open_clip_tower, pool_type="avg", no_ln_pre=True, final_ln_after_pool=True
        ),
        "openai",
        1,
    ),
    "clip": Vit(open_clip_model, "openai", 1, features=_encode_image),
    "custom-text-clip": Vit(
        functools.partial(open_clip_model, "CustomTextCLIP"), "openai", 1, features=_encode_image
    ),
    "coca": Vit(
        functools.partial(
            open_clip_model,
            "CoCa",
            vision_cfg=COCA_VISION,
            text_cfg=COCA_TEXT,
            multimodal_cfg=TEXT | {"mlp_ratio": 4},
        ),
        "openai",
        1,
        features=_encode_image,
    ),
    "siglip": _timm("vit_base_patch16_siglip_224", 0),
    "gap": _timm("vit_medium_patch16_gap_256", 0),
    "registers": _timm("vit_small_patch14_reg4_dinov2", 5),
    "distilled": _timm("deit_tiny_distilled_patch16_224", 2),
    "relpos": _timm("vit_relpos_medium_patch16_cls_224", 1),
    "eva01": _timm("eva_giant_patch14_224", 1),
    "eva02": _timm("eva02_base_patch16_clip_224", 1),
    "pe-core": _timm("vit_pe_core_tiny_patch16_384", 1),
    "pe-core-no-class": _timm("vit_pe_core_gigantic_patch14_448", 0),
    "beit": _timm("beit_base_patch16_224", 1),
    "mobileclip": _hybrid("vit_base_mci_224", 1),
    "vitamin": _hybrid("vitamin_small_224", 0),
    "transformers-clip-vision": Vit(
        transformers_model, "transformers", 1, built_grid=(4, 4), features=_pooled
    ),
    "transformers-clip": Vit(
        functools.partial(transformers_model, "CLIPModel"),
        "transformers",
        1,
        built_grid=(4, 4),
        features=_image_features,
    ),
    "transformers-siglip": Vit(
        functools.partial(transformers_model, "SiglipVisionModel"),
        "transformers",
        0,
        built_grid=(4, 4),
        features=_pooled,
    ),
    "openai": Vit(openai_tower, "openai", 1, built_grid=(4, 4)),
}

# Structures that only patching itself is tried with.
MORE_VITS = {
    "transformers-vit": _transformers("ViTModel", 1),
    "transformers-deit": _transformers("DeiTModel", 2),
    "transformers-beit": _transformers("BeitModel", 1, use_relative_position_bias=True),
    "transformers-data2vec": _transformers("Data2VecVisionModel", 1),
    "transformers-dinov2": _transformers("Dinov2Model", 1),
    "transformers-dinov2-registers": _transformers("Dinov2WithRegistersModel", 5),
    "transformers-dinov3": _transformers("DINOv3ViTModel", 5, num_register_tokens=4),
    "transformers-msn": _transformers("ViTMSNModel", 1),
    "transformers-ijepa": _transformers("IJepaModel", 0),
    "transformers-aimv2": _transformers("Aimv2VisionModel", 0, is_native=True),
    "transformers-flava": _transformers("FlavaImageModel", 1),
    "transformers-pixio": _transformers("PixioModel", 3, n_cls_tokens=3),
    "transformers-internvl": _transformers(
        "InternVLVisionModel", 1, image_size=[32, 32], patch_size=[PATCH, PATCH]
    ),
    "transformers-dpt": _transformers("DPTModel", 1, is_hybrid=False),
    "transformers-siglip2": Vit(
        functools.partial(
            transformers_vit, "Siglip2VisionModel", "Siglip2VisionConfig", num_patches=16
        ),
        "siglip2",
        0,
        built_grid=(4, 4),
        features=_flattened,
    ),
}
ALL_VITS = VITS | MORE_VITS
