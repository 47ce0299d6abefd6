"""Pictures: what they are to show is in them, at its place, and nothing is cut off."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from fastht.tasks.results import figure_style, overlays, pictures
from fastht.tasks.results.overlays import PREDICTION_COLOUR, TRUTH_COLOUR, Overlay, draw_overlays
from fastht.tasks.results.pictures import (
    draw_comparison,
    draw_few_shot,
    draw_learning_curves,
)
from fastht.tasks.results.retrieval_pictures import Found, draw_found
from fastht.tasks.results.shown import Shown

BACKGROUND = (0, 60, 0)  # of images: no text and no line has it
LONG = "a-folder-with-a-rather-long-name/" * 4


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


def read(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def where(pixels, colour, within=40):
    """Rows and columns of the pixels of a colour."""
    rgb = np.array([255 * value for value in to_rgb(colour)] if isinstance(colour, str) else colour)
    return np.argwhere(np.abs(pixels - rgb).max(axis=-1) <= within)


def box(places):
    return (*places.min(axis=0), *(places.max(axis=0) + 1))


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text)]


def square(top, left, bottom, right, size=(48, 64)):
    mask = torch.zeros(size, dtype=torch.int64)
    mask[top:bottom, left:right] = 1
    return mask


def overlay(truth, prediction, name="case", dice=0.5):
    image = torch.tensor(BACKGROUND, dtype=torch.uint8)[:, None, None].expand(3, *truth.shape)
    return Overlay(name, image, truth, prediction, dice)


def test_outlines_lie_on_the_borders_of_the_masks(tmp_path):
    truth, prediction = square(5, 10, 20, 30), square(25, 35, 45, 60)
    draw_overlays(tmp_path / "sheet.png", [overlay(truth, prediction)], "title")
    pixels = read(tmp_path / "sheet.png")
    top, left, bottom, right = box(where(pixels, BACKGROUND, 3))
    panel = pixels[top:bottom, left:right]
    scale = panel.shape[0] / 48
    assert panel.shape[1] / 64 == pytest.approx(scale, rel=0.03)
    for mask, colour in ((truth, TRUTH_COLOUR), (prediction, PREDICTION_COLOUR)):
        # Half a line of at most 3 points, and the pixel's own fraction.
        expected = np.array(box(mask.nonzero().numpy()))
        assert np.array(box(where(panel, colour))) / scale == pytest.approx(expected, abs=1)
        inner = mask.clone()
        inner[1:-1, 1:-1] &= mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
        rows, columns = (where(panel, colour) / scale).astype(int).T
        assert not inner[rows, columns].float().mean() > 0.35  # an outline, no filling


def test_an_outline_is_seen_under_its_equal_and_round_a_full_image(tmp_path):
    mask = torch.ones(48, 64)
    draw_overlays(tmp_path / "sheet.png", [overlay(mask, mask)], "title")
    pixels = read(tmp_path / "sheet.png")
    top, left, bottom, right = box(where(pixels, BACKGROUND, 3))
    frame = pixels[top - 4 : bottom + 4, left - 4 : right + 4]
    for colour in (TRUTH_COLOUR, PREDICTION_COLOUR):
        assert len(where(frame, colour)) > 2 * frame.shape[0]


def test_an_empty_mask_has_no_outline_and_the_caption_says_so(tmp_path, figures):
    item = overlay(square(5, 10, 20, 30), square(0, 0, 0, 0), dice=0.0)
    draw_overlays(tmp_path / "sheet.png", [item], "title")
    pixels = read(tmp_path / "sheet.png")
    top, left, bottom, right = box(where(pixels, BACKGROUND, 3))
    panel = pixels[top:bottom, left:right]
    assert len(where(panel, TRUTH_COLOUR))
    assert not len(where(panel, PREDICTION_COLOUR))
    assert "case\nDice 0.000, prediction empty" in texts(figures[0])


def test_the_sheet_has_every_image_a_title_and_one_legend(tmp_path, figures):
    items = [
        overlay(square(5, 10, 20, 30, size), square(6, 10, 20, 30, size), f"image {i}", i / 10)
        for i, size in enumerate([(48, 64), (64, 48), (48, 48), (96, 64), (64, 64)])
    ]
    draw_overlays(tmp_path / "sheet.png", items, "a title")
    shown = texts(figures[0])
    for i in range(5):
        assert f"image {i}\nDice 0.{i}00" in shown
    assert "a title" in shown
    assert shown.count("truth") == shown.count("prediction") == 1
    draw_overlays(tmp_path / "row.png", items[:4], "a title")
    two, one = read(tmp_path / "sheet.png"), read(tmp_path / "row.png")
    assert two.shape[1] == one.shape[1] == 4 * 330
    assert two.shape[0] > 1.5 * one.shape[0]


def test_sheets_that_cannot_be_drawn_say_why(tmp_path):
    with pytest.raises(ValueError, match="no images"):
        draw_overlays(tmp_path / "sheet.png", [], "title")
    item = overlay(square(5, 10, 20, 30), square(5, 10, 20, 30, (64, 48)), "odd one")
    with pytest.raises(ValueError, match=r"odd one: prediction is \(64, 48\) and the image \(48"):
        draw_overlays(tmp_path / "sheet.png", [item], "title")


HISTORY = [
    {"epoch": 1.0, "train_loss": 2.0, "val_dice": 0.25},
    {"epoch": 2.0, "train_loss": 1.0, "val_dice": 0.75},
    {"epoch": 3.0, "train_loss": 0.5, "val_dice": math.nan},
]


def test_learning_curves_show_loss_score_and_best_epoch(tmp_path, figures):
    draw_learning_curves(tmp_path / "c.png", HISTORY, "val_dice", "Dice", 2, "title")
    loss, score = figures[0].axes
    assert (loss.get_ylabel(), score.get_ylabel()) == ("training loss", "Dice")
    assert loss.lines[0].get_xydata().tolist() == [[1, 2], [2, 1], [3, 0.5]]
    assert score.lines[0].get_ydata()[:2].tolist() == [0.25, 0.75]
    for axes, value in ((loss, 1.0), (score, 0.75)):
        assert [2, 2] in [list(line.get_xdata()) for line in axes.lines]
        assert [[2, value]] in [line.get_xydata().tolist() for line in axes.lines]
        assert "best: epoch 2" in [text.get_text() for text in axes.get_legend().get_texts()]


def test_a_single_epoch_is_seen_and_none_need_be_the_best(tmp_path, figures):
    draw_learning_curves(tmp_path / "c.png", HISTORY[:1], "val_dice", "Dice", None, "title")
    pixels = read(tmp_path / "c.png")
    assert len(where(pixels, figure_style.TRAIN_COLOUR)) > 5
    assert len(where(pixels, figure_style.HELD_OUT_COLOUR)) > 5
    assert not any("best" in text for text in texts(figures[0]))


def test_curves_of_contrastive_runs(tmp_path, figures):
    recalls = {"image_to_text_recall@10": 0.5, "text_to_image_recall@10": 0.25}
    rows = [{"epoch": e, "train_loss": 2 / e, "val_loss": 3 / e} | recalls for e in (1, 2)]
    figure_style.plot_curves(rows, tmp_path / "c.png", best_epoch=2, title="title")
    losses, found = figures[0].axes
    assert [line.get_ydata().tolist() for line in found.lines[:2]] == [[50, 50], [25, 25]]
    assert [line.get_ydata().tolist() for line in losses.lines[:2]] == [[2, 1], [3, 1.5]]
    assert {"train", "held out", "image to text", "text to image"} <= set(texts(figures[0]))


POINTS = {
    "ht": [(100.0, 80.0, 1.0), (5.0, 50.0, 3.0), (1.0, 30.0, math.nan)],
    "lora": [(5.0, 45.0, 2.0)],
}


def test_few_shot_has_the_percentages_as_ticks_and_points_in_their_order(tmp_path, figures):
    draw_few_shot(tmp_path / "few.png", POINTS, "Dice (%)", "title")
    (axes,) = figures[0].axes
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "5", "100"]
    assert axes.get_xticks().tolist() == [1, 5, 100]
    line = next(line for line in axes.lines if line.get_color() == pictures.METHOD_COLOURS["ht"])
    assert line.get_ydata().tolist() == [30, 50, 80]
    assert line.get_xdata() == pytest.approx([1, 5, 100], rel=0.05)
    bars = next(c.get_segments() for c in axes.collections if hasattr(c, "get_segments"))
    assert [(bar[0, 1], bar[1, 1]) for bar in bars] == [(30, 30), (47, 53), (79, 81)]
    assert {"ht", "lora", "Dice (%)"} <= set(texts(figures[0]))


def test_labels_of_crowded_percentages_take_turns_in_lines(tmp_path, figures):
    points = {"ht": [(percent, 1.0, 0.1) for percent in (1, 50, 90, 95, 100)]}
    draw_few_shot(tmp_path / "few.png", points, "Dice (%)", "title")
    labels = figures[0].axes[0].get_xticklabels()
    assert [label.get_text().strip() for label in labels] == ["1", "50", "90", "95", "100"]
    boxes = [label.get_tightbbox() for label in labels]
    ink = [Bbox([[b.x0, b.y0], [b.x1, b.y0 + 12]]) for b in boxes]  # the label's last line
    assert not any(a.overlaps(b) for a, b in itertools.combinations(ink, 2))


def test_scores_of_nothing_but_zero_have_an_axis_above_it(tmp_path, figures):
    for value, bottom, top in ((0.0, 0, 1), (0.5, None, None), (-0.5, None, 0.5)):
        points = {"ht": [(1.0, value, 0.0), (5.0, value, 0.0)]}
        draw_few_shot(tmp_path / "few.png", points, "Dice (%)", "title")
        low, high = figures[-1].axes[0].get_ylim()
        assert low >= 0 if value >= 0 else low < value
        assert bottom is None or low == bottom
        assert top is None or high <= top
        assert low <= value < high


def test_few_shot_needs_points_above_zero(tmp_path):
    for points in ({}, {"ht": []}, {"ht": [(0.0, 1.0, 1.0)]}):
        with pytest.raises(ValueError, match="percentages"):
            draw_few_shot(tmp_path / "few.png", points, "Dice (%)", "title")


def test_methods_keep_their_colours_whatever_stands_beside_them(tmp_path, figures):
    for names in (["ht", "lora"], ["unet", "lora", "ht", "dinov2"]):
        points = {name: [(1.0, 1.0, 0.1), (2.0, 2.0, 0.1)] for name in names}
        draw_few_shot(tmp_path / "few.png", points, "Dice (%)", "title")
        handles, labels = figures[-1].axes[0].get_legend_handles_labels()
        found = {n: h.lines[0].get_color() for n, h in zip(labels, handles, strict=True)}
        assert found["ht"] == pictures.METHOD_COLOURS["ht"]
        assert found["lora"] == pictures.METHOD_COLOURS["lora"]
        assert len(set(found.values())) == len(names)


def test_comparison_has_bars_whiskers_and_numbers(tmp_path, figures):
    scores = {
        "ht": (80.0, 1.5),
        "lora": (7.25, math.nan),
        "mona": (math.nan, math.nan),
        "frozen": (0.5, 0.0),
    }
    draw_comparison(tmp_path / "bars.png", scores, "Dice (%)", "title")
    (axes,) = figures[0].axes
    assert [bar.get_width() for bar in axes.patches] == [80, 7.25, 0.5]
    shown = texts(figures[0])
    for text in ("80.0 ± 1.5", "7.25", " not defined", "0.500 ± 0.000", "Dice (%)"):
        assert text in shown
    whiskers = [s for c in axes.collections for s in c.get_segments()]
    assert [segment[:, 0].tolist() for segment in whiskers] == [[78.5, 81.5], [0.5, 0.5]]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == list(scores)
    heights = [bar.get_y() for bar in axes.patches]
    assert (
        axes.transData.transform((0, heights[0]))[1] > axes.transData.transform((0, heights[1]))[1]
    )


def test_comparisons_of_nothing(tmp_path):
    draw_comparison(tmp_path / "bars.png", {"ht": (math.nan, math.nan)}, "Dice (%)", "title")
    assert read(tmp_path / "bars.png").size
    with pytest.raises(ValueError, match="no scores"):
        draw_comparison(tmp_path / "none.png", {}, "Dice (%)", "title")


SHOWN = Shown(64, 12, "fastht-tiny/none", "sample")


def draw_everything(folder, name, title, shown=SHOWN):
    mask = square(5, 10, 20, 30)
    draw_overlays(folder / "1.png", [overlay(mask, mask, name)] * 5, title, shown=shown)
    draw_overlays(folder / "2.png", [overlay(mask, mask, name)], title, shown=shown)
    draw_learning_curves(folder / "4.png", HISTORY, "val_dice", "Dice", 2, title, shown)
    points = {name: POINTS["ht"], f"{name} too": POINTS["lora"]}
    draw_few_shot(folder / "5.png", points, "Dice (%)", title, shown)
    scores = {name: (100.0, 30.0), f"{name} too": (99.9, 0.1)}
    draw_comparison(folder / "6.png", scores, "Dice (%)", title, shown)


def test_every_picture_says_what_it_is_of_without_hiding_anything(tmp_path, figures):
    draw_everything(tmp_path, "ht", "title")
    draw_found(tmp_path / "7.png", [("text", [Found(Image.new("RGB", (8, 8)), 0.5)])], "t", SHOWN)
    sentence = "n = 64 images, 12 patients; model fastht-tiny, RANDOM weights; SIMULATED images"
    for figure in figures:
        (foot,) = (text for text in figure.texts if "n = 64" in text.get_text())
        assert foot.get_text().replace("\n", " ") == sentence
        below = foot.get_window_extent().y1
        for axes in figure.axes:
            assert axes.get_tightbbox().y0 >= below - 1
        for legend in figure.legends:
            assert legend.get_window_extent().y0 >= below - 2
    assert len(figures) == 6


def test_a_legend_below_hides_no_axes(tmp_path, figures):
    mask = square(5, 10, 20, 30)
    for shown in (None, SHOWN):
        draw_overlays(tmp_path / "1.png", [overlay(mask, mask)] * 5, "title", shown=shown)
        (legend,) = figures[-1].legends
        top = legend.get_window_extent().y1 - 5  # its frame is not drawn
        assert all(axes.get_tightbbox().y0 >= top - 1 for axes in figures[-1].axes if axes.images)


@pytest.mark.parametrize("name", ["ht", LONG])
def test_nothing_is_cut_off(tmp_path, name):
    draw_everything(tmp_path, name, f"{name} on {name}")
    for path in tmp_path.glob("*.png"):
        pixels = read(path)
        rim = [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
        assert all((line == 255).all() for line in rim), path.name
        assert 150 < pixels.shape[0] < 1500
        assert 600 < pixels.shape[1] < 1500


def test_names_are_no_formulas(tmp_path, figures):
    draw_everything(tmp_path, "$a_b$ 5$", "costs $5$")
    # Unescaped, an odd dollar stays, and two make a formula.
    for figure in figures:
        assert any(text.startswith(r"costs \$5\$") for text in texts(figure))
        for text in figure.findobj(Text):
            assert not text._preprocess_math(text.get_text())[1]


def test_pyplot_and_its_settings_are_left_alone(tmp_path):
    import matplotlib
    from matplotlib import pyplot

    before = dict(matplotlib.rcParams)
    draw_everything(tmp_path, "ht", "title")
    assert pyplot.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


def test_long_names_keep_both_ends():
    assert figure_style.shorten("abcdefghij", 10) == "abcdefghij"
    assert figure_style.shorten("abcdefghijk", 10) == "abcd…ghijk"
    assert overlays.TRUTH_WIDTH > overlays.PREDICTION_WIDTH
