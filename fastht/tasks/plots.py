"""Pictures of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Colour-blind safe pair (Okabe and Ito).
TRAIN_COLOUR = "#0072B2"
HELD_OUT_COLOUR = "#D55E00"


def plot_curves(
    history: Sequence[dict[str, float]], path: Path, *, best_epoch: int | None, title: str
) -> None:
    """Draw a run's losses and its recall at ten over the epochs into a PNG.

    Args:
        history: rows with ``epoch``, ``train_loss``, ``val_loss`` and recalls in [0, 1].
        path: the PNG.
        best_epoch: marked where given.
        title: heading, e.g. model and data.
    """
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    losses, recalls = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    for name, label, colour in (
        ("train_loss", "train", TRAIN_COLOUR),
        ("val_loss", "held out", HELD_OUT_COLOUR),
    ):
        losses.plot(epochs, [row[name] for row in history], color=colour, label=label)
    losses.set(xlabel="epoch", ylabel="contrastive loss")
    for name, label, style in (
        ("image_to_text_recall@10", "image to text", "-"),
        ("text_to_image_recall@10", "text to image", "--"),
    ):
        values = [100 * row[name] for row in history]
        recalls.plot(epochs, values, style, color=HELD_OUT_COLOUR, label=label)
    recalls.set(xlabel="epoch", ylabel="recall@10, held out (%)", ylim=(0, 100))
    for axes in (losses, recalls):
        if best_epoch is not None:
            axes.axvline(best_epoch, color="0.6", linewidth=1, linestyle=":", label="best")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
