"""Launches of a call, recorded once and repeated for every later call of the same kind.

Triton finds out at each launch what each of some forty arguments is, and every tensor between two
launches is an allocation: for a small batch that takes longer than the kernels. Here the first
call of a kind goes that way, while a :class:`Recording` keeps the compiled kernels, their grids and
which tensor each argument was. Later calls (:class:`Replay`) allocate what they return and one
workspace, and hand addresses to the same kernels.

Of one kind are calls whose kernels, grids and other arguments are the same: their key has
everything that these depend on. Only what a recording can name is repeated. An argument that is
neither a tensor of the call nor one that ``Launcher.new`` made leaves the whole kind to Triton's
way. So goes also a call with an address that is no multiple of 16, for which Triton compiles other
kernels, and every call while somebody hooks into Triton's launches.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from fastht.ops.triton import configs

# In these releases a compiled kernel's `run` takes the grid, stream, function, metadata, three for
# hooks, and then every argument by position, where an integer may stand for a pointer.
RELEASES = ("3.4", "3.5", "3.6", "3.7", "3.8", "3.9")
DEVICES = {"cuda"}  # on which calls are repeated
_ALIGNMENT = 16  # bytes, that Triton compiles for
_STEP = 256  # bytes: how far apart tensors begin in the workspace
_MOST = 512  # kinds that are remembered

_known: dict[Hashable, Replay | None] = {}


class Replay:
    """The launches of one kind of call.

    Args:
        device: where they go.
        workspace: bytes of what earlier launches leave to later ones.
        offsets: of the tensors there.
        constants: the arguments that are the same in every call.
        launches: what starts each kernel, and the places of its arguments among: the stream, the
            addresses of what the call reads and returns, those in the workspace, the constants.
        results: shape, strides and dtype of each tensor that the call returns.
    """

    def __init__(
        self,
        device: torch.device,
        workspace: int,
        offsets: Sequence[int],
        constants: Sequence[Any],
        launches: Sequence[tuple[Callable[..., Any], Sequence[int]]],
        results: Sequence[tuple[tuple[int, ...], tuple[int, ...], torch.dtype]],
    ) -> None:
        self._device, self._bytes = device, (workspace,)
        self._offsets, self._constants = tuple(offsets), tuple(constants)
        self._launches = [(run, operator.itemgetter(*places)) for run, places in launches]
        self._results = tuple(results)
        self._stream, self._allocate = _streams(), _allocator(device)

    def run(self, inputs: Sequence[int]) -> list[Tensor]:
        """Start the kernels for inputs at these addresses; return the results."""
        device = self._device
        if device.type == "cuda" and torch.cuda.current_device() != device.index:
            with torch.cuda.device(device):
                return self._start(inputs)
        return self._start(inputs)

    def _start(self, inputs: Sequence[int]) -> list[Tensor]:
        allocate = self._allocate
        if torch.are_deterministic_algorithms_enabled():  # which may fill what is allocated
            allocate = functools.partial(_empty_strided, self._device)
        results = [allocate(*result) for result in self._results]
        # PyTorch's allocator keeps memory that is given back here for later work of this stream.
        memory = allocate(self._bytes, (1,), torch.uint8)
        start = memory.data_ptr()
        values = (
            self._stream(self._device.index),
            *inputs,
            *[result.data_ptr() for result in results],
            *[start + offset for offset in self._offsets],
            *self._constants,
        )
        for run, arguments in self._launches:
            run(*arguments(values))
        return results


class Recording:
    """The launches of a call that takes place for the first time."""

    def __init__(self, key: Hashable, device: torch.device, inputs: Sequence[int]) -> None:
        self._key, self._device, self._inputs = key, device, inputs
        self.whole = True
        self._made: list[Tensor] = []  # kept, so that the memory of each stays its own
        self._launched: list[tuple[Any, tuple[int, ...], list[Any]]] = []

    def made(self, tensor: Tensor) -> Tensor:
        """Take notice of a tensor that was allocated for later launches."""
        self._made.append(tensor)
        return tensor

    def launching(self, kernel: Any, grid: tuple[int, ...]) -> Callable[..., None]:
        """Return what launches ``kernel`` on ``grid`` and takes notice."""

        def launch(*args: Any, **options: Any) -> None:
            compiled = kernel[grid](*args, **options)
            if not hasattr(compiled, "packed_metadata"):  # in Triton's interpreter
                self.whole = False
                return
            known = kernel.signature.parameters
            taken = {name: value for name, value in options.items() if name in known}
            bound = kernel.signature.bind(*args, **taken)
            bound.apply_defaults()
            self._launched.append((compiled, grid, list(bound.arguments.values())))

        return launch

    def finish(self, results: Sequence[Tensor]) -> None:
        """Let later calls of this kind repeat the launches, if that can be done.

        Args:
            results: what the call returns, every one allocated in it.
        """
        named = [*self._inputs, *(result.data_ptr() for result in results)]
        if len(set(filter(None, named))) < len(list(filter(None, named))):
            return  # nobody knows which of two was meant: a later call may tell
        while len(_known) >= _MOST:
            _known.pop(next(iter(_known)), None)
        _known[self._key] = self._replay(named, results) if self.whole else None

    def _replay(self, named: list[int], results: Sequence[Tensor]) -> Replay | None:
        made = [tensor for tensor in self._made if tensor.data_ptr() not in named]
        starts, size = [], 0
        for tensor in made:
            starts.append(size)
            size += -(-tensor.nbytes // _STEP) * _STEP
        offsets: dict[int, int] = {}  # of what is used, and its place among them
        constants: list[Any] = []
        launches: list[tuple[Any, list[tuple[str, int]]]] = []

        def constant(value: Any) -> tuple[str, int]:
            constants.append(value)
            return "constant", len(constants) - 1

        def place(value: Any) -> tuple[str, int] | None:
            if not isinstance(value, Tensor):
                return constant(value)
            address = value.data_ptr()
            if address == 0:
                return constant(0)
            if address in named:
                return "tensor", named.index(address)
            for tensor, start in zip(made, starts, strict=True):
                offset = address - tensor.data_ptr()
                if 0 <= offset < tensor.nbytes:
                    return "made", offsets.setdefault(start + offset, len(offsets))
            return None

        for compiled, grid, arguments in self._launched:
            places = [constant(grid[i] if i < len(grid) else 1) for i in range(3)]
            places.append(("stream", 0))
            places += map(constant, (compiled.function, compiled.packed_metadata, *(None,) * 3))
            for value in arguments:
                found = place(value)
                if found is None:
                    return None
                places.append(found)
            launches.append((compiled.run, places))
        first = {"stream": 0, "tensor": 1, "made": 1 + len(named)}
        first["constant"] = first["made"] + len(offsets)
        return Replay(
            self._device,
            size,
            list(offsets),
            constants,
            [(run, [first[kind] + i for kind, i in places]) for run, places in launches],
            [(tuple(t.shape), t.stride(), t.dtype) for t in results],
        )


def find(device: torch.device, key: Hashable, inputs: Sequence[int]) -> Replay | Recording | None:
    """Return how a call is repeated; or recorded, where it is the first; or ``None``: neither.

    Args:
        device: where the call's tensors are.
        key: all that the launches depend on besides addresses.
        inputs: the addresses of the tensors that the call reads; 0 for an empty one.
    """
    if device.type not in DEVICES or configs.release() not in RELEASES:
        return None
    bits = 0
    for address in inputs:
        bits |= address
    if bits % _ALIGNMENT or _is_hooked():
        return None
    key = device, key
    try:
        return _known[key]
    except KeyError:
        return Recording(key, device, inputs)


def _streams() -> Callable[[int | None], int]:
    """Return what tells the current stream of a device."""
    return triton.runtime.driver.active.get_current_stream  # type: ignore[no-any-return]


def _allocator(device: torch.device) -> Callable[..., Tensor]:
    """Return what allocates on the current device of a kind, by shape, strides and dtype.

    That of Inductor's compiled code, which goes to PyTorch's allocator without the dispatcher: half
    the time of ``torch.empty_strided``, for 23 tensors in a backward pass.
    """
    own = getattr(torch._C._dynamo.guards, f"_empty_strided_{device.type}", None)
    return own or functools.partial(_empty_strided, device)


def _empty_strided(
    device: torch.device, shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    return torch.empty_strided(shape, strides, dtype=dtype, device=device)


def _is_hooked() -> bool:
    runtime = triton.knobs.runtime
    for hook in (runtime.launch_enter_hook, runtime.launch_exit_hook):
        if hook is not None and getattr(hook, "calls", True):  # a function, or a chain of them
            return True
    return False
