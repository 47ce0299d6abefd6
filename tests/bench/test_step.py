"""One training step: what it changes, in which precision, what it keeps, what it lets through."""

import functools

import pytest
import torch
from vits import VITS

import fastht
from fastht import ops
from fastht.bench import gate
from fastht.bench.meter import Rotation, alternate
from fastht.bench.methods import METHODS, UnusableError
from fastht.bench.step import Step
from fastht.bench.towers import TINY, image_size

pytest.importorskip("peft")

EAGER = [name for name, method in METHODS.items() if not method.compiled]
PRECISIONS = ("fp32", "bf16", "bf16-base")
CONFIG = fastht.HTConfig(bottleneck_dim=16, init="paper")


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def make(method, precision="fp32", *, batch=3, config=CONFIG, keep="auto"):
    model = TINY.build()
    images = torch.randn(batch, 3, *image_size(model))
    return Step(METHODS[method], model, Rotation(images.clone, 1, 1), precision, config, keep)


def make_vit(vit, method, precision):
    model, images = VITS[vit].build(), VITS[vit].image(2, VITS[vit].built_grid)
    return Step(METHODS[method], model, Rotation(images.clone, 1, 0), precision, CONFIG)


def copies(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", EAGER)
def test_a_step_changes_what_trains_and_nothing_else(method, precision):
    step = make(method, precision)
    before = copies(step.model)
    step.contestant.once()
    step.contestant.once()  # the first gradient of some weights is zero
    for name, parameter in step.model.named_parameters():
        assert parameter.grad is None
        assert bool((parameter != before[name]).any()) == parameter.requires_grad, name
    trained = [p for p in step.model.parameters() if p.requires_grad]
    assert step.trainable == sum(p.numel() for p in trained)
    assert {p.dtype for p in trained} <= {torch.float32}
    frozen = {p.dtype for p in step.model.parameters() if not p.requires_grad}
    assert frozen <= {torch.bfloat16 if precision == "bf16-base" else torch.float32}


@pytest.mark.parametrize("method", ["full", "lora", "ht"])
def test_it_learns(method):
    step = make(method)
    images = step.images.next()
    before = step._loss(images).item()
    for _ in range(20):
        step.run(images)
    assert step._loss(images).item() < before


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("vit", ["clip", "coca", "pe-core", "mobileclip", "transformers-clip"])
def test_towers_of_all_libraries_take_steps(vit, precision):
    for method in ("frozen", "lora", "ht"):
        step = make_vit(vit, method, precision)
        step.check()
        step.contestant.once()


def test_precision_is_that_of_the_products():
    seen = {}
    for precision in PRECISIONS:
        step = make("ht-reference", precision)
        layer = step.model.blocks[0].mlp.fc1
        layer.register_forward_hook(lambda _, __, out, key=precision: seen.update({key: out.dtype}))
        step.contestant.once()
    assert seen == {"fp32": torch.float32, "bf16": torch.bfloat16, "bf16-base": torch.bfloat16}


def test_nothing_is_in_training_mode_where_nothing_trains():
    assert not make("frozen").model.training
    assert make("ht").model.training


def test_the_loss_is_cross_entropy_over_the_cosines():
    step = make("frozen", batch=4)
    images = step.images.next()
    with torch.no_grad():
        found = step.model(images)
        cosines = found @ step._texts.T / found.norm(dim=1, keepdim=True)
        expected = -(cosines / 0.07).log_softmax(dim=1).diagonal().mean()
        torch.testing.assert_close(step._loss(images), expected)
    torch.testing.assert_close(step._texts.norm(dim=1), torch.ones(4))


def test_a_part_of_the_batch_can_take_a_step():
    step = make("ht", batch=4)
    step.run(step.images.next()[:1])


def test_compiled_methods_run_what_the_others_run():
    """Compiled code itself runs in benchmarks/test_training.py."""
    with torch.compiler.set_stance("force_eager"):
        steps = {name: make(name) for name in ("ht", "ht-compiled", "lora-compiled")}
        for step in steps.values():
            step.check()
        images = steps["ht"].images.next()
        for step in steps.values():
            step.model.eval()  # no dropout
        compiled = steps["ht-compiled"]
        compiled.model.load_state_dict(steps["ht"].model.state_dict())
        torch.testing.assert_close(compiled._loss(images), steps["ht"]._loss(images))
        seconds = alternate({name: step.contestant for name, step in steps.items()})
    assert all(min(found) > 0 for found in seconds.values())


def test_frozen_keeps_nothing_and_fused_adapters_least():
    kept = {name: make(name).saved_bytes() for name in EAGER}
    assert kept["frozen"] == 0
    assert 0 < kept["ht"] < kept["mona"] < kept["ht-reference"]


def test_adapters_keep_the_tokens_they_are_told_to():
    keeps = ("auto", "input", "output")
    kept = {keep: make("ht", "bf16-base", keep=keep).saved_bytes() for keep in keeps}
    assert kept["auto"] == kept["input"]
    # The next LayerNorm keeps the output in any case: two blocks' inputs of 17 tokens are saved.
    assert kept["input"] - kept["output"] == 3 * 2 * 17 * 64 * torch.bfloat16.itemsize


def test_kept_bytes_grow_with_the_batch_alone():
    """Nothing that is there anyway counts, so that no image would keep nothing."""
    one, two = (make("ht", batch=batch) for batch in (8, 16))
    assert two.saved_bytes() == pytest.approx(2 * one.saved_bytes(), rel=0.01)


def test_held_bytes_are_parameters_and_two_moments_of_what_trains():
    step = make("ht")
    parameters = sum(p.nbytes for p in step.model.parameters())
    buffers = sum(b.nbytes for b in step.model.buffers())
    assert step.held_bytes() == parameters + buffers
    step.contestant.once()
    counters = 4 * sum(1 for p in step.model.parameters() if p.requires_grad)
    assert step.held_bytes() == parameters + buffers + 2 * 4 * step.trainable + counters
    rounded = make("frozen", "bf16-base")
    assert 2 * rounded.held_bytes() == make("frozen").held_bytes()


def test_the_backend_is_named_where_auto_picks_it():
    assert make("ht").backend == ops.resolve_backend("auto", "cpu", torch.float32).name
    assert make("ht-reference").backend is None
    assert make("lora").backend is None


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("init", ["paper", "identity"])
@pytest.mark.parametrize("spectral", ["channel", "full"])
def test_right_adapters_pass_the_check(init, spectral, precision):
    config = fastht.HTConfig(init=init, spectral=spectral, dropout=0.0)
    make("ht", precision, config=config).check()


def broken(x, params, *, how, **options):
    out = ops.ht_adapter(x, params, **options)
    if how == "forgets the filter":
        ones = 1.0 + 0.0 * params["spectral_filter"]
        return ops.ht_adapter(x, {**params, "spectral_filter": ones}, **options)
    if how == "has no dropout":
        return ops.ht_adapter(x, params, **{**options, "dropout": 0.0})
    return x + {"is zero": 0.0, "is doubled": 2.0, "is NaN": float("nan")}[how] * (out - x)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "how", ["forgets the filter", "has no dropout", "is zero", "is doubled", "is NaN"]
)
def test_wrong_adapters_do_not(monkeypatch, how, precision):
    step = make("ht", precision)
    module = type("ops", (), {"ht_adapter": staticmethod(functools.partial(broken, how=how))})
    monkeypatch.setattr("fastht.bench.step.ops", module)
    with pytest.raises(gate.IncorrectError):
        step.check()


def test_the_check_is_at_the_shape_dtype_and_precision_of_the_step(monkeypatch):
    seen = []

    def note(operation, x, dout, params, precision, **options):
        autocast = torch.is_autocast_enabled("cpu")
        seen.append((tuple(x.shape), x.dtype, dout.dtype, precision, autocast, options))

    monkeypatch.setattr(gate, "check", note)
    for precision in PRECISIONS:
        make("ht", precision, batch=5).check()
    options = {"grid_size": (4, 4), "num_prefix_tokens": 1}
    full, half = torch.float32, torch.bfloat16
    assert seen == [
        ((5, 17, 64), full, full, None, False, options),
        ((5, 17, 64), full, full, half, True, options),  # the position table makes it float32
        ((5, 17, 64), half, half, half, True, options),
    ]


@pytest.mark.parametrize("vit", ["eva01", "beit"])
def test_lora_without_effect_is_refused(vit):
    with pytest.raises(UnusableError, match=r"4 of the 8 weights that it adds have no effect"):
        make_vit(vit, "lora", "fp32").check()


def test_a_check_leaves_no_gradients():
    step = make("lora")
    step.check()
    assert all(p.grad is None for p in step.model.parameters())


def test_a_model_without_one_vector_an_image_is_refused():
    model = TINY.build()
    model.global_pool, model.pool = "", torch.nn.Identity()
    model.forward = model.forward_features
    images = Rotation(lambda: torch.zeros(2, 3, 32, 32), 1, 0)
    with pytest.raises(ValueError, match=r"features of shape \[1, 17, 64\]"):
        Step(METHODS["frozen"], model, images, "fp32")
