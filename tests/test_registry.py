"""Which GPUs and releases of Triton the fused kernels run on, told by faked machines."""

import pytest
import torch

import fastht
from fastht.ops import BackendUnavailableError, registry, resolve_backend

triton = pytest.importorskip("triton")


@pytest.fixture
def machine(monkeypatch):
    """Return what makes this a machine with GPUs of some capabilities and a release of Triton."""
    monkeypatch.setattr(registry, "_interpreting", lambda: False)

    def make(*capabilities, version="3.9.0"):
        registry._gpu_refused.cache_clear()
        for name, value in {
            "is_available": lambda: True,
            "device_count": lambda: len(capabilities),
            "current_device": lambda: 0,
            "get_device_capability": lambda index: capabilities[index],
            "get_device_name": lambda index: f"GPU of {capabilities[index]}",
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(triton, "__version__", version)

    yield make
    registry._gpu_refused.cache_clear()


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (12, 0)])
@pytest.mark.parametrize("version", ["3.4.0", "3.6.0", "3.9.0", "3.10.0", "3.10.0+git1234"])
def test_most_chips_run_under_every_release(machine, capability, version):
    machine(capability, version=version)
    assert fastht.backends()["triton"].usable
    assert resolve_backend("auto", "cuda").name == "triton"


@pytest.mark.parametrize("capability", [(10, 0), (10, 3), (11, 0)])
@pytest.mark.parametrize("version", ["3.4.0", "3.5.1", "3.6.0", "3.7.1", "3.8.0"])
def test_a_release_that_miscompiles_for_a_chip_is_refused_by_name(machine, capability, version):
    machine(capability, version=version)
    detail = fastht.backends()["triton"].detail
    for word in (
        f"Triton {version}",
        "9871, 10590 and 10821",
        str(capability),
        "Triton 3.9 or newer",
    ):
        assert word in detail
    with pytest.raises(BackendUnavailableError, match=f"Triton {version} compiles"):
        resolve_backend("triton")
    with pytest.raises(BackendUnavailableError, match=f"Triton {version} compiles"):
        fastht.HTAdapter(16, backend="triton")
    assert resolve_backend("auto", "cuda").name == "reference"


@pytest.mark.parametrize("version", ["3.9.0", "3.9.1", "3.10.0"])
def test_the_release_that_mends_it_runs(machine, version):
    machine((10, 0), version=version)
    assert resolve_backend("triton", "cuda").name == "triton"


def test_old_chips_are_refused(machine):
    machine((7, 5))
    reason = r"needs compute capability 8.0 or newer, and this is GPU of \(7, 5\)"
    with pytest.raises(BackendUnavailableError, match=reason):
        resolve_backend("triton")


def test_of_several_gpus_each_is_asked(machine):
    machine((7, 5), (9, 0), (10, 0), version="3.6.0")
    assert fastht.backends()["triton"].usable
    assert resolve_backend("triton", "cuda:1").name == "triton"
    for device, reason in (
        ("cuda:0", "8.0 or newer"),
        ("cuda", "8.0"),
        ("cuda:2", "Triton 3.6.0 compiles"),
    ):
        assert resolve_backend("auto", device).name == "reference"
        with pytest.raises(BackendUnavailableError, match=reason):
            resolve_backend("triton", device)


def test_what_the_table_has_is_what_the_backend_takes():
    from fastht.ops.triton import configs

    assert registry._BACKENDS["triton"].max_channels == max(configs.CHANNELS)
