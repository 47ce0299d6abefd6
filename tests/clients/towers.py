"""Which vision towers of transformers patch: tiny ones of random weights, each tried.

    python tests/clients/towers.py              a line for each
    python tests/clients/towers.py --write      the table of docs/models-and-tools.md

What patches has to be bitwise the base with fresh adapters, to differ with trained ones, to give
every adapter's parameters a gradient, and to have its patches where the adapters take them to be;
otherwise the status is 1.
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers as library
from token_places import misplaced
from torch import Tensor, nn

import fastht

DOCUMENT = Path(__file__).parents[2] / "docs" / "models-and-tools.md"
BEGIN, END = "<!-- towers -->", "<!-- /towers -->"

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
SQUARE = {"image_size": [32, 32], "patch_size": [8, 8]}


# What their head reads of the last block is the class token, which its adapter's convolutions over
# patches do not reach.
CLASS_TOKEN = ("ViTForImageClassification",)


def _config(name: str, **own: Any) -> Any:
    return getattr(library, name)(**{**SMALL, **own})


def _tower(name: str, config: str, **own: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(library, name)(_config(config, **own))


def _sam(name: str, config: str) -> Callable[[], nn.Module]:
    own: dict[str, Any] = {"output_channels": 16, "global_attn_indexes": [1], "window_size": 2}
    return _tower(name, config, mlp_dim=64, **own)


def _dual(vision: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        text = library.BertModel(library.BertConfig(**TEXT))
        return library.VisionTextDualEncoderModel(vision_model=vision(), text_model=text)

    return build


def _contrastive(name: str, text: str, vision: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        parts = {"text_config": {**TEXT}, "vision_config": {**SMALL}}
        return getattr(library, f"{name}Model")(
            getattr(library, f"{name}Config")(**parts, projection_dim=16)
        )

    return build


def _llava() -> nn.Module:
    vision = _config("CLIPVisionConfig")
    language = library.LlamaConfig(**TEXT)
    return library.LlavaModel(
        library.LlavaConfig(vision_config=vision, text_config=language, image_token_id=98)
    )


def _depth_anything() -> nn.Module:
    stages = _config("Dinov2Config", out_features=["stage1", "stage2"], reshape_hidden_states=False)
    return library.DepthAnythingForDepthEstimation(
        library.DepthAnythingConfig(
            backbone_config=stages, reassemble_hidden_size=32, patch_size=8,
            reassemble_factors=[1, 1], neck_hidden_sizes=[8, 8], fusion_hidden_size=8,
            head_in_channels=8, head_hidden_size=8,
        )
    )  # fmt: skip


def _mllama() -> nn.Module:
    return _tower(
        "MllamaVisionModel", "MllamaVisionConfig", num_global_layers=1, attention_heads=2,
        intermediate_layers_indices=[0],
    )()  # fmt: skip


def _xclip() -> nn.Module:
    return _tower(
        "XCLIPVisionModel", "XCLIPVisionConfig", mit_hidden_size=32, mit_intermediate_size=64,
        mit_num_attention_heads=2, num_frames=2,
    )()  # fmt: skip


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "CLIP": _contrastive("CLIP", "CLIPTextConfig", "CLIPVisionConfig"),
    "CLIPVision": _tower("CLIPVisionModel", "CLIPVisionConfig"),
    "CLIPVisionWithProjection": _tower("CLIPVisionModelWithProjection", "CLIPVisionConfig"),
    "CLIPForImageClassification": lambda: library.CLIPForImageClassification(
        library.CLIPConfig(text_config={**TEXT}, vision_config={**SMALL})
    ),
    "SiglipVision": _tower("SiglipVisionModel", "SiglipVisionConfig"),
    "SiglipForImageClassification": lambda: library.SiglipForImageClassification(
        library.SiglipConfig(text_config={**TEXT}, vision_config={**SMALL})
    ),
    "MetaClip2Vision": _tower("MetaClip2VisionModel", "MetaClip2VisionConfig"),
    "AltCLIPVision": _tower("AltCLIPVisionModel", "AltCLIPVisionConfig"),
    "ChineseCLIPVision": _tower("ChineseCLIPVisionModel", "ChineseCLIPVisionConfig"),
    "BlipVision": _tower("BlipVisionModel", "BlipVisionConfig"),
    "Blip2Vision": _tower("Blip2VisionModel", "Blip2VisionConfig"),
    "InstructBlipVision": _tower("InstructBlipVisionModel", "InstructBlipVisionConfig"),
    "GitVision": _tower("GitVisionModel", "GitVisionConfig"),
    "OwlViTVision": _tower("OwlViTVisionModel", "OwlViTVisionConfig"),
    "Idefics3Vision": _tower("Idefics3VisionTransformer", "Idefics3VisionConfig"),
    "ViT": _tower("ViTModel", "ViTConfig"),
    "ViTForImageClassification": _tower("ViTForImageClassification", "ViTConfig"),
    "DeiT": _tower("DeiTModel", "DeiTConfig"),
    "Beit": _tower("BeitModel", "BeitConfig", use_relative_position_bias=True),
    "Beit, shared bias": _tower(
        "BeitModel", "BeitConfig", use_shared_relative_position_bias=True
    ),
    "Data2VecVision": _tower("Data2VecVisionModel", "Data2VecVisionConfig"),
    "Dinov2": _tower("Dinov2Model", "Dinov2Config"),
    "Dinov2Backbone": _tower("Dinov2Backbone", "Dinov2Config"),
    "Dinov2WithRegisters": _tower("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig"),
    "DINOv3ViT": _tower("DINOv3ViTModel", "DINOv3ViTConfig"),
    "DepthAnything": _depth_anything,
    "DPT": _tower("DPTModel", "DPTConfig", is_hybrid=False, backbone_config=None),
    "ViTMSN": _tower("ViTMSNModel", "ViTMSNConfig"),
    "IJepa": _tower("IJepaModel", "IJepaConfig"),
    "Aimv2Vision": _tower("Aimv2VisionModel", "Aimv2VisionConfig"),
    "FlavaImage": _tower("FlavaImageModel", "FlavaImageConfig"),
    "InternVLVision": _tower("InternVLVisionModel", "InternVLVisionConfig", **SQUARE),
    "VitPoseBackbone": _tower("VitPoseBackbone", "VitPoseBackboneConfig", **SQUARE),
    "Llava with CLIP": _llava,
    "VisionTextDualEncoder with CLIP": _dual(_tower("CLIPVisionModel", "CLIPVisionConfig")),
    "VisionTextDualEncoder with ViT": _dual(_tower("ViTModel", "ViTConfig")),
    "XCLIPVision": _xclip,
    "Pixio": _tower("PixioModel", "PixioConfig", n_cls_tokens=3),
    "MLCDVision": _tower("MLCDVisionModel", "MLCDVisionConfig"),
    "SmolVLMVision": _tower("SmolVLMVisionTransformer", "SmolVLMVisionConfig"),
    "ViTMAE": _tower("ViTMAEModel", "ViTMAEConfig"),
    "Eomt": _tower("EomtForUniversalSegmentation", "EomtConfig"),
    "SAM": _sam("SamVisionModel", "SamVisionConfig"),
    "SAM-HQ": _sam("SamHQVisionModel", "SamHQVisionConfig"),
    "SAM 2 (Hiera)": lambda: library.Sam2VisionModel(
        library.Sam2VisionConfig(
            backbone_config=library.Sam2HieraDetConfig(
                hidden_size=8, num_attention_heads=1, image_size=[64, 64],
                blocks_per_stage=[1, 1, 1, 1], embed_dim_per_stage=[8, 16, 32, 64],
                num_attention_heads_per_stage=[1, 1, 2, 4], window_size_per_stage=[2, 2, 2, 2],
                global_attention_blocks=[2],
            ),
            backbone_channel_list=[64, 32, 16, 8],
        )
    ),
    "Swin": lambda: library.SwinModel(
        library.SwinConfig(
            image_size=32, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2],
            window_size=2,
        )
    ),
    "Hiera": lambda: library.HieraModel(library.HieraConfig(depths=[1, 1, 1, 1])),
    "VideoMAE": _tower("VideoMAEModel", "VideoMAEConfig"),
    "TimeSformer": _tower("TimesformerModel", "TimesformerConfig"),
    "ViLT": _tower("ViltModel", "ViltConfig"),
    "YOLOS": _tower("YolosModel", "YolosConfig", image_size=[32, 32]),
    "AST": lambda: library.ASTModel(
        library.ASTConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
        )
    ),
    "SegFormer": lambda: library.SegformerModel(library.SegformerConfig()),
    "PVT": lambda: library.PvtModel(library.PvtConfig()),
    "VitDet": _tower("VitDetModel", "VitDetConfig"),
    "Pixtral": _tower("PixtralVisionModel", "PixtralVisionConfig"),
    "Mllama": _mllama,
    "SegGPT": _tower(
        "SegGptModel", "SegGptConfig", image_size=[64, 32], pretrain_image_size=32, mlp_dim=64,
        intermediate_hidden_state_indices=[0, 1], merge_index=0,
    ),
    "RF-DETR's backbone": _tower(
        "RfDetrDinov2Backbone", "RfDetrDinov2Config", num_windows=2, out_features=["stage2"]
    ),
}  # fmt: skip


def _tensors(value: Any) -> Iterator[Tensor]:
    """Find the floating-point tensors of an output."""
    if isinstance(value, Tensor) and value.is_floating_point():
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif hasattr(value, "values"):
        yield from _tensors(list(value.values()))


def _call(model: nn.Module, image: Tensor | None = None) -> list[Tensor]:
    if image is None:
        image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    kind = type(model).__name__
    if hasattr(model, "vision_tower"):  # Llava: its vision tower alone
        output = model.get_image_features(pixel_values=image)
    elif kind.startswith("VitPose"):
        output = model(image)
    elif hasattr(model, "text_model") or kind == "CLIPModel":
        ids = torch.tensor([[1, 5, 2], [1, 7, 2]])
        output = model(pixel_values=image, input_ids=ids)
    else:
        output = model(pixel_values=image)
    return list(_tensors(output))


def _weighed(outputs: list[Tensor]) -> Tensor:
    """Weigh every feature differently: a plain sum can be constant after a LayerNorm."""
    generator = torch.Generator().manual_seed(3)
    return sum(
        ((t * torch.randn(t.shape, generator=generator)).sum() for t in outputs if t.requires_grad),
        torch.zeros(()),
    )


def examine(name: str) -> tuple[str, bool]:
    """Return what became of a tower, and whether it is as it should be."""
    torch.manual_seed(0)
    try:
        model = BUILDERS[name]().eval().requires_grad_(False)
    except Exception as error:  # of the library, or of the configuration here
        return f"not built: {type(error).__name__}: {error}", False
    try:
        fastht.patch(model)
    except fastht.UnsupportedModelError as error:
        return f"refused: {str(error).partition('; fastht patches')[0].partition(':')[0]}", True
    with torch.no_grad():
        fresh = _call(model)
        with fastht.disable_adapter(model):
            base = _call(model)
    same = len(base) == len(fresh) and all(map(torch.equal, base, fresh))
    for parameter in fastht.adapter_parameters(model):
        nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        moved = any(not torch.equal(a, b) for a, b in zip(base, _call(model), strict=True))
    astray = misplaced(model, (32, 32), lambda image: _call(model, image))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _weighed(_call(model)).backward()
    own = fastht.adapter_parameters(model)
    if name in CLASS_TOKEN:
        last = max(fastht.adapters(model).items())[1]
        own = [p for p in own if all(p is not theirs for theirs in last.parameters())]
    reached = sum(p.grad is not None and bool(p.grad.any()) for p in own)
    parts = [
        "patched", "bitwise the base" if same else "NOT THE BASE",
        f"{reached} of {len(own)} gradients", *([] if moved else ["NO EFFECT"]),
        *([] if astray is None else [astray]),
    ]  # fmt: skip
    if name in CLASS_TOKEN:
        parts.append("the class token alone is read, so the last adapter's convolutions get none")
    return ", ".join(parts), same and moved and reached == len(own) and astray is None


def table(found: dict[str, str]) -> str:
    """Return the rows of the document."""
    rows = [f"| {name} | {said.replace('|', '/')} |" for name, said in found.items()]
    return "\n".join([f"| transformers {library.__version__} | |", "|---|---|", *rows])


def main() -> int:
    """Try every tower."""
    parser = argparse.ArgumentParser(description="which towers of transformers patch")
    parser.add_argument("names", nargs="*", help="some of them; default: all")
    parser.add_argument("--write", action="store_true", help="put the table into the document")
    arguments = parser.parse_args()
    found, wrong = {}, []
    for name in arguments.names or BUILDERS:
        found[name], right = examine(name)
        print(f"{name}: {found[name]}", flush=True)
        if not right:
            wrong.append(name)
    if arguments.write:
        text = DOCUMENT.read_text()
        between = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.S)
        DOCUMENT.write_text(between.sub(lambda _: f"{BEGIN}\n{table(found)}\n{END}", text))
    print("wrong:", ", ".join(wrong) or "none")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
