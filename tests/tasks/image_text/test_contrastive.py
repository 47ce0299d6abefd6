"""The contrastive loss: InfoNCE as written down, and flips only in training."""

import math

import torch
from accelerate import Accelerator
from torch import nn

from fastht.tasks.image_text.contrastive import ContrastiveModule


class Model(nn.Module):
    """Encodes an image as its first row, and remembers what it saw."""

    def __init__(self, temperature=0.5):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))

    def encode_image(self, images, normalize):
        assert normalize
        self.seen = images
        return nn.functional.normalize(images[:, 0, 0], dim=-1)


def batch(size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {"image": torch.randn(size, 1, 2, 5, generator=generator), "index": torch.arange(size)}


def texts(size=6):
    features = torch.randn(size, 5, generator=torch.Generator().manual_seed(1))
    return nn.functional.normalize(features, dim=-1)


def test_the_loss_is_symmetric_info_nce():
    text = texts(9)
    data = batch() | {"index": torch.tensor([8, 1, 2, 7, 4, 5])}
    loss = ContrastiveModule(Model(), text, Accelerator(cpu=True))(data)
    image = nn.functional.normalize(data["image"][:, 0, 0], dim=-1).double()
    scores = image @ text[data["index"]].double().T / 0.5
    diagonal = scores.diagonal()
    expected = (
        (scores.logsumexp(dim=1) - diagonal).mean() + (scores.logsumexp(dim=0) - diagonal).mean()
    ) / 2
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


def test_flips_mirror_some_training_images_and_no_others():
    model = Model()
    module = ContrastiveModule(model, texts(40), Accelerator(cpu=True), flip=True)
    data = batch(40)
    torch.manual_seed(0)
    module(data)
    same = (model.seen == data["image"]).flatten(1).all(dim=1)
    mirrored = (model.seen == data["image"].flip(3)).flatten(1).all(dim=1)
    assert bool((same ^ mirrored).all())
    assert 8 < int(mirrored.sum()) < 32
    module.eval()(data)
    assert torch.equal(model.seen, data["image"])
    module = ContrastiveModule(model, texts(40), Accelerator(cpu=True))
    module(data)
    assert torch.equal(model.seen, data["image"])


def test_token_numbers_are_embedded_with_gradients():
    """A text tower that trains gives the loss of the embeddings that it has at the time."""
    model = Model()
    model.table = nn.Embedding(9, 5)
    model.encode_text = lambda tokens, normalize: nn.functional.normalize(
        model.table(tokens).mean(dim=1), dim=-1
    )
    tokens = torch.randint(9, (6, 4), generator=torch.Generator().manual_seed(2))
    data = batch()
    loss = ContrastiveModule(model, tokens, Accelerator(cpu=True))(data)
    embeddings = model.encode_text(tokens, True).detach()
    expected = ContrastiveModule(Model(), embeddings, Accelerator(cpu=True))(data)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert bool(model.table.weight.grad.any())
