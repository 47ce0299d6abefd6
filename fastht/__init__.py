"""fastht: fast HT (hybrid-tuning) adapters for vision transformers."""

from fastht.adapter import HTAdapter
from fastht.backbones import UnsupportedModelError
from fastht.checkpoint import CheckpointError, adapter_source, load_adapter, save_adapter
from fastht.config import HTConfig
from fastht.hub.access import HubError
from fastht.hub.upload import push_to_hub
from fastht.nextgen import import_nextgen_uia
from fastht.ops import BackendUnavailableError, backends
from fastht.patch import (
    NotPatchedError,
    adapter_parameters,
    adapter_state_dict,
    adapters,
    disable_adapter,
    patch,
    print_trainable_parameters,
    unpatch,
)
from fastht.version import __version__

__all__ = [
    "BackendUnavailableError",
    "CheckpointError",
    "HTAdapter",
    "HTConfig",
    "HubError",
    "NotPatchedError",
    "UnsupportedModelError",
    "__version__",
    "adapter_parameters",
    "adapter_source",
    "adapter_state_dict",
    "adapters",
    "backends",
    "disable_adapter",
    "import_nextgen_uia",
    "load_adapter",
    "patch",
    "print_trainable_parameters",
    "push_to_hub",
    "save_adapter",
    "unpatch",
]
