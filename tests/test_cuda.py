"""What only the CUDA backend is held to off a GPU: reasons, refusals, the order of ``auto``."""

import pytest
import torch

from fastht import BackendUnavailableError, backends, doctor
from fastht.ops import cuda, resolve_backend
from fastht.ops.cuda import kernels, nvrtc, report, sources


class Native:
    @staticmethod
    def driver_problem():
        return ""


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine on which the backend can run, as far as it can tell without starting a kernel."""
    monkeypatch.setattr(cuda, "native", Native)
    monkeypatch.delenv("FASTHT_CUDA_SIMULATE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: (7, 5) if i == 0 else (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"card {i}")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(nvrtc, "load", lambda: None)
    monkeypatch.setattr(sources, "SHIPPED", tmp_path)
    return monkeypatch


def nothing():
    raise LookupError("NVRTC is not found")


def test_it_runs_where_all_is_there(machine):
    status = backends()["cuda"]
    assert status.usable
    assert "by name only" in status.detail
    assert resolve_backend("cuda", "cuda", torch.bfloat16).name == "cuda"


@pytest.mark.parametrize(
    ("where", "name", "value", "reason"),
    [
        (cuda, "native", None, r"not built, or without CUDA \(FASTHT_CUDA=0\); install a C\+\+"),
        (torch.cuda, "is_available", lambda: False, "torch sees no CUDA GPU"),
        (torch.version, "hip", "6.0", "built for ROCm"),
        (torch.cuda, "get_device_capability", lambda i: (7, 5), "8.0 or newer.*card 0, card 1"),
        (Native, "driver_problem", lambda: "the NVIDIA driver is too old", "driver is too old"),
        (nvrtc, "load", nothing, "NVRTC is not found"),
        (sources, "CHECKOUT", sources.Path("/nowhere"), "without its CUDA kernels"),
    ],
)
def test_what_is_missing_is_named(machine, where, name, value, reason):
    machine.setattr(where, name, value)
    with pytest.raises(BackendUnavailableError, match=rf"'cuda' cannot run here: .*{reason}"):
        resolve_backend("cuda", "cuda", torch.bfloat16)
    assert not backends()["cuda"].usable


def test_kernels_compiled_at_install_replace_the_compiler(machine):
    machine.setattr(nvrtc, "load", nothing)
    kernels.precompiled().put("sm_90a", "mix_up", "0" * 64, b"code")
    assert cuda.missing() is None


@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [
        ("cpu", torch.bfloat16, "takes CUDA tensors, and x is on 'cpu'"),
        ("cuda", torch.float64, "not torch.float64"),
    ],
)
def test_tensors_that_it_does_not_take_are_refused(machine, device, dtype, reason):
    with pytest.raises(BackendUnavailableError, match=reason):
        resolve_backend("cuda", device, dtype)


def test_the_simulator_takes_cpu_tensors_alone(machine):
    machine.setenv("FASTHT_CUDA_SIMULATE", "1")
    machine.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_backend("cuda", "cpu", torch.float16).name == "cuda"
    with pytest.raises(BackendUnavailableError, match="CPU tensors in its simulator"):
        resolve_backend("cuda", "cuda", torch.float16)


def test_auto_never_takes_it(machine):
    machine.setenv("FASTHT_CUDA_SIMULATE", "1")
    for device in (None, "cpu", "cuda"):
        for dtype in (torch.float32, torch.bfloat16):
            assert resolve_backend("auto", device, dtype).name != "cuda"


def test_doctor_says_what_it_found_and_how_to_mend(machine, tmp_path):
    machine.setenv("FASTHT_CACHE", str(tmp_path / "cache"))
    machine.setattr(report, "native", Native)
    machine.setattr(Native, "driver_version", lambda: 13020, raising=False)

    class Compiler:
        version, architectures = (13, 2), (80, 90)

    machine.setattr(nvrtc, "load", Compiler)
    kernels.precompiled().put("sm_80", "fold", "0" * 64, b"code")
    kernels.cache().put("sm_90a", "fold", "0" * 64, b"code")
    kernels.cache().put("sm_90a", "down", "0" * 64, b"code")
    found = dict(report.rows())
    assert found["driver"] == "CUDA 13.2"
    assert found["nvrtc"] == "13.2, for compute capabilities 8.0, 9.0"
    assert found["compiled at install"] == "1 kernels for sm_80"
    assert found["compiled at first use"] == f"2 kernels for sm_90a, in {tmp_path}/cache/cuda"

    machine.setattr(Native, "driver_problem", lambda: "no NVIDIA driver is installed")
    machine.setattr(nvrtc, "load", nothing)
    machine.setattr(sources, "CHECKOUT", tmp_path / "nowhere")
    machine.setattr(sources, "SHIPPED", tmp_path / "nowhere")
    found = dict(report.rows())
    assert "install NVIDIA's driver 525 or newer" in found["driver"]
    assert found["nvrtc"] == "NVRTC is not found"
    assert "reinstall it without that" in found["sources"]
    assert found["compiled at install"] == "no kernels (FASTHT_CUDA=1 at install)"
    machine.setattr(report, "native", None)
    assert "FASTHT_CUDA=0" in dict(report.rows())["driver"]


def test_the_doctor_prints_it():
    text = doctor.report()
    assert "\nbackend cuda\n" in text
    for name, said in report.rows():
        assert f"  {name} " in text
        assert said in text
