"""Dual encoders whose towers train, in two processes: as in one, and with equal captions apart."""

import csv
import itertools

import dual_worker
import forked
import pytest
import torch
from run_files import read, rows_of

from fastht.data import load_records, split_records
from fastht.tasks.models.encoders import EncoderNames, build_encoder
from fastht.tasks.models.text_towers import TINY_BERT, build_text_tower
from fastht.tasks.training.state import load_state

pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, forked.needed]

SIZES = ("small", "large", "oval", "round", "irregular")
BATCH = 10
CLOSE = 1e-3  # of how far training moved a tensor


@pytest.fixture(scope="module")
def repeating(pairs, tmp_path_factory):
    """The tests' images with ten captions, each of three images to train on and of one held out."""
    path = tmp_path_factory.mktemp("repeating") / "repeating.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filepath", "title", "split"])
        for i, row in enumerate(csv.DictReader(pairs.open(newline=""))):
            title = f"Ultrasound of a {SIZES[i // 2 % 5]} {row['label']}"
            writer.writerow([pairs.with_name(row["filepath"]), title, "val" if i > 29 else "train"])
    return path


@pytest.fixture(scope="module")
def quiet_bert(tmp_path_factory):
    """A text tower without dropout, which processes draw differently."""
    folder = tmp_path_factory.mktemp("bert")
    tower = build_text_tower(TINY_BERT)
    encoder = tower.module.encoder
    encoder.config.hidden_dropout_prob = encoder.config.attention_probs_dropout_prob = 0.0
    encoder.save_pretrained(folder)
    tower.tokenizer.tokenizer.save_pretrained(folder)
    return f"local-dir:{folder}"


@pytest.fixture
def trained(repeating, quiet_bert, tiny_model, tmp_path):
    """Trains by a number of processes; returns the run's folder and what it printed."""

    def run(name, processes, *options, stop=None, whole=True):
        command = ["train", "--data", str(repeating), "--model", tiny_model, "--pretrained", "none"]
        command += ["--text", quiet_bert, "--head", "mlp-16", "--method", "none", "--lr", "3e-3"]
        command += ["--epochs", "3", "--batch-size", str(BATCH), "--workers", "0"]
        command += ["--checkpoint-steps", "1", "--out", str(tmp_path / name), *options]
        seen = str(tmp_path / name / "seen")
        if processes == 1:
            assert dual_worker.main(command, seen) == 0
            return tmp_path / name, ""
        said = forked.ranks(processes, "dual_worker:main", command, seen, stop, whole)
        return tmp_path / name, "".join(said)

    return run


def state(run):
    """What trained, as it was at the end, by the name in the model."""
    tensors = load_state(run / "state.pt")["trainable"]
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def farthest(one, two, start):
    """The largest distance of two trainings, relative to what was moved, over all tensors.

    A bias of attention's keys shifts all scores of a query alike, so that its gradient is rounding,
    of which Adam makes whole steps.
    """
    distances = {}
    for name, tensor in one.items():
        a, b, origin = (t.double() for t in (tensor, two[name], start[name]))
        if name.endswith("in_proj_bias"):
            a, b, origin = (torch.cat([t.chunk(3)[0], t.chunk(3)[2]]) for t in (a, b, origin))
        if not name.endswith("key.bias"):
            distances[name] = ((a - b).norm() / (a - origin).norm().clamp_min(1e-6)).item()
    name = max(distances, key=distances.get)
    return distances[name], name


@pytest.fixture(scope="module")
def start(quiet_bert, tiny_model):
    """The weights before training."""
    names = EncoderNames(tiny_model, "none", quiet_bert, "mlp-16")
    return build_encoder(names).model.state_dict()


def captions_by_batch(run, processes, table):
    """The captions of each batch, all processes together, in the order of training."""
    records, _ = split_records(load_records(table).records)
    ranks = ["alone"] if processes == 1 else map(str, range(processes))
    shares = [read(run / "seen" / f"{rank}.json") for rank in ranks]
    assert all(len(share) == BATCH // processes for share in itertools.chain(*shares))
    return [
        [records[i].caption for i in itertools.chain(*parts)] for parts in zip(*shares, strict=True)
    ]


def check_equal(one, two, start):
    for a, b in zip(rows_of(one / "history.csv"), rows_of(two / "history.csv"), strict=True):
        for name in ("train_loss", "val_loss"):
            assert float(a[name]) == pytest.approx(float(b[name]), rel=2e-5), name
    found = state(one)
    moved = sum(not torch.equal(tensor, start[name]) for name, tensor in found.items())
    assert moved > 0.9 * len(found)
    distance, name = farthest(found, state(two), start)
    assert distance < CLOSE, name


@pytest.mark.parametrize("towers", ["none", "image", "text"])
def test_two_processes_train_what_one_trains(trained, start, repeating, towers):
    options = ["--train-towers", towers]
    if towers == "none":  # the control of spreading, too
        options.append("--no-spread-captions")
    one, _ = trained("one", 1, *options)
    two, _ = trained("two", 2, *options)
    check_equal(one, two, start)
    names = {".".join(name.split(".")[:2]) for name in state(two)}
    assert names == {"visual.head", "text.head", "logit_scale"} | {
        "none": set(), "image": {"visual.tower"}, "text": {"text.tower"},
    }[towers]  # fmt: skip
    batches = captions_by_batch(two, 2, repeating)
    assert batches == captions_by_batch(one, 1, repeating)
    together = any(len(set(batch)) < BATCH for batch in batches)
    assert together == (towers == "none")


def test_both_towers_train_with_equal_captions_apart_and_resume_to_the_same_bits(
    trained, start, repeating
):
    options = ["--train-towers", "both"]
    one, _ = trained("one", 1, *options)
    two, said = trained("two", 2, *options)
    check_equal(one, two, start)
    # The negative control: without the gradient of what the other process embeds.
    spoilt, _ = trained("spoilt", 2, *options, whole=False)
    assert farthest(state(one), state(spoilt), start)[0] > 10 * CLOSE
    # Each caption is of three images, and in each of an epoch's three batches once.
    batches = captions_by_batch(two, 2, repeating)
    assert [len(set(batch)) for batch in batches] == [BATCH] * 9
    told = "a sample's caption is 1.00 times in its batch, its own time among them, and would be "
    assert said.count(told) == 1
    counted = read(two / "results.json")["caption_multiplicity"]
    assert counted == read(one / "results.json")["caption_multiplicity"]
    assert counted["multiplicity"] == 1 < counted["multiplicity_shuffled"]

    trained("stopped", 2, *options, stop=5)  # within the second epoch
    assert len(rows_of(two.with_name("stopped") / "history.csv")) == 1
    resumed, _ = trained("stopped", 2, *options, "--resume")
    kept, found = state(two), state(resumed)
    assert all(torch.equal(tensor, found[name]) for name, tensor in kept.items())
    assert rows(resumed) == rows(two)
    file = "towers.safetensors"
    assert (resumed / file).read_bytes() == (two / file).read_bytes()
    # Of the epoch that was interrupted, it saw what was left.
    assert captions_by_batch(resumed, 2, repeating) == batches[5:]


def rows(run):
    return [{k: v for k, v in r.items() if k != "seconds"} for r in rows_of(run / "history.csv")]
