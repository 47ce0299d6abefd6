"""The CUDA backend's share of an install: sources, machine code where asked for, or nothing."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from csrc import build_cuda

ROOT = Path(__file__).parent.parent
SHARE = 8  # one of so many shipped kernels is compiled
COMPILER = next(filter(shutil.which, ("c++", "g++", "clang++")), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
NVCC = """#!/bin/sh
for word; do
    case "$last" in -o) out=$word ;; esac
    case "$word" in -arch=*) arch=$word ;; *.cu) source=$word ;; esac
    last=$word
done
{fault}
printf 'code %s ' "$arch" > "$out"
tail -1 "$source" >> "$out"
"""


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """No choice made, no GPU, no toolkit."""
    for name in ("FASTHT_CUDA", "FASTHT_CUDA_ARCHS", "FASTHT_NATIVE", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("sh", "tail", "ld", "as", "cc1plus", COMPILER):
        if tool and shutil.which(tool):
            (folder / tool).symlink_to(shutil.which(tool))
    monkeypatch.setenv("PATH", str(folder))
    return monkeypatch


def tool(tmp_path, name, text):
    file = tmp_path / "bin" / name
    file.write_text(text)
    file.chmod(0o755)


def test_architectures_are_those_asked_for(environment):
    environment.setenv("FASTHT_CUDA_ARCHS", "80; 90a,sm_100 80")
    assert build_cuda.architectures() == ["80", "90a", "100"]


@pytest.mark.parametrize("named", ["75", "hopper", "80;9.0", ";"])
def test_architectures_that_cannot_be_meant_are_refused(environment, named):
    environment.setenv("FASTHT_CUDA_ARCHS", named)
    with pytest.raises(SystemExit, match=r"FASTHT_CUDA_ARCHS lists compute capabilities of 8\.0"):
        build_cuda.architectures()


@pytest.mark.parametrize(
    ("said", "archs"),
    [
        ("printf '9.0\\n9.0\\n8.6\\n'", ["90a", "86"]),
        ("printf '7.5\\n12.0\\n'", ["120"]),
        ("printf '7.5\\n'", ["80", "90a"]),
        ("exit 9", ["80", "90a"]),
        (None, ["80", "90a"]),
    ],
)
def test_else_they_are_those_of_the_gpus_here(environment, tmp_path, said, archs):
    if said is not None:
        tool(tmp_path, "nvidia-smi", f"#!/bin/sh\n{said}\n")
    assert build_cuda.architectures() == archs


@pytest.mark.parametrize(
    ("choice", "others", "reason"),
    [
        ("yes", {}, "FASTHT_CUDA is 0, 1 or unset, not 'yes'"),
        ("1", {}, "there is no nvcc on PATH or in .*nowhere/bin; install the CUDA toolkit"),
        ("1", {"FASTHT_NATIVE": "0"}, "needs the extension that FASTHT_NATIVE=0 omits"),
    ],
)
def test_what_was_asked_for_and_cannot_be_had_is_an_error(environment, choice, others, reason):
    environment.setenv("FASTHT_CUDA", choice)
    for name, value in others.items():
        environment.setenv(name, value)
    with pytest.raises(SystemExit, match=reason):
        build_cuda.check_choice()


@needs_compiler
def test_kernels_are_compiled_where_that_is_asked_for(environment, tmp_path):
    tool(tmp_path, "nvcc", NVCC.format(fault=""))
    environment.setenv("FASTHT_CUDA", "1")
    environment.setenv("FASTHT_CUDA_ARCHS", "80;90a")
    lister, listed = build_cuda.shipped_kernels, []

    def some(scratch):
        listed.append(lister(scratch))
        return listed[-1][::SHARE]

    environment.setattr(build_cuda, "shipped_kernels", some)
    target = tmp_path / "kernels"
    build_cuda.precompile(target, tmp_path / "scratch")

    from fastht.ops.cuda import kernels, sources
    from fastht.ops.cuda.store import Store

    (shipped,) = listed  # once: the program that lists them has to be compiled
    assert len({kernel.source for kernel in shipped}) == len(shipped)
    shipped = shipped[::SHARE]
    assert len(shipped) >= 3
    assert Store(target).held() == {"sm_80": len(shipped), "sm_90a": len(shipped)}
    # What was compiled is found by the names under which a call looks for it.
    environment.setattr(kernels, "precompiled", lambda: Store(target))
    environment.setattr(kernels, "_known", {})
    wanted = [sources.Kernel(kernel.function, kernel.source) for kernel in shipped]
    for kernel, image in kernels.images(wanted, "sm_90a").items():
        assert image.decode() == f"code -arch=sm_90a {kernel.instance}\n"


def test_a_kernel_that_does_not_compile_ends_the_install(environment, tmp_path, capfd):
    from fastht.ops.cuda.sources import Kernel

    environment.setattr(build_cuda, "shipped_kernels", lambda _: [Kernel("down<64>", "// down\n")])
    fault = 'case "$arch" in *90a) echo "error: too many registers" >&2; exit 2 ;; esac'
    tool(tmp_path, "nvcc", NVCC.format(fault=fault))
    environment.setenv("FASTHT_CUDA", "1")
    environment.setenv("FASTHT_CUDA_ARCHS", "80;90a")
    with pytest.raises(SystemExit, match=r"do not compile, see above; without FASTHT_CUDA=1"):
        build_cuda.precompile(tmp_path / "kernels", tmp_path / "scratch")
    assert "for sm_90a:\nerror: too many registers" in capfd.readouterr().err


def test_without_being_asked_for_nothing_is_compiled(environment, tmp_path):
    build_cuda.precompile(tmp_path / "kernels", tmp_path / "scratch")
    assert not (tmp_path / "kernels").exists()


def test_a_wheel_has_what_a_device_compiler_reads(tmp_path):
    source = tmp_path / "source"
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    (source / "fastht").mkdir()
    shutil.copy(ROOT / "fastht" / "version.py", source / "fastht")
    (source / "fastht" / "__init__.py").touch()
    shutil.copytree(ROOT / "csrc", source / "csrc")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FASTHT_")}
    command = (sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", "out")
    subprocess.run(
        command, cwd=source, check=True, capture_output=True, env={**kept, "FASTHT_NATIVE": "0"}
    )
    (wheel,) = (source / "out").iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    files = {Path(name).name for name in names if name.startswith("fastht/_cuda/")}
    own = {file.name for file in (ROOT / "csrc" / "cuda").glob("*.cuh")}
    assert own | {"params.h", "forward_params.h"} <= files
    assert not {name for name in files if name.endswith(".cpp")} | (files & {"simulate.h"})


def test_without_cuda_the_sources_stay_out(environment, tmp_path):
    build_cuda.copy_sources(tmp_path / "package")
    assert (tmp_path / "package" / "cuda" / "device.cuh").exists()
    environment.setenv("FASTHT_CUDA", "0")
    build_cuda.copy_sources(tmp_path / "declined")
    assert not (tmp_path / "declined").exists()
