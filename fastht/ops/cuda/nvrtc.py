"""NVRTC, NVIDIA's run-time compiler, through ctypes.

torch's CUDA builds for Linux depend on it and load it, so no toolkit and no header is needed; it
compiles without a GPU and without a driver. Several threads may compile at the same time.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping, Sequence

import torch

_SONAMES = {"13": "libnvrtc.so.13", "12": "libnvrtc.so.12"}  # by the CUDA version of torch


class CompileError(RuntimeError):
    """A kernel does not compile; the message is the compiler's."""


class Nvrtc:
    """One loaded NVRTC library.

    Attributes:
        version: ``(major, minor)``.
        architectures: compute capabilities that it compiles for, as ``90`` for 9.0.
        path: the file, where that is known.
    """

    def __init__(self, library: ctypes.CDLL, path: str) -> None:
        self._library = library
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        self.path = path
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = (major.value, minor.value)
        count = ctypes.c_int()
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        numbers = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", numbers)
        self.architectures = tuple(numbers)

    def compile(
        self,
        source: str,
        headers: Mapping[str, str],
        options: Sequence[str],
        *,
        name: str = "kernel.cu",
        ptx: bool = False,
    ) -> bytes:
        """Compile one translation unit.

        Args:
            source: its text.
            headers: what it can include, text by name; files are not looked for.
            options: NVRTC's options; the architecture ``sm_…`` makes a cubin, ``compute_…`` PTX.
            name: what messages call it.
            ptx: return the PTX, not the cubin.

        Raises:
            CompileError: it does not compile.
        """
        program = ctypes.c_void_p()
        texts = [text.encode() for text in headers.values()]
        names = [header.encode() for header in headers]
        self._call(
            "nvrtcCreateProgram",
            ctypes.byref(program),
            source.encode(),
            name.encode(),
            len(texts),
            (ctypes.c_char_p * len(texts))(*texts),
            (ctypes.c_char_p * len(names))(*names),
        )
        try:
            given = [option.encode() for option in options]
            status = self._library.nvrtcCompileProgram(
                program, len(given), (ctypes.c_char_p * len(given))(*given)
            )
            if status != 0:
                said = self._text(program, "ProgramLog").decode(errors="replace").rstrip("\0\n")
                raise CompileError(f"{name}: {self._reason(status)}\n{said}".rstrip())
            return self._text(program, "PTX").rstrip(b"\0") if ptx else self._text(program, "CUBIN")
        finally:
            self._call("nvrtcDestroyProgram", ctypes.byref(program))

    def _text(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, text)
        return text.raw

    def _call(self, function: str, *arguments: object) -> None:
        status = getattr(self._library, function)(*arguments)
        if status != 0:
            raise RuntimeError(f"{function} failed: {self._reason(status)}")

    def _reason(self, status: int) -> str:
        return str(self._library.nvrtcGetErrorString(status).decode())


@functools.cache
def load() -> Nvrtc:
    """Return this process's NVRTC.

    Raises:
        LookupError: there is none; the message says how to get it.
    """
    # torch has loaded its own by now, and the system's loader knows it by this name.
    major = (torch.version.cuda or "").partition(".")[0]
    names = [_SONAMES[major]] if major in _SONAMES else list(_SONAMES.values())
    for name in names:
        try:
            return Nvrtc(ctypes.CDLL(name), name)
        except OSError:
            continue
    try:  # finds the toolkit's and the wheels' that torch did not load
        from cuda.pathfinder import load_nvidia_dynamic_lib

        path = load_nvidia_dynamic_lib("nvrtc").abs_path
        return Nvrtc(ctypes.CDLL(path), path)
    except (ImportError, OSError, RuntimeError):
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        raise LookupError(
            f"NVRTC is not found ({' or '.join(names)}; this torch is built for {built}); a torch "
            "built for CUDA brings it, and so does `pip install nvidia-cuda-nvrtc`"
        ) from None
