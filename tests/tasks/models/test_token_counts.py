"""Tokens are counted as the text tower reads them, that of open_clip or of a dual encoder."""

import json

import open_clip
import pytest
import torch
from text_towers import save_bert, save_clip

from fastht.cli import main
from fastht.tasks.image_text.caption_fit import CaptionFit, find_cut
from fastht.tasks.models.text_towers import build_text_tower
from fastht.tasks.models.token_counts import token_counter

pytest.importorskip("transformers")

TEXTS = ["a bright mass", "ultrasound showing a dark cyst in the breast", "a", "mass " * 40]


@pytest.mark.parametrize("save", [save_bert, save_clip])
def test_a_folder_of_transformers_counts_with_its_own_marks_and_without_weights(tmp_path, save):
    """Also where the padding is the mark of the end, as CLIP's is, which belongs to the text."""
    _, tokenizer = save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    count, context = token_counter(f"local-dir:{tmp_path}")
    assert context == 20
    assert count(TEXTS) == [5, 10, 3, 42]
    assert count([]) == []
    # What the tower is given is what was counted, up to its context.
    tokens = tokenizer(TEXTS, truncation=True, max_length=context)["input_ids"]
    assert list(map(len, tokens)) == [5, 10, 3, 20]


def test_what_is_counted_as_cut_is_what_training_cuts(tmp_path):
    save_bert(tmp_path)
    name = f"local-dir:{tmp_path}"
    texts = ["mass " * n + "cyst" for n in range(5, 30)]
    count, context = token_counter(name)
    longer = sum(n > context for n in count(texts))
    fitted = CaptionFit(build_text_tower(name).tokenizer, "start", texts)
    assert longer == len(find_cut(fitted, texts).cut)
    assert 5 < longer < 20


def test_the_tiny_bert_and_folders_of_open_clip_are_told_apart(tmp_path):
    count, context = token_counter("tiny-bert")
    assert (context, count(["a round mass", "mass " * 300])) == (128, [5, 302])
    # A folder may hold both; what fastht train --model takes is open_clip's.
    save_bert(tmp_path)
    text = {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8}
    config = {"model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    count, context = token_counter(f"local-dir:{tmp_path}")
    assert context == 32
    assert count(["a bright mass"]) == [5]


def test_a_mark_of_the_end_that_is_the_padding_too_is_counted(monkeypatch):
    """As SigLIP's tokenizer has it."""

    def tokenizer(texts, context_length=4):
        tokens = torch.ones(len(texts), context_length, dtype=torch.int64)
        for row, text in zip(tokens, texts, strict=True):
            numbers = torch.arange(len(text.split()))[: context_length - 1] + 7
            row[: len(numbers)] = numbers
        return tokens

    tokenizer.context_length = 4
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: tokenizer)
    count, context = token_counter("ViT-B-16-SigLIP")
    texts = ["a b c", "a b c d", ""]
    assert (context, count(texts)) == (4, [4, 5, 1])
    assert find_cut(CaptionFit(tokenizer), texts[:2]).cut == ("a b c d",)


def test_the_command_says_what_a_dual_encoder_cuts(tmp_path, capsys):
    save_bert(tmp_path / "bert")
    table = tmp_path / "table.csv"
    long = "A round dark mass of the breast, " * 3
    table.write_text(f'filepath,label,report\n1.png,benign,"{long}"\n2.png,benign,A cyst.\n')
    command = ["captions", str(table), "--out", str(tmp_path / "out")]
    assert main([*command, "--model", f"local-dir:{tmp_path / 'bert'}"]) == 0
    found = json.loads((tmp_path / "out" / "captions.json").read_text())["tokens"]
    assert (found["context"], found["truncated"], found["truncated_share"]) == (20, 1, 0.5)
    assert "1 captions are longer than the 20 that local-dir:" in capsys.readouterr().out
    assert main([*command, "--overwrite", "--model", f"local-dir:{tmp_path}"]) == 1
    assert "has no config.json: give the folder" in capsys.readouterr().err


def test_a_repository_that_cannot_be_had_is_one_error(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"cannot load the tokenizer of hf:org/other: .* --model"):
        token_counter("hf:org/other")
    save_bert(tmp_path / "models--org--name" / "snapshots" / ("a" * 40))
    (tmp_path / "models--org--name" / "refs").mkdir()
    (tmp_path / "models--org--name" / "refs" / "main").write_text("a" * 40)
    count, context = token_counter("hf:org/name")
    assert (count(["a mass"]), context) == ([4], 20)
