"""Images inside zip files, "images.zip::member", read without unpacking them."""

from __future__ import annotations

import functools
import os
import zipfile
from pathlib import Path

from fastht.data.pixels import DataError

_MARK = ".zip::"


def is_zipped(image: str) -> bool:
    """Whether a name is of a member of a zip file."""
    return _MARK in image


def zip_members(path: Path) -> list[str]:
    """The members of a zip file that are files, in its order; what macOS adds is left out.

    Raises DataError if it is no zip file or was cut off.
    """
    names = _opened(str(path)).namelist()
    return [name for name in names if not name.endswith("/") and "__MACOSX" not in name]


def read_zipped(image: str) -> bytes:
    """The bytes of "archive.zip::member", checked against their CRC.

    Safe in any number of threads and worker processes: each process keeps the directory of an
    archive that it has read once.

    Raises DataError if the archive or the member is missing, damaged or encrypted.
    """
    archive, mark, member = image.partition(_MARK)
    if not mark:
        raise DataError(f"{image}: not of the form archive.zip::member")
    opened = _opened(f"{archive}.zip")
    try:
        return opened.read(member)
    except KeyError:
        raise DataError(f"{image}: no such member; was the archive replaced?") from None
    except Exception as error:  # zlib's, bad CRCs, passwords, unknown compressions
        what = f"{type(error).__name__}: {error}"
        raise DataError(f"{image}: cannot be read ({what}); download the archive again") from None


def _opened(path: str) -> zipfile.ZipFile:
    try:
        # A forked worker must not share the position in the file with its parent.
        return _kept(path, os.stat(path).st_mtime_ns, os.getpid())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except zipfile.BadZipFile as error:
        what = f"no zip file, or cut off ({error})"
        raise DataError(f"{path}: {what}; download it again") from None


# Images of many archives are read in any order, and a directory may have 10^5 entries.
@functools.lru_cache(maxsize=64)
def _kept(path: str, mtime_ns: int, process: int) -> zipfile.ZipFile:
    """An archive with its directory; the other arguments tell its versions apart."""
    return zipfile.ZipFile(path)
