"""What results say about their machine, and when two of them are of the same one."""

import json
import platform

import pytest
import torch

import fastht
from fastht.bench import machine


@pytest.fixture(scope="module")
def described():
    return machine.describe("cpu")


def test_it_is_plain_json_and_says_what_numbers_depend_on(described):
    assert json.loads(json.dumps(described)) == described
    assert described["device"] == "cpu"
    assert described["threads"] == torch.get_num_threads()
    assert described["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert described["fastht"] == fastht.__version__
    assert described["gpu"] is None
    assert "reference" in described["backends"]


def test_it_names_no_host(described):
    host = platform.node()
    if len(host) < 4:
        pytest.skip("the host's name could be a part of any word")
    assert host not in json.dumps(described)


def test_a_package_that_is_missing_has_no_version(monkeypatch):
    monkeypatch.setattr(machine, "PACKAGES", ("torch", "no-such-package"))
    assert machine.describe("cpu")["packages"]["no-such-package"] is None


def test_differences_name_what_differs(described):
    assert machine.differences(described, dict(described)) == {}
    other = {**described, "threads": 99, "load": 7.0}  # how busy it was makes it no other machine
    found = machine.differences(described, other)
    assert found == {"threads": (described["threads"], 99)}
    del other["gpu"]
    other["cpu"] = "another"
    assert machine.differences(described, other).keys() == {"threads", "cpu"}


def test_the_cache_has_a_size():
    assert machine.cache_bytes("cpu") >= 2**15


def test_where_the_system_tells_no_cache_it_is_taken_as_a_large_one(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path)
    assert machine.cache_bytes("cpu") == 64 * 2**20


def test_bfloat16_is_slow_where_onednn_has_none(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not machine.multiplies_bf16("cpu")
    assert machine.multiplies_bf16("cuda")


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="needs AVX-512 and PyTorch for it"
)
def test_bfloat16_is_fast_with_avx512():
    assert machine.multiplies_bf16("cpu")
