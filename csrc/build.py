"""Compiles the native code: the extension for ``setup.py``, the test programs for ``check.sh``.

Every source is compiled once, for any CPU of the architecture, except ``cpu/path.cpp``: it holds
the kernels and is compiled once for each instruction-set path, of which ``cpu/paths.cpp`` takes one
at run time. ninja compiles only what changed since the last time.

The CUDA kernels are compiled at first use, by NVRTC (``fastht/ops/cuda``); the extension has their
host side, which needs nothing of CUDA (``FASTHT_CUDA=0`` leaves it out). The modes ``simulate…``
make a program that runs the kernels on a CPU.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

CSRC = Path(__file__).resolve().parent

AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
AVX512 += ["-mprefer-vector-width=512"]
PATHS = {
    "portable": [],
    "avx2": AVX2,
    "avx512": AVX512,
    "avx512_bf16": [*AVX512, "-mavx512bf16"],
    "amx_bf16": [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
}
FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra"]
FLAGS += ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", f"-I{CSRC}"]
# What is built, and its flags for the compiler and the linker. -g1: the tools name lines, and most
# of the time goes to compiling.
MODES = {
    "extension": ["-O3"],
    "plain": ["-O3"],
    "sanitize": ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-O1", "-g1", "-fsanitize=thread"],
    "valgrind": ["-O1", "-g1"],
    "simulate": ["-O1"],
    "simulate-sanitize": ["-O1", "-g1", "-fsanitize=address,undefined"],
    # Linked without ThreadSanitizer's library: cuda/race.cpp is in its place.
    "simulate-race": ["-O1", "-g1", "-DFASTHT_RACE"],
}
MODES["simulate-sanitize"].append("-fno-sanitize-recover=all")
INSTRUMENTED = ["-fsanitize=thread", "-fno-threadsafe-statics"]


NOT_IN_EXTENSION = {"race.cpp", "list_kernels.cpp"}  # of csrc/cuda: programs' parts


def find_compiler() -> tuple[list[str], str]:
    """Return the C++ compiler's command and the machine it compiles for, as ``x86_64-linux-gnu``.

    It is ``$CXX``, or the first of c++, g++ and clang++ that runs.

    Raises:
        LookupError: There is none, or the system is Windows.
        SystemExit: ``$CXX`` names one that does not run.
    """
    if sys.platform == "win32":
        raise LookupError("they are built on Linux and macOS only")
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]):  # macOS has a c++ that runs only with the developer tools
            asked = subprocess.run([*command, "-dumpmachine"], capture_output=True, text=True)
            if asked.returncode == 0:
                return command, asked.stdout.strip()
    if named:
        raise SystemExit(f"fastht: the compiler that CXX names does not run: {shlex.join(named)}")
    raise LookupError("no C++ compiler was found (c++, g++ or clang++; $CXX names another)")


def build(directory: Path, mode: str = "extension") -> Path:
    """Compile what ``mode`` names in ``directory`` and return the file.

    Raises:
        subprocess.CalledProcessError: It does not compile; the compiler has said why.
    """
    from ninja import BIN_DIR

    compiler, machine = find_compiler()
    product = directory / product_of(mode)
    directory.mkdir(parents=True, exist_ok=True)
    _write_rules(directory / "build.ninja", product.name, compiler, machine, mode)
    ninja = shutil.which("ninja", path=BIN_DIR) or "ninja"
    subprocess.run([ninja], cwd=directory, check=True)
    return product


def product_of(mode: str) -> str:
    """Name the file that a mode makes."""
    if mode == "extension":
        return "_native.so"
    return "test_cuda" if mode.startswith("simulate") else "test_cpu"


def _write_rules(file: Path, product: str, compiler: list[str], machine: str, mode: str) -> None:
    from ninja.ninja_syntax import Writer, escape

    def shell(*words: str) -> str:
        return escape(shlex.join(words))

    simulated = mode.startswith("simulate")
    paths = {} if simulated else _usable_paths(compiler, machine)
    if mode == "valgrind":  # which runs no others
        paths = {name: flags for name, flags in paths.items() if "-mavx512f" not in flags}
    flags = [*FLAGS, *MODES[mode], *(f"-DFASTHT_HAS_{name.upper()}" for name in paths)]
    if os.environ.get("FASTHT_WERROR") == "1":
        flags.append("-Werror")
    libraries = ["-pthread", "-ldl"] if "linux" in machine else ["-pthread"]
    cuda = []
    if mode == "extension":
        main, main_flags = "bindings.cpp", _python_flags()
        if "linux" in machine and os.environ.get("FASTHT_CUDA") != "0":
            cuda = [s for s in CSRC.glob("cuda/*.cpp") if s.name not in NOT_IN_EXTENSION]
            main_flags += ["-DFASTHT_HAS_CUDA"] if cuda else []
        libraries += ["-shared", *(["-undefined", "dynamic_lookup"] if "darwin" in machine else [])]
    else:
        main, main_flags = f"tests/{product}.cpp", []

    with file.open("w", encoding="utf-8") as out:
        ninja = Writer(out)
        ninja.rule(
            "compile",
            f"{shell(*compiler, *flags)} $flags -MMD -MF $out.d -c $in -o $out",
            description="compile $out",
            depfile="$out.d",
            deps="gcc",
        )
        ninja.rule(
            "link",
            f"{shell(*compiler, *MODES[mode])} $in -o $out {shell(*libraries)}",
            description="link $out",
        )

        def compiled(source: Path, name: str, *flags: str) -> str:
            ninja.build(f"{name}.o", "compile", str(source), variables={"flags": shell(*flags)})
            return f"{name}.o"

        if simulated:
            watched = INSTRUMENTED if mode == "simulate-race" else []
            objects = [
                compiled(source, source.stem, *watched)
                for source in sorted(CSRC.glob("tests/*cuda*.cpp"))
            ]
            objects += [compiled(s, s.stem) for s in sorted(CSRC.glob("cuda/*plan.cpp"))]
            if watched:
                objects.append(compiled(CSRC / "cuda" / "race.cpp", "race"))
            ninja.build(product, "link", objects)
            return
        objects = [compiled(CSRC / main, Path(main).stem, *main_flags)]
        for source in sorted(CSRC.glob("cpu/*.cpp")):
            if source.name != "path.cpp":
                objects.append(compiled(source, source.stem))
        for source in sorted(cuda):
            objects.append(compiled(source, f"cuda_{source.stem}", *main_flags))
        # The linker keeps the first copy of an inline function that several objects hold: the one
        # of the widest instructions comes last.
        for name, path_flags in paths.items():
            source = CSRC / "cpu" / "path.cpp"
            objects.append(compiled(source, f"path_{name}", *path_flags, f"-DFASTHT_PATH={name}"))
        ninja.build(product, "link", objects)


def _usable_paths(compiler: list[str], machine: str) -> dict[str, list[str]]:
    if not machine.startswith("x86_64"):
        return {"portable": []}

    def accepted(flags: list[str]) -> bool:
        command = [*compiler, *flags, "-E", "-x", "c++", os.devnull, "-o", os.devnull]
        return subprocess.run(command, capture_output=True).returncode == 0

    usable = {name: flags for name, flags in PATHS.items() if not flags or accepted(flags)}
    if left_out := ", ".join(name for name in PATHS if name not in usable):
        print(f"fastht: left out, as {shlex.join(compiler)} does not know their flags: {left_out}")
    return usable


def _python_flags() -> list[str]:
    import pybind11

    folders = [pybind11.get_include(), *map(sysconfig.get_path, ("include", "platinclude"))]
    # As system folders: nothing in them is warned of.
    return [word for folder in dict.fromkeys(folders) for word in ("-isystem", folder)]


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in MODES:
        raise SystemExit(f"usage: build.py {{{','.join(MODES)}}} DIRECTORY")
    try:
        build(Path(sys.argv[2]), sys.argv[1])
    except subprocess.CalledProcessError as error:
        raise SystemExit(error.returncode) from None
