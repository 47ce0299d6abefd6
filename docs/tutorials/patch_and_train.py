# %%
# # Patch a model and train it
#
# A CLIP gets HT adapters, learns from 320 **simulated** ultrasound images that come with fastht,
# and is kept in a file of its own. The training loop is plain PyTorch, so that it can be yours;
# `fastht train` does the same and more from the command line ([how](../train.md)).
#
# The model here is small and starts from random weights, so that everything runs in half a minute
# without a download. With real data, begin from weights:
# `open_clip.create_model_and_transforms("ViT-B-16", pretrained="openai")`.
from importlib.resources import files
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import open_clip
import torch

import fastht
from fastht.data import ImageTextDataset, load_records, split_records
from fastht.losses import ClipLoss

torch.manual_seed(0)
name = f"local-dir:{files('fastht.data') / 'tiny_clip'}"
model, _, preprocess = open_clip.create_model_and_transforms(name)
tokenize = open_clip.get_tokenizer(name)
Path("pictures").mkdir(exist_ok=True)

# %%
# ## The data
#
# `load_records` reads a table with an image and a caption in each row. `split_records` holds out
# patients, never single images: two images of one patient on both sides would make any score look
# better than it is.
records = load_records(files("fastht.data") / "sample" / "sample.csv").records
training, held_out = split_records(records, val_fraction=0.2, seed=0)
print(f"{len(training)} images of {len({r.patient for r in training})} patients to train on,")
print(f"{len(held_out)} images of {len({r.patient for r in held_out})} patients held out")
print(held_out[0].caption)

# %%
# Images are prepared once, as the model wants them.


def tensors(records):
    dataset = ImageTextDataset(records, preprocess)
    return torch.stack([item["image"] for item in dataset])


images, held_out_images = tensors(training), tensors(held_out)

shown = [next(r for r in held_out if r.label == label) for label in ("cyst", "benign mass")]
shown.append(next(r for r in held_out if r.label == "malignant mass"))
figure, axes = plt.subplots(1, 3, figsize=(9, 3.2))
for axis, record in zip(axes, shown, strict=True):
    axis.imshow(plt.imread(record.image), cmap="gray")
    axis.set_title(record.label)
    axis.axis("off")
figure.tight_layout()
figure.savefig("pictures/data.png", dpi=80)

# %%
# ![three simulated images](outputs/patch_and_train/data.png)
#
# ## Patch
#
# One line freezes the base and puts an adapter after each block of the vision tower. A fresh
# adapter does nothing: the patched model gives the base's features, bit for bit.
with torch.no_grad():
    base = model.encode_image(held_out_images[:4])
fastht.patch(model)
with torch.no_grad():
    print("bitwise the base:", torch.equal(model.encode_image(held_out_images[:4]), base))
fastht.print_trainable_parameters(model)

# %%
# ## Before
#
# How often is an image's own caption among the ten nearest of the held-out ones? Images of equal
# captions share them, so any of these counts.


@torch.no_grad()
def recall_at_10():
    was_training = model.training
    model.eval()
    captions = [r.caption for r in held_out]
    texts = model.encode_text(tokenize(captions), normalize=True)
    nearest = (model.encode_image(held_out_images, normalize=True) @ texts.T).topk(10).indices
    model.train(was_training)
    hits = [any(captions[j] == captions[i] for j in row) for i, row in enumerate(nearest)]
    return 100 * sum(hits) / len(hits)


before = recall_at_10()
print(f"recall@10 {before:.1f} % of {len(held_out)} images")

# %%
# ## Train
#
# The text tower is frozen, so each caption goes through it once. `keys` tells the loss which
# captions are the same, so that an image is not pushed away from its own words; the loss never
# makes a B x B matrix ([how](../losses.md)).
with torch.no_grad():
    texts = model.encode_text(tokenize([r.caption for r in training]), normalize=True)
numbers = {caption: i for i, caption in enumerate(dict.fromkeys(r.caption for r in training))}
keys = torch.tensor([numbers[r.caption] for r in training])

criterion = ClipLoss()
optimizer = torch.optim.AdamW(fastht.adapter_parameters(model), lr=3e-3, betas=(0.9, 0.95))
epochs, size = 4, 16
steps = epochs * (len(training) // size)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
losses = []
model.train()
for _ in range(epochs):
    for batch in torch.randperm(len(training)).split(size)[: len(training) // size]:
        features = model.encode_image(images[batch], normalize=True)
        loss = criterion(features, texts[batch], model.logit_scale.exp(), keys=keys[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
after = recall_at_10()
print(f"recall@10 {before:.1f} % before, {after:.1f} % after {epochs} epochs")

# %%
# Numbers of one short training of a random model on simulated images: they say that the parts work
# together, and nothing about patients.
per_epoch = torch.tensor(losses).reshape(epochs, -1).mean(1)
figure, axis = plt.subplots(figsize=(5, 3))
axis.plot(range(1, epochs + 1), per_epoch, marker="o")
axis.set(xlabel="epoch", ylabel="loss in training")
figure.tight_layout()
figure.savefig("pictures/loss.png", dpi=80)

# %%
# ![the loss falls](outputs/patch_and_train/loss.png)
#
# ## Keep it
#
# The adapter is a folder of [two files](../adapter-files.md). `unpatch` gives the base back,
# exactly; loading patches it again.
fastht.save_adapter(model, "runs/tutorial", base_model="fastht-tiny")
size = sum(f.stat().st_size for f in Path("runs/tutorial").iterdir())
print(f"{size / 2**20:.1f} MiB in", *sorted(f.name for f in Path("runs/tutorial").iterdir()))

fastht.unpatch(model)
with torch.no_grad():
    print("bitwise the base:", torch.equal(model.encode_image(held_out_images[:4]), base))
fastht.load_adapter(model, "runs/tutorial")
print(f"recall@10 {recall_at_10():.1f} %")

# %%
# Next: [zero-shot, retrieval and reading a report](zeroshot_and_report.py), or [what else can be
# chosen](../patch.md).
