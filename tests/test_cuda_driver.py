"""Kernels are started through the driver found at run time; a fake one records each call."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastht.ops import cuda

if cuda.native is not None:
    from fastht import _native

COMPILER = next(filter(shutil.which, ("c++", "g++", "clang++")), None)
pytestmark = [
    pytest.mark.skipif(cuda.native is None, reason="needs the native extension with CUDA"),
    pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler"),
]
INCLUDES = ["-I/usr/local/cuda/include"]  # where cuda.h often is; it is not needed
# The extension by itself: importing fastht takes seconds.
PREAMBLE = """
import importlib.util
spec = importlib.util.spec_from_file_location("_native", FILE)
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)
cuda = native.cuda
def attempt(function, *arguments):
    try: return function(*arguments)
    except RuntimeError as error: print(error)
"""
START = """
cuda.load(1, "mix_up", "fastht_mix_up", b"machine code")
cuda.launch(1, 77, "mix_up", 12, 256, 98304, (5).to_bytes(8, "little"))
"""


def compile_fake(folder, *flags):
    command = [COMPILER, "-std=c++17", "-shared", "-fPIC", "-Wall", "-Werror", *INCLUDES, *flags]
    source = Path(__file__).with_name("fake_driver.cpp")
    subprocess.run([*command, source, "-o", folder / "libcuda.so.1"], check=True)
    return folder


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return compile_fake(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def run(driver, tmp_path):
    """Return a function that runs code beside the fake driver: what it said, and the calls."""

    def run(code, fails="", folder=driver):
        log = tmp_path / "log"
        log.write_text("")
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(folder),
            "FAKE_DRIVER_LOG": str(log),
            "FAKE_DRIVER_FAILS": fails,
        }
        code = PREAMBLE.replace("FILE", repr(_native.__file__)) + code
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip(), log.read_text().splitlines()

    return run


def test_a_kernel_is_made_ready_once_and_then_only_started(run):
    _, calls = run(START + START)
    assert calls == [
        "cuInit",
        "cuDeviceGet 1",
        "cuDevicePrimaryCtxRetain 41",
        "cuCtxPushCurrent 141",
        "cuLibraryLoadData machine code",
        "cuLibraryGetKernel fastht_mix_up",
        "cuKernelGetFunction",
        "cuDeviceGetAttribute 97 41",
        "cuKernelGetAttribute 1 41",
        "cuKernelSetAttribute 8 100352 41",  # all that a block can have, less what is static
        "cuKernelGetParamInfo",
        "cuCtxPopCurrent",
        *[
            "cuCtxPushCurrent 141",
            "cuLaunchKernel 1041 grid 12 block 256 shared 98304 stream 77 params 5",
            "cuCtxPopCurrent",
        ]
        * 2,
    ]


def test_each_device_has_its_own_kernels_and_context(run):
    said, calls = run(
        START + "print(cuda.is_loaded(0, 'mix_up'), cuda.is_loaded(1, 'mix_up'))\n"
        "attempt(cuda.launch, 0, 3, 'mix_up', 1, 32, 0, b'8 bytes.')\n"
        "cuda.load(0, 'mix_up', 'fastht_mix_up', b'other code')\n"
        "cuda.launch(0, 3, 'mix_up', 1, 32, 0, (6).to_bytes(8, 'little'))\n"
    )
    assert said.splitlines() == ["False True", "kernel mix_up has not been loaded"]
    assert "cuLibraryLoadData other code" in calls
    assert "cuLaunchKernel 1040 grid 1 block 32 shared 0 stream 3 params 6" in calls
    assert not any("foreign" in call for call in calls)


def test_what_cannot_be_started_is_refused_before_the_driver_sees_it(run):
    said, calls = run(
        START + "attempt(cuda.launch, 1, 0, 'mix_up', 1, 32, 100353, b'8 bytes.')\n"
        "attempt(cuda.launch, 1, 0, 'mix_up', 1, 32, 0, b'nine bytes')\n"
        "cuda.launch(1, 0, 'mix_up', 0, 32, 0, b'8 bytes.')\n"
    )
    assert said.splitlines() == [
        "kernel mix_up needs 100353 bytes of shared memory; a block of this GPU can have 100352",
        "kernel mix_up takes 8 bytes of parameters, not 10",
    ]
    assert sum(call.startswith("cuLaunchKernel") for call in calls) == 1


@pytest.mark.parametrize(
    "function", ["cuLibraryLoadData", "cuLibraryGetKernel", "cuKernelSetAttribute"]
)
def test_a_kernel_that_the_driver_refuses_is_named_and_not_kept(run, function):
    said, calls = run(
        "attempt(cuda.load, 1, 'mix_up', 'fastht_mix_up', b'code')\n"
        "print(cuda.is_loaded(1, 'mix_up'))",
        function,
    )
    assert said.splitlines() == [
        "kernel mix_up on CUDA device 1: CUDA_ERROR_ILLEGAL_ADDRESS "
        "(an illegal memory access was encountered)",
        "False",
    ]
    assert ("cuLibraryUnload" in calls) == (function != "cuLibraryLoadData")
    assert calls[-1] == "cuCtxPopCurrent"


def test_a_launch_that_fails_is_named_and_the_context_restored(run):
    said, calls = run(START.replace("cuda.launch(", "attempt(cuda.launch, "), "cuLaunchKernel")
    assert said.startswith("kernel mix_up: CUDA_ERROR_ILLEGAL_ADDRESS")
    assert calls[-1] == "cuCtxPopCurrent"


@pytest.mark.parametrize("function", ["cuDeviceGet", "cuDevicePrimaryCtxRetain"])
def test_a_device_that_the_driver_refuses_is_refused_again_and_again(run, function):
    said, calls = run("attempt(cuda.load, 1, 'mix_up', 'fastht_mix_up', b'code')\n" * 2, function)
    assert [line.split(": ")[0] for line in said.splitlines()] == ["CUDA device 1"] * 2
    assert sum(call.startswith(function) for call in calls) == 2


def test_the_driver_tells_its_version(run):
    assert run("print(repr(cuda.driver_problem()), cuda.driver_version())")[0] == "'' 13020"


def test_a_driver_without_a_gpu_says_so(run):
    said, _ = run("print(cuda.driver_problem())", "cuInit")
    assert said.startswith("the NVIDIA driver finds no GPU that it can use: CUDA_ERROR")


def test_an_old_driver_is_refused(run, tmp_path):
    folder = compile_fake(tmp_path, "-DFAKE_OLD_DRIVER")
    said, _ = run("print(cuda.driver_problem())", folder=folder)
    assert said == (
        "the NVIDIA driver is too old: it has no cuLibraryLoadData, which came with CUDA 12.0 "
        "(driver 525)"
    )


def test_without_a_driver_the_reason_is_named(run, tmp_path):
    if cuda.native.driver_problem() == "":
        pytest.skip("this machine has a driver")
    said, calls = run(
        "print(cuda.driver_problem())\nattempt(cuda.load, 0, 'x', 'x', b'')", folder=tmp_path
    )
    assert [line.split(" (")[0] for line in said.splitlines()] == [
        "no NVIDIA driver is installed"
    ] * 2
    assert calls == []


def test_two_threads_may_make_the_same_kernel_ready(run):
    _, calls = run(
        "import threading\n"
        "made = (1, 'mix_up', 'fastht_mix_up', b'code')\n"
        "workers = [threading.Thread(target=cuda.load, args=made) "
        "for _ in range(8)]\n"
        "[worker.start() for worker in workers]\n"
        "[worker.join() for worker in workers]\n" + START
    )
    loaded = sum(call.startswith("cuLibraryLoadData") for call in calls)
    assert loaded - calls.count("cuLibraryUnload") == 1
