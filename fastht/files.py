"""Writing files so that a kill at any moment leaves the old content or the new, never a part."""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# What file systems answer that cannot sync a directory, or do not let this user read it.
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM}


def cache_dir() -> Path:
    """Return the folder of what can be made again: ``$FASTHT_CACHE``, or ``~/.cache/fastht``."""
    return Path(os.environ.get("FASTHT_CACHE", "~/.cache/fastht")).expanduser()


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` in one step, on disk before it returns.

    A file that stood there hands its permissions on; a new one gets the process's usual ones.

    Raises:
        OSError: the file cannot be written. What stood there before still does, unless the disk
            failed after the step itself.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            with suppress(FileNotFoundError):
                shutil.copymode(path, temporary)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            # Of a full disk it would name no file, and otherwise one that is gone.
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise
    sync_directory(path.parent)


@contextmanager
def new_files(target: Path) -> Iterator[Path]:
    """Make a file that is not there yet, with others beside it: all of them, or none.

    Yields:
        A path of the same name in a hidden folder beside ``target``. What lies in that folder after
        the block comes into place, on disk, ``target`` last: where it stands, the others do.

    Raises:
        FileExistsError: one of them is there already, and stays as it is.
        OSError: they cannot be written.
    """
    placed: list[Path] = []
    workplace: Path | None = None
    try:
        workplace = Path(
            tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        )
        yield workplace / target.name
        made = sorted(workplace.iterdir(), key=lambda path: path.name == target.name)
        for path in made:
            if os.path.lexists(target.parent / path.name):
                there = target.parent / path.name
                raise FileExistsError(f"{there} exists; remove it, or give another path")
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
        for path in made:
            os.replace(path, target.parent / path.name)
            placed.append(target.parent / path.name)
    except BaseException as error:
        for path in placed:
            with suppress(OSError):
                path.unlink()
        if isinstance(error, OSError) and error.errno is not None:
            # It would name a file that is gone, or none.
            raise type(error)(error.errno, error.strerror, str(target)) from error
        raise
    finally:
        if workplace is not None:
            shutil.rmtree(workplace, ignore_errors=True)
    sync_directory(target.parent)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace ``path`` by ``content`` as JSON in one step; numbers that are not finite are null.

    Raises:
        OSError: as :func:`write_atomically`.
    """

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [finite(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    write_atomically(path, (json.dumps(finite(content), indent=2) + "\n").encode())


def remove_leftovers(path: Path) -> None:
    """Remove what killed calls of :func:`write_atomically` left beside ``path``.

    A call that runs meanwhile would lose its file: for use inside :func:`exclusive` alone.
    """
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        with suppress(OSError):
            temporary.unlink()


def check_writable(folder: Path) -> None:
    """Raise ``PermissionError`` if a folder, or the nearest above it that exists, is read-only.

    For what takes long before it writes: nothing is made or changed.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK):
        raise PermissionError(errno.EACCES, "cannot be written", str(there))


def make_directory(path: Path) -> None:
    """Make a directory, and the parents that it lacks, so that they survive a power cut.

    Raises:
        OSError: it cannot be made.
    """
    missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for directory in reversed(missing):
        sync_directory(directory.parent)


def sync_directory(path: Path) -> None:
    """Make the renames inside a directory survive a power cut, where the system lets us."""
    if os.name != "posix":
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


@contextmanager
def exclusive(folder: Path) -> Iterator[bool]:
    """Wait until no other process or thread is in this context for ``folder``.

    The lock is the kernel's and leaves no file: a killed process holds nothing.

    Yields:
        Whether it holds; a file system (or Windows) may have no such locks.
    """
    descriptor = _lock(folder)
    if descriptor is None:
        yield False
        return
    try:
        yield True
    finally:
        # Closing alone would leave the lock with processes that were forked meanwhile.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _lock(folder: Path) -> int | None:
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError):
            return None
        raise
    return descriptor
