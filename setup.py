"""Builds the optional native extension; all else about the package is in pyproject.toml.

FASTHT_NATIVE=0 leaves the extension out, FASTHT_NATIVE=1 insists on it; otherwise it is built where
there is a C++ compiler.

The CUDA kernels' sources come with the package and are compiled at first use. FASTHT_CUDA=1 also
compiles them now, with nvcc, for the architectures in FASTHT_CUDA_ARCHS; FASTHT_CUDA=0 leaves the
CUDA backend out.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from csrc.build import build, find_compiler  # noqa: E402
from csrc.build_cuda import check_choice, copy_sources, precompile  # noqa: E402


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


class BuildPackage(build_py):
    """Adds the CUDA kernels' sources, and their machine code where that is asked for."""

    def run(self):
        """Copy the package and what belongs to the CUDA backend."""
        super().run()
        package = ROOT / "fastht" if self.editable_mode else Path(self.build_lib) / "fastht"
        if not self.editable_mode:  # a checkout's own sources are used where they are
            copy_sources(package / "_cuda")
        precompile(package / "_cuda" / "kernels", ROOT / "build" / "cuda")


def extension_is_wanted():
    """Tell whether there is an extension, or exit where it was asked for and cannot be built."""
    choice = os.environ.get("FASTHT_NATIVE", "")
    if choice not in ("", "0", "1"):
        raise SystemExit(f"fastht: FASTHT_NATIVE is 0, 1 or unset, not {choice!r}")
    check_choice()
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
    cmdclass={"build_ext": BuildNative, "build_py": BuildPackage},
)
