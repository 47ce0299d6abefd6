"""What pytest-benchmark writes beside the measurements."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from benchmarks.cpu.machine import describe


def pytest_benchmark_generate_machine_info() -> dict[str, Any]:
    return describe()


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    output_json["command"] = shlex.join(["pytest", *config.invocation_params.args])
