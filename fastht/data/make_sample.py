"""Make the embedded sample: simulated breast-like B-mode images with captions, labels and masks.

    python -m fastht.data.make_sample OUT --count 320 --seed 0

Each simulated patient has one lesion with BI-RADS attributes and two views of it. A view is a
random scatterer phantom (skin, fat, gland, muscle, lesion) imaged with a linear array: PyMUST
simulates the echoes of a few tilted plane waves, beamforms them by delay and sum, and the compound
envelope is log-compressed. Lengths are in millimetres and levels in decibels unless a name says
otherwise; x runs along the skin, z is the depth. Level 0 dB is subcutaneous fat, to which BI-RADS
refers the echogenicity of a lesion.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, gaussian_filter1d, map_coordinates

from fastht.data.sample_cases import COLUMNS, Outline, describe, generator

# Image
PIXELS = 160  # side of the image [px]
WIDTH_MM = 30.0  # lateral extent, centred on the array [mm]
Z_MIN_MM, Z_MAX_MM = 1.0, 31.0  # depth extent [mm]
JPEG_QUALITY = 90
DISPLAY_TOP_DB = 29.0  # level shown white, above the mean level of fat [dB]
DYNAMIC_RANGE_DB = (48.0, 58.0)  # level difference from black to white, drawn per image [dB]
GAIN_JITTER_DB = 2.0  # standard deviation of the operator's gain [dB]

# Scanner: a linear array with the pitch of an L11-5v. Its frequency is below that of a clinical
# breast probe, because the cost grows with it and because a pitch under 0.8 wavelengths keeps
# grating lobes, which would fill the cysts with clutter, out of the image.
CENTRE_HZ = 4e6  # centre frequency, wavelength 0.385 mm [Hz]
ELEMENTS = 96
PITCH_M, KERF_M = 0.30e-3, 0.03e-3  # [m]
BANDWIDTH_PERCENT = 75.0  # pulse-echo fractional bandwidth at -6 dB [%]
SOUND_M_S = 1540.0  # speed of sound, the same in all tissues [m/s]
ATTENUATION_DB_CM_MHZ = 0.5  # of all tissues, compensated by the flat field [dB/cm/MHz]
TILTS_DEG = (-6.0, 6.0)  # plane waves compounded coherently [degrees]
F_NUMBER = 1.0  # receive aperture: depth / width, before the Hann apodization
SPECTRUM_FLOOR_DB = -30.0  # frequencies weaker than this are not simulated [dB]
NOISE_DB = -38.0  # electronic noise relative to the mean echo of the flat field phantom [dB]
SMOOTH_PX = 0.7  # Gaussian smoothing of the envelope, as scanners do against speckle [px]
FLAT_PHANTOMS = 4  # uniform phantoms averaged for the flat field
FLAT_SMOOTH_PX = 10.0  # Gaussian smoothing of the flat field [px]
CHUNK = 320  # scatterers per simulation call: their phase matrices then fit the cache

# Phantom
SCATTERERS = 10_000  # over the area below: 10 per mm^2, about two per resolution cell
PHANTOM_X_MM = 16.0  # half width of the phantom; wider than the image so that edges are full [mm]
PHANTOM_Z_MM = 32.0  # depth of the phantom [mm]
GRID_MM = 0.1  # spacing of the level map on which tissues are painted [mm]
SKIN_DB, GLAND_DB, MUSCLE_DB = 11.0, 6.0, 1.0  # mean levels; fat is 0 [dB]
LIGAMENT_DB, FASCIA_DB = 13.0, 14.0  # excess over the tissue of the thin bright sheets [dB]
LEVEL_DB = {  # range of the lesion's level [dB re fat]
    "anechoic": (-45.0, -40.0),
    "hypoechoic": (-13.0, -9.0),
    "isoechoic": (-1.0, 1.0),
    "hyperechoic": (12.0, 15.0),
}
POSTERIOR_DB = {  # range of the gain below the thickest part of the lesion [dB]
    "none": (0.0, 0.0),
    "enhancement": (5.0, 8.0),
    "shadowing": (-15.0, -10.0),
}
SOFT_EDGE_MM = (0.45, 0.75)  # scale of the sigmoid edge of an indistinct margin [mm]
SHARP_EDGE_MM = 0.05  # and of all other margins [mm]
WALL_AMPLITUDE = 1.6  # reflection of a circumscribed wall where it faces the array
CALCIFICATION_AMPLITUDE = (7.0, 12.0)  # against the unit root mean square of fat scatterers


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, int], sigma_mm: tuple[float, float]
) -> np.ndarray:
    """Gaussian random field of unit variance, (depth, width); sigma_mm: correlation (z, x)."""
    field = gaussian_filter(rng.standard_normal(shape), np.array(sigma_mm) / GRID_MM, mode="wrap")
    return field / field.std()


def tissue_levels(rng: np.random.Generator, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Level map in dB (depth, width) of healthy breast; x (1, width), z (depth, 1) in mm."""
    shape = (z.shape[0], x.shape[1])

    def interface(depth: float, wave: float) -> np.ndarray:
        noise = rng.standard_normal(shape[1] + 400)
        bumps = gaussian_filter1d(noise, 4.0 / GRID_MM)[200:-200]
        return depth + wave * bumps[None, :] / bumps.std()

    def sheet(distance_mm: np.ndarray, half_mm: float) -> np.ndarray:
        return np.exp(-0.5 * (distance_mm / half_mm) ** 2)

    skin = interface(rng.uniform(2.0, 2.8), 0.08)
    gland = interface(rng.uniform(5.5, 8.5), 0.7)
    muscle = interface(rng.uniform(25.0, 28.0), 0.5)

    fat_map = 1.5 * smooth_noise(rng, shape, (0.8, 2.0))
    gland_map = GLAND_DB + 2.2 * smooth_noise(rng, shape, (0.7, 2.0))
    muscle_map = MUSCLE_DB + 3.5 * smooth_noise(rng, shape, (0.2, 5.0))
    # Cooper's ligaments: oblique thin sheets through the fat into the gland.
    for _ in range(int(rng.integers(3, 7))):
        foot, slope = rng.uniform(-PHANTOM_X_MM, PHANTOM_X_MM), rng.uniform(-1.6, 1.6)
        bend = rng.uniform(-0.05, 0.05)
        distance = (x - foot - slope * (z - 5.0) - bend * (z - 5.0) ** 2) / math.hypot(1, slope)
        fade = 1 / (1 + np.exp((z - rng.uniform(8.0, 16.0)) / 0.6))
        ridge = LIGAMENT_DB * sheet(distance, 0.16) * fade
        fat_map = fat_map + ridge
        gland_map = gland_map + 0.6 * ridge
    levels = np.where(z < skin, SKIN_DB, np.where(z < gland, fat_map, gland_map))
    levels = np.where(z > muscle, muscle_map, levels)
    levels = levels + FASCIA_DB * sheet(z - muscle, 0.15) + 5.0 * sheet(z - gland, 0.2)
    return levels


def make_phantom(
    case: dict[str, str], outline: Outline, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scatterers of one view: x and z in mm and reflection coefficients, each (scatterers,)."""
    grid_x = np.arange(-PHANTOM_X_MM, PHANTOM_X_MM + GRID_MM / 2, GRID_MM)[None, :]
    grid_z = np.arange(0.0, PHANTOM_Z_MM + GRID_MM / 2, GRID_MM)[:, None]
    levels = tissue_levels(rng, grid_x, grid_z)

    depth = outline.depth(*np.broadcast_arrays(grid_x, grid_z))
    soft_mm = rng.uniform(*SOFT_EDGE_MM)
    edge_mm = soft_mm if case["margin"] == "indistinct" else SHARP_EDGE_MM
    inside = 1 / (1 + np.exp(-np.clip(depth / edge_mm, -30, 30)))
    # The noise inside the lesion is small against the steps of LEVEL_DB: it keeps its term.
    level = rng.uniform(*LEVEL_DB[case["echogenicity"]])
    levels += inside * (level + 1.2 * smooth_noise(rng, levels.shape, (0.6, 0.6)) - levels)

    # Posterior feature: the gain grows with the path that a vertical ray has had in the lesion, so
    # it is full below the back wall and follows the columns. Inside the lesion it counts half: the
    # back wall keeps its contrast, and the lesion on the whole keeps the level of its term.
    path = np.cumsum(inside, axis=0)
    path = gaussian_filter1d(path / path.max(), 0.5 / GRID_MM, axis=1)
    levels = levels + rng.uniform(*POSTERIOR_DB[case["posterior"]]) * path * (1 - 0.5 * inside)

    x = rng.uniform(-PHANTOM_X_MM, PHANTOM_X_MM, SCATTERERS)
    z = rng.uniform(0.0, PHANTOM_Z_MM, SCATTERERS)
    at = np.stack([z, x + PHANTOM_X_MM]) / GRID_MM
    reflect = rng.standard_normal(SCATTERERS) * 10 ** (map_coordinates(levels, at, order=1) / 20)

    if case["margin"] == "circumscribed":
        # A smooth wall is a mirror: equal signs add up where the wall faces the array.
        wall = outline.points()
        tangent = np.roll(wall, -1, axis=0) - np.roll(wall, 1, axis=0)
        facing = np.abs(tangent[:, 0]) / np.hypot(*tangent.T)
        spacing = np.hypot(*tangent.T) / 2
        x, z = np.append(x, wall[:, 0]), np.append(z, wall[:, 1])
        reflect = np.append(reflect, WALL_AMPLITUDE * facing**4 * spacing / GRID_MM)
    if case["calcification"] == "present":
        count = int(rng.integers(4, 9))
        angle = rng.uniform(0, 2 * np.pi, count)
        radius = 0.65 * np.sqrt(rng.uniform(0, 1, count)) * outline.radii.min()
        x = np.append(x, outline.x + radius * np.cos(angle))
        z = np.append(z, outline.z + radius * np.sin(angle))
        reflect = np.append(reflect, rng.uniform(*CALCIFICATION_AMPLITUDE, count))
    return x, z, reflect


def pixel_grid() -> tuple[np.ndarray, np.ndarray]:
    """Lateral and depth coordinates in mm of the pixel centres, each (PIXELS, PIXELS)."""
    centre = (np.arange(PIXELS) + 0.5) / PIXELS
    return np.meshgrid((centre - 0.5) * WIDTH_MM, Z_MIN_MM + centre * (Z_MAX_MM - Z_MIN_MM))


def import_pymust() -> ModuleType:
    """The pymust module, or an error that says how to get it."""
    try:
        import pymust
    except ImportError as error:
        raise ImportError(
            "making the sample needs the PyMUST simulator: pip install pymust"
        ) from error
    return pymust


def apodized(matrix: Any, pixel_x: np.ndarray, pixel_z: np.ndarray) -> Any:
    """Sparse delay-and-sum matrix (pixels, samples * ELEMENTS), Hann-weighted over each aperture.

    PyMUST sums a rectangular aperture, whose side lobes leave a cyst only 20 dB below its
    surroundings. pixel_x, pixel_z: (PIXELS, PIXELS) in m.
    """
    matrix = matrix.tocoo()
    samples = matrix.shape[1] // ELEMENTS
    element_x = (np.arange(ELEMENTS) - (ELEMENTS - 1) / 2) * PITCH_M
    x, z = (axis.flatten(order="F")[matrix.row] for axis in (pixel_x, pixel_z))
    across = (element_x[matrix.col // samples] - x) * F_NUMBER / z  # -0.5 to 0.5 in the aperture
    matrix.data = matrix.data * np.cos(np.pi * across) ** 2
    return matrix.tocsr()


class Scanner:
    """Plane-wave scanner; the transmit delays, beamforming matrices and flat field are made once.

    The flat field is the mean envelope of uniform phantoms. Dividing by it does the work of a
    scanner's time gain compensation: it takes out attenuation, diffraction and the dim edges.
    """

    def __init__(self, seed: int) -> None:
        self.pymust = pymust = import_pymust()
        self.param = param = pymust.utils.Param()
        param.fc, param.fs, param.c = CENTRE_HZ, 4 * CENTRE_HZ, SOUND_M_S
        param.Nelements, param.radius = ELEMENTS, np.inf
        param.pitch, param.kerf, param.width = PITCH_M, KERF_M, PITCH_M - KERF_M
        param.bandwidth, param.attenuation = BANDWIDTH_PERCENT, ATTENUATION_DB_CM_MHZ
        param.fnumber = F_NUMBER
        self.options = pymust.utils.Options()
        self.options.dBThresh = SPECTRUM_FLOOR_DB
        self.options.ElementSplitting = 1  # the elements are narrow enough for one far field
        self.delays = [pymust.txdelay(param, math.radians(tilt)) for tilt in TILTS_DEG]
        self.matrices: list[Any] = [None] * len(
            TILTS_DEG
        )  # need the number of samples: made on use
        self.noise = 0.0
        self.flat = np.ones((PIXELS, PIXELS))

        rng = generator(seed, 2)
        power = np.zeros((PIXELS, PIXELS))
        for _ in range(FLAT_PHANTOMS):
            x = rng.uniform(-PHANTOM_X_MM, PHANTOM_X_MM, SCATTERERS)
            z = rng.uniform(0.0, PHANTOM_Z_MM, SCATTERERS)
            power += self.envelope(x, z, rng.standard_normal(SCATTERERS), rng) ** 2
        flat = np.sqrt(gaussian_filter(power / FLAT_PHANTOMS, FLAT_SMOOTH_PX, mode="nearest"))
        self.noise = 10 ** (NOISE_DB / 20) * float(np.sqrt(np.mean(flat**2)))
        self.flat = flat

    def echoes(
        self, delays: np.ndarray, x: np.ndarray, z: np.ndarray, reflect: np.ndarray
    ) -> np.ndarray:
        """Radio-frequency echoes (samples, ELEMENTS) of scatterers at x, z in mm."""
        total: Any = 0.0
        for start in range(0, len(x), CHUNK):
            part = slice(start, start + CHUNK)
            # A mute scatterer in the far corner gives every chunk the same sampling grid.
            signals, _ = self.pymust.simus(
                np.append(x[part], -PHANTOM_X_MM) * 1e-3,
                np.append(z[part], PHANTOM_Z_MM) * 1e-3,
                np.append(reflect[part], 0.0),
                delays,
                self.param,
                self.options,
            )
            total = total + signals
        return total

    def envelope(
        self, x: np.ndarray, z: np.ndarray, reflect: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Compound envelope over the flat field, (PIXELS, PIXELS); x, z in mm."""
        pixel_x, pixel_z = (axis * 1e-3 for axis in pixel_grid())
        total = np.zeros(PIXELS * PIXELS, dtype=complex)
        for i, delays in enumerate(self.delays):
            self.param.TXdelay = delays
            signals = self.pymust.rf2iq(self.echoes(delays, x, z, reflect), self.param)
            if self.matrices[i] is None:
                size = 1j * np.array(signals.shape)
                matrix = self.pymust.dasmtx(size, pixel_x, pixel_z, delays, self.param)
                self.matrices[i] = apodized(matrix, pixel_x, pixel_z)
            total += self.matrices[i] @ signals.flatten(order="F")
        image = total.reshape((PIXELS, PIXELS), order="F")
        # Electronic noise, added after beamforming: white and constant, while the echoes get
        # weaker with depth, so that the flat field brings it out in the deep part of the image.
        noise = rng.standard_normal((2, PIXELS, PIXELS)) / math.sqrt(2)
        envelope = np.abs(image + self.noise * (noise[0] + 1j * noise[1])) / self.flat
        return gaussian_filter(envelope, SMOOTH_PX)


def log_compress(envelope: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """8-bit image of an envelope (1 = mean fat), with the operator's gain and dynamic range.

    White is a fixed level, not the brightest pixel of the image: else one calcification or the
    skin would set the brightness of everything, and brightness would tell the class.
    """
    span = rng.uniform(*DYNAMIC_RANGE_DB)
    level = 20 * np.log10(np.maximum(envelope, 1e-9)) + rng.normal(0.0, GAIN_JITTER_DB)
    return np.uint8(np.clip(255 * (1 + (level - DISPLAY_TOP_DB) / span), 0, 255).round())


def progress(count: int) -> Iterable[int]:
    """`range(count)`, behind a progress bar where tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return range(count)
    return tqdm(range(count), desc="sample", unit="image")


def lesion_mask(outline: Outline) -> np.ndarray:
    """Pixels whose centre is inside the lesion, (PIXELS, PIXELS) of bool."""
    return outline.depth(*pixel_grid()) > 0


def make_sample(out: Path, count: int, seed: int) -> None:
    """Write `count` images, their masks and sample.csv under `out`; existing images are kept."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    (out / "masks").mkdir(exist_ok=True)
    scanner = None
    rows = []
    for index in progress(count):
        row, outline = describe(seed, index)
        rows.append(row)
        path = out / row["filepath"]
        if path.exists():
            continue
        scanner = scanner or Scanner(seed)
        rng = generator(seed, 4, index)
        envelope = scanner.envelope(*make_phantom(row, outline, rng), rng)
        Image.fromarray(lesion_mask(outline)).save(out / row["mask"], optimize=True)
        # Written aside and renamed: an interrupted run leaves no half image to be skipped later.
        partial = path.with_suffix(".part")
        Image.fromarray(log_compress(envelope, rng)).save(partial, "JPEG", quality=JPEG_QUALITY)
        os.replace(partial, path)

    with open(out / "sample.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Command line: OUT --count N --seed S."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--count", type=int, default=320, help="images, two per patient")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    make_sample(args.out, args.count, args.seed)


if __name__ == "__main__":
    main()
