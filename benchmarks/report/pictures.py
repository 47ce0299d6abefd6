"""The pictures of a page, by the names of their files."""

from __future__ import annotations

import io

from benchmarks.report import bar_pictures, line_pictures
from benchmarks.report.results import Results

PICTURES = {
    "adapter.png": bar_pictures.adapter,
    "roofline.png": line_pictures.roofline,
    "sweeps.png": line_pictures.sweeps,
    "threads.png": line_pictures.threads,
    "memory.png": bar_pictures.memory,
    "training.png": bar_pictures.training,
    "throughput.png": bar_pictures.throughput,
    "export.png": bar_pictures.export,
    "losses.png": line_pictures.losses,
}


def draw(results: Results) -> dict[str, bytes]:
    """Return the PNGs for which there are results."""
    drawn = {}
    for name, make in PICTURES.items():
        if (figure := make(results)) is not None:
            buffer = io.BytesIO()
            figure.savefig(buffer)
            drawn[name] = buffer.getvalue()
    return drawn
