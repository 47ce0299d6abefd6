"""Machine code of kernels: from memory, from the install, from the cache, or compiled now."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from fastht.files import cache_dir
from fastht.ops.cuda import nvrtc, sources
from fastht.ops.cuda.sources import Kernel
from fastht.ops.cuda.store import Store

# Compiled as the variant that has all instructions of the chip and runs on no later one.
_SUFFIXES = {90: "a"}
_known: dict[tuple[str, Kernel], bytes] = {}
_lock = threading.Lock()


def cache() -> Store:
    """Return the folder of kernels that this user has compiled: ``$FASTHT_CACHE/cuda``."""
    return Store(cache_dir() / "cuda")


def precompiled() -> Store:
    """Return the folder of kernels that were compiled at install (``FASTHT_CUDA=1``)."""
    return Store(sources.SHIPPED / "kernels")


def architecture(capability: tuple[int, int]) -> str:
    """Return for which architecture kernels are taken that run on a device.

    That of the kernels compiled at install, if they run there, else the newest that NVRTC knows:
    machine code runs on later devices of the same major number.

    Args:
        capability: the device's compute capability.

    Raises:
        LookupError: there is no NVRTC, or it is older than the device.
    """
    major, minor = capability
    for arch in sorted(precompiled().held(), key=_number, reverse=True):
        if 10 * major <= _number(arch) <= 10 * major + minor:
            return arch
    known = nvrtc.load().architectures
    usable = [number for number in known if 10 * major <= number <= 10 * major + minor]
    if not usable:
        raise LookupError(
            f"this NVRTC is too old for compute capability {major}.{minor}: the newest it knows "
            f"is {max(known) // 10}.{max(known) % 10}; install a torch built for a newer CUDA"
        )
    return f"sm_{max(usable)}{_SUFFIXES.get(max(usable), '')}"


def _number(arch: str) -> int:
    return int(arch.removeprefix("sm_").rstrip("af"))


def images(kernels: Sequence[Kernel], arch: str) -> dict[Kernel, bytes]:
    """Return the machine code of kernels for an architecture; compile what there is none of.

    The compiler runs in as many threads as there are processors. Processes that miss the same
    kernel both compile it, and either's file is good.

    Raises:
        LookupError: something has to be compiled and there is no NVRTC, or no sources.
        CompileError: a kernel does not compile.
    """
    with _lock:  # threads that want the same kernels wait for one another
        wanted = [kernel for kernel in dict.fromkeys(kernels) if (arch, kernel) not in _known]
        missing = []
        for kernel in wanted:
            image = precompiled().get(arch, kernel.name, sources.key(kernel, arch, "nvcc"))
            if image is None:
                missing.append(kernel)
            else:
                _known[arch, kernel] = image
        if missing:
            _find_or_compile(missing, arch)
        return {kernel: _known[arch, kernel] for kernel in kernels}


def _find_or_compile(kernels: Sequence[Kernel], arch: str) -> None:
    compiler = nvrtc.load()
    kept = cache()
    named = "nvrtc {}.{}".format(*compiler.version)
    keys = {kernel: sources.key(kernel, arch, named) for kernel in kernels}
    missing = []
    for kernel in kernels:
        image = kept.get(arch, kernel.name, keys[kernel])
        if image is None:
            missing.append(kernel)
        else:
            _known[arch, kernel] = image

    def compiled(kernel: Kernel) -> bytes:
        return compile_kernel(compiler, kernel, arch)

    if not missing:
        return
    with ThreadPoolExecutor(min(len(missing), os.cpu_count() or 1)) as pool:
        for kernel, image in zip(missing, pool.map(compiled, missing), strict=True):
            _known[arch, kernel] = image
            try:
                kept.put(arch, kernel.name, keys[kernel], image)
            except OSError as error:
                warnings.warn(
                    f"compiled CUDA kernels cannot be kept in {kept.root} ({error}) and will be "
                    "compiled again by the next process; FASTHT_CACHE names another folder",
                    stacklevel=2,
                )


def compile_kernel(
    compiler: nvrtc.Nvrtc,
    kernel: Kernel,
    arch: str,
    *,
    ptx: bool = False,
    options: Sequence[str] = sources.OPTIONS,
) -> bytes:
    """Compile one kernel with NVRTC, to machine code or to PTX.

    Raises:
        LookupError: fastht was installed without the sources.
        CompileError: it does not compile.
    """
    target = arch.replace("sm_", "compute_") if ptx else arch
    return compiler.compile(
        kernel.source,
        sources.headers(kernel.source),
        (f"--gpu-architecture={target}", *options),
        name=f"{kernel.name}.cu",
        ptx=ptx,
    )
