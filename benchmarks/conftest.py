"""What pytest-benchmark writes beside the measurements, and a time limit for all of them."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pytest_benchmark.utils import get_commit_info

from benchmarks.cases import DEVICE
from fastht.bench.machine import describe
from fastht.bench.memory import return_free_memory

_START = time.monotonic()
_machine: dict[str, Any] = {}
_commit: dict[str, Any] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seconds", type=float, metavar="N", help="begin no benchmark after so many seconds"
    )


def pytest_configure(config: pytest.Config) -> None:
    _machine.update(describe(DEVICE))  # before the load and the clocks are those of benchmarks
    _commit.update(get_commit_info())  # of the code that is measured, not of its end
    measured = not config.getoption("benchmark_disable", default=False)
    if measured and os.environ.get("TRITON_INTERPRET") == "1" and not config.option.collectonly:
        raise pytest.UsageError(
            "times in Triton's interpreter mean nothing: unset TRITON_INTERPRET"
        )


@pytest.fixture(scope="module", autouse=True)
def _leave_no_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let go of a suite's contestants after it: the towers of the last need all there is."""
    yield
    for value in vars(request.module).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()
    torch.compiler.reset()
    return_free_memory()


def pytest_runtest_setup(item: pytest.Item) -> None:
    limit = item.config.getoption("--seconds")
    if limit is not None and time.monotonic() - _START > limit:
        pytest.skip(f"no time left of {limit:g} seconds")


def pytest_benchmark_generate_machine_info() -> dict[str, Any]:
    return _machine


def pytest_benchmark_generate_commit_info() -> dict[str, Any]:
    return _commit


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    output_json["command"] = shlex.join(["pytest", *config.invocation_params.args])
