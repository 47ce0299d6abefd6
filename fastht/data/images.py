"""One image file, PNG/JPEG/TIFF/BMP/WebP or DICOM, as an 8-bit RGB image."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from pydicom import Dataset

MAX_PIXELS = 80_000_000
"""Larger images are refused as decompression bombs; ultrasound frames have about a million."""

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # all of them RGB once decoded
_PHOTOMETRIC_WHITE_IS_ZERO = 0  # value of the TIFF tag 262
_TIFF_PHOTOMETRIC = 262


class DataError(ValueError):
    """Bad input data; the message names the file and the remedy."""


def read_image(
    source: str | os.PathLike[str] | bytes, *, frame: int | None = None, name: str | None = None
) -> Image.Image:
    """Read an image file, or its bytes, as a PIL image of mode "RGB" with 8 bits a channel.

    - Transparency is composited on black; EXIF orientation is applied.
    - Gray deeper than 8 bits is scaled linearly, never clipped. The range is the smallest of
      0..255, 0..4095 and 0..65535 that holds the image's maximum (float images: also 0..1), since
      scanners store 8- and 12-bit data in 16-bit files without saying so. Values that are
      negative or above 65535 have no such range: the image's own minimum..maximum is used.
    - DICOM (by a "DICM" mark at byte 128 or the suffix .dcm, .dicom or .ima): the modality
      transformation, then the first VOI LUT or window, is applied; without either the range is
      that of Bits Stored (16 stored bits without rescaling: as for 16-bit files above).

    frame: index from 0; None takes the middle frame, the earlier one of an even number. Only that
        frame is decoded.
    name: what error messages call the image; default: the path.

    Raises DataError if the file is missing, empty, damaged, not an image, larger than MAX_PIXELS,
    contains NaN or Inf, lacks the frame, or needs a DICOM decoder that is not installed.
    """
    if name is None:
        name = "image given as bytes" if isinstance(source, bytes) else os.fspath(source)
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as stream:
            head = stream.read(132)
            stream.seek(0)
            if not head:
                raise DataError(f"{name}: the file is empty; copy or export it again")
            if head[128:] == b"DICM":
                return _read_dicom(stream, frame, name)
            if name.lower().endswith(_DICOM_SUFFIXES):
                raise DataError(f"{name}: not a DICOM file (no DICM mark); export it again")
            return _read_picture(stream, frame, name)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{name}: no such file; check the path") from None
    except Image.DecompressionBombError:
        raise _too_large(name) from None
    except Exception as error:
        # Decoders meet damaged files with whatever breaks first: OSError, SyntaxError, struct
        # and zlib errors, KeyError. The caller needs the name of the file in every case.
        what = f"{type(error).__name__}: {error}"
        raise DataError(f"{name}: cannot be read ({what}); export it again") from error


def _read_picture(stream: BinaryIO, frame: int | None, name: str) -> Image.Image:
    """Decode one of _FORMATS."""
    try:
        opened = Image.open(stream, formats=_FORMATS)
    except Image.UnidentifiedImageError:
        kinds = "PNG, JPEG, TIFF, BMP, WebP or DICOM"
        raise DataError(f"{name}: not an image that can be read ({kinds}); convert it") from None
    with opened as image:
        _check_size(image.width, image.height, name)
        frames = getattr(image, "n_frames", 1)
        if frames > 1 or frame is not None:
            image.seek(_frame_index(frame, frames, name))
            _check_size(image.width, image.height, name)  # TIFF pages differ in size
        white_is_zero = _white_is_zero(image)
        upright = ImageOps.exif_transpose(image)  # always a copy, loaded
    if upright.mode.startswith(("I", "F")):
        gray = gray_to_8bit(np.asarray(upright), name)
        return Image.fromarray(255 - gray if white_is_zero else gray).convert("RGB")
    if upright.has_transparency_data:
        black = Image.new("RGBA", upright.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, upright.convert("RGBA")).convert("RGB")
    return upright.convert("RGB")


def _white_is_zero(image: Image.Image) -> bool:
    """Whether this is a TIFF of inverted gray; PIL undoes that for 8 bits, not for deeper ones."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(_TIFF_PHOTOMETRIC) == _PHOTOMETRIC_WHITE_IS_ZERO


def _read_dicom(stream: BinaryIO, frame: int | None, name: str) -> Image.Image:
    """Decode one frame of a DICOM file."""
    try:
        from pydicom import dcmread
        from pydicom.pixels import apply_color_lut, pixel_array
    except ImportError:
        raise DataError(
            f'{name}: DICOM needs pydicom 3 or newer: pip install "fastht[train]"'
        ) from None

    header = dcmread(stream, stop_before_pixels=True)
    _check_decoder(header, name)
    _check_size(header.Columns, header.Rows, name)
    index = _frame_index(frame, int(header.get("NumberOfFrames") or 1), name)
    # Reads its own header again, but of the pixel data only this frame.
    pixels = pixel_array(stream, index=index)

    kind = header.PhotometricInterpretation
    if kind in ("MONOCHROME1", "MONOCHROME2"):
        gray = _window_dicom(pixels, header, name)
        return Image.fromarray(255 - gray if kind == "MONOCHROME1" else gray).convert("RGB")
    if kind == "PALETTE COLOR":
        # The range is that of the whole table: some vendors keep 8-bit entries in 16-bit ones,
        # and a frame that happens to be dark must not be brightened.
        entries, first = header.RedPaletteColorLookupTableDescriptor[:2]
        table = apply_color_lut(np.arange(first, first + (entries or 2**16)), header)[..., :3]
        rgb = _scale(apply_color_lut(pixels, header)[..., :3], 0, _ceiling(table.max()))
        return Image.fromarray(rgb)
    if kind in _COLOUR:
        return Image.fromarray(_scale(pixels, 0, 2**header.BitsStored - 1))
    raise DataError(f"{name}: photometric interpretation {kind} is not supported; convert to RGB")


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

    values = apply_modality_lut(stored, header)
    if header.get("VOILUTSequence"):
        depth = header.VOILUTSequence[0].LUTDescriptor[2]
        return _scale(apply_voi(values, header), 0, 2**depth - 1)
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
            return _scale(1 / (1 + np.exp(-4 * (values - centre) / width)), 0, 1)
        if function == "LINEAR":
            centre, width = centre - 0.5, width - 1
        return _scale(values, centre - width / 2, centre + width / 2)
    if header.get("ModalityLUTSequence"):
        return _scale(values, 0, 2 ** header.ModalityLUTSequence[0].LUTDescriptor[2] - 1)
    bits = header.BitsStored
    lowest = -(2 ** (bits - 1)) if header.PixelRepresentation else 0
    limits = apply_modality_lut(np.array([lowest, lowest + 2**bits - 1]), header)
    low, high = limits.min(), limits.max()  # a negative slope swaps the two
    if (low, high) == (0, 65535):
        return gray_to_8bit(values, name)
    return _scale(values, low, high)


def gray_to_8bit(values: np.ndarray, name: str) -> np.ndarray:
    """Gray of unknown range, [H, W] of any dtype, to uint8; the rule is read_image's."""
    if not np.isfinite(values).all():
        raise DataError(f"{name}: contains NaN or Inf; replace them or drop the image")
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        return _scale(values, low, high)
    return _scale(values, 0, 1 if values.dtype.kind == "f" and high <= 1 else _ceiling(high))


def _ceiling(maximum: float) -> int:
    """Top of the smallest of the 8-, 12- and 16-bit ranges that holds `maximum`."""
    return next(top for top in (255, 4095, 65535) if maximum <= top)


def _scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map low..high linearly to 0..255, rounded, uint8; a step at `low` where low equals high."""
    if values.dtype == np.uint8 and (low, high) == (0, 255):
        return values
    if low == high:
        return np.where(values > low, np.uint8(255), np.uint8(0))
    unit = (values.astype(np.float64) - low) / (float(high) - float(low))
    return np.rint(255 * unit.clip(0, 1)).astype(np.uint8)


def _frame_index(frame: int | None, frames: int, name: str) -> int:
    """The frame to decode."""
    if frame is None:
        return (frames - 1) // 2
    if not 0 <= frame < frames:
        raise DataError(f"{name}: no frame {frame}; the file has frames 0 to {frames - 1}")
    return frame


def _check_size(width: int, height: int, name: str) -> None:
    """Refuse what would not fit in memory before it is decoded."""
    if width * height > MAX_PIXELS:
        raise _too_large(name)


def _too_large(name: str) -> DataError:
    return DataError(f"{name}: more than {MAX_PIXELS:,} pixels; crop or resize the image")
