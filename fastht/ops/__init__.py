"""The HT adapter as one operation with a choice of backends."""

from fastht.ops import custom_op as custom_op  # so that exported models with its ops can be loaded
from fastht.ops.ht_adapter import ht_adapter
from fastht.ops.plain import check_keep
from fastht.ops.registry import BackendStatus, BackendUnavailableError, backends, resolve_backend

__all__ = [
    "BackendStatus",
    "BackendUnavailableError",
    "backends",
    "check_keep",
    "ht_adapter",
    "resolve_backend",
]
