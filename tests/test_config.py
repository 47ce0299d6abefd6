"""HTConfig: what it accepts, what it refuses, and what it decides."""

import dataclasses
import pickle

import pytest

from fastht import HTConfig


def test_defaults_are_the_papers_hybrid_starting_as_the_base():
    config = HTConfig()
    assert config.to_dict() == {
        "variant": "hybrid",
        "spectral": "channel",
        "bottleneck_dim": 64,
        "dropout": 0.1,
        "init": "identity",
        "layers": None,
    }


@pytest.mark.parametrize(
    ("variant", "has_filter", "has_gate"),
    [
        ("hybrid", True, True),
        ("noise_aware", False, True),
        ("freq_enhanced", True, False),
        ("baseline", False, False),
    ],
)
def test_variant_decides_the_parts(variant, has_filter, has_gate):
    config = HTConfig(variant=variant)
    assert (config.has_filter, config.has_gate) == (has_filter, has_gate)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("variant", "mona", ValueError),
        ("spectral", None, ValueError),
        ("init", "zero", ValueError),
        ("bottleneck_dim", 3, ValueError),
        ("bottleneck_dim", 64.0, TypeError),
        ("bottleneck_dim", True, TypeError),
        ("dropout", 1.0, ValueError),
        ("dropout", -0.1, ValueError),
        ("dropout", float("nan"), ValueError),
        ("dropout", "0.1", TypeError),
        ("layers", [], ValueError),
        ("layers", 3, TypeError),
        ("layers", "12", TypeError),
        ("layers", [1.0], TypeError),
        ("layers", [True], TypeError),
    ],
)
def test_bad_value_is_named(field, value, error):
    with pytest.raises(error, match=rf"HTConfig\.{field} "):
        HTConfig(**{field: value})


def test_frozen_hashable_and_picklable():
    config = HTConfig(layers=[3, -1])
    assert config.layers == (3, -1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.dropout = 0.5
    assert hash(config) == hash(HTConfig(layers=(3, -1)))
    assert pickle.loads(pickle.dumps(config)) == config


def test_layer_indices_count_from_both_ends():
    assert HTConfig().layer_indices(3) == (0, 1, 2)
    assert HTConfig(layers=[-1, 0]).layer_indices(12) == (0, 11)


@pytest.mark.parametrize("layers", [[12], [-13], [0, -12]])
def test_layer_indices_refuse_what_the_tower_lacks(layers):
    with pytest.raises(ValueError, match=r"HTConfig\.layers"):
        HTConfig(layers=layers).layer_indices(12)


def test_dict_round_trip_refuses_unknown_fields():
    config = HTConfig(variant="baseline", layers=[1, 2], dropout=0.0)
    assert HTConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="'rank'"):
        HTConfig.from_dict({"rank": 4})
