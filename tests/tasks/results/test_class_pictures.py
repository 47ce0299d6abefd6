"""Pictures of classification: curves, cells and bins are at their places, and nothing is hidden."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from fastht.tasks.results.class_pictures import (
    ReliabilityCurve,
    ReliabilityPanel,
    draw_confusion,
    draw_reliability,
    draw_roc,
)
from fastht.tasks.results.figure_style import PALETTE
from fastht.tasks.results.shown import Shown

SHOWN = Shown(64, None, "ViT-B-16/openai", "sets/BUSI")
UP = (torch.tensor([0, 0, 1.0]), torch.tensor([0, 1.0, 1]))
DOWN = (torch.tensor([0, 0.5, 1.0]), torch.tensor([0, 0.25, 1]))
MATRIX = torch.tensor([[6, 2, 0], [0, 3, 1], [0, 0, 0]])
RAW = ReliabilityCurve([0.5, 0.9], [0.4, 0.6], [0.4, 0.6, 0.9, 0.9], 0.2)
MENDED = ReliabilityCurve([0.45, 0.6], [0.4, 0.6], [0.4, 0.5, 0.6, 0.6], 0.025)


@pytest.fixture
def figures(monkeypatch):
    """Figures as they are saved."""
    saved = []
    save = Figure.savefig

    def keep(self, *arguments, **options):
        saved.append(self)
        return save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text)]


def test_roc_curves_of_one_class_have_one_colour_the_base_dashed_the_adapted_solid(
    tmp_path, figures
):
    curves = {"base": {"a": DOWN, "b": DOWN}, "adapted": {"a": UP, "b": DOWN}}
    areas = {"base": {"a": 0.5, "b": 0.25}, "adapted": {"a": 1.0, "b": math.nan}}
    draw_roc(tmp_path / "roc.png", curves, areas, "title", SHOWN)
    (axes,) = figures[0].axes
    diagonal, *lines = axes.lines
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
    drawn = {line.get_label(): line for line in lines}
    assert list(drawn) == [
        "a, base (AUC 0.500)",
        "b, base (AUC 0.250)",
        "a, adapted (AUC 1.000)",
        "b, adapted (AUC not defined)",
    ]
    assert [line.get_linestyle() for line in lines] == ["--", "--", "-", "-"]
    assert [line.get_color() for line in lines] == [*PALETTE[:2], *PALETTE[:2]]
    assert drawn["a, adapted (AUC 1.000)"].get_xydata().tolist() == [[0, 0], [0, 1], [1, 1]]
    assert set(drawn) <= set(texts(figures[0]))


def test_one_version_is_solid_and_needs_no_name(tmp_path, figures):
    areas = {"after": {"benign": 1.0, "normal": math.nan}}
    draw_roc(tmp_path / "roc.png", {"after": {"benign": UP}}, areas, "title")
    labels = [line.get_label() for line in figures[0].axes[0].lines[1:]]
    assert labels == ["benign (AUC 1.000)", "normal: no curve"]
    assert figures[0].axes[0].lines[1].get_linestyle() == "-"


def test_a_picture_without_roc_curves_says_so(tmp_path, figures):
    draw_roc(tmp_path / "roc.png", {"after": {}}, {"after": {"benign": math.nan}}, "title")
    assert any(text.startswith("no curve: each needs") for text in texts(figures[0]))


def test_many_classes_all_have_their_colour(tmp_path, figures):
    curves = {f"class {i}": UP for i in range(15)}
    draw_roc(tmp_path / "roc.png", {"after": curves}, {"after": dict.fromkeys(curves, 1.0)}, "t")
    assert len({tuple(line.get_color()) for line in figures[0].axes[0].lines[1:]}) == 15


def test_confusion_matrix_has_counts_and_shares_of_the_true_class(tmp_path, figures):
    draw_confusion(tmp_path / "c.png", {"after": MATRIX}, ("a", "b", "$c$"), "title", SHOWN)
    axes = figures[0].axes[0]
    shares = axes.images[0].get_array()
    assert shares[:2].tolist() == [[0.75, 0.25, 0], [0, 0.75, 0.25]]
    cells = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
    assert cells[(0, 0)] == "6\n75 %"
    assert cells[(1, 0)] == "2\n25 %"  # x is what is predicted
    assert cells[(0, 1)] == "0\n0 %"
    assert cells[(2, 2)] == "none"  # no image is of the class: no share
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "a (8)",
        "b (4)",
        r"\$c\$ (0)",
    ]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", r"\$c\$"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true (images)")


def test_numbers_are_read_on_dark_and_on_light_cells(tmp_path, figures):
    draw_confusion(tmp_path / "c.png", {"after": MATRIX}, ("a", "b", "c"), "title")
    axes = figures[0].axes[0]
    colours = {tuple(map(int, t.get_position())): t.get_color() for t in axes.texts}
    assert (colours[(0, 0)], colours[(2, 0)]) == ("white", "black")


def test_confusion_matrices_of_versions_stand_side_by_side(tmp_path, figures):
    matrices = {"base": MATRIX, "adapted": MATRIX.flip(0)}
    draw_confusion(tmp_path / "c.png", matrices, ("a", "b", "c"), "title")
    first, second, _ = figures[0].axes
    assert (first.get_title(), second.get_title()) == ("base", "adapted")
    assert first.images[0].get_array()[0].tolist() == [0.75, 0.25, 0]
    assert second.images[0].get_array()[2].tolist() == [0.75, 0.25, 0]


def test_reliability_shows_bins_temperature_and_how_often(tmp_path, figures):
    panel = ReliabilityPanel("after", RAW, MENDED, 2.5, "fitted on val")
    draw_reliability(tmp_path / "r.png", [panel], "title", SHOWN)
    upper, lower = figures[0].axes
    diagonal, raw, mended = upper.lines
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
    assert raw.get_xydata().tolist() == [[0.5, 0.4], [0.9, 0.6]]
    assert mended.get_xydata().tolist() == [[0.45, 0.4], [0.6, 0.6]]
    assert raw.get_label() == "as it is: ECE 0.200, 2 bins"
    assert mended.get_label() == "temperature 2.5: ECE 0.025, 2 bins"
    assert upper.get_title() == "fitted on val"
    tops = [patch.get_path().vertices[:, 1].max() for patch in lower.patches]
    assert tops == pytest.approx([0.5, 0.5])  # two of four images in a bin of the histogram
    assert raw.get_color() != mended.get_color()


def test_without_a_temperature_the_note_says_why(tmp_path, figures):
    panels = [ReliabilityPanel(name, RAW, None, None, "none fitted") for name in ("base", "new")]
    draw_reliability(tmp_path / "r.png", panels, "title")
    upper = figures[0].axes[:2]
    assert [axes.get_title() for axes in upper] == ["base\nnone fitted", "new\nnone fitted"]
    assert all(len(axes.lines) == 2 for axes in upper)


def draw_everything(folder, name, versions, shown=SHOWN):
    classes = [f"{name} {i}" for i in range(3)]
    curves = dict.fromkeys(classes, UP)
    areas = dict.fromkeys(classes, 1.0)
    draw_roc(
        folder / "1.png",
        dict.fromkeys(versions, curves),
        dict.fromkeys(versions, areas),
        name,
        shown,
    )
    draw_confusion(folder / "2.png", dict.fromkeys(versions, MATRIX), classes, name, shown)
    panels = [ReliabilityPanel(v, RAW, MENDED, 2.5, "fitted on 32 images of val") for v in versions]
    draw_reliability(folder / "3.png", panels, name, shown)


@pytest.mark.parametrize("versions", [("after",), ("base", "adapted")])
@pytest.mark.parametrize("name", ["mass", "a-class-with-a-rather-long-name/" * 3])
def test_nothing_is_cut_off_or_hidden_and_every_picture_says_what_it_is_of(
    tmp_path, figures, name, versions
):
    draw_everything(tmp_path, name, versions)
    for path in tmp_path.glob("*.png"):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        rim = [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
        assert all((line == 255).all() for line in rim), path.name
        assert 600 < pixels.shape[1] < 2000
    for figure in figures:
        (foot,) = (text for text in figure.texts if "n = 64" in text.get_text())
        sentence = "n = 64 images, patients not known; model ViT-B-16/openai"
        assert foot.get_text().replace("\n", " ") == sentence
        below = [foot, *figure.legends]
        boxes = [part.get_window_extent() for part in below]
        top = max(box.y1 for box in boxes)
        assert all(axes.get_tightbbox().y0 >= top - 1 for axes in figure.axes)
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
