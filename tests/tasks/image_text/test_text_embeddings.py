"""Text embeddings: right, computed once, and never those of another model, tokenizer or text."""

import pytest
import torch
from safetensors.torch import load_file, save
from torch import nn

from fastht.tasks.image_text.text_embeddings import TextEmbedder


class TextTower(nn.Module):
    """Counts the texts that it embeds; its vision tower must not matter."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Embedding(300, 6)
        self.visual = nn.Linear(2, 2)
        self.embedded = 0

    def encode_text(self, tokens, normalize):
        assert normalize
        assert not self.training
        self.embedded += len(tokens)
        return nn.functional.normalize(self.table(tokens).mean(dim=1), dim=-1)


def tokenizer(texts, length=12):
    rows = [[*text.encode()[:length], *[0] * (length - len(text))] for text in texts]
    return torch.tensor(rows)


TEXTS = ["a cyst", "a mass", "a cyst"]


def test_embeddings_are_the_towers_in_order_and_each_text_is_embedded_once(tmp_path):
    tower = TextTower().train()
    features = TextEmbedder(tower, tokenizer, tmp_path)(TEXTS)
    assert tower.embedded == 2
    assert tower.training
    tower.eval()
    torch.testing.assert_close(features, tower.encode_text(tokenizer(TEXTS), True))


def test_kept_embeddings_are_found_again_with_the_same_bits(tmp_path):
    first = TextEmbedder(TextTower(), tokenizer, tmp_path)(TEXTS)
    tower = TextTower()
    with torch.no_grad():
        tower.visual.weight.zero_()
    again = TextEmbedder(tower, tokenizer, tmp_path)([*TEXTS, "new"])
    assert tower.embedded == 1
    assert torch.equal(again[:3], first)


def test_another_model_or_tokenizer_does_not_meet_the_kept_ones(tmp_path):
    TextEmbedder(TextTower(), tokenizer, tmp_path)(TEXTS)
    other = TextTower(seed=1)
    TextEmbedder(other, tokenizer, tmp_path)(TEXTS)
    assert other.embedded == 2
    same = TextTower()
    TextEmbedder(same, lambda texts: tokenizer(texts, 9) + 1, tmp_path)(TEXTS)
    assert same.embedded == 2


@pytest.mark.parametrize("kind", ["cut off", "a key too many"])
def test_a_damaged_cache_is_made_anew(tmp_path, kind):
    first = TextEmbedder(TextTower(), tokenizer, tmp_path)(TEXTS)
    (file,) = tmp_path.iterdir()
    kept = load_file(file)
    kept["keys"] = kept["keys"][[0, 1, 1]]
    file.write_bytes(save(kept) if kind == "a key too many" else file.read_bytes()[:-7])
    tower = TextTower()
    with pytest.warns(UserWarning, match="damaged"):
        again = TextEmbedder(tower, tokenizer, tmp_path)(TEXTS)
    assert tower.embedded == 2
    assert torch.equal(again, first)


def test_an_unwritable_cache_only_warns(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="not kept"):
        features = TextEmbedder(TextTower(), tokenizer, tmp_path / "cache")(TEXTS)
    assert features.shape == (3, 6)


def test_an_embedding_that_is_not_finite_is_named(tmp_path):
    tower = TextTower()
    with torch.no_grad():
        tower.table.weight[ord("m")] = float("nan")
    with pytest.raises(ValueError, match="'a mass'"):
        TextEmbedder(tower, tokenizer, tmp_path)(TEXTS)


def test_without_a_cache_a_tower_that_changes_is_followed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tower = TextTower()
    embedder = TextEmbedder(tower, tokenizer, None)
    first = embedder(TEXTS)
    with torch.no_grad():
        tower.table.weight.neg_()
    torch.testing.assert_close(embedder(TEXTS), -first)
    assert tower.embedded == 4
    assert not list(tmp_path.iterdir())
