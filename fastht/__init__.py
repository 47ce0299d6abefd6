"""fastht: fast HT (hybrid-tuning) adapters for vision transformers."""

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from fastht.exporting.command import export
    from fastht.exporting.errors import ExportError
    from fastht.exporting.load import load_exported

__all__ = [
    "BackendUnavailableError",
    "CheckpointError",
    "ExportError",
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
    "export",
    "import_nextgen_uia",
    "load_adapter",
    "load_exported",
    "patch",
    "print_trainable_parameters",
    "push_to_hub",
    "save_adapter",
    "unpatch",
]

_OF_EXPORTING = ("ExportError", "export", "load_exported")  # imported when they are asked for


def __getattr__(name: str) -> Any:
    if name in _OF_EXPORTING:
        from fastht import exporting

        return getattr(exporting, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
