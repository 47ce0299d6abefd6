"""Builds the optional native extension; all else about the package is in pyproject.toml.

FASTHT_NATIVE=0 leaves the extension out, FASTHT_NATIVE=1 insists on it; otherwise it is built where
there is a C++ compiler.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from csrc.build import build, find_compiler  # noqa: E402


class BuildNative(build_ext):
    """Compiles with ninja, in a folder that stays, also where pip builds in a temporary one."""

    def build_extension(self, ext):
        """Compile what changed and put the library where setuptools expects it."""
        try:
            library = build(ROOT / "build" / "native")
        except subprocess.CalledProcessError:
            raise SystemExit(
                "fastht: the native CPU kernels do not compile, see above; "
                "with FASTHT_NATIVE=0 fastht is installed without them"
            ) from None
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(library), str(target))


def extension_is_wanted():
    """Tell whether there is an extension, or exit where it was asked for and cannot be built."""
    choice = os.environ.get("FASTHT_NATIVE", "")
    if choice not in ("", "0", "1"):
        raise SystemExit(f"fastht: FASTHT_NATIVE is 0, 1 or unset, not {choice!r}")
    if choice == "0":
        return False
    try:
        find_compiler()
        if not Path(sysconfig.get_path("include"), "Python.h").exists():
            raise LookupError("Python.h is not installed (package python3-dev or the like)")
    except LookupError as reason:
        if choice == "1":
            raise SystemExit(f"fastht: no native CPU kernels can be built: {reason}") from None
        print(f"fastht: goes without native CPU kernels: {reason}", file=sys.stderr)
        return False
    return True


setup(
    ext_modules=[Extension("fastht._native", sources=[])] if extension_is_wanted() else [],
    cmdclass={"build_ext": BuildNative},
)
