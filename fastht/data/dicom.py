"""One frame of a DICOM file as an 8-bit RGB image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image

from fastht.data.pixels import DataError, ceiling, check_size, frame_index, gray_to_8bit, scale

if TYPE_CHECKING:
    from pydicom import Dataset

_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # all of them RGB once decoded
_GRAY = ("MONOCHROME1", "MONOCHROME2")
_NEEDED = ("Rows", "Columns", "BitsStored", "PhotometricInterpretation")
_OVERLAY_BIT = 0x0102  # element of an overlay that lies in the unused bits of pixels
# Elements that say something of the pixels, and nothing where they are empty.
_OPTIONAL = (
    "NumberOfFrames",
    "PixelRepresentation",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "VOILUTFunction",
    "WindowCenter",
    "WindowWidth",
)


def read_dicom(stream: BinaryIO, frame: int | None, name: str) -> Image.Image:
    """Decode one frame of a DICOM file."""
    try:
        from pydicom import dcmread
        from pydicom.pixels import apply_color_lut, pixel_array
    except ImportError:
        raise DataError(
            f'{name}: DICOM needs pydicom 3 or newer: pip install "fastht[train]"'
        ) from None

    header = dcmread(stream, stop_before_pixels=True)
    _clear(header, name)
    _check_decoder(header, name)
    check_size(header.Columns, header.Rows, name)
    index = frame_index(frame, int(header.get("NumberOfFrames") or 1), name)
    _check_length(stream, header, name)
    # Reads its own header again, but of the pixel data only this frame.
    pixels = pixel_array(stream, index=index, **_defaults(header))

    kind = header.PhotometricInterpretation
    if (pixels.ndim == 3) != (kind in _COLOUR) and kind in (*_COLOUR, *_GRAY):
        samples = 1 if pixels.ndim == 2 else pixels.shape[-1]
        what = f"photometric interpretation {kind}, but {samples} values a pixel"
        raise DataError(f"{name}: {what}; correct the header or export it again")
    if kind in _GRAY:
        gray = _window_dicom(pixels, header, name)
        return Image.fromarray(255 - gray if kind == "MONOCHROME1" else gray).convert("RGB")
    if kind == "PALETTE COLOR":
        # The range is that of the whole table: some vendors keep 8-bit entries in 16-bit ones,
        # and a frame that happens to be dark must not be brightened.
        entries, first = header.RedPaletteColorLookupTableDescriptor[:2]
        table = apply_color_lut(np.arange(first, first + (entries or 2**16)), header)[..., :3]
        rgb = scale(apply_color_lut(pixels, header)[..., :3], 0, ceiling(table.max()))
        return Image.fromarray(rgb)
    if kind in _COLOUR:
        return Image.fromarray(scale(pixels, 0, 2**header.BitsStored - 1))
    raise DataError(f"{name}: photometric interpretation {kind} is not supported; convert to RGB")


def _clear(header: Dataset, name: str) -> None:
    """Take empty elements for absent, and refuse a header that lacks what is needed."""
    for keyword in _OPTIONAL:
        if keyword in header and header[keyword].is_empty:
            del header[keyword]
    for keyword in ("VOILUTSequence", "ModalityLUTSequence"):
        table = header[keyword][0] if keyword in header else None
        if table is not None and not (table.get("LUTDescriptor") and table.get("LUTData")):
            del header[keyword]
    # One of the two alone leaves the other at what changes nothing.
    if "RescaleSlope" in header or "RescaleIntercept" in header:
        header.RescaleSlope = header.get("RescaleSlope", 1)
        header.RescaleIntercept = header.get("RescaleIntercept", 0)
    lacking = [k for k in _NEEDED if k not in header or header[k].is_empty]
    if lacking:
        raise DataError(f"{name}: the DICOM header lacks {', '.join(lacking)}; export it again")


def _defaults(header: Dataset) -> dict[str, Any]:
    """What the decoder is to take where the header is empty."""
    found: dict[str, Any] = {"number_of_frames": int(header.get("NumberOfFrames") or 1)}
    overlaid = any(
        header.get((group, _OVERLAY_BIT)) is not None and header[group, _OVERLAY_BIT].value
        for group in range(0x6000, 0x6020, 2)
    )
    if not overlaid and not header.get("PixelRepresentation"):
        # It would clear what Bits Stored does not hold, and dark would become bright and back.
        found["correct_unused_bits"] = False
    if header.get("PixelRepresentation") is None:
        found["pixel_representation"] = 0
    if header.get("SamplesPerPixel") == 3 and header.get("PlanarConfiguration") is None:
        found["planar_configuration"] = 0
    return found


def _check_length(stream: BinaryIO, header: Dataset, name: str) -> None:
    """Refuse native pixel data that is whole frames longer than the header says.

    The decoder takes such for padding; it is more frames, or an image of more rows.
    """
    syntax = header.file_meta.TransferSyntaxUID
    samples, bits = header.get("SamplesPerPixel"), header.get("BitsAllocated")
    if syntax.is_compressed or not samples or not bits or bits < 8:
        return
    # The stream stands at the element; its length follows tag, and kind and two unused bytes.
    start, order = stream.tell(), "little" if syntax.is_little_endian else "big"
    stream.seek(start + (4 if syntax.is_implicit_VR else 8))
    length = int.from_bytes(stream.read(4), order)  # type: ignore[arg-type]
    stream.seek(0)
    frame = header.Rows * header.Columns * samples * bits // 8
    if header.PhotometricInterpretation == "YBR_FULL_422":
        frame = frame * 2 // 3
    frames = int(header.get("NumberOfFrames") or 1)
    if length != 0xFFFFFFFF and frame and length // frame > frames:
        what = f"pixel data of {length // frame} frames of {header.Columns} x {header.Rows}"
        raise DataError(f"{name}: {what}, the header says {frames}; correct the header")


def _modality(stored: np.ndarray, header: Dataset) -> tuple[np.ndarray, int | None]:
    """The modality transformation, and the bits of its table if it is one."""
    from pydicom.pixels import apply_modality_lut

    if "ModalityLUTSequence" not in header:
        return apply_modality_lut(stored, header), None
    descriptor = header.ModalityLUTSequence[0].LUTDescriptor
    bits = int(descriptor[2])
    if 8 < bits < 16:  # entries of 10 or 12 bits lie in 16
        header.ModalityLUTSequence[0].LUTDescriptor = [*descriptor[:2], 16]
    return apply_modality_lut(stored, header), bits


def _check_decoder(header: Dataset, name: str) -> None:
    """Raise DataError, with the package to install, if nothing decodes the transfer syntax."""
    from pydicom.pixels import get_decoder

    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise DataError(f"{name}: the DICOM header has no transfer syntax; export it again")
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        raise DataError(
            f"{name}: transfer syntax {syntax.name} ({syntax}) cannot be decoded; "
            "export the frames as PNG or as uncompressed DICOM"
        ) from None
    if not available:
        raise DataError(
            f"{name}: no decoder is installed for transfer syntax {syntax.name} ({syntax}); "
            'pip install "pylibjpeg[all]"'
        )


def _window_dicom(stored: np.ndarray, header: Dataset, name: str) -> np.ndarray:
    """Stored gray values to uint8: modality transformation, VOI LUT or window, scaling."""
    from pydicom.pixels import apply_modality_lut, apply_voi

    top = 2 ** (header.BitsStored - bool(header.get("PixelRepresentation"))) - 1
    if stored.max() > top:
        what = f"values up to {stored.max():,}, which Bits Stored, {header.BitsStored}, cannot hold"
        raise DataError(f"{name}: {what}; correct the header or export it again")
    values, table_bits = _modality(stored, header)
    if header.get("VOILUTSequence"):
        depth = header.VOILUTSequence[0].LUTDescriptor[2]
        return scale(apply_voi(values, header), 0, 2**depth - 1)
    if header.get("WindowCenter") is not None and header.get("WindowWidth") is not None:
        function = header.get("VOILUTFunction", "LINEAR").upper()
        # Both may list alternative views, of which the first counts.
        centre, width = (
            float(np.ravel(header[key].value)[0]) for key in ("WindowCenter", "WindowWidth")
        )
        if not width >= (1 if function == "LINEAR" else np.finfo(float).tiny):
            raise DataError(f"{name}: Window Width is {width}; correct or delete the element")
        # PS3.3 C.11.2.1.2 and C.11.2.1.3. pydicom's apply_windowing divides by zero at width 1.
        if function == "SIGMOID":
            return scale(1 / (1 + np.exp(-4 * (values - centre) / width)), 0, 1)
        if function == "LINEAR":
            centre, width = centre - 0.5, width - 1
        return scale(values, centre - width / 2, centre + width / 2)
    if table_bits is not None:
        return scale(values, 0, 2**table_bits - 1)
    bits = header.BitsStored
    lowest = -(2 ** (bits - 1)) if header.get("PixelRepresentation") else 0
    highest = lowest + 2**bits - 1
    limits = apply_modality_lut(np.array([lowest, highest]), header)
    low, high = limits.min(), limits.max()  # a negative slope swaps the two
    if (low, high) == (0, 65535):
        return gray_to_8bit(values, name)
    return scale(values, low, high)
