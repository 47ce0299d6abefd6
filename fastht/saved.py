"""An adapter outside a model: what it holds, and the folder that keeps it.

The folder has ``adapter_config.json`` and ``adapter_model.safetensors``. The config records the
SHA-256 of the weights and of itself, so the two files belong together, unchanged, or do not load.
While an adapter is replaced, the config describes the new weights and, under ``previous``, the old
ones; the rename of the weights file is then the one moment at which the new adapter takes the old
one's place.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fastht.adapter import HTAdapter
from fastht.config import HTConfig
from fastht.files import exclusive, make_directory, remove_leftovers, write_atomically
from fastht.version import __version__

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
FORMAT = "fastht-adapter"
FORMAT_VERSION = 2  # written where there are modules beside the adapters; others are of version 1

_BASE_FIELDS = {"dim", "depth", "grid_size", "num_prefix_tokens", "name", "fingerprint"}
_MODULES = "modules/"  # before the path of a module and, after another slash, its tensor's name
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_MAX_CONFIG_BYTES = 1 << 20
_MAX_NAME = 1000
_MAX_SIZE = 65_536  # of any dimension: a made-up config must not exhaust the memory
_READ_ATTEMPTS = 20


class CheckpointError(ValueError):
    """A saved adapter is damaged, foreign, or does not fit the model."""


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter outside a model.

    Attributes:
        config: what the adapters are made of.
        base: the shape of the tower that it was trained in (``dim``, ``depth``, ``grid_size``,
            ``num_prefix_tokens``), the ``name`` of the model and a ``fingerprint`` of its weights;
            all but ``dim`` may be ``None``, where it is not known. ``settings``, which may lack,
            are those of :func:`fastht.fingerprint.settings`.
        weights: tensors by the names of :func:`fastht.adapter_state_dict`.
        filter_grid_size: ``(H, W)`` that a full spectral filter was made for; ``None`` for others.
        modules: the states of the modules that trained beside the adapters, by their paths.
    """

    config: HTConfig
    base: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    filter_grid_size: tuple[int, int] | None = None
    modules: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    def check(self, owner: str) -> None:
        """Raise unless every part is of the right kind and the weights are the config's, finite.

        Args:
            owner: what to call the adapter in the message.

        Raises:
            CheckpointError: something is wrong; the message names it.
        """
        problem = _problem_of_base(self.base)
        if problem is not None:
            raise CheckpointError(f"{owner} describes its base model wrongly: {problem}")
        expected = self._expected_shapes(owner)
        missing = sorted(expected.keys() - self.weights.keys())
        extra = sorted(self.weights.keys() - expected.keys())
        if missing or extra:
            parts = [
                f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
                for kind, names in (("missing", missing), ("unexpected", extra))
                if names
            ]
            raise CheckpointError(
                f"{owner} has other weights than its config says: {'; '.join(parts)}"
            )
        for name, shape in expected.items():
            tensor = self.weights[name]
            if tuple(tensor.shape) != shape:
                raise CheckpointError(
                    f"{owner}: {name} has shape {tuple(tensor.shape)}; its config needs {shape}"
                )
            if tensor.dtype not in _DTYPES:
                raise CheckpointError(
                    f"{owner}: {name} has dtype {tensor.dtype}; adapters are kept in float64, "
                    "float32, bfloat16 or float16"
                )
            _check_values(tensor, name, owner)
        for path, state in self.modules.items():
            for name, tensor in state.items():
                _check_values(tensor, f"{path}.{name}", owner)

    def _expected_shapes(self, owner: str) -> dict[str, tuple[int, ...]]:
        config, depth, grid = self.config, self.base["depth"], self.filter_grid_size
        full = config.has_filter and config.spectral == "full"
        if full != (grid is not None) or not (grid is None or _is_grid(grid)):
            raise CheckpointError(
                f"{owner} has filter_grid_size={grid!r}, which its config's variant="
                f"{config.variant!r} and spectral={config.spectral!r} do not allow"
            )
        try:
            if depth is None and (config.layers is None or min(config.layers) < 0):
                raise ValueError("its layers do not tell the blocks of a tower of unknown depth")
            indices = config.layer_indices(_MAX_SIZE if depth is None else depth)
            # One adapter without memory tells the names and shapes of all.
            one = HTAdapter(self.base["dim"], config, grid_size=grid, device="meta")
        except (ValueError, TypeError, RuntimeError, OverflowError) as error:
            raise CheckpointError(f"{owner} has an impossible config: {error}") from error
        shapes = {name: tuple(p.shape) for name, p in one.named_parameters()}
        return {f"blocks.{i}.{name}": shape for i in indices for name, shape in shapes.items()}


def _check_values(tensor: Tensor, name: str, owner: str) -> None:
    if tensor.is_meta or tensor.layout != torch.strided:
        kind = "on the meta device" if tensor.is_meta else f"{tensor.layout}"
        raise CheckpointError(f"{owner}: {name} is {kind}, not a dense tensor of numbers")
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(
            f"{owner}: {name} holds NaN or Inf: its training diverged; "
            "use an adapter from before that"
        )


def write_adapter(adapter: SavedAdapter, path: str | os.PathLike[str]) -> None:
    """Write an adapter to a folder; see :func:`fastht.save_adapter`.

    Raises:
        CheckpointError: the adapter is not whole, the path is a file, or the folder holds an
            adapter of another library or of a newer fastht.
        OSError: the folder cannot be written.
    """
    folder = Path(path)
    if not folder.is_dir() and os.path.lexists(folder):
        raise CheckpointError(f"{folder} is a file; name a folder to save an adapter to")
    adapter.check("the adapter to save")
    tensors = dict(adapter.weights)
    for path, state in adapter.modules.items():
        tensors |= {f"{_MODULES}{path}/{name}": tensor for name, tensor in state.items()}
    copies = {n: t.detach().to("cpu", copy=True).contiguous() for n, t in tensors.items()}
    data = safetensors.torch.save(copies, metadata={"format": "pt"})
    grid = adapter.filter_grid_size
    content = _seal(
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION if adapter.modules else 1,
            "fastht_version": __version__,
            "base_model": dict(adapter.base),
            "config": adapter.config.to_dict(),
            "filter_grid_size": None if grid is None else list(grid),
            "weights_sha256": hashlib.sha256(data).hexdigest(),
            **({"modules_to_save": sorted(adapter.modules)} if adapter.modules else {}),
        }
    )
    config_path, weights_path = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    make_directory(folder)
    _warn_of_a_model(folder)
    with exclusive(folder) as alone:
        old = _standing_adapter(folder)
        if alone:
            remove_leftovers(config_path)
            remove_leftovers(weights_path)
        if old is not None:
            write_atomically(config_path, _json(content | {"previous": old}))
        write_atomically(weights_path, data)
        write_atomically(config_path, _json(content))


def _warn_of_a_model(folder: Path) -> None:
    """Warn where a model of transformers' lies in the folder, too."""
    try:
        found = "model_type" in json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, TypeError):
        return
    if found:
        warnings.warn(
            f"{folder} holds a model of transformers too, whose from_pretrained takes every "
            f"{CONFIG_NAME} for peft's and fails where peft is installed: save the adapter to a "
            "folder of its own",
            stacklevel=4,
        )


def read_adapter(path: str | os.PathLike[str]) -> SavedAdapter:
    """Read an adapter from a folder without a model; nothing is unpickled.

    It may be read while it is being replaced: the old or the new one comes back, whole.

    Raises:
        CheckpointError: the folder is not there or holds no whole fastht adapter.
    """
    folder = Path(path)
    entry, data = _read_pair(folder)
    if not _is_sealed(entry):
        raise CheckpointError(
            f"{folder / CONFIG_NAME} does not match its own SHA-256: it was damaged or edited by "
            "hand; copy the folder again, or save the adapter again with what is to change"
        )
    try:
        grid = entry["filter_grid_size"]
        paths = entry.get("modules_to_save", [])
        weights, modules = _divide(safetensors.torch.load(data), paths, entry["format_version"])
        adapter = SavedAdapter(
            HTConfig.from_dict(entry["config"]),
            entry["base_model"],
            weights,
            None if grid is None else tuple(grid),
            modules,
        )
    except SafetensorError as error:
        raise CheckpointError(f"{folder / WEIGHTS_NAME} is no safetensors file: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} is not a valid adapter: {error}") from error
    adapter.check(str(folder))
    return adapter


def origin_of(path: Path) -> str | None:
    """Say who wrote the config at ``path``; ``None`` for fastht itself, and where it is damaged."""
    try:
        return _foreign_origin(_read_json(path))
    except CheckpointError:
        return None


def _divide(
    tensors: Mapping[str, Tensor], paths: list[str], version: int
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Part the adapters' weights from the tensors of the modules at ``paths``.

    Raises:
        ValueError: the config does not name these modules, or not as its version does.
    """
    if (version > 1) != bool(paths) or not all(isinstance(path, str) for path in paths):
        raise ValueError(f"format version {version} does not go with modules_to_save={paths!r}")
    weights = {name: t for name, t in tensors.items() if not name.startswith(_MODULES)}
    modules: dict[str, dict[str, Tensor]] = {path: {} for path in paths}
    for name in tensors.keys() - weights.keys():
        path, _, rest = name.removeprefix(_MODULES).partition("/")
        modules[path][rest] = tensors[name]
    return weights, modules


def _read_pair(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Read weights and the part of the config that describes them."""
    content = _read_config(folder)
    for _ in range(_READ_ATTEMPTS):
        data = _read_bytes(folder / WEIGHTS_NAME)
        entry = _entry_of(content, data)
        if entry is not None:
            return entry, data
        latest = _read_config(folder)
        if latest == content:
            raise CheckpointError(
                f"{folder / WEIGHTS_NAME} does not match the SHA-256 in {CONFIG_NAME}: it is "
                "truncated, damaged or of another adapter; copy the folder again"
            )
        content = latest  # the adapter was replaced between the two reads
    raise CheckpointError(f"{folder} is being written again and again; read it later")


def _problem_of_base(base: object) -> str | None:
    # Adapters saved before there were settings have none.
    if not isinstance(base, Mapping) or set(base) - {"settings"} != _BASE_FIELDS:
        return f"it needs the fields {', '.join(sorted(_BASE_FIELDS))} and no others"
    grid, name, fingerprint = base["grid_size"], base["name"], base["fingerprint"]
    if not _is_size(base["dim"], 1):
        return f"dim is {base['dim']!r}"
    for key, lowest in (("depth", 1), ("num_prefix_tokens", 0)):
        if base[key] is not None and not _is_size(base[key], lowest):
            return f"{key} is {base[key]!r}"
    if grid is not None and not _is_grid(grid):
        return f"grid_size is {grid!r}"
    if name is not None and not (isinstance(name, str) and len(name) <= _MAX_NAME):
        return f"name is not a text of at most {_MAX_NAME} characters"
    if not isinstance(base.get("settings", {}), Mapping):
        return "settings is no mapping"
    if fingerprint is not None and not (
        isinstance(fingerprint, list)
        and all(isinstance(v, float) and math.isfinite(v) for v in fingerprint)
    ):
        return "fingerprint is not a list of numbers"
    return None


def _is_size(value: object, lowest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= _MAX_SIZE


def _is_grid(value: object) -> bool:
    return (
        isinstance(value, list | tuple) and len(value) == 2 and all(_is_size(v, 1) for v in value)
    )


def _read_bytes(path: Path, limit: int = -1) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(limit)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        folder = path.parent
        if not os.path.lexists(folder):
            problem = f"{folder} is not there"
        elif os.path.isfile(folder):
            problem = f"{folder} is a file"
        else:
            problem = f"cannot read {path} ({getattr(error, 'strerror', None) or error})"
        raise CheckpointError(
            f"{problem}; an adapter is a folder with {CONFIG_NAME} and {WEIGHTS_NAME}, complete "
            "once its first save has ended"
        ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    content = _read_json(folder / CONFIG_NAME)
    origin = _foreign_origin(content)
    if origin is not None:
        raise CheckpointError(f"{folder / CONFIG_NAME} is not of a fastht adapter: {origin}")
    return content


def _read_json(path: Path) -> Any:
    data = _read_bytes(path, _MAX_CONFIG_BYTES + 1)
    if len(data) > _MAX_CONFIG_BYTES:
        raise CheckpointError(f"{path} has over {_MAX_CONFIG_BYTES} bytes: it is no adapter config")
    try:
        content = json.loads(data.decode())
        _digest(content)  # so that a nesting too deep for it is told here
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged, not JSON text: {error}") from error
    return content


def _foreign_origin(content: object) -> str | None:
    """Say who wrote a config that this version of fastht cannot read; ``None`` for its own."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        peft = isinstance(content, dict) and "peft_type" in content
        return "peft wrote it" if peft else f'it has no "format": "{FORMAT}"'
    version = content.get("format_version")
    if version not in range(1, FORMAT_VERSION + 1):
        return (
            f"it has format version {version!r}, and fastht {__version__} reads "
            f"1 to {FORMAT_VERSION}; upgrade fastht"
        )
    return None


def _standing_adapter(folder: Path) -> dict[str, Any] | None:
    """Return the config of the adapter that stands in ``folder``, if a whole one does.

    Raises:
        CheckpointError: another library's adapter stands there, or one of a newer fastht.
    """
    try:
        content = _read_json(folder / CONFIG_NAME)
    except CheckpointError:
        return None
    origin = _foreign_origin(content)
    if origin is not None:
        raise CheckpointError(
            f"{folder} holds an adapter that is not fastht's: {origin}; save to another folder, "
            "so that it is not lost"
        )
    try:
        entry = _entry_of(content, _read_bytes(folder / WEIGHTS_NAME))
    except CheckpointError:
        return None
    return entry if entry is not None and _is_sealed(entry) else None


def _entry_of(content: Mapping[str, Any], data: bytes) -> dict[str, Any] | None:
    """Return the part of a config that describes these weights: the new adapter's or the old's."""
    digest = hashlib.sha256(data).hexdigest()
    current = {key: value for key, value in content.items() if key != "previous"}
    for entry in (current, content.get("previous")):
        if isinstance(entry, dict) and entry.get("weights_sha256") == digest:
            return entry
    return None


def _seal(content: dict[str, Any]) -> dict[str, Any]:
    return content | {"config_sha256": _digest(content)}


def _is_sealed(entry: Mapping[str, Any]) -> bool:
    content = {key: value for key, value in entry.items() if key != "config_sha256"}
    return entry.get("config_sha256") == _digest(content)


def _digest(content: object) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
