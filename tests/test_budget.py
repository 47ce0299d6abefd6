"""What steps hold by setting: counted in two small batches and a few settings, exact in all."""

import gc
import itertools

import pytest
import torch
from torch import Tensor, nn
from vits import VITS, loss, open_clip_tower

import fastht
from fastht.backbones import find_backbone
from fastht.budget import MIB, BudgetError, Choice, check_budget, choose, count_costs
from fastht.recompute import reinstall
from fastht.saved_bytes import saved_bytes

DEPTH = 6
NUMBERED = DEPTH - 1  # nothing is kept of the first block
HELD = 1000
STATE = torch.get_rng_state().nbytes


def tower():
    torch.manual_seed(1)
    config = fastht.HTConfig(dropout=0.0, bottleneck_dim=8)
    return fastht.patch(open_clip_tower(layers=DEPTH), config).train()


def unequal():
    """A tower whose third block has an MLP of twice the width."""
    model = tower()
    mlp = find_backbone(model).blocks[2].mlp
    mlp.c_fc, mlp.c_proj = nn.Linear(32, 256), nn.Linear(256, 32)
    for parameter in (*mlp.c_fc.parameters(), *mlp.c_proj.parameters()):
        parameter.requires_grad_(False)
    return model


class Counter:
    """What autograd keeps of a tower, and how often that was asked."""

    def __init__(self, model):
        self.model, self.calls = model, 0

    def __call__(self, batch):
        self.calls += 1
        image = VITS["native"].image(batch=batch)
        alive = [*self.model.parameters(), *self.model.buffers(), image]
        return saved_bytes(lambda: loss(self.model(image)), alive) + image.nbytes


def states():
    """How many states of random numbers there are, among all objects of the process."""
    held = (o for o in gc.get_objects() if type(o) is Tensor)
    return sum((o.dtype, o.numel()) == (torch.uint8, STATE) for o in held)


def states_kept(model):
    """Bytes of those that a forward pass leaves to the backward pass."""
    image = VITS["native"].image(batch=3)
    gc.collect()
    before = states()
    output = loss(model(image))
    kept = states() - before
    del output
    return kept * STATE


@pytest.fixture(scope="module", params=[tower, unequal])
def counted(request):
    model = request.param()
    counter = Counter(model)
    costs = count_costs(find_backbone(model).blocks, counter, HELD)
    return request.param, model, costs, counter.calls


def test_every_setting_is_predicted_to_the_byte(counted):
    make, model, costs, calls = counted
    blocks = find_backbone(model).blocks
    assert set(costs) == {"none", "mlp", "block"} | {
        f"{what}:{number}" for what in ("mlp", "block") for number in range(1, DEPTH + 1)
    }
    found = {}
    for name, cost in costs.items():
        reinstall(blocks, name)
        found[name] = Counter(model)(3)
        number = int(name.partition(":")[2] or DEPTH) if name != "none" else 0
        of_states = min(number, NUMBERED) * STATE
        assert cost.kept_bytes(3) == found[name] + of_states
        if number in (0, 2, DEPTH):
            assert states_kept(model) == of_states
    # Of equal blocks few counts tell; of others each number is counted.
    assert calls == (12 if make is tower else 12 + 2 * 2 * DEPTH)
    # Negative control: numbers of blocks are told apart, up to all of which anything is kept.
    for what in ("mlp", "block"):
        sizes = [found["none"], *(found[f"{what}:{n}"] for n in range(1, DEPTH + 1))]
        assert sizes[:NUMBERED] == sorted(set(sizes), reverse=True)[:NUMBERED]
        assert sizes[NUMBERED] == sizes[DEPTH] == found[what]
        spared = [a - b for a, b in itertools.pairwise(sizes[: NUMBERED + 1])]
        assert (len(set(spared)) == 1) == (make is tower)


def test_a_budget_costs_what_it_needs():
    model = tower()
    costs = count_costs(find_backbone(model).blocks, Counter(model), HELD)
    for name in ("none", *(f"mlp:{number}" for number in range(1, NUMBERED))):
        size = costs[name].at(4)
        choice = choose(costs, size / MIB, batch=4)
        assert (choice.recompute, choice.predicted_bytes) == (name, size)
    # Whole blocks where the MLPs do not suffice, and as few as do.
    tight = costs[f"mlp:{NUMBERED - 1}"].at(4) - 1
    name = choose(costs, tight / MIB, batch=4).recompute
    what, _, number = name.partition(":")
    assert what == "block"
    assert costs[name].at(4) <= tight < costs[f"block:{int(number) - 1}"].at(4)
    # The backward pass begins with the last block: what it spares is needed at once.
    for what in ("mlp", "block"):
        assert costs[what].at(4) == costs[f"{what}:{NUMBERED - 1}"].at(4) + STATE
    least = costs[f"block:{NUMBERED - 1}"].at(4)
    with pytest.raises(BudgetError, match=rf"recompute='block:{NUMBERED - 1}'; one of 1 would"):
        choose(costs, (least - 1) / MIB, batch=4)


def test_it_says_what_was_chosen_beside_the_whole_settings():
    model = tower()
    costs = count_costs(find_backbone(model).blocks, Counter(model), HELD)
    choice = choose(costs, costs["mlp:2"].at(4) / MIB, batch=4)
    assert list(choice.counted) == ["none", "mlp:2", "mlp", "block"]
    assert ": mlp:2, batch 4: the setting that computes least again" in choice.describe()
    assert Choice.from_plain(choice.plain()) == choice


def test_records_of_older_runs_are_read():
    older = {
        "budget_mib": 2.0,
        "recompute": "mlp",
        "batch": 4,
        "predicted_bytes": 17,
        "counted": {"none": 20, "mlp": 17, "block": 9},
    }
    assert Choice.from_plain(older).recompute == "mlp"


def test_a_setting_and_a_budget_are_not_given_together():
    check_budget(None, "mlp:6")
    check_budget(2.0)
    with pytest.raises(ValueError, match=r"--recompute mlp:6 is given too; leave out one"):
        check_budget(2.0, "mlp:6")
    with pytest.raises(ValueError, match="recompute is 'most'; choose one of"):
        check_budget(None, "most")
