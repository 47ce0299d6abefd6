"""Hugging Face's Trainer on patched models: what it trains, saves and resumes is a plain loop's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import fastht

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
VISION = {**SIZES, "image_size": 32, "patch_size": 8}
TEXT = {**SIZES, "vocab_size": 99, "max_position_embeddings": 8, "bos_token_id": 1}
TEXT |= {"eos_token_id": 2, "pad_token_id": 0}
STEPS, BATCH, LR = 4, 4, 1e-2


class Classifier(nn.Module):
    """A head of one's own on a tower that transformers has no classifier for."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.head = nn.Linear(SIZES["hidden_size"], 3)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        tokens = self.tower(pixel_values=pixel_values).last_hidden_state
        logits = self.head(tokens.mean(1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def _contrastive(name: str) -> nn.Module:
    config = getattr(transformers, f"{name}Config")(vision_config=VISION, text_config=TEXT)
    if name == "CLIP":
        config.projection_dim = 16
    return getattr(transformers, f"{name}Model")(config)


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "CLIP": lambda: _contrastive("CLIP"),
    "SigLIP": lambda: _contrastive("Siglip"),
    "ViT": lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(**VISION, num_labels=3)
    ),
    "DINOv2": lambda: transformers.Dinov2ForImageClassification(
        transformers.Dinov2Config(**VISION, num_labels=3)
    ),
    "DINOv3": lambda: Classifier(
        transformers.DINOv3ViTModel(
            transformers.DINOv3ViTConfig(**VISION, pos_embed_rescale=None)  # it is random
        )
    ),
}
CONTRASTIVE = ("CLIP", "SigLIP")
HEADS = {"ViT": "classifier", "DINOv2": "classifier", "DINOv3": "head"}


def build(name: str, dropout: float = 0.0, patched: bool = True) -> nn.Module:
    torch.manual_seed(0)
    model = BUILDERS[name]()
    if patched:
        heads = [HEADS[name]] if name in HEADS else []
        fastht.patch(model, fastht.HTConfig(dropout=dropout), modules_to_save=heads)
    return model


def samples(name: str) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    found = []
    for index in range(STEPS * BATCH):
        sample: dict[str, Tensor] = {"pixel_values": torch.randn(3, 32, 32, generator=generator)}
        if name in CONTRASTIVE:
            sample["input_ids"] = torch.tensor([1, 5 + index, 50 + index, 2])
        else:
            sample["labels"] = torch.tensor(index % 3)
        found.append(sample)
    return found


def collate(name: str) -> Callable[[list[dict[str, Tensor]]], dict[str, Any]]:
    def collated(items: list[dict[str, Tensor]]) -> dict[str, Any]:
        batch = {key: torch.stack([item[key] for item in items]) for key in items[0]}
        return {**batch, "return_loss": True} if name in CONTRASTIVE else batch

    return collated


class SaveAdapter(transformers.TrainerCallback):
    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
        fastht.save_adapter(model, f"{args.output_dir}/checkpoint-{state.global_step}/adapter")


def fit(
    name: str,
    out: Path,
    dropout: float = 0.0,
    resume: str | None = None,
    adapter: Path | None = None,
    **own: Any,
) -> Any:
    model = build(name, dropout)
    if adapter is not None:
        fastht.load_adapter(model, adapter)
    arguments = transformers.TrainingArguments(
        output_dir=str(out), per_device_train_batch_size=BATCH, max_steps=STEPS, learning_rate=LR,
        lr_scheduler_type="constant", max_grad_norm=0.0, weight_decay=0.0, optim="adamw_torch",
        save_steps=STEPS // 2, logging_steps=1, report_to=[], disable_tqdm=True, use_cpu=True,
        train_sampling_strategy=own.pop("train_sampling_strategy", "sequential"),
        remove_unused_columns=False, seed=3, **own,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=samples(name), data_collator=collate(name),
        callbacks=[SaveAdapter()],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume and str(out / resume))
    return trainer


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def plain(name: str, autocast: bool = False) -> tuple[nn.Module, list[float]]:
    """Train the same in a loop of one's own."""
    model = build(name).train()
    own = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(own, lr=LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    data, collated, seen = samples(name), collate(name), []
    for step in range(STEPS):
        batch = collated(data[step * BATCH : (step + 1) * BATCH])
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = model(**batch)
        loss = output["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(loss.item())
    return model, seen


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the largest distance of two states of one parameter, in parts of what it moved."""
    assert one.keys() == other.keys()
    return max(float((one[n] - other[n]).abs().max()) for n in one) / LR


@pytest.mark.parametrize("name", BUILDERS)
def test_training_is_that_of_a_plain_loop(name: str, tmp_path: Path) -> None:
    trainer = fit(name, tmp_path)
    model, expected = plain(name)
    assert losses(trainer) == pytest.approx(expected, abs=6e-5)  # the log has four digits
    assert apart(trained(trainer.model), trained(model)) == 0
    start = weights(build(name))
    moved = {n for n, p in weights(trainer.model).items() if not torch.equal(p, start[n])}
    own = set(trained(model))
    assert moved <= own
    assert {n for n in own if n.endswith("up.weight")} <= moved
    assert (name in HEADS) == any(".ht." not in n for n in moved)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    """With dropout and shuffled data: Trainer keeps the states of the random numbers."""
    random = {"dropout": 0.1, "train_sampling_strategy": "random"}
    whole = fit("CLIP", tmp_path, **random)
    again = fit("CLIP", tmp_path, resume=f"checkpoint-{STEPS // 2}", **random)
    assert losses(again)[-1] == losses(whole)[-1]
    assert apart(trained(again.model), trained(whole.model)) == 0
    assert apart(trained(fit("CLIP", tmp_path / "dry").model), trained(whole.model)) > 0.1


def test_a_checkpoint_that_trainer_cannot_read_resumes_by_its_adapter(tmp_path: Path) -> None:
    """Trainer drops the weights of its own ViT, whose keys it renames, without adapters as well."""
    whole = fit("ViT", tmp_path)
    half = f"checkpoint-{STEPS // 2}"
    again = fit("ViT", tmp_path, resume=half, adapter=tmp_path / half / "adapter")
    assert apart(trained(again.model), trained(whole.model)) == 0
    assert apart(trained(fit("ViT", tmp_path, resume=half).model), trained(whole.model)) > 0.1


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    expected = trained(fit("CLIP", tmp_path / "plain", dropout=0.1).model)
    for reentrant in (False, True):
        trainer = fit(
            "CLIP",
            tmp_path / str(reentrant),
            dropout=0.1,
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": reentrant},
        )
        assert apart(trained(trainer.model), expected) == 0


def test_bfloat16_is_that_of_a_plain_loop(tmp_path: Path) -> None:
    trainer = fit("ViT", tmp_path, bf16=True)
    model, expected = plain("ViT", autocast=True)
    assert losses(trainer) == pytest.approx(expected, abs=6e-5)
    assert apart(trained(trainer.model), trained(model)) == 0
    assert {p.dtype for p in fastht.adapter_parameters(model)} == {torch.float32}
    assert apart(trained(model), trained(plain("ViT")[0])) > 1e-3


@pytest.mark.parametrize("name", ["CLIP", "ViT"])
def test_what_it_saves_loads_whole_and_as_an_adapter(name: str, tmp_path: Path) -> None:
    trainer = fit(name, tmp_path)
    expected = weights(trainer.model)
    adapter = tmp_path / f"checkpoint-{STEPS}" / "adapter"
    adapted = fastht.load_adapter(build(name, patched=False), adapter)
    assert all(torch.equal(p, expected[n]) for n, p in weights(adapted).items())

    trainer.save_model(str(tmp_path / "whole"))
    state = load_file(tmp_path / "whole" / "model.safetensors")
    whole = build(name)
    if name == "ViT":  # transformers writes its keys as they were called in its fourth release
        with pytest.raises(RuntimeError, match=r"vit\.encoder\.layer"):
            whole.load_state_dict(state)
    else:
        whole.load_state_dict(state)
        assert all(torch.equal(p, expected[n]) for n, p in weights(whole).items())

    # transformers knows no adapters: its own loader leaves them out, and says so. Then they load.
    kind = type(trainer.model)
    again, told = kind.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert len(told["unexpected_keys"]) == sum(".ht." in n for n in state) > 0
    assert all(".ht." in n for n in told["unexpected_keys"])
    fastht.load_adapter(again, adapter)
    assert all(torch.equal(p, expected[n]) for n, p in weights(again).items())


def test_the_best_checkpoint_comes_back_with_its_adapters(tmp_path: Path) -> None:
    model = build("CLIP")
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=BATCH, max_steps=STEPS,
        learning_rate=1.0, lr_scheduler_type="constant", save_steps=1, eval_steps=1, use_cpu=True,
        eval_strategy="steps", load_best_model_at_end=True, report_to=[], disable_tqdm=True,
        remove_unused_columns=False, label_names=[],
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=samples("CLIP"), eval_dataset=samples("CLIP"),
        data_collator=collate("CLIP"),
    )  # fmt: skip
    trainer.train()
    scores = [e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e]
    best = min(range(STEPS), key=scores.__getitem__) + 1
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    state = load_file(tmp_path / f"checkpoint-{best}" / "model.safetensors")
    assert all(torch.equal(p, state[n]) for n, p in weights(model).items())
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(scores), rel=1e-5)
