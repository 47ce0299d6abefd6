"""The native extension is optional, compiled for several instruction sets and only where needed."""

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

for package, version in {
    "build": "1",
    "ninja": "1",
    "pybind11": "2.13",
    "setuptools": "77",
}.items():
    pytest.importorskip(package, version)

ROOT = Path(__file__).parent.parent
PACKAGING = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
SHIPPED = {"portable": ""}  # each path, and what its compiler has to define
if platform.machine() in ("x86_64", "AMD64"):
    SHIPPED |= {
        "avx2": "FMA",
        "avx512": "FMA AVX512F",
        "avx512_bf16": "FMA AVX512F AVX512BF16",
        "amx_bf16": "FMA AVX512F AVX512BF16 AMX_BF16",
    }
PATHS = {f"path_{name}" for name in SHIPPED}

COMPILER = next(filter(shutil.which, ("c++", "g++", "clang++")), None)
needs_compiler = pytest.mark.skipif(
    not (COMPILER and Path(sysconfig.get_path("include"), "Python.h").exists()),
    reason="needs a C++ compiler and Python's headers",
)

# A small package whose extension says which paths it has and what each was compiled for.
SOURCES = {
    "fastht/__init__.py": "",
    "csrc/cpu/path.h": """
#define TEXT(x) #x
#define NAME(x) TEXT(x)
inline __attribute__((noinline)) int shared(int x) { return x / 3; }
""",
    "csrc/cpu/path.cpp": """
#include "cpu/path.h"
namespace FASTHT_PATH {
int third(int x) { return shared(x); }
const char* compiled_for() { return NAME(FASTHT_PATH) ":"
"""
    + "".join(
        f'#ifdef __{feature}__\n" {feature}"\n#endif\n'
        for feature in ("FMA", "AVX512F", "AVX512BF16", "AMX_BF16")
    )
    + "; }\n}\n",
    "csrc/cpu/paths.cpp": "".join(
        f"#ifdef FASTHT_HAS_{name.upper()}\n"
        f"namespace {name} {{ const char* compiled_for(); }}\n"
        f"#define HAS_{name} {name}::compiled_for(),\n"
        "#else\n"
        f"#define HAS_{name}\n"
        "#endif\n"
        for name in SHIPPED
    )
    + f"const char* paths[] = {{ {' '.join(f'HAS_{name}' for name in SHIPPED)} nullptr }};\n",
    "csrc/bindings.cpp": """
#include <Python.h>
extern const char* paths[];
static PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_native", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
PyMODINIT_FUNC PyInit__native() {
    PyObject* list = PyList_New(0);
    for (const char** path = paths; *path; ++path)
        PyList_Append(list, PyUnicode_FromString(*path));
    PyObject* made = PyModule_Create(&module);
    PyModule_AddObject(made, "paths", list);
    return made;
}
""",
}
TEST_PROGRAM = """
#include <thread>
int main(int one, char**) {{
    {}
    return one < 0;
}}
"""
BUGS = {
    "failure": ("plain", "return one;"),
    "outside": ("sanitize", "int* four = new int[4]; one = four[one + 3]; delete[] four;"),
    "overflow": ("sanitize", "one = (0x7fffffff + one) / 2;"),
    "race": ("thread", "std::thread other([&] { ++one; }); ++one; other.join();"),
    "unwritten": ("valgrind", "int* four = new int[4]; if (four[one]) one = 2; delete[] four;"),
}


def make_tree(folder):
    own = ("csrc/build.py", "csrc/build_cuda.py", "csrc/tests/check.sh")
    for name in (*PACKAGING, "fastht/version.py", *own):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for name, text in SOURCES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def tree(tmp_path):
    return make_tree(tmp_path / "tree")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A tree that has been built, to be looked at; and what the build said."""
    folder = make_tree(tmp_path_factory.mktemp("built") / "tree")
    return folder, build_ext(folder)


def run(folder, *command, **environment):
    kept = {k: v for k, v in os.environ.items() if k != "CXX" and not k.startswith("FASTHT_")}
    return subprocess.run(
        command,
        cwd=folder,
        env={**kept, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )


def build_ext(folder, **environment):
    return run(folder, sys.executable, "setup.py", "build_ext", "--inplace", **environment)


def package(folder, kind, **environment):
    command = (sys.executable, "-m", "build", "--no-isolation", kind, "--outdir", "out", ".")
    done = run(folder, *command, **environment)
    assert done.returncode == 0, done.stdout
    (file,) = (folder / "out").iterdir()
    return file, done.stdout


def compiled(done):
    assert done.returncode == 0, done.stdout
    return set(re.findall(r"compile (\w+)\.o$", done.stdout, re.MULTILINE))


def native(folder):
    (file,) = folder.glob("fastht/_native*")
    spec = importlib.util.spec_from_file_location("fastht._native", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code_shared_by(folder):
    """Inline functions in the objects of the paths: the linker takes one object's for all."""
    objects = sorted((folder / "build" / "native").glob("path_*.o"))
    assert {file.stem for file in objects} == PATHS
    done = run(folder, "nm", "--defined-only", "--demangle", "--format=posix", *objects)
    assert done.returncode == 0, done.stdout
    return set(re.findall(r"^(.+) W [0-9a-f]+", done.stdout, re.MULTILINE))


@needs_compiler
def test_each_path_is_compiled_for_its_instructions(built):
    tree, done = built
    assert compiled(done) == {"bindings", "paths", *PATHS}
    paths = dict(path.split(":") for path in native(tree).paths)
    assert {name: features.strip() for name, features in paths.items()} == SHIPPED


@needs_compiler
def test_only_what_changed_is_compiled_again(tree):
    build_ext(tree)
    assert compiled(build_ext(tree)) == set()
    for changed, again in [("csrc/cpu/paths.cpp", {"paths"}), ("csrc/cpu/path.h", PATHS)]:
        with (tree / changed).open("a") as file:
            file.write("// changed\n")
        assert compiled(build_ext(tree)) == again
    other_flags = build_ext(tree, FASTHT_WERROR="1")
    assert compiled(other_flags) == {"bindings", "paths", *PATHS}


@needs_compiler
@pytest.mark.skipif("amx_bf16" not in SHIPPED, reason="needs more than one path")
def test_a_path_that_the_compiler_does_not_know_is_left_out(tree, tmp_path):
    old = tmp_path / "old compiler"
    old.write_text(f'#!/bin/sh\ncase "$*" in *-mamx*) exit 1 ;; esac\nexec {COMPILER} "$@"\n')
    old.chmod(0o755)
    done = build_ext(tree, CXX=shlex.quote(str(old)))
    assert compiled(done) == {"bindings", "paths", *PATHS} - {"path_amx_bf16"}
    assert len(re.findall(r"^fastht: left out.*: amx_bf16$", done.stdout, re.MULTILINE)) == 1
    assert [path.split(":")[0] for path in native(tree).paths] == list(SHIPPED)[:-1]


@needs_compiler
def test_what_does_not_compile_fails_and_says_how_to_do_without(tree):
    with (tree / "csrc/bindings.cpp").open("a") as file:
        file.write("int wrong = nowhere;\n")
    done = build_ext(tree)
    assert done.returncode != 0
    assert "nowhere" in done.stdout
    assert "FASTHT_NATIVE=0" in done.stdout.splitlines()[-1]
    assert "Traceback" not in done.stdout


@needs_compiler
def test_warnings_are_errors_where_that_is_asked_for(tree):
    with (tree / "csrc/cpu/paths.cpp").open("a") as file:
        file.write("static int unused;\n")
    assert build_ext(tree).returncode == 0
    assert build_ext(tree, FASTHT_WERROR="1").returncode != 0


def test_without_a_compiler_the_package_is_pure_python(tree):
    (tree / "fastht" / "_native.stale.so").touch()
    wheel, said = package(tree, "--wheel", PATH="")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "no C++ compiler was found" in said
    names = zipfile.ZipFile(wheel).namelist()
    assert "fastht/version.py" in names
    assert not [name for name in names if name.startswith("csrc") or name.endswith(".so")]


def test_the_extension_can_be_declined(tree):
    wheel, said = package(tree, "--wheel", FASTHT_NATIVE="0")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "compiler" not in said


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"FASTHT_NATIVE": "1", "PATH": ""}, "no C++ compiler was found"),
        ({"FASTHT_NATIVE": "yes"}, "FASTHT_NATIVE is 0, 1 or unset, not 'yes'"),
        ({"CXX": "/nowhere/c++ -m64"}, "does not run: /nowhere/c++ -m64"),
    ],
)
def test_what_was_asked_for_and_cannot_be_had_is_an_error(tree, environment, message):
    done = build_ext(tree, **environment)
    assert done.returncode != 0
    assert message in done.stdout
    assert "Traceback" not in done.stdout


@needs_compiler
@pytest.mark.skipif(platform.system() != "Linux", reason="needs Linux's object files and nm")
def test_an_inline_function_of_the_paths_would_be_found(built):
    assert code_shared_by(built[0]) == {"shared(int)"}


@needs_compiler
@pytest.mark.parametrize(("mode", "bug"), BUGS.values(), ids=BUGS)
def test_the_checks_of_the_native_code_find_what_they_are_for(tree, mode, bug):
    if mode == "valgrind" and not shutil.which("valgrind"):
        pytest.skip("needs valgrind")
    for code in ("", bug):
        (tree / "csrc" / "tests" / "test_cpu.cpp").write_text(TEST_PROGRAM.format(code))
        done = run(tree, "csrc/tests/check.sh", mode, PYTHON=sys.executable)
        assert "link test_cpu" in done.stdout
        assert (done.returncode != 0) == bool(code), done.stdout


@needs_compiler
@pytest.mark.slow
def test_the_sdist_has_all_that_the_build_needs(tmp_path):
    source = tmp_path / "source"
    for name in ("csrc", "fastht"):
        shutil.copytree(ROOT / name, source / name)
    for name in PACKAGING:
        shutil.copy(ROOT / name, source / name)
    (source / "fastht" / "_native.stale.so").touch()
    sdist, _ = package(source, "--sdist")
    shutil.unpack_archive(sdist, tmp_path)
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    assert not [file for end in ("so", "pyc") for file in unpacked.rglob(f"*.{end}")]

    # With fewer optimisations than a build has, and one path of a source that has five.
    quick = tmp_path / "quick compiler"
    refuses = 'case "$*" in *-mavx*) exit 1 ;; esac'
    quick.write_text(f'#!/bin/sh\n{refuses}\nexec {COMPILER} "$@" -O1\n')
    quick.chmod(0o755)
    wheel, _ = package(unpacked, "--wheel", CXX=shlex.quote(str(quick)))
    shutil.unpack_archive(wheel, tmp_path / "installed", "zip")
    assert not (tmp_path / "installed" / "csrc").exists()
    assert native(tmp_path / "installed")


@pytest.mark.skipif(platform.system() != "Linux", reason="needs Linux's object files and nm")
def test_the_paths_of_this_build_share_no_code():
    built = ROOT / "build" / "native" / "_native.so"
    sources = [file for end in ("cpp", "h") for file in (ROOT / "csrc" / "cpu").glob(f"*.{end}")]
    if not built.exists() or built.stat().st_mtime < max(f.stat().st_mtime for f in sources):
        pytest.skip("no build of these sources is here: python setup.py build_ext -i")
    assert code_shared_by(ROOT) == set()
