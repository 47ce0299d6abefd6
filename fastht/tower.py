"""What the adapters of one tower share at run time: the grid of the images, and the switch.

Both belong to a thread: several threads may run one patched model on images of different sizes,
and one of them may have the adapters switched off.
"""

from __future__ import annotations

import threading
from typing import Any

import torch

from fastht.watch import FirstStep


class _View:
    """What one thread's call is about.

    Attributes:
        grid_size: ``(H, W)`` of its images in flight; ``None`` before the first ones.
        disabled: whether it has switched the adapters off.
    """

    def __init__(self) -> None:
        self.grid_size: tuple[int, int] | None = None
        self.disabled = False


class _Local(threading.local):
    # An object of its own, since torch.compile keeps no assignment to a threading.local.
    def __init__(self) -> None:
        self.view = _View()


class TowerState:
    """What the adapters of one tower share at run time.

    Args:
        built_grid_size: the patch grid at the image size that the tower was built for.
        num_prefix_tokens: class and register tokens before the patches.
        sequence_first: whether the blocks take ``[N, B, D]``.
    """

    def __init__(
        self, built_grid_size: tuple[int, int], num_prefix_tokens: int, sequence_first: bool
    ) -> None:
        self.built_grid_size = built_grid_size
        self.num_prefix_tokens = num_prefix_tokens
        self.sequence_first = sequence_first
        # Every grid that a backward may still ask for, by its number of patches.
        self.grids: dict[int, set[tuple[int, int]]] = {}
        self._local = _Local()
        self.watch = FirstStep()
        self.modules_to_save: tuple[str, ...] = ()  # of the model around it
        self.source: str | None = None  # from where the adapters were loaded last
        self._seen: set[tuple[int, int]] = set()  # grids, in any thread
        # Adding to a set and taking away are atomic.
        self._threads: set[int] = set()
        self._disabling: set[int] = set()

    @property
    def grid_size(self) -> tuple[int, int]:
        """``(H, W)`` of this thread's images in flight; the built size before the first ones."""
        return self._local.view.grid_size or self.built_grid_size

    @property
    def enabled(self) -> bool:
        """Whether the adapters run in this thread."""
        return not self._local.view.disabled

    def record(self, height: int, width: int) -> None:
        """Remember the grid of the images that are going through the tower in this thread."""
        self._local.view.grid_size = (height, width)
        if torch.compiler.is_compiling():
            return
        self._threads.add(threading.get_ident())
        self._seen.add((height, width))
        # A forward without gradients is never recomputed; but inside of a backward pass (in a hook)
        # it is taken for a recomputation. Compiled code does not come here for its recomputation,
        # and to trace the set would recompile for every new grid.
        if torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:
            self.grids.setdefault(height * width, set()).add((height, width))

    def disable(self, disabled: bool) -> bool:
        """Switch the adapters off or on in this thread; return whether they were off before."""
        view = self._local.view
        before, view.disabled = view.disabled, disabled
        change = self._disabling.add if disabled else self._disabling.discard
        change(threading.get_ident())
        return before

    def enabled_for(self, replica: bool, recomputing: bool) -> bool:
        """Whether the adapters run in a block that may be called for another thread.

        DataParallel runs its replicas in threads of its own, and autograd recomputes checkpointed
        blocks in one thread a GPU: there the switch is that of the thread which called them.

        Args:
            replica: whether the block is one of DataParallel's.
            recomputing: whether a backward pass runs it again.

        Raises:
            RuntimeError: some threads have the adapters off, and it is not known which of them
                called.
        """
        view = self._local.view
        if view.disabled or not self._disabling:
            return not view.disabled
        if replica:
            return False
        if not recomputing or view.grid_size is not None:  # it is a caller itself
            return True
        if self._threads <= self._disabling:
            return False
        raise RuntimeError(
            "gradient checkpointing recomputes a block while some threads have the adapters of "
            "this model disabled and others do not; do not disable them elsewhere meanwhile"
        )

    def grid_for(self, num_patches: int) -> tuple[int, int]:
        """Return the grid of the images that a block is called with, outside of recomputations.

        Raises:
            RuntimeError: the images went through the patch projection in another thread.
        """
        grid = self._local.view.grid_size
        if grid is not None:
            return grid
        if any(h * w == num_patches for h, w in self._seen - {self.built_grid_size}):
            raise RuntimeError(
                "a block runs in a thread in which no image went through the patch projection, so "
                "that the grid of its patches is unknown; run the whole tower in one thread"
            )
        return self.built_grid_size

    def recomputed_grid(self, num_patches: int) -> tuple[int, int]:
        """Return the grid of a block that gradient checkpointing runs again in the backward.

        By then other images may have gone through the tower, so the grid is told by the number
        of patches, or not at all. Blocks that are compiled one by one inside a checkpoint do not
        ask: they take the grid of the latest images.

        Raises:
            RuntimeError: images of several grids of that many patches went through the tower.
        """
        grids = self.grids.get(num_patches, set())
        if len(grids) != 1:
            shown = ", ".join(f"{height}x{width}" for height, width in sorted(grids)) or "none"
            raise RuntimeError(
                f"gradient checkpointing recomputes a block of {num_patches} patches, but which of "
                f"the grids of that many patches it had is unknown (seen in training: {shown}). "
                "Train on one aspect ratio per number of patches, or without gradient checkpointing"
            )
        return next(iter(grids))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to threads, but for what this one sees."""
        own = ("_local", "_threads", "_disabling")
        kept = {name: value for name, value in self.__dict__.items() if name not in own}
        view = self._local.view
        return kept | {"seen": (view.grid_size, view.disabled)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        grid_size, disabled = state.pop("seen")
        self.__dict__.update(state)
        self._local, self._threads, self._disabling = _Local(), set(), set()
        self._local.view.grid_size = grid_size
        self.disable(disabled)
