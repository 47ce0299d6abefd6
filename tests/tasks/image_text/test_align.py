"""`fastht align`: cosines of pairs before and after a run, over all and within groups."""

import json

import pytest
from clip_runs import train_pairs
from PIL import Image

from fastht.data import DataError
from fastht.tasks.image_text.align import AlignArguments, align


@pytest.fixture(scope="module")
def run(pairs, tiny_model, tmp_path_factory):
    """A run on pairs of two organs, every second one."""
    folder = tmp_path_factory.mktemp("runs")
    lines = pairs.read_text().splitlines()
    table = pairs.with_name("organs.csv")
    rows = [f"{lines[0]},organ"]
    rows += [f"{line},{('breast', 'liver', '')[i % 3]}" for i, line in enumerate(lines[1:])]
    table.write_text("\n".join(rows))
    train_pairs(table, tiny_model, folder / "ht")
    return folder / "ht"


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def test_pairs_are_judged_over_all_and_within_organs(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert align(AlignArguments(run=run, workers=0, out=out)) == 0
    results = results_of(out)
    assert (results["task"], results["test_images"]) == ("align", 10)
    before, after = results["before"], results["after"]
    assert after["gap"] > before["gap"] + 0.05  # it has learned
    assert after["gap"] == pytest.approx(after["paired"] - after["unmatched"])
    low, high = results["intervals"]["after"]["gap"]
    assert low < after["gap"] < high
    organs = results["within"]["organ"]
    assert sorted(organs) == ["breast", "liver"]
    inside = sum(found["pairs"] for found in organs.values())
    assert 0 < inside < 10
    assert results["without_group"] == {"organ": 10 - inside}
    # Within an organ the unmatched texts are those of its own.
    of_organs = {found["after"]["unmatched"] for found in organs.values()}
    assert len(of_organs | {after["unmatched"]}) == 3
    for found in organs.values():
        of_organ = found["after"]
        assert of_organ["gap"] == pytest.approx(of_organ["paired"] - of_organ["unmatched"])
    printed = capsys.readouterr().out
    assert f"{10 - inside} pairs are in none of these: no organ" in printed
    assert "within organ breast" in printed
    assert (out / "alignment.png").read_bytes().startswith(b"\x89PNG")


def test_what_it_says_of_the_trained_model_is_what_the_run_found(run, tmp_path):
    align(AlignArguments(run=run, workers=0, out=tmp_path / "out"))
    after, trained = results_of(tmp_path / "out")["after"], results_of(run)
    for name in ("image_to_text_recall@1", "text_to_image_recall@5"):
        assert after[name] == trained["after"][name]
    assert trained["collapse"]["state"] == "learning"


def test_the_label_makes_groups_and_a_base_alone_has_no_after(pairs, tiny_model, tmp_path, capsys):
    options = {"model": tiny_model, "pretrained": "none", "workers": 0, "out": tmp_path / "out"}
    align(AlignArguments(data=str(pairs), within=("label",), **options))
    results = results_of(tmp_path / "out")
    assert results["before"] == results["after"]
    labels = results["within"]["label"]
    assert [found["pairs"] for found in labels.values()] == [20, 20]
    assert "after" not in capsys.readouterr().out


def test_a_baseline_is_judged_on_what_a_run_held_out(run, tiny_model, tmp_path):
    """The base of the run by its name, through the same options and on the same images."""
    align(AlignArguments(run=run, workers=0, out=tmp_path / "run"))
    base = {"model": tiny_model, "pretrained": "none", "unseen_by": run, "workers": 0}
    align(AlignArguments(**base, out=tmp_path / "base"))
    own, other = (results_of(tmp_path / name) for name in ("run", "base"))
    assert other["after"] == own["before"] != own["after"]
    assert (other["data"], other["test_images"], other["left_out"]) == (own["data"], 10, 30)
    assert other["unseen_by"] == str(run)


@pytest.mark.parametrize(
    ("column", "message"),
    [("side", "no column side, or it is empty"), ("filepath", "no two pairs have the same")],
)
def test_a_column_that_makes_no_groups_is_refused(column, message, pairs, tiny_model, tmp_path):
    options = {"model": tiny_model, "pretrained": "none", "workers": 0, "out": tmp_path / "out"}
    with pytest.raises(DataError, match=message):
        align(AlignArguments(data=str(pairs), within=(column,), **options))
    assert not (tmp_path / "out").exists()


def test_files_of_several_pictures_are_told(pairs, tiny_model, tmp_path, capsys):
    """Of a plain table, whose layout tells nothing; a named frame is no loss."""
    rows = []
    for i, frame in enumerate(("", "2", "", "")):
        with Image.open(pairs.with_name(f"{i:02}.png")) as image:
            more = {"save_all": True, "append_images": [image.copy()] * 2} if i < 2 else {}
            image.save(tmp_path / f"{i}.tiff", **more)
        rows.append(f"{i}.tiff,Ultrasound number {i} of the neck,{frame}")
    table = tmp_path / "frames.csv"
    table.write_text("\n".join(["filepath,title,frame", *rows]))
    options = {"model": tiny_model, "pretrained": "none", "workers": 0, "out": tmp_path / "out"}
    align(AlignArguments(data=str(table), **options))
    printed = capsys.readouterr().out
    assert printed.count("1 file of several pictures, of which the middle one is read: ") == 1
    assert "0.tiff (3); name one by a column frame" in printed
    notes = results_of(tmp_path / "out")["provenance"]["notes"]
    assert notes["files_of_several_pictures"] == 1
