"""What an HT adapter is made of: one small, validated, immutable description."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

Variant = Literal["hybrid", "noise_aware", "freq_enhanced", "baseline"]
Spectral = Literal["channel", "full"]
Init = Literal["identity", "paper"]


@dataclass(frozen=True)
class HTConfig:
    """Describe the HT adapters that :func:`fastht.patch` puts into a vision transformer.

    Attributes:
        variant: which of the paper's four operators (arXiv 2506.08849, table VII).
            ``"hybrid"`` has the spectral filter and the noise gate, ``"noise_aware"`` only the
            gate, ``"freq_enhanced"`` only the filter, ``"baseline"`` (Mona) neither.
        spectral: ``"channel"`` learns one filter value a channel, as the published code does;
            ``"full"`` learns one a channel and frequency, a global filter over the patch grid.
            Ignored by the variants without a filter.
        bottleneck_dim: channels C between down- and up-projection.
        dropout: probability of zeroing a bottleneck activation in training.
        init: ``"identity"`` starts as the base model (the up-projection is zero);
            ``"paper"`` is the published initialisation, which moves the features at once.
        layers: indexes of the blocks that get an adapter, negative ones counted from the end;
            ``None`` takes every block.

    Raises:
        TypeError: a field has the wrong type.
        ValueError: a field has a value outside its range.
    """

    variant: Variant = "hybrid"
    spectral: Spectral = "channel"
    bottleneck_dim: int = 64
    dropout: float = 0.1
    init: Init = "identity"
    layers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        for name, choices in (("variant", Variant), ("spectral", Spectral), ("init", Init)):
            value = getattr(self, name)
            if value not in get_args(choices):
                options = ", ".join(repr(choice) for choice in get_args(choices))
                raise ValueError(f"HTConfig.{name} is {value!r}; choose one of {options}")
        if not _is_int(self.bottleneck_dim):
            raise TypeError(f"HTConfig.bottleneck_dim is {self.bottleneck_dim!r}; give an integer")
        # The noise gate's hidden layer has a quarter of the bottleneck's channels.
        if self.bottleneck_dim < 4:
            raise ValueError(f"HTConfig.bottleneck_dim is {self.bottleneck_dim}; it must be >= 4")
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, int | float):
            raise TypeError(f"HTConfig.dropout is {self.dropout!r}; give a number")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"HTConfig.dropout is {self.dropout}; it must lie in [0, 1)")
        if self.layers is not None:
            object.__setattr__(self, "layers", _layer_tuple(self.layers))

    @property
    def has_filter(self) -> bool:
        """Whether the operator has a spectral filter."""
        return self.variant in ("hybrid", "freq_enhanced")

    @property
    def has_gate(self) -> bool:
        """Whether the operator has a noise gate."""
        return self.variant in ("hybrid", "noise_aware")

    def layer_indices(self, depth: int) -> tuple[int, ...]:
        """Return the sorted block indexes that get an adapter in a tower of ``depth`` blocks.

        Raises:
            ValueError: an index is out of range or names the same block twice.
        """
        if self.layers is None:
            return tuple(range(depth))
        bad = [i for i in self.layers if not -depth <= i < depth]
        if bad:
            raise ValueError(
                f"HTConfig.layers names blocks {bad}, but the tower has {depth} blocks: "
                f"use indexes from 0 to {depth - 1}"
            )
        indices = sorted(i % depth for i in self.layers)
        if len(set(indices)) != len(indices):
            raise ValueError(f"HTConfig.layers {tuple(self.layers)} names a block twice")
        return tuple(indices)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON types."""
        data = asdict(self)
        data["layers"] = None if self.layers is None else list(self.layers)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> HTConfig:
        """Build a config from :meth:`to_dict`'s output.

        Raises:
            ValueError: a field is unknown to this version of fastht, or has a bad value.
            TypeError: a field has the wrong type.
        """
        unknown = sorted(set(data) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(
                f"HTConfig has no field {', '.join(map(repr, unknown))}: "
                "the file was written by a newer fastht or edited by hand"
            )
        return cls(**data)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _layer_tuple(layers: Sequence[int]) -> tuple[int, ...]:
    if isinstance(layers, str | bytes):
        raise TypeError(f"HTConfig.layers is {layers!r}; give a sequence of integers")
    try:
        values = tuple(layers)
    except TypeError:
        raise TypeError(f"HTConfig.layers is {layers!r}; give a sequence of integers") from None
    if not values:
        raise ValueError("HTConfig.layers is empty; name at least one block, or None for all")
    if not all(_is_int(i) for i in values):
        raise TypeError(f"HTConfig.layers is {values!r}; give a sequence of integers")
    return values
