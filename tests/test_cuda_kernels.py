"""CUDA kernels are compiled once, in parallel, and kept whole; nothing here needs a GPU."""

import os
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import fresh
import pytest

from fastht.ops.cuda import kernels, nvrtc, sources
from fastht.ops.cuda.sources import Kernel
from fastht.ops.cuda.store import Store

try:
    NVRTC = nvrtc.load()
except LookupError:
    NVRTC = None
needs_nvrtc = pytest.mark.skipif(NVRTC is None, reason="needs NVRTC")

DEVICE = """
#pragma once
#ifndef __CUDACC__
#include "cuda/simulate.h"
#endif
#define FASTHT_INSTANCE(name, Params, threads, ...) \\
  extern "C" __global__ void __launch_bounds__(threads) fastht_##name( \\
      const __grid_constant__ fastht::cuda::Params p) { fastht::cuda::__VA_ARGS__(p); }
"""
ADD = """
#pragma once
#include "cuda/device.cuh"
namespace fastht::cuda {
struct Add { float* to; float amount; };
template <int kTimes> __device__ void add(const Add& p) {
  p.to[threadIdx.x] += kTimes * p.amount;
}
}
"""


def instance(times=3, threads=64):
    function = f"add<{times}>"
    line = f"FASTHT_INSTANCE(add, Add, {threads}, {function})"
    return Kernel(function, f'#include "cuda/add.cuh"\n{line}\n')


KERNEL = instance()


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Sources of one small kernel, an empty cache, and a count of what is compiled."""
    folder = tmp_path / "csrc" / "cuda"
    folder.mkdir(parents=True)
    (folder / "device.cuh").write_text(DEVICE)
    (folder / "add.cuh").write_text(ADD)
    (folder / "other.cuh").write_text("#pragma once\n")
    monkeypatch.setattr(sources, "CHECKOUT", folder.parent)
    monkeypatch.setattr(sources, "SHIPPED", tmp_path / "package")
    monkeypatch.setattr(kernels, "_known", {})
    monkeypatch.setenv("FASTHT_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def compiled(monkeypatch):
    names = []
    real = kernels.compile_kernel

    def counted(compiler, kernel, arch, **options):
        names.append(kernel.name)
        return real(compiler, kernel, arch, **options)

    monkeypatch.setattr(kernels, "compile_kernel", counted)
    return names


def again(monkeypatch):
    """Forget what this process holds, as a new process would."""
    monkeypatch.setattr(kernels, "_known", {})


@needs_nvrtc
def test_a_kernel_is_machine_code_with_its_name(tree):
    image = kernels.images([KERNEL], "sm_80")[KERNEL]
    assert image.startswith(b"\x7fELF")
    assert b"fastht_add" in image
    text = kernels.compile_kernel(NVRTC, KERNEL, "sm_80", ptx=True).decode()
    assert ".visible .entry fastht_add(" in text
    assert ".maxntid 64" in text
    assert ".target sm_80" in text


@needs_nvrtc
def test_a_process_compiles_once_and_the_next_one_not_at_all(tree, compiled, monkeypatch):
    first = kernels.images([KERNEL, KERNEL], "sm_80")
    assert kernels.images([KERNEL], "sm_80") == first
    again(monkeypatch)
    assert kernels.images([KERNEL], "sm_80") == first
    assert compiled == ["add"]
    assert kernels.cache().held() == {"sm_80": 1}


@needs_nvrtc
@pytest.mark.parametrize("changed", ["device.cuh", "add.cuh", "other.cuh"])
def test_only_a_source_that_is_included_compiles_it_again(tree, compiled, monkeypatch, changed):
    kernels.images([KERNEL], "sm_80")
    again(monkeypatch)
    with (tree / changed).open("a") as file:
        file.write("// changed\n")
    kernels.images([KERNEL], "sm_80")
    assert len(compiled) == (1 if changed == "other.cuh" else 2)


def test_everything_that_decides_the_code_is_in_the_key(tree):
    other = {
        sources.key(KERNEL, "sm_80", "nvrtc 13.0"),
        sources.key(KERNEL, "sm_90a", "nvrtc 13.0"),
        sources.key(KERNEL, "sm_80", "nvrtc 13.1"),
        sources.key(KERNEL, "sm_80", "nvrtc 13.0", ("-G",)),
        sources.key(instance(times=4), "sm_80", "nvrtc 13.0"),
        sources.key(instance(threads=32), "sm_80", "nvrtc 13.0"),
    }
    assert len(other) == 6


@needs_nvrtc
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
        lambda data: b"F" + data[1:],
        lambda data: data[:20],
    ],
    ids=["empty", "cut", "longer", "a flipped bit", "another file", "only a head"],
)
def test_a_damaged_file_is_compiled_again(tree, compiled, monkeypatch, damage):
    good = kernels.images([KERNEL], "sm_80")[KERNEL]
    (file,) = kernels.cache().root.rglob("*.cubin")
    data = file.read_bytes()
    file.write_bytes(damage(data))
    again(monkeypatch)
    assert kernels.images([KERNEL], "sm_80")[KERNEL] == good
    assert compiled == ["add"] * 2
    assert file.read_bytes() == data


def test_a_file_of_another_key_is_not_taken(tmp_path):
    store = Store(tmp_path)
    key, other = "a" * 64, "a" * 16 + "b" * 48  # the same name of the file
    store.put("sm_80", "add", key, b"code")
    assert store.path("sm_80", "add", key) == store.path("sm_80", "add", other)
    assert store.get("sm_80", "add", key) == b"code"
    assert store.get("sm_80", "add", other) is None


@needs_nvrtc
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_processes_may_compile_the_same_kernel(tree, tmp_path):
    code = textwrap.dedent(
        f"""
        import os
        from pathlib import Path
        from fastht.ops.cuda import kernels, sources
        sources.CHECKOUT = Path({str(tree.parent)!r})
        kernel = sources.Kernel({KERNEL.function!r}, {KERNEL.source!r})
        ready, go = os.pipe()
        for _ in range(2):
            if os.fork() == 0:
                os.read(ready, 1)
                kernels.images([kernel], "sm_80")
                os._exit(0)
        os.write(go, b"12")
        assert [os.wait()[1] for _ in range(2)] == [0, 0]
        """
    )
    done = fresh.run(code)
    assert done.returncode == 0, done.stderr
    files = [file.name for file in kernels.cache().root.rglob("*") if file.is_file()]
    assert len(files) == 1, "no temporary file stays"
    key = sources.key(KERNEL, "sm_80", "nvrtc {}.{}".format(*NVRTC.version))
    assert kernels.cache().get("sm_80", "add", key).startswith(b"\x7fELF")


@needs_nvrtc
def test_threads_that_want_the_same_kernel_compile_it_once(tree, compiled):
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(kernels.images, [KERNEL], "sm_80") for _ in range(8)]
        images = {future.result()[KERNEL] for future in futures}
    assert len(images) == 1
    assert compiled == ["add"]


def test_several_kernels_are_compiled_at_the_same_time(tree, monkeypatch):
    both = threading.Barrier(2, timeout=30)

    def together(compiler, kernel, arch, **options):
        both.wait()  # nobody gets past it alone
        return kernel.function.encode()

    class Compiler:
        version = (13, 0)

    monkeypatch.setattr(kernels, "compile_kernel", together)
    monkeypatch.setattr(kernels.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(nvrtc, "load", Compiler)
    both_kernels = [instance(1), instance(2)]
    assert list(kernels.images(both_kernels, "sm_80").values()) == [b"add<1>", b"add<2>"]


@needs_nvrtc
def test_a_folder_that_cannot_be_written_is_said_and_costs_only_time(tree, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTHT_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match=r"cannot be kept in .*file.*FASTHT_CACHE"):
        image = kernels.images([KERNEL], "sm_80")[KERNEL]
    assert image.startswith(b"\x7fELF")


@needs_nvrtc
def test_what_does_not_compile_says_where(tree):
    (tree / "add.cuh").write_text(ADD.replace("amount;\n}", "nothing;\n}"))
    with pytest.raises(nvrtc.CompileError, match=r"(?s)add\.cu.*add\.cuh\(\d+\).*nothing"):
        kernels.images([KERNEL], "sm_80")
    assert kernels.cache().held() == {}


def test_what_was_compiled_at_install_needs_no_compiler(tree, monkeypatch):
    def nothing():
        raise LookupError("NVRTC is not found")

    monkeypatch.setattr(nvrtc, "load", nothing)
    key = sources.key(KERNEL, "sm_80", "nvcc")
    kernels.precompiled().put("sm_80", "add", key, b"machine code")
    assert kernels.architecture((8, 6)) == "sm_80"
    assert kernels.images([KERNEL], "sm_80") == {KERNEL: b"machine code"}
    with pytest.raises(LookupError, match="NVRTC is not found"):
        kernels.architecture((9, 0))
    with (tree / "add.cuh").open("a") as file:
        file.write("// newer than what was compiled\n")
    again(monkeypatch)
    with pytest.raises(LookupError, match="NVRTC is not found"):
        kernels.images([KERNEL], "sm_80")


@pytest.mark.parametrize(
    ("capability", "known", "arch"),
    [
        ((8, 0), (80, 86, 89, 90, 100), "sm_80"),
        ((8, 6), (80, 86, 89, 90, 100), "sm_86"),
        ((8, 9), (80, 86), "sm_86"),
        ((9, 0), (80, 90), "sm_90a"),
        ((10, 3), (90, 100), "sm_100"),
        ((12, 0), (100, 120, 121), "sm_120"),
    ],
)
def test_the_newest_architecture_that_the_device_runs_is_taken(
    tree, monkeypatch, capability, known, arch
):
    class Compiler:
        architectures = known

    monkeypatch.setattr(nvrtc, "load", Compiler)
    assert kernels.architecture(capability) == arch


def test_a_device_newer_than_the_compiler_is_refused(tree, monkeypatch):
    class Compiler:
        architectures = (80, 90)

    monkeypatch.setattr(nvrtc, "load", Compiler)
    with pytest.raises(LookupError, match=r"too old for compute capability 10\.0.*newest.*9\.0"):
        kernels.architecture((10, 0))


def test_without_sources_the_reason_is_named(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CHECKOUT", tmp_path / "nowhere")
    with pytest.raises(LookupError, match="FASTHT_CUDA=0"):
        sources.headers(KERNEL.source)


def test_without_nvrtc_the_reason_is_named():
    code = (
        "import ctypes, sys, torch\n"
        "def refused(name, *_): raise OSError(name)\n"
        "ctypes.CDLL = refused\n"
        "sys.modules['cuda.pathfinder'] = None\n"
        "from fastht.ops.cuda import nvrtc\n"
        "try: nvrtc.load()\n"
        "except LookupError as error: print(error)\n"
    )
    done = fresh.run(code)
    assert done.returncode == 0, done.stderr
    assert "NVRTC is not found (libnvrtc.so.1" in done.stdout
    assert "pip install nvidia-cuda-nvrtc" in done.stdout
