"""Points and levels of ACR TI-RADS from tags, to hold against the level that a report states.

Source: Tessler et al., "ACR Thyroid Imaging, Reporting and Data System (TI-RADS): White Paper of
the ACR TI-RADS Committee", J Am Coll Radiol 2017. A check of tags against texts, no device that
judges nodules.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

NAME = "tirads"
"""The taxonomy whose tags are counted, or one that extends it."""

STATED = "Assessment"
"""The dimension of the level that a report states."""

_MIXED = ("mixed cystic and solid mass", "complex cystic solid")
_SOLID = ("solid or almost completely solid", "solid components")
_CYSTIC = ("cystic or almost completely cystic", "cystic components")
_ECHOGENICITY = {
    "anechoic": 0,
    "isoechoic": 1,
    "hyperechoic": 1,
    "hypoechoic": 2,
    "very hypoechoic": 3,
}
_ORIENTATION = {"wider than tall": 0, "taller than wide": 3}
_MARGIN = {
    "well-defined": 0,
    "ill-defined/indistinct": 0,
    "irregular margin": 2,
    "lobulated": 2,
    "irregular": 2,
    "extra-thyroidal extension": 3,
}
_FOCI = {
    "large comet-tail artifacts": 0,
    "macrocalcifications": 1,
    "rim calcifications": 2,
    "punctate echogenic foci": 3,
}
_LEVELS = ((0, "TR1"), (2, "TR2"), (3, "TR3"), (4, "TR4"), (7, "TR5"))  # points from which
_Range = tuple[int, int]


@dataclass(frozen=True)
class Points:
    """What tags give.

    Attributes:
        parts: the fewest and the most points of each of the five categories; they differ where
            tags are lacking or do not say which of several kinds there is.
        spongiform: then nothing counts, and the level is TR1.
    """

    parts: Mapping[str, _Range]
    spongiform: bool = False

    @property
    def total(self) -> _Range:
        """The fewest and the most points."""
        if self.spongiform:
            return 0, 0
        return sum(low for low, _ in self.parts.values()), sum(
            high for _, high in self.parts.values()
        )

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels that may be, one where the tags suffice.

        The white paper names no level for a single point: it may be TR1 or TR2.
        """
        low, high = self.total
        names = [name for _, name in _LEVELS]
        first, last = _level(low), _level(high + (high == 1))
        return tuple(names[first : last + 1])

    @property
    def open(self) -> tuple[str, ...]:
        """The categories that tags do not settle."""
        return tuple(name for name, (low, high) in self.parts.items() if low != high)

    def describe(self) -> str:
        """Points and levels in words: 4 to 7 points, TR4 or TR5."""
        low, high = self.total
        points = f"{low}" if low == high else f"{low} to {high}"
        return f"{points} point{'' if low == high == 1 else 's'}, {' or '.join(self.levels)}"


def points(tags: Mapping[str, Collection[str]]) -> Points:
    """Count the points of a nodule.

    Args:
        tags: the values of each dimension of the taxonomy, broader ones among them or not.
    """
    inside = {*tags.get("InternalCharacteristics", ())}
    outline = {*tags.get("Margins", ()), *tags.get("Shape", ())}
    return Points(
        {
            "composition": _composition(inside),
            "echogenicity": _largest(tags.get("Echogenicity", ()), _ECHOGENICITY),
            "shape": _largest(tags.get("Orientation", ()), _ORIENTATION),
            "margin": _largest(outline, _MARGIN),
            "echogenic foci": _foci(inside),
        },
        "spongiform" in inside,
    )


def _composition(inside: Collection[str]) -> _Range:
    solid = any(value in inside for value in _SOLID)
    cystic = any(value in inside for value in _CYSTIC)
    if any(value in inside for value in _MIXED) or (solid and cystic):
        return 1, 1
    if solid:
        return 2, 2
    return (0, 0) if cystic or "spongiform" in inside else (0, 2)


def _largest(values: Collection[str], worth: Mapping[str, int]) -> _Range:
    found = [worth[value] for value in values if value in worth]
    return (max(found), max(found)) if found else (0, max(worth.values()))


def _foci(inside: Collection[str]) -> _Range:
    """All kinds count. None said is none; calcifications of no kind said are one of three."""
    kinds = sum(points for value, points in _FOCI.items() if value in inside)
    if kinds or "calcifications" not in inside:
        return kinds, kinds
    return 1, 3


def _level(total: int) -> int:
    return max(index for index, (least, _) in enumerate(_LEVELS) if total >= least)
