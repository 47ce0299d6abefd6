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
SHIPPED = _PACKAGE / "_cuda"  # copied from csrc by setup.py
CHECKOUT = _PACKAGE.parent / "csrc"
OPTIONS = ("--std=c++17", "--fmad=true")  # nvcc and NVRTC know both
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
_HOST_ONLY = {"cuda/simulate.h"}


@dataclass(frozen=True, order=True)
class Kernel:
    """One instantiation of a kernel's template: one translation unit, one kernel.

    Attributes:
        function: the template with its arguments, ``mix_up<Bfloat16, ...>``.
        source: the text of the translation unit, as ``Kernel::source()`` of ``csrc/cuda/plan.h``
            makes it: an include and ``FASTHT_INSTANCE``.
    """

    function: str
    source: str

    @property
    def name(self) -> str:
        """The function's name alone."""
        return self.function.partition("<")[0]

    @property
    def symbol(self) -> str:
        """The kernel's name in its machine code, which profilers show."""
        return f"fastht_{self.name}"

    @property
    def instance(self) -> str:
        """The line that makes the kernel: name, parameters, threads, blocks, function."""
        return self.source.strip().splitlines()[-1]


def folder() -> Path:
    """Return where the sources are: those of the checkout, or those that came with the package.

    Raises:
        LookupError: fastht was installed without them.
    """
    for place in (CHECKOUT, SHIPPED):
        if (place / "cuda" / "device.cuh").is_file():
            return place
    raise LookupError(
        "fastht was installed without its CUDA kernels (FASTHT_CUDA=0); reinstall it without that"
    )


def headers(source: str) -> Mapping[str, str]:
    """Return all that a text includes for a device, directly or not, text by name.

    Raises:
        LookupError: fastht was installed without the sources.
    """
    place, found, wanted = folder(), dict[str, str](), _INCLUDE.findall(source)
    while wanted:
        name = wanted.pop()
        if name in found or name in _HOST_ONLY:
            continue
        found[name] = (place / name).read_text(encoding="utf-8")
        wanted += _INCLUDE.findall(found[name])
    return dict(sorted(found.items()))


def key(kernel: Kernel, arch: str, compiler: str, options: Sequence[str] = OPTIONS) -> str:
    """Return the digest of all that decides what the machine code of a kernel is."""
    digest = hashlib.sha256()
    parts = [compiler, arch, *options, kernel.source]
    for name, text in headers(kernel.source).items():
        parts += [name, text]
    for part in parts:  # the lengths keep two lists of parts apart
        data = part.encode()
        digest.update(b"%d:" % len(data) + data)
    return digest.hexdigest()
