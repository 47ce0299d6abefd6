"""Text towers of transformers: pooled as transformers itself does, and refused when not whole."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from text_towers import TEXTS, save_bert, save_clip, save_t5

from fastht.tasks.models.text_towers import TINY_BERT, build_text_tower

pytest.importorskip("transformers")


def close(a, b):
    return torch.allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("save", "pooling"), [(save_bert, "pooler"), (save_clip, "eos")])
@torch.no_grad()
def test_what_is_pooled_is_transformers_own(tmp_path, save, pooling):
    model, tokenizer = save(tmp_path)
    tower = build_text_tower(f"local-dir:{tmp_path}")
    assert (tower.pooling, tower.width, tower.revision) == (pooling, 16, None)
    assert tower.tokenizer.context_length == 20
    tokens = tower.tokenizer(TEXTS)
    assert tokens.shape == (3, 20)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    expected = model(**inputs).pooler_output
    assert close(tower.module(tokens), expected)
    # Padding has no part in it, and the text's end has: a mask that is wrong in either shows.
    wrong = torch.ones_like(tokens) if pooling == "pooler" else (tokens != tower.module.pad).long()
    other = model(input_ids=tokens, attention_mask=wrong).pooler_output
    assert not close(other, expected)


@torch.no_grad()
def test_without_a_pooler_it_is_the_class_token_or_the_mean_and_that_is_said(tmp_path):
    model, tokenizer = save_bert(tmp_path / "bert", pooler=False)
    tower = build_text_tower(f"local-dir:{tmp_path / 'bert'}")
    assert tower.pooling == "cls"
    assert "class token, as the file holds no pooler" in tower.describe("it")
    states = model(**_inputs(tokenizer)).last_hidden_state
    assert close(tower.module(tower.tokenizer(TEXTS)), states[:, 0])

    model, tokenizer = save_t5(tmp_path / "t5")
    tower = build_text_tower(f"local-dir:{tmp_path / 't5'}")
    assert tower.pooling == "mean"
    inputs = _inputs(tokenizer)
    states = model(**inputs).last_hidden_state
    masks = inputs["attention_mask"].bool()
    rows = [row[mask].mean(dim=0) for row, mask in zip(states, masks, strict=True)]
    assert close(tower.module(tower.tokenizer(TEXTS)), torch.stack(rows))
    assert not close(states.mean(dim=1), torch.stack(rows))


def _inputs(tokenizer):
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}


def test_a_tower_that_is_not_whole_is_refused(tmp_path):
    save_bert(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    del state["encoder.layer.0.output.dense.weight"]
    save_file(state, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"lack .*encoder\.layer\.0\.output\.dense\.weight"):
        build_text_tower(f"local-dir:{tmp_path}")
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no config\.json: give the folder"):
        build_text_tower(f"local-dir:{tmp_path}")
    with pytest.raises(ValueError, match="--text bert names no text tower: give hf:"):
        build_text_tower("bert")


@torch.no_grad()
def test_the_tiny_bert_is_the_same_each_time_random_and_tells_texts_apart():
    torch.manual_seed(1)
    drawn = torch.rand(())
    torch.manual_seed(1)
    towers = [build_text_tower(TINY_BERT) for _ in range(2)]
    assert torch.rand(()) == drawn
    assert "RANDOM weights" in towers[0].describe(TINY_BERT)
    texts = ["a round hypoechoic malignant mass", "an oval anechoic cyst", "a cyst, 12 mm"]
    tokens = towers[0].tokenizer(texts)
    one, two = (tower.module(tokens) for tower in towers)
    assert torch.equal(one, two)
    cosines = torch.nn.functional.cosine_similarity(one[:2], one[1:])
    assert bool((cosines < 0.99).all())
    unknown = towers[0].tokenizer.tokenizer.unk_token_id
    assert unknown not in tokens
    assert unknown in towers[0].tokenizer(["空"])


@torch.no_grad()
def test_a_repository_is_read_from_the_cache_without_a_network_by_its_commit(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commits = ["a" * 40, "b" * 40]
    repository = tmp_path / "models--org--name"
    for commit in commits:
        model, _ = save_bert(repository / "snapshots" / commit)
        if commit == commits[1]:
            model.pooler.dense.bias.fill_(1.0)
            model.save_pretrained(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commits[1])
    newest = build_text_tower("hf:org/name")
    assert newest.revision == commits[1]
    assert f"hf:org/name at {'b' * 12}" in newest.describe("hf:org/name")
    tokens = newest.tokenizer(TEXTS)
    pinned = build_text_tower(f"hf:org/name@{commits[0]}")
    kept = build_text_tower("hf:org/name", commits[0])
    assert pinned.revision == kept.revision == commits[0]
    assert torch.equal(pinned.module(tokens), kept.module(tokens))
    assert not close(pinned.module(tokens), newest.module(tokens))
    with pytest.raises(ValueError, match=r"cannot load the text tower hf:org/other: .*tiny-bert"):
        build_text_tower("hf:org/other")
