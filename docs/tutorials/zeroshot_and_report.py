# %%
# # Zero-shot, retrieval and reading a report
#
# What an adapter learned is asked in words: which class is an image, which images fit a sentence.
# Then methods are compared, and the report is read. Everything is a command line; it runs here on
# the **simulated** sample and in small, so numbers are those of a short training and say nothing
# about patients.
import json
import shlex
import shutil
from pathlib import Path

from fastht.cli import main


def shell(command):
    """Run a command as a shell would; in a shell leave this out."""
    assert main(shlex.split(command, comments=True)[1:]) == 0


# %%
# ## Train
#
# `fastht train` without `--data` takes the sample and a small model of random weights. The first
# lines are an account of the data; then what was held out is scored before and after.
shell("fastht train --epochs 4 --out runs/clip")

# %%
# How to read a line: `recall@10` of *image to text* is the share of held-out images one of whose
# own captions is among the ten nearest. In brackets stands the 95 % interval over **patients**:
# how far the number would move with other patients of the same kind, not with another training.
# The last column is the difference on the same patients; where its interval has zero inside, this
# test set does not tell the two apart ([more](../scores.md)).
#
# ## Zero-shot
#
# Each class is described by sentences ([`--prompts`](../experiments.md)), and an image belongs to
# the class whose sentences are nearest. Images that the run trained on are left out by themselves.
shell("fastht zeroshot --run runs/clip --out runs/clip/zeroshot")
shutil.copytree("runs/clip/zeroshot", "pictures")

# %%
# ![Confusion](outputs/zeroshot_and_report/confusion.png)
#
# What to look at first:
#
# - **Accuracy without looking**: what always answering the commonest class would get. A score
#   below it has learned nothing that helps.
# - **Sensitivity of each class**: a fair accuracy may hide a class that is never found; a
#   `WARNING` says so.
# - **Calibration**: `ECE` is the gap between how sure the model is and how often it is right.
#
# ## Retrieval
#
# A sentence finds the images nearest to it, among those that the run held out.
shell('fastht retrieve --run runs/clip --query "a spiculated mass" --out runs/clip/query')
shutil.copy("runs/clip/query/query.png", "pictures")

# %%
# ![The five nearest images](outputs/zeroshot_and_report/query.png)
#
# ## Compare methods
#
# The head alone on frozen features, and with HT adapters, side by side on the same split. Four
# epochs are far too few for either, which is what the report should say.
shell("fastht classify train --methods frozen ht --epochs 4 --out runs/classes")

# %%
# ## The report
#
# `fastht report` collects every run below a folder: tables, pictures, and differences on the same
# resamples of the same patients.
shell("fastht report runs --out runs/report")

# %%
# The difference line answers the question, not the two intervals above it: methods are scored on
# the same patients, so an easy patient is easy for both, and the interval of the difference is
# narrower than those of the two scores suggest. Where it has zero inside, where accuracies are
# about what one gets without looking, or where a `WARNING` names a class that is never predicted,
# nothing can be concluded of two methods, but that they have to train longer: [after the sample's
# own number of epochs](../experiments.md) accuracies are far above that.
#
# Everything is in files, for your own tables and figures:
results = json.loads(Path("runs/classes/ht/seed-0/results.json").read_text())
print("accuracy", results["after"]["accuracy"])
print("interval", results["intervals"]["after"]["accuracy"])
print("per image:", *sorted(p.name for p in Path("runs/classes/ht/seed-0").glob("*.csv")))

# %%
# `fastht report runs --checklist` writes what the runs know of the reporting guidelines CLAIM 2024
# and TRIPOD+AI, and the rest as questions to you.
