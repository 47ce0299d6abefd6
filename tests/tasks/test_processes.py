"""Training as processes: two of them agree with one, and a killed one resumes to the same bits."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import forked
import pytest

from fastht.cli import main

pytestmark = [pytest.mark.slow, forked.needed]

# Dropout draws per process, so that several processes equal one only without it.
COMMON = ["--pretrained", "none", "--batch-size", "10", "--workers", "0", "--val-fraction", "0.265"]


def command(pairs, model, out, *extra):
    return ["train", "--data", str(pairs), "--model", model, "--out", str(out), *COMMON, *extra]


def launch_two(*arguments):
    """Run a command as users do, by PyTorch's launcher; the other tests are spared its imports."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "fastht.cli", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,  # of a machine that does much else
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_by_two(*arguments):
    return "".join(forked.ranks(2, "fastht.cli:main", arguments))


def history(out):
    with (out / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: float(v) for k, v in row.items() if k != "seconds"} for row in rows]


def defined(scores):
    """Scores of which those that are not defined are a number of their own."""
    return {name: -1.0 if value is None else value for name, value in scores.items()}


def test_two_processes_give_the_losses_of_one(pairs, tiny_model, tmp_path):
    options = ["--epochs", "3", "--lr", "3e-3", "--dropout", "0"]
    # With what tags do too: it stands beside the contrastive loss and leaves that in the sum.
    options += ["--semantic", "fastht", "--tag-graph", "tokens", "--tag-dropout", "0"]
    options += ["--tags", "captions"]
    assert main(command(pairs, tiny_model, tmp_path / "one", *options)) == 0
    # A budget changes nothing that is learnt, and is that of each process.
    options += ["--memory-budget", "1000"]
    printed = launch_two(*command(pairs, tiny_model, tmp_path / "two", *options))
    assert printed.count("samples to train on") == 1
    assert printed.count("Chosen for 1000 MiB: none, batch 5") == 1
    memory = json.loads((tmp_path / "two" / "arguments.json").read_text())["memory"]
    assert (memory["batch"], memory["batch_chosen"]) == (5, False)
    assert memory["predicted_bytes"] == memory["counted"]["none"] > 0
    one, two = history(tmp_path / "one"), history(tmp_path / "two")
    assert len(one) == len(two) == 3
    assert one[-1]["train_loss"] < one[0]["train_loss"] - 0.01
    for a, b in zip(one, two, strict=True):
        for name in ("train_loss", "val_loss", "val_semantic_loss"):
            assert a[name] == pytest.approx(b[name], rel=2e-5), name
        assert a["zero_shot_accuracy"] == b["zero_shot_accuracy"]


@pytest.mark.parametrize(("task", "score"), [("segment", "dice"), ("classify", "auc")])
def test_two_processes_give_the_scores_of_one(table, tiny_model, tmp_path, task, score):
    """48 images by halves: training and scores of the same weights to rounding."""
    options = [task, "train", "--data", str(table), "--model", tiny_model]
    options += ["--pretrained", "none", "--blocks", "0", "1", "--width", "16", "--image-size", "32"]
    options += ["--epochs", "2", "--batch-size", "8", "--workers", "0", "--lr", "3e-3"]
    # By this seed every class is tested: without one of them there is no AUC.
    options += ["--dropout", "0", "--seed", "4", "--methods", "frozen", "ht", "--out"]
    assert main([*options, str(tmp_path / "one")]) == 0
    printed = run_by_two(*options, str(tmp_path / "two"))
    assert printed.count("48 cases from") == 1
    folders = [tmp_path / name / "ht" / "seed-4" for name in ("one", "two")]
    if task == "segment":  # the classification head has a dropout of its own, drawn by process
        one, two = (history(folder) for folder in folders)
        for a, b in zip(one, two, strict=True):
            assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
            assert a["val_dice"] == pytest.approx(b["val_dice"], abs=1e-2)
    evaluation = [task, "eval", str(folders[1]), "--batch-size", "3", "--out"]
    assert main([*evaluation, str(tmp_path / "alone")]) == 0
    run_by_two(*evaluation, str(tmp_path / "both"))
    results = [json.loads((tmp_path / n / "results.json").read_text()) for n in ("alone", "both")]
    trained = json.loads((folders[1] / "results.json").read_text())
    assert results[0]["after"][score] is not None
    # Batches are divided otherwise, so that the last bits of probabilities differ.
    alone, both, before = (defined(scores["after"]) for scores in (*results, trained))
    assert alone == pytest.approx(both, rel=1e-6)
    assert both == pytest.approx(before)
    tables = [(tmp_path / name / "predictions.csv").read_text() for name in ("alone", "both")]
    assert [line.split(",")[0] for line in tables[0].splitlines()] == [
        line.split(",")[0] for line in tables[1].splitlines()
    ]


@pytest.mark.parametrize("kind", ["plain", "tagged", "dual"])
def test_a_run_killed_by_sigkill_resumes_to_the_same_bits(pairs, tiny_model, tmp_path, kind):
    options = ["--epochs", "12", "--lr", "3e-3", "--checkpoint-steps", "2", "--flip"]
    files = ["adapter/adapter_model.safetensors"]
    if kind == "dual":  # with a text tower that trains, by dropout of its own
        options += ["--text", "tiny-bert", "--head", "mlp-16", "--train-towers", "text"]
        files.append("towers.safetensors")
    if kind == "tagged":  # with what tags do, and their dropout, which is drawn in training
        options += ["--semantic", "fastht", "--tag-graph", "tokens", "--tags", "captions"]
        files.append("tag_graph.safetensors")
    assert main(command(pairs, tiny_model, tmp_path / "whole", *options)) == 0
    parts = command(pairs, tiny_model, tmp_path / "killed", *options)
    training = forked.Forked("fastht.cli:main", parts)
    table = tmp_path / "killed" / "history.csv"
    deadline = time.monotonic() + 600  # of a machine that does much else
    while not (table.exists() and len(table.read_text().splitlines()) > 3):
        assert training.process.exitcode is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    training.end()
    assert training.process.exitcode == -signal.SIGKILL
    assert len(history(tmp_path / "killed")) < 12
    forked.run([forked.Forked("fastht.cli:main", [*parts, "--resume"])])
    for file in files:
        killed, whole = (tmp_path / name / file for name in ("killed", "whole"))
        assert killed.read_bytes() == whole.read_bytes()
    assert history(tmp_path / "killed") == history(tmp_path / "whole")
