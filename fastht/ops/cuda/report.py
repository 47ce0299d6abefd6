"""What the CUDA backend finds on this machine, for ``fastht doctor``."""

from __future__ import annotations

from fastht.ops.cuda import kernels, native, nvrtc, sources


def rows() -> list[tuple[str, str]]:
    """Return lines of a name and what was found, with the remedy where something is missing."""
    return [
        ("driver", _driver()),
        ("nvrtc", _compiler()),
        ("sources", _sources()),
        ("compiled at install", _held(kernels.precompiled().held(), "FASTHT_CUDA=1 at install")),
        ("compiled at first use", f"{_held(kernels.cache().held())}, in {kernels.cache().root}"),
    ]


def _driver() -> str:
    if native is None:
        return "not asked: the native extension is not built, or without CUDA (FASTHT_CUDA=0)"
    problem = native.driver_problem()
    if problem:
        return f"{problem}; install NVIDIA's driver 525 or newer"
    version = native.driver_version()
    return f"CUDA {version // 1000}.{version % 1000 // 10}"


def _compiler() -> str:
    try:
        found = nvrtc.load()
    except LookupError as error:
        return str(error)
    known = ", ".join(f"{number // 10}.{number % 10}" for number in found.architectures)
    return "{}.{}, for compute capabilities {}".format(*found.version, known)


def _sources() -> str:
    try:
        return str(sources.folder() / "cuda")
    except LookupError as error:
        return str(error)


def _held(counts: dict[str, int], hint: str = "") -> str:
    if not counts:
        return f"no kernels ({hint})" if hint else "no kernels yet"
    return ", ".join(f"{count} kernels for {arch}" for arch, count in counts.items())
