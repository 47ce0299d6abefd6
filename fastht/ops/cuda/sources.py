"""The kernels' sources, and the translation unit that makes one kernel of them.

Only the standard library is used here: ``csrc/build.py`` reads this file by itself where kernels
are compiled at install, and torch is not there then.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[2]
SHIPPED = _PACKAGE / "_cuda"  # copied from csrc/cuda by setup.py
CHECKOUT = _PACKAGE.parent / "csrc" / "cuda"
OPTIONS = ("--std=c++17", "--fmad=true")  # nvcc and NVRTC know both
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
_FORMAT = "1"  # of the translation unit that `Entry.source` makes


@dataclass(frozen=True, order=True)
class Entry:
    """One kernel that can be started: an instantiation of a function template, with a name.

    Attributes:
        name: what the driver is asked for.
        header: the file of the template.
        function: the template with its arguments, in namespace ``fastht::cuda``.
        params: the structure that the function takes, by value.
        threads: of a block, all of them whole warps.
    """

    name: str
    header: str
    function: str
    params: str
    threads: int

    def source(self) -> str:
        """Return the translation unit."""
        return (
            f'#include "{self.header}"\n'
            f"FASTHT_KERNEL({self.threads}) {self.name}"
            f"(const __grid_constant__ fastht::cuda::{self.params} params) {{\n"
            f"  fastht::cuda::{self.function}(params);\n"
            "}\n"
        )


def folder() -> Path:
    """Return where the sources are: those of the checkout, or those that came with the package.

    Raises:
        LookupError: fastht was installed without them.
    """
    for place in (CHECKOUT, SHIPPED):
        if (place / "device.cuh").is_file():
            return place
    raise LookupError(
        "fastht was installed without its CUDA kernels (FASTHT_CUDA=0); reinstall it without that"
    )


def headers(header: str) -> Mapping[str, str]:
    """Return a header and all that it includes for a device, text by name.

    Raises:
        LookupError: fastht was installed without the sources.
    """
    place, found, wanted = folder(), dict[str, str](), [header]
    while wanted:
        name = wanted.pop()
        if name in found or not name.endswith(".cuh"):  # simulate.h is for the host alone
            continue
        found[name] = (place / name).read_text(encoding="utf-8")
        wanted += _INCLUDE.findall(found[name])
    return dict(sorted(found.items()))


def key(entry: Entry, arch: str, compiler: str, options: Sequence[str] = OPTIONS) -> str:
    """Return the digest of all that decides what the machine code of a kernel is."""
    digest = hashlib.sha256()
    parts = [_FORMAT, compiler, arch, *options, entry.source()]
    for name, text in headers(entry.header).items():
        parts += [name, text]
    for part in parts:  # the lengths keep two lists of parts apart
        data = part.encode()
        digest.update(b"%d:" % len(data) + data)
    return digest.hexdigest()
