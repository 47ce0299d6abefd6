"""The cases of the embedded sample: each patient's class, BI-RADS attributes, outline and caption.

Everything here follows from a seed and an index without any simulation; `make_sample` images it.
Lengths are in millimetres; x runs along the skin, z is the depth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

LABELS = ("cyst", "benign mass", "malignant mass")

# What each class looks like: probability of every value of every attribute. The overlap between
# the classes is deliberate; `orientation` is given for masses that are not round.
PROFILES: dict[str, dict[str, dict[str, float]]] = {
    "cyst": {
        "shape": {"oval": 0.65, "round": 0.35},
        "margin": {"circumscribed": 0.88, "microlobulated": 0.12},
        "echogenicity": {"anechoic": 0.85, "hypoechoic": 0.15},
        "orientation": {"parallel": 0.92, "not parallel": 0.08},
        "posterior": {"enhancement": 0.85, "none": 0.15},
        "calcification": {"none": 0.95, "present": 0.05},
    },
    "benign mass": {
        "shape": {"oval": 0.75, "round": 0.15, "irregular": 0.10},
        "margin": {"circumscribed": 0.62, "microlobulated": 0.28, "indistinct": 0.10},
        "echogenicity": {"hypoechoic": 0.50, "isoechoic": 0.27, "hyperechoic": 0.23},
        "orientation": {"parallel": 0.88, "not parallel": 0.12},
        "posterior": {"none": 0.62, "enhancement": 0.32, "shadowing": 0.06},
        "calcification": {"none": 0.85, "present": 0.15},
    },
    "malignant mass": {
        "shape": {"irregular": 0.75, "oval": 0.13, "round": 0.12},
        "margin": {
            "spiculated": 0.40,
            "indistinct": 0.30,
            "microlobulated": 0.24,
            "circumscribed": 0.06,
        },
        "echogenicity": {"hypoechoic": 0.86, "isoechoic": 0.10, "hyperechoic": 0.04},
        "orientation": {"not parallel": 0.62, "parallel": 0.38},
        "posterior": {"shadowing": 0.62, "none": 0.28, "enhancement": 0.10},
        "calcification": {"none": 0.60, "present": 0.40},
    },
}
ATTRIBUTES = tuple(PROFILES["cyst"])
# The same findings as records of US-365K hold them, under its nine fields and in its words
# (arXiv 2604.01749). What is not simulated, or is not there, is left empty: there is no Doppler.
FIELDS = (
    "Diagnosis",
    "Body_system_level",
    "Organ_level",
    "Shape",
    "Margins",
    "Echogenicity",
    "InternalCharacteristics",
    "PosteriorAcoustics",
    "Vascularity",
)
COLUMNS = ("filepath", "mask", "title", "label", "patient", *ATTRIBUTES, *FIELDS)
RADIUS_MM = (3.6, 5.8)  # geometric mean of the lesion's semi-axes, the same for all classes [mm]

# Captions state every attribute in one order. Only their opening varies, so that what tells two
# captions apart is what can be seen in the images.
OPENINGS = (
    "Breast ultrasound showing",
    "B-mode ultrasound image of",
    "Sonogram of the breast with",
    "Ultrasound of",
    "Greyscale ultrasound showing",
)
POSTERIORS = {
    "none": "no posterior features",
    "enhancement": "posterior enhancement",
    "shadowing": "posterior shadowing",
}
CALCIFICATIONS = {"none": "", "present": ", with calcifications"}


def generator(*key: int) -> np.random.Generator:
    """Random generator that depends on the integers of `key` alone, whatever ran before."""
    return np.random.default_rng(np.random.SeedSequence(key))


def draw_case(seed: int, patient: int) -> dict[str, str]:
    """Label and BI-RADS attributes of one patient, keys `label` and ATTRIBUTES."""
    # Every three patients in a row hold each class once, in random order: balance for any count.
    order = generator(seed, 0, patient // len(LABELS)).permutation(len(LABELS))
    label = LABELS[order[patient % len(LABELS)]]
    rng = generator(seed, 1, patient)
    case = {"label": label}
    for name, odds in PROFILES[label].items():
        case[name] = str(rng.choice(list(odds), p=list(odds.values())))
    if case["shape"] == "round":
        case["orientation"] = "not parallel"  # BI-RADS: parallel means wider than tall
    return case


@dataclass(frozen=True)
class Outline:
    """Star-shaped lesion boundary: radius in mm at equally spaced angles about (x, z) in mm."""

    x: float
    z: float
    radii: np.ndarray  # (angles,), angle 0 along +x, increasing towards +z

    def depth(self, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Radial depth inside the boundary in mm, negative outside; x, z and result: any shape."""
        dx, dz = x - self.x, z - self.z
        turn = np.arctan2(dz, dx) / (2 * np.pi) % 1.0
        knots = np.arange(len(self.radii) + 1) / len(self.radii)
        return np.interp(turn, knots, np.append(self.radii, self.radii[0])) - np.hypot(dx, dz)

    def points(self) -> np.ndarray:
        """Boundary points (angles, 2): x and z in mm."""
        angle = np.arange(len(self.radii)) * 2 * np.pi / len(self.radii)
        offsets = np.stack([np.cos(angle), np.sin(angle)], axis=1) * self.radii[:, None]
        return offsets + np.array([self.x, self.z])

    @property
    def size(self) -> tuple[float, float]:
        """Width along the skin and height across it, in mm."""
        width, height = np.ptp(self.points(), axis=0)
        return float(width), float(height)


def boundary_radii(case: dict[str, str], rng: np.random.Generator, count: int = 720) -> np.ndarray:
    """Radius in mm at `count` angles for the shape, orientation and margin of `case`."""
    angle = np.arange(count) * 2 * np.pi / count
    aspect = {"round": (1.0, 1.06), "oval": (1.3, 1.75), "irregular": (1.1, 1.5)}[case["shape"]]
    ratio, tilt = rng.uniform(*aspect), math.radians(rng.normal(0.0, 8.0))
    mean = rng.uniform(*RADIUS_MM)
    long, short = mean * math.sqrt(ratio), mean / math.sqrt(ratio)
    if case["orientation"] == "not parallel":
        tilt += math.pi / 2
    turned = angle - tilt
    radii = long * short / np.hypot(short * np.cos(turned), long * np.sin(turned))
    if case["shape"] == "irregular":
        for order in range(2, 7):
            radii *= 1 + rng.uniform(0.05, 0.13) * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    if case["margin"] == "microlobulated":
        # |sin| makes convex lobes that meet in sharp notches.
        lobes, phase = int(rng.integers(7, 11)), rng.uniform(0, 2 * np.pi)
        uneven = angle + rng.uniform(0.1, 0.25) * np.sin(2 * angle + rng.uniform(0, 2 * np.pi))
        scallop = np.abs(np.sin(lobes / 2 * uneven + phase))
        radii *= 1 + rng.uniform(0.18, 0.3) * (scallop - 2 / np.pi)
    elif case["margin"] == "spiculated":
        spikes = int(rng.integers(9, 14))
        centres = (np.arange(spikes) + rng.uniform(-0.3, 0.3, spikes)) * 2 * np.pi / spikes
        for centre in centres:
            gap = np.abs((angle - centre + np.pi) % (2 * np.pi) - np.pi)
            radii += rng.uniform(1.0, 2.8) * np.exp(-gap / rng.uniform(0.06, 0.11))
    elif case["margin"] == "indistinct":
        for order in range(3, 8):
            radii *= 1 + rng.uniform(0.0, 0.03) * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    return radii


def draw_outline(case: dict[str, str], rng: np.random.Generator) -> Outline:
    """Lesion boundary in the gland, redrawn until it fits the field and agrees with the terms."""
    while True:
        x, z = rng.uniform(-6.0, 6.0), rng.uniform(11.0, 17.0)
        outline = Outline(x, z, boundary_radii(case, rng))
        low, high = outline.points().min(axis=0), outline.points().max(axis=0)
        fits = low[0] > -13.0 and high[0] < 13.0 and low[1] > 4.5 and high[1] < 23.5
        ratio = outline.size[0] / outline.size[1]
        agrees = {
            "parallel": ratio > 1.1,
            "not parallel": ratio < (1.1 if case["shape"] == "round" else 0.95),
        }[case["orientation"]]
        if fits and agrees:
            return outline


def write_caption(case: dict[str, str], rng: np.random.Generator) -> str:
    """One English sentence that states the class and every attribute of the lesion."""
    article = "an" if case["shape"][0] in "aeiou" else "a"
    return (
        f"{rng.choice(OPENINGS)} {article} {case['shape']} {case['echogenicity']} {case['label']} "
        f"with {case['margin']} margins, {case['orientation']} to the skin, "
        f"{POSTERIORS[case['posterior']]}{CALCIFICATIONS[case['calcification']]}."
    )


def tags(case: dict[str, str]) -> dict[str, str]:
    """Values of FIELDS that say of a case what its label and ATTRIBUTES say; "" for none."""
    return {
        "Diagnosis": "cyst" if case["label"] == "cyst" else "mass",
        "Body_system_level": "Breast and Axilla",
        "Organ_level": "Breast",
        "Shape": case["shape"],
        "Margins": "well-defined"
        if case["margin"] == "circumscribed"
        else "ill-defined/indistinct",
        "Echogenicity": case["echogenicity"],
        "InternalCharacteristics": "calcifications" if case["calcification"] == "present" else "",
        "PosteriorAcoustics": "" if case["posterior"] == "none" else case["posterior"],
        "Vascularity": "",
    }


def describe(seed: int, index: int) -> tuple[dict[str, str], Outline]:
    """Row of image `index` (keys COLUMNS) and its lesion boundary; needs no simulation."""
    case = draw_case(seed, index // 2)
    rng = generator(seed, 3, index)
    outline = draw_outline(case, rng)
    row = {
        "filepath": f"images/{index + 1:04d}.jpg",
        "mask": f"masks/{index + 1:04d}.png",
        "title": write_caption(case, rng),
        "patient": f"P{index // 2 + 1:03d}",
        **case,
        **tags(case),
    }
    return row, outline
