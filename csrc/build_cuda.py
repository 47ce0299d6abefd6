"""The CUDA backend's share of an install: sources for the package and, where asked for, cubins.

``FASTHT_CUDA`` unset: the sources, compiled by NVRTC at first use. ``1``: machine code by nvcc too,
for the architectures in ``FASTHT_CUDA_ARCHS`` (``80;90a``; default: those of this machine's GPUs).
``0``: nothing.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CSRC = Path(__file__).resolve().parent
FALLBACK = ["80", "90a"]  # without a GPU to ask
_ARCH = re.compile(r"\d{2,3}[af]?")


def check_choice() -> str:
    """Return what ``FASTHT_CUDA`` asks for: ``""``, ``"0"`` or ``"1"``.

    Raises:
        SystemExit: it is none of these, or ``1`` without nvcc or without the native extension.
    """
    choice = os.environ.get("FASTHT_CUDA", "")
    if choice not in ("", "0", "1"):
        raise SystemExit(f"fastht: FASTHT_CUDA is 0, 1 or unset, not {choice!r}")
    if choice == "1":
        if os.environ.get("FASTHT_NATIVE") == "0":
            raise SystemExit("fastht: FASTHT_CUDA=1 needs the extension that FASTHT_NATIVE=0 omits")
        find_nvcc()
        architectures()
    return choice


def find_nvcc() -> str:
    """Return nvcc's path: of ``PATH``, ``$CUDA_HOME`` or ``/usr/local/cuda``.

    Raises:
        SystemExit: there is none.
    """
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    found = shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(home, "bin")))
    if found is None:
        raise SystemExit(
            "fastht: FASTHT_CUDA=1 compiles the CUDA kernels now, but there is no nvcc on PATH or "
            f"in {home}/bin; install the CUDA toolkit, set CUDA_HOME, or leave FASTHT_CUDA unset: "
            "the kernels are then compiled at first use by NVRTC, which torch brings along"
        )
    return found


def architectures() -> list[str]:
    """Return what to compile for, as ``["80", "90a"]``.

    Raises:
        SystemExit: ``FASTHT_CUDA_ARCHS`` cannot be read.
    """
    named = os.environ.get("FASTHT_CUDA_ARCHS", "")
    if named:
        archs = [arch.removeprefix("sm_") for arch in re.split(r"[;,\s]+", named) if arch]
        wrong = [arch for arch in archs if not _ARCH.fullmatch(arch) or _number(arch) < 80]
        if wrong or not archs:
            raise SystemExit(
                f"fastht: FASTHT_CUDA_ARCHS lists compute capabilities of 8.0 and newer, as in "
                f"'80;90a', not {named!r}"
            )
        return list(dict.fromkeys(archs))
    try:
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return FALLBACK
    found = re.findall(r"^(\d+)\.(\d)$", asked.stdout, re.MULTILINE)
    archs = [("90a" if one + other == "90" else one + other) for one, other in found]
    return [arch for arch in dict.fromkeys(archs) if _number(arch) >= 80] or FALLBACK


def copy_sources(package: Path) -> None:
    """Copy what a device compiler reads to ``package/cuda``, unless that is declined."""
    if check_choice() == "0" or not (CSRC / "cuda").is_dir():
        return
    (package / "cuda").mkdir(parents=True, exist_ok=True)
    for file in sorted((CSRC / "cuda").glob("*")):
        if file.suffix == ".cuh" or file.name.endswith("params.h"):
            shutil.copyfile(file, package / "cuda" / file.name)


def precompile(target: Path, scratch: Path) -> None:
    """Compile every shipped kernel with nvcc into ``target``, where that is asked for.

    Raises:
        SystemExit: a kernel does not compile; nvcc has said why.
    """
    if check_choice() != "1":
        return
    nvcc, sources, store = find_nvcc(), _module("sources"), _module("store").Store(target)
    shipped = shipped_kernels(scratch)
    jobs = [(kernel, f"sm_{arch}") for arch in architectures() for kernel in shipped]
    scratch.mkdir(parents=True, exist_ok=True)

    def compiled(job: tuple[int, tuple]) -> str:
        index, (kernel, arch) = job
        key = sources.key(kernel, arch, "nvcc")
        if store.get(arch, kernel.name, key) is not None:
            return ""
        source, cubin = scratch / f"{index}.cu", scratch / f"{index}.cubin"
        source.write_text(kernel.source, encoding="utf-8")
        command = [nvcc, "-cubin", f"-arch={arch}", *sources.OPTIONS, f"-I{CSRC}"]
        done = subprocess.run(
            [*command, str(source), "-o", str(cubin)], capture_output=True, text=True
        )
        if done.returncode != 0:
            return f"{kernel.function} for {arch}:\n{done.stdout}{done.stderr}"
        store.put(arch, kernel.name, key, cubin.read_bytes())
        return ""

    print(f"fastht: compiling {len(jobs)} CUDA kernels", file=sys.stderr)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        failures = [said for said in pool.map(compiled, enumerate(jobs)) if said]
    if failures:
        print(failures[0], file=sys.stderr)
        raise SystemExit(
            f"fastht: {len(failures)} of {len(jobs)} CUDA kernels do not compile, see above; "
            "without FASTHT_CUDA=1 they are compiled at first use"
        )


def shipped_kernels(scratch: Path) -> list:
    """Return the kernels of common calls, as a program made of the plans lists them."""
    from csrc.build import find_compiler

    lister = CSRC / "cuda" / "list_kernels.cpp"
    compiler, _ = find_compiler()
    scratch.mkdir(parents=True, exist_ok=True)
    plans = [*sorted(CSRC.glob("cuda/*plan.cpp")), CSRC / "cuda" / "shipped.cpp"]
    program = scratch / "list_kernels"
    command = [*compiler, "-std=c++17", f"-I{CSRC}", str(lister), *map(str, plans)]
    subprocess.run([*command, "-o", str(program)], check=True)
    said = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    kernel = _module("sources").Kernel
    return [kernel(*text.split("\n", 1)) for text in said.split("\0") if text]


def _number(arch: str) -> int:
    return int(arch.rstrip("af"))


def _module(name: str):
    """Return a module of fastht/ops/cuda by itself: importing fastht needs torch."""
    full = f"_fastht_cuda_{name}"
    if full not in sys.modules:
        file = CSRC.parent / "fastht" / "ops" / "cuda" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(full, file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    return sys.modules[full]
