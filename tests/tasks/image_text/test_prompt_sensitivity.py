"""Scores by the wording of prompts: which, what is told of them, the published protocol."""

import csv
import json

import pytest
import torch
from miniature_sets import busi
from more_sets import aul

from fastht.data import DataError
from fastht.data.catalogue.sets import organ_of
from fastht.tasks.image_text.prompts import PromptSet, load_prompts
from fastht.tasks.image_text.prompts.variants import naming, prompt_variants, swap_word
from fastht.tasks.image_text.wording import Wordings, known_wordings, wording_hash
from fastht.tasks.image_text.zeroshot import ZeroShotArguments, zeroshot
from fastht.tasks.images.paired import report
from fastht.tasks.results.rank_stability import prompt_lines, rank_stability
from fastht.tasks.results.report import ReportArguments

LABELS = ("anechoic fluid filled cyst", "bright echogenic solid mass")
PROMPTS = """
organ: breast
classes:
  anechoic fluid filled cyst:
    - Ultrasound 1 showing the anechoic, fluid filled cyst
    - An anechoic breast cyst
    - A dark middle
  bright echogenic solid mass:
    - A bright solid mass
    - A breast mass
    - A bright middle
"""


@pytest.fixture(scope="module")
def run(trained):
    return trained()


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def test_variants_take_prompts_alone_leave_them_out_and_swap_the_organ():
    prompts = PromptSet({"a": ("Breast 1", "breast 2", "three"), "b": ("x", "y")}, "breast")
    trained = {"three"}
    found = list(prompt_variants(prompts, trained))
    made = {(v.kind, v.name): (dict(v.prompts), v.seen) for v in found}
    assert found[0].kind == "ensemble"
    assert made["ensemble", ""] == (dict(prompts), ("a",))
    assert made["alone", "2"] == ({"a": ("breast 2",), "b": ("y",)}, ())
    # A class that has fewer keeps its own.
    assert made["alone", "3"] == ({"a": ("three",), "b": ("x", "y")}, ("a",))
    assert made["left out", "1"] == ({"a": ("breast 2", "three"), "b": ("y",)}, ("a",))
    assert made["left out", "3"] == ({"a": ("Breast 1", "breast 2"), "b": ("x", "y")}, ())
    assert made["unseen", ""][0] == {"a": ("Breast 1", "breast 2"), "b": ("x", "y")}
    assert made["organ swapped", "liver"][0]["a"] == ("Liver 1", "liver 2", "three")
    assert ("organ swapped", "breast") not in made
    assert len(found) == 1 + 3 + 3 + 1 + 3
    assert naming(prompts) == (2, 5)
    assert not any(v.kind == "unseen" for v in prompt_variants(prompts, {"x", "y"}))
    single = [v.kind for v in prompt_variants(PromptSet({"a": ("one",), "b": ("two",)}))]
    assert single == ["ensemble"]


def test_a_word_is_swapped_as_a_whole():
    assert swap_word("Breast, breasts and BREAST", "breast", "lung") == "Lung, breasts and Lung"
    assert swap_word("a lymph node here", "lymph node", "liver") == "a liver here"


def test_ranks_of_models_by_each_prompt():
    found = rank_stability({"a": [3, 3, 1, 5], "b": [2, 2, 2, 4], "c": [1, 3, 0, float("nan")]})
    assert (found.order, found.kept, found.best_kept, found.of) == (("a", "b", "c"), 1, 2, 3)
    assert found.tau_low < found.tau < 1
    same = rank_stability({"a": [3, 4], "b": [2, 1]})
    assert (same.kept, same.best_kept, same.tau) == (2, 2, 1)
    with pytest.raises(ValueError, match="two models or more"):
        rank_stability({"a": [1.0]})


def test_templates_are_filled_and_refused_where_they_lack_a_slot(tmp_path):
    found = load_prompts("published", ["benign", "normal"], "liver")
    assert found["normal"] == ("An ultrasound image of liver with normal findings.",)
    assert found.organ == "liver"
    with pytest.raises(DataError, match="give it by --organ"):
        load_prompts("published", ["benign"])
    path = tmp_path / "own.yaml"
    for text, message in {
        "templates: [no slot]": "needs {label}",
        "templates: ['{label} {side}']": "may have {organ}",
        "templates: ['{label}', '{label}']": "there twice",
        "templates: []": "no prompts",
        "{templates: ['{label}'], classes: {a: [b]}}": "keep one of them",
    }.items():
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            load_prompts(str(path), ["a"], "liver")


def test_the_organ_is_known_of_layouts_of_one():
    assert (organ_of("busi"), organ_of("aul"), organ_of("tn3k")) == ("breast", "liver", "thyroid")
    assert organ_of("published", "BUSI") == "breast"
    assert organ_of("table") is organ_of("published") is organ_of("reports") is None


def test_sensitivity_of_a_run_names_seen_wordings_and_ranges(run, pairs, tmp_path, capsys):
    (tmp_path / "prompts.yaml").write_text(PROMPTS)
    arguments = {
        "run": run,
        "data": str(pairs),
        "prompts": str(tmp_path / "prompts.yaml"),
        "workers": 0,
        "out": tmp_path / "out",
    }
    zeroshot(ZeroShotArguments(**arguments))
    plain = results_of(tmp_path / "out")
    assert "prompt_sensitivity" not in plain
    # "Ultrasound 1" is not of the first label: 0 is. The wording of neither trained.
    assert plain["seen_wordings"] == []
    trained = known_wordings(run)
    split = {r["file"]: r["split"] for r in csv.DictReader((run / "split.csv").open())}
    captions = {str(pairs.with_name(r["filepath"])): r for r in csv.DictReader(pairs.open())}
    for file, side in split.items():  # those that trained and no others
        assert (captions[file]["title"] in trained) == (side == "train")
    seen = next(r for f, r in captions.items() if split[f] == "train" and r["label"] == LABELS[0])
    number = seen["title"].split()[1]
    text = PROMPTS.replace("Ultrasound 1 showing", f"ULTRASOUND {number}, showing")
    (tmp_path / "prompts.yaml").write_text(text)
    zeroshot(ZeroShotArguments(**arguments))
    assert "--prompt-sensitivity scores without them" in capsys.readouterr().out
    zeroshot(ZeroShotArguments(**arguments, prompt_sensitivity=True))
    results = results_of(tmp_path / "out")
    assert results["seen_wordings"] == [LABELS[0]]
    found = results["prompt_sensitivity"]
    kinds = [variant["kind"] for variant in found["variants"]]
    assert kinds == [
        "ensemble",
        *["alone"] * 3,
        *["left out"] * 3,
        "unseen",
        *["organ swapped"] * 3,
    ]
    for version in ("before", "after"):
        ensemble = found["variants"][0][version]
        assert ensemble["scores"]["accuracy"] == results[version]["accuracy"]
        assert ensemble["intervals"]["auc"] == results["intervals"][version]["auc"]
        assert ensemble["difference"]["accuracy"] == [0, 0]
        alone = [v[version]["scores"]["auc"] for v in found["variants"] if v["kind"] == "alone"]
        ends = found["range"][version]["auc"]
        assert (ends["low"], ends["high"]) == (min(alone), max(alone))
    assert [v["seen"] for v in found["variants"]][:3] == [[LABELS[0]], [LABELS[0]], []]
    assert found["prompts_naming_the_organ"] == [2, 6]
    assert found["ranks"]["auc"]["of"] == 3
    rows = list(csv.DictReader((tmp_path / "out" / "prompts.csv").open()))
    assert len(rows) == 11
    assert rows[2][f"prompt {LABELS[1]}"] == "A breast mass"
    assert (tmp_path / "out" / "prompts.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "WARNING: prompts worded as captions that trained: 1 (anechoic fluid" in printed
    assert "the organ is swapped in 2 of 6 prompts" in printed


def test_a_baseline_is_scored_on_the_images_of_a_run_and_compared(
    run, pairs, tiny_model, tmp_path, capsys
):
    """And by each prompt, whether the two keep their order."""
    (tmp_path / "prompts.yaml").write_text(PROMPTS)
    shared = {
        "data": str(pairs),
        "prompts": str(tmp_path / "prompts.yaml"),
        "workers": 0,
        "prompt_sensitivity": True,
    }
    zeroshot(ZeroShotArguments(run=run, **shared, out=tmp_path / "runs" / "run"))
    base = {"model": tiny_model, "pretrained": "none", "unseen_by": run}
    zeroshot(ZeroShotArguments(**base, **shared, out=tmp_path / "runs" / "base"))
    own, other = (results_of(tmp_path / "runs" / name) for name in ("run", "base"))
    assert (own["test_images"], other["test_images"]) == (10, 10)
    assert (other["unseen_by"], other["method"]) == (str(run), "base")
    assert other["after"] == own["before"]
    capsys.readouterr()
    report(ReportArguments((tmp_path / "runs",), tmp_path / "report"))
    printed = capsys.readouterr().out
    assert "2 models by balanced accuracy: " in printed
    differences = json.loads((tmp_path / "report" / "report.json").read_text())["differences"]
    pair = [d for d in differences if "minus before" not in d["compared"]]
    accuracy = next(d for d in pair if d["score"] == "accuracy")
    assert abs(accuracy["difference"]) == pytest.approx(
        abs(own["after"]["accuracy"] - other["after"]["accuracy"])
    )
    assert prompt_lines([own]) == []
    with pytest.raises(ValueError, match="leave out one"):
        ZeroShotArguments(run=run, unseen_by=run)


@pytest.mark.parametrize(("layout", "write"), [("busi", busi), ("aul", aul)])
def test_the_published_protocol_on_miniatures(layout, write, tiny_model, tmp_path):
    """BUSI and AUL by the one published sentence, of the organ that the layout is of."""
    write(tmp_path / layout)
    shared = {"model": tiny_model, "pretrained": "none", "workers": 0, "prompts": "published"}
    shared |= {"data": str(tmp_path / layout), "include_normal": layout == "busi"}
    out = tmp_path / "out"
    zeroshot(ZeroShotArguments(**shared, out=out))
    results = results_of(out)
    assert results["classes"] == ["benign", "malignant", "normal"]
    assert results["test_images"] == (7 if layout == "busi" else 6)
    assert results["organ"] == ("breast" if layout == "busi" else "liver")
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    right = sum(row["label"] == row["predicted before"] for row in rows) / len(rows)
    assert results["after"]["accuracy"] == pytest.approx(right)
    # The sentence is of the organ: another word gives other probabilities.
    zeroshot(ZeroShotArguments(**shared, organ="lung", out=out / "2"))
    others = list(csv.DictReader((out / "2" / "predictions.csv").open()))
    name = "p(benign) before"
    assert [row[name] for row in others] != [row[name] for row in rows]


def test_a_damaged_record_of_wordings_is_named(tmp_path):
    assert known_wordings(tmp_path) is None
    (tmp_path / "wordings.npy").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"wordings\.npy: damaged"):
        known_wordings(tmp_path)
    empty = Wordings(torch.zeros(0, dtype=torch.int64).numpy().astype("uint64"))
    assert "anything" not in empty
    assert wording_hash("a") == wording_hash("")
