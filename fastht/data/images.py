"""One image file, PNG/JPEG/TIFF/BMP/WebP/GIF or DICOM, as an 8-bit RGB image."""

from __future__ import annotations

import io
import os
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from fastht.data.deep_colour import is_deep_colour, read_deep_colour
from fastht.data.dicom import read_dicom
from fastht.data.pixels import (
    FORMATS,
    MAX_PIXELS,
    DataError,
    ceiling,
    check_size,
    frame_index,
    gray_to_8bit,
    scale,
    too_large,
)

__all__ = ["MAX_PIXELS", "DataError", "gray_to_8bit", "read_image"]

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_PHOTOMETRIC_WHITE_IS_ZERO = 0  # value of the TIFF tag 262
_TIFF_PHOTOMETRIC = 262


def read_image(
    source: str | os.PathLike[str] | bytes, *, frame: int | None = None, name: str | None = None
) -> Image.Image:
    """Read an image file, or its bytes, as a PIL image of mode "RGB" with 8 bits a channel.

    - Transparency is composited on black; EXIF orientation is applied.
    - Gray and colour deeper than 8 bits are scaled linearly, never clipped. The range is the
      smallest of 0..255, 0..4095 and 0..65535 that holds the image's maximum (float images: also
      0..1), since scanners store 8- and 12-bit data in 16-bit files without saying so. Values that
      are negative or above 65535 have no such range: the image's own minimum..maximum is used.
    - DICOM (by a "DICM" mark at byte 128 or the suffix .dcm, .dicom or .ima): the modality
      transformation, then the first VOI LUT or window, is applied; without either the range is
      that of Bits Stored (16 stored bits without rescaling: as for 16-bit files above). Elements
      that are there and empty count as absent; a header that contradicts the pixels is refused.

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
                return read_dicom(stream, frame, name)
            if name.lower().endswith(_DICOM_SUFFIXES):
                raise DataError(f"{name}: not a DICOM file (no DICM mark); export it again")
            return _read_picture(stream, frame, name)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{name}: no such file; check the path") from None
    except Image.DecompressionBombError:
        raise too_large(name) from None
    except Exception as error:
        # Decoders meet damaged files with whatever breaks first: OSError, SyntaxError, struct
        # and zlib errors, KeyError. The caller needs the name of the file in every case.
        what = f"{type(error).__name__}: {error}"
        raise DataError(f"{name}: cannot be read ({what}); export it again") from error


def _read_picture(stream: BinaryIO, frame: int | None, name: str) -> Image.Image:
    """Decode one of FORMATS."""
    try:
        opened = Image.open(stream, formats=FORMATS)
    except Image.UnidentifiedImageError:
        kinds = "PNG, JPEG, TIFF, BMP, WebP, GIF or DICOM"
        raise DataError(f"{name}: not an image that can be read ({kinds}); convert it") from None
    with opened as image:
        check_size(image.width, image.height, name)
        frames = getattr(image, "n_frames", 1)
        if frames > 1 or frame is not None:
            image.seek(frame_index(frame, frames, name))
            check_size(image.width, image.height, name)  # TIFF pages differ in size
        white_is_zero = _white_is_zero(image)
        if is_deep_colour(image):
            deep = read_deep_colour(stream, image.tell())
            if deep is None:
                what = f"{image.mode} of 16 bits a channel cannot be read whole"
                raise DataError(f"{name}: {what}; convert it to RGB of 8 or 16 bits")
            return _flatten(deep)
        upright = ImageOps.exif_transpose(image)  # always a copy, loaded
    if upright.mode.startswith(("I", "F")):
        gray = gray_to_8bit(np.asarray(upright), name)
        return Image.fromarray(255 - gray if white_is_zero else gray).convert("RGB")
    if upright.has_transparency_data:
        black = Image.new("RGBA", upright.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, upright.convert("RGBA")).convert("RGB")
    return upright.convert("RGB")


def _flatten(deep: np.ndarray) -> Image.Image:
    """Colour of 16 bits a channel, [H, W, 3] or with alpha [H, W, 4], to "RGB" on black."""
    colour = scale(deep[..., :3], 0, ceiling(deep[..., :3].max()))
    if deep.shape[-1] == 4:
        alpha = deep[..., 3:].astype(np.float64) / ceiling(deep[..., 3].max())
        colour = np.rint(colour * alpha).astype(np.uint8)
    return Image.fromarray(colour)


def _white_is_zero(image: Image.Image) -> bool:
    """Whether this is a TIFF of inverted gray; PIL undoes that for 8 bits, not for deeper ones."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(_TIFF_PHOTOMETRIC) == _PHOTOMETRIC_WHITE_IS_ZERO
