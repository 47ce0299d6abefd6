"""One training step of a vision tower: what it takes, and what it keeps in memory.

Images go through the tower; the loss is InfoNCE of their features against fixed random text
features; fused AdamW changes what trains. The loss looks from the images to the texts alone: the
other direction is one more softmax over the same small matrix. A text tower takes no part, since
its features do not change while the vision tower trains.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastht import budget, ops
from fastht.adapter import HTAdapter
from fastht.bench import gate, memory
from fastht.bench.meter import Contestant, Rotation
from fastht.bench.methods import PAPER, Method, UnusableError
from fastht.bench.towers import features
from fastht.config import HTConfig
from fastht.patch import adapters
from fastht.saved_bytes import saved_bytes
from fastht.spectral import resample_spectral_filter

# "fp32": no autocast. "bf16": autocast to bfloat16, all parameters in float32. "bf16-base": the
# same, with what does not train kept in bfloat16.
Precision = Literal["fp32", "bf16", "bf16-base"]

LEARNING_RATE = 1e-4
TEMPERATURE = 0.07
ENOUGH_ACTIVATIONS = 2**15  # to tell the share that dropout drops


class Step:
    """The training step of one model by one method.

    Args:
        method: prepares ``model`` and says whether it is compiled.
        model: a freshly built model that :func:`fastht.patch` could take, on the images' device.
        images: sets of ``[B, 3, H, W]`` float32 images, all of the same shape.
        precision: one of ``Precision``.
        config: what HT adapters are made of.
        keep: which tokens they keep for the backward pass, as :func:`fastht.patch` takes it.

    Attributes:
        method, model, images: as given; the model is prepared.
        trainable: how many numbers train.

    Raises:
        UnusableError: the method cannot train this model here.
        ValueError: the model does not give one feature vector an image.
    """

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        images: Rotation[Tensor],
        precision: Precision,
        config: HTConfig = PAPER,
        keep: str = "auto",
    ) -> None:
        self.method, self.model, self.images = method, model, images
        base = set(model.parameters())
        method.prepare(model, config, keep)
        trained = [p for p in model.parameters() if p.requires_grad]
        self.trainable = sum(p.numel() for p in trained)
        named = model.named_parameters()
        self._added = [name for name, p in named if p.requires_grad and p not in base]
        # Evaluation where nothing trains: that is how features of a frozen tower are computed.
        model.train(bool(trained))
        if precision == "bf16-base":
            _round_frozen(model)
        example = images.sets[0]
        self._device = example.device
        self._autocast = precision != "fp32"
        self._optimizer = None
        if trained:
            self._optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)
        self._texts = self._make_texts(example)
        self._labels = torch.arange(len(example), device=self._device)
        self._features: Callable[[Tensor], Tensor] = functools.partial(features, model)
        if method.compiled:
            self._features = torch.compile(self._features, dynamic=False)

    @property
    def contestant(self) -> Contestant:
        """The step as :func:`fastht.bench.meter.alternate` takes it."""
        return Contestant(self.run, self.images.next)

    @property
    def backend(self) -> str | None:
        """What ``auto`` stands for in this step, or ``None`` for a method that does not ask."""
        if not self.method.fused:
            return None
        adapter, tokens, _ = self._first_call
        channels = adapter.config.bottleneck_dim
        return ops.resolve_backend(adapter.backend, tokens.device, tokens.dtype, channels).name

    def run(self, images: Tensor) -> None:
        """Take one step on at most B images; where nothing trains, forward alone."""
        if self._optimizer is None:
            with torch.no_grad():
                self._loss(images)
            return
        self._loss(images).backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def check(self) -> None:
        """Make sure that the step computes what the method's name says.

        The adapters of a fused backend are held to :func:`fastht.bench.gate.check` at the very
        shape, dtype and precision of the step. And all that the method added has to get a
        gradient, which LoRA's weights do not in an attention that goes past its own layers.

        Raises:
            IncorrectError: an adapter computes something else than the reference.
            UnusableError: something trains without ever getting a gradient.
        """
        if self.method.fused:
            self._check_adapter()
        if self._added:
            self._check_gradients()

    def saved_bytes(self) -> int:
        """Return the bytes of activations that autograd keeps from the forward pass."""
        images = self.images.next()
        alive = [*self._held(), *self.images.sets, self._texts, self._labels]
        return saved_bytes(lambda: self._loss(images), alive)

    def kept_bytes(self, batch: int) -> int:
        """Return the bytes of activations that autograd keeps of ``batch`` images, and theirs.

        Without ``torch.compile``, even if the method has it.
        """
        images = self.images.sets[0][:batch]
        alive = [*self._held(), *self.images.sets, self._texts, self._labels]
        eager = functools.partial(features, self.model)
        return images.nbytes + saved_bytes(lambda: self._loss(images, eager), alive)

    def predicted_held_bytes(self) -> int:
        """Return :meth:`held_bytes` as it is after the first step, and those of the gradients."""
        return budget.held_bytes(self.model)

    def held_bytes(self) -> int:
        """Return the bytes of parameters, buffers and, once there was a step, AdamW's states."""
        storages = (tensor.untyped_storage() for tensor in self._held())
        return sum({s.data_ptr(): s.nbytes() for s in storages}.values())

    def peak_bytes(self) -> int:
        """Return ``held_bytes`` plus what memory grows by in a step that is not the first.

        On a CPU this holds in a fresh process alone; :func:`fastht.bench.lineup.peak_bytes`
        starts one.

        Raises:
            RuntimeError: this system does not tell.
        """
        images = self.images.next()
        growth = memory.peak_growth(lambda: self.run(images), self._device.type)
        return self.held_bytes() + growth

    def _precision(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast)

    def _loss(self, images: Tensor, tower: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        with self._precision():
            found = (tower or self._features)(images)
        # In float32: 16 bits cannot tell close logits apart.
        logits = F.normalize(found.float(), dim=-1) @ self._texts.T / TEMPERATURE
        return F.cross_entropy(logits, self._labels[: len(images)])

    def _make_texts(self, images: Tensor) -> Tensor:
        """Return fixed unit vectors ``[B, E]``, as wide as the model's features."""
        with torch.no_grad(), self._precision():
            found = features(self.model, images[:1])
        if found.ndim != 2:
            raise ValueError(
                f"{type(self.model).__name__} gives features of shape {list(found.shape)}; a step "
                "needs one vector an image"
            )
        generator = torch.Generator().manual_seed(2)
        texts = torch.randn(len(images), found.shape[1], generator=generator)
        return F.normalize(texts, dim=-1).to(self._device)

    def _held(self) -> list[Tensor]:
        states = {} if self._optimizer is None else self._optimizer.state
        kept = [t for state in states.values() for t in state.values() if isinstance(t, Tensor)]
        return [*self.model.parameters(), *self.model.buffers(), *kept]

    @functools.cached_property
    def _first_call(self) -> tuple[HTAdapter, Tensor, dict[str, Any]]:
        """The first adapter, and the tokens and options that it is called with for one image."""
        adapter = next(iter(adapters(self.model).values()))
        calls: list[Any] = []
        hook = adapter.register_forward_pre_hook(lambda _, arguments: calls.append(arguments))
        try:
            with torch.no_grad(), self._precision():
                features(self.model, self.images.sets[0][:1])
        finally:
            hook.remove()
        tokens, grid_size, num_prefix_tokens = calls[0]
        return adapter, tokens, {"grid_size": grid_size, "num_prefix_tokens": num_prefix_tokens}

    def _check_adapter(self) -> None:
        adapter, tokens, options = self._first_call
        generator = torch.Generator().manual_seed(3)
        shape = (len(self._labels), *tokens.shape[1:])
        x, dout = (torch.randn(shape, generator=generator).to(tokens) for _ in range(2))
        params = _telling_parameters(adapter, options["grid_size"], rounded=self._autocast)
        fused = functools.partial(ops.ht_adapter, backend=adapter.backend)
        with self._precision():
            gate.check(
                fused, x, dout, params, torch.bfloat16 if self._autocast else None, **options
            )
            # Of few activations by chance far more or less than a tenth are dropped.
            activations = x.shape[0] * x.shape[1] * len(params["down.bias"])
            many = x.repeat(-(-ENOUGH_ACTIVATIONS // activations), 1, 1)
            gate.check_dropout(
                lambda: fused(many, params, dropout=0.1, **options),
                lambda: fused(many, params, **options),
                many,
            )

    def _check_gradients(self) -> None:
        with self._precision():
            found = features(self.model, self.images.sets[0][:1])
        found.float().sum().backward()
        missing = [name for name in self._added if self.model.get_parameter(name).grad is None]
        self.model.zero_grad(set_to_none=True)
        if missing:
            raise UnusableError(
                f"{len(missing)} of the {len(self._added)} weights that it adds have no effect, "
                f"such as {missing[0]}: the tower goes past the layers that hold them"
            )


def _round_frozen(model: nn.Module) -> None:
    """Put into bfloat16 what does not train, but BatchNorm, whose statistics stay in float32."""
    for module in model.modules():
        if not isinstance(module, nn.BatchNorm2d):
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad:
                    parameter.data = parameter.data.bfloat16()


def _telling_parameters(
    adapter: HTAdapter, grid_size: tuple[int, int], *, rounded: bool
) -> dict[str, Tensor]:
    """Return an adapter's parameters, changed so that an error in any term shows.

    The published initialisation has a gamma of 1e-6, ones and zeros; "identity" a zero ``up``.
    The gate's hidden units are kept away from zero, where rounding decides about their gradient.

    Args:
        adapter: is not changed itself.
        grid_size: what a full spectral filter is resampled to.
        rounded: to values that bfloat16 can hold.
    """
    generator = torch.Generator().manual_seed(4)
    changed = ("gamma", "gammax", "norm.weight", "norm.bias", "spectral_filter", "up.weight")
    params = {}
    for name, parameter in adapter.named_parameters():
        value = parameter.detach().clone()
        if name == "spectral_filter" and adapter.filter_grid_size is not None:
            value = resample_spectral_filter(value, adapter.filter_grid_size, grid_size)
        if name in changed:
            value += 0.3 * torch.randn(value.shape, generator=generator).to(value)
        if name == "noise_gate.0.bias":
            value = gate.off_the_kink(value)
        params[name] = value.bfloat16().to(value.dtype) if rounded else value
    return params
