"""Where numbers come from: versions, hardware, time, and which data were split how."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch

from fastht.data.notes import Note, count_notes
from fastht.hardware import device_name
from fastht.version import __version__


class Known(Protocol):
    """A case or a record, of which patient and class may be known."""

    @property
    def image(self) -> str:
        """The image's file, and where that has several the one meant."""

    @property
    def patient(self) -> str | None:
        """The patient, or ``None``."""

    @property
    def label(self) -> str | None:
        """The class, or ``None``."""


def provenance(
    sides: Mapping[str, Iterable[Known]],
    left_out: Mapping[str, int],
    *,
    device: torch.device,
    seconds: float,
    processes: int = 1,
    notes: Iterable[Note] = (),
) -> dict[str, Any]:
    """Return what a ``results.json`` tells of where its numbers come from, as plain JSON types.

    Args:
        sides: the images of each side of the split by its name; one with several captions may be
            among them several times, and counts once.
        left_out: how many images were left out by reason.
        device: that computed.
        seconds: from the start of the command, or of its last continuation, to its scores.
        processes: how many computed together.
        notes: what was said of the data.

    Returns:
        ``fastht``, ``torch``, ``python``, ``system``, ``device``, ``hardware``, ``processes``,
        ``threads`` of each process, ``seconds``, ``left_out``, the counts of ``notes`` by kind; for
        each side of ``split`` its ``images``, ``patients`` (``None`` where none is known), images
        ``without_patient`` and images by class, ``classes``; and ``patients_on_several_sides``,
        which should be none.
    """
    listed = {
        name: list({(i.image, getattr(i, "frame", None)): i for i in items}.values())
        for name, items in sides.items()
    }
    patients = {name: {i.patient for i in items} - {None} for name, items in listed.items()}
    sides_of = Counter(patient for found in patients.values() for patient in found)
    return {
        "fastht": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device.type,
        "hardware": device_name(device),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "left_out": dict(left_out),
        "notes": count_notes(notes),
        "split": {
            name: {
                "images": len(items),
                "patients": len(patients[name]) or None,
                "without_patient": sum(item.patient is None for item in items),
                "classes": dict(sorted(Counter(i.label for i in items if i.label).items())),
            }
            for name, items in listed.items()
        },
        "patients_on_several_sides": (
            sum(count > 1 for count in sides_of.values()) if sides_of else None
        ),
    }
