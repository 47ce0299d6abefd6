"""Settings that every test runs under."""

import contextlib
import gc
import os

# Before torch is imported, and inherited by the processes that tests start: two test workers with
# as many threads as cores each would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


def pytest_configure(config):
    """Make ready for tests, unless other processes run them: those of pytest-xdist."""
    if config.getoption("dist", "no") == "no" or config.option.collectonly:
        _prepare()


def _prepare():
    import torch

    if torch.cuda.is_available():
        # PyTorch lets convolutions round to TensorFloat-32, and plain PyTorch is the yardstick.
        torch.backends.cudnn.allow_tf32 = False
    else:
        # Without a GPU the Triton kernels run in Triton's interpreter, which has to be said before
        # they are defined.
        os.environ.setdefault("TRITON_INTERPRET", "1")
        import triton_interpreter

        triton_interpreter.mend()


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Give each worker of pytest-xdist tests that stand together.

    It deals them out one by one, so that every worker makes what a module's tests share.
    """
    if config.getoption("numprocesses", None) and config.option.dist == "no":
        config.option.dist = "worksteal"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Begin with the longest, the tutorials: begun last, they would keep one worker waiting."""
    items.sort(key=lambda item: "test_a_tutorial_runs" not in item.name)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Leave what importing makes out of the search for garbage, while it is made and in tests.

    It is millions of objects, none of which goes away, and to look at them takes half a second.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(5_000, 10, 10)  # seven times the usual: most tests leave no cycles
        gc.enable()


def pytest_unconfigure():
    """Let the interpreter see all objects again as it ends: Triton's bindings look for leaks."""
    gc.unfreeze()


@pytest.fixture
def backend(request):
    """Name the backend of an engine (see engines.py), its instruction-set path being forced."""
    from fastht.ops import cpu

    name, _, path = request.param.partition("/")
    with cpu.forced_path(path) if path else contextlib.nullcontext():
        yield name
