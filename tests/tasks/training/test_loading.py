"""Workers that load images: they stay alive, and their failures say what to do."""

import contextlib
import gc
import os
import signal

import pytest
import torch
from torch.utils.data import Dataset, _utils

from fastht.data import DataError
from fastht.tasks.training import loading
from fastht.tasks.training.loading import LoadingError, make_loader, read_batches


@pytest.fixture(autouse=True, scope="module")
def impatient():
    """Let PyTorch wait half a second, not five, for each worker of a loader that is thrown away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.5)
        yield
        gc.collect()  # loaders that errors still hold


class Numbers(Dataset):
    """Items that tell which process made them, or fail in it."""

    def __init__(self, failure=None):
        self.failure = failure

    def __len__(self):
        return 8

    def __getitem__(self, i):
        if i == 3 and self.failure == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if i == 3 and isinstance(self.failure, Exception):
            raise self.failure
        return {"index": i, "process": os.getpid()}


def test_workers_live_from_one_epoch_to_the_next():
    loader = make_loader(Numbers(), workers=2, batch_size=2)
    epochs = [
        {int(p) for batch in read_batches(loader) for p in batch["process"]} for _ in range(3)
    ]
    assert epochs[0] == epochs[1] == epochs[2]
    assert len(epochs[0]) == 2
    assert os.getpid() not in epochs[0]


def test_no_workers_no_processes():
    loader = make_loader(Numbers(), workers=0, batch_size=2)
    assert {int(p) for batch in read_batches(loader) for p in batch["process"]} == {os.getpid()}


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    list(read_batches(make_loader(Numbers(), workers=1, batch_size=2)))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        (
            "unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device",
            r"too little shared memory .*MiB\): add --workers 0, .*docker run --shm-size 1g",
        ),
        ("DataLoader worker (pid 7) is killed by signal: Bus error.", "too little shared memory"),
        ("received 0 items of ancdata", "too many files open: raise `ulimit -n`, or"),
    ],
)
def test_errors_of_the_system_say_what_to_do(message, remedy):
    loader = make_loader(Numbers(RuntimeError(message)), workers=1, batch_size=2)
    with pytest.raises(LoadingError, match=remedy) as told:
        list(read_batches(loader))
    assert "\n" not in str(told.value)


def test_a_worker_that_was_killed_is_told():
    loader = make_loader(Numbers("killed"), workers=1, batch_size=2)
    with pytest.raises(LoadingError, match="lack of memory: use fewer --workers"):
        list(read_batches(loader))


def test_bugs_keep_their_traceback_and_data_their_words():
    with pytest.raises(RuntimeError, match="a bug") as told:
        list(read_batches(make_loader(Numbers(RuntimeError("a bug")), workers=1, batch_size=2)))
    assert not isinstance(told.value, LoadingError)
    with pytest.raises(DataError, match=r"^a\.png: broken; run `fastht data check`"):
        list(
            read_batches(make_loader(Numbers(DataError("a.png: broken")), workers=1, batch_size=2))
        )


def test_a_worker_ends_by_sigterm_whatever_the_main_process_makes_of_it():
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        loader = make_loader(Numbers(), workers=1, batch_size=2)
        list(read_batches(loader))
        worker = loader._iterator._workers[0]
        worker.terminate()
        # PyTorch tells of the end by an error in whatever runs when it comes, once.
        with contextlib.suppress(RuntimeError):
            worker.join(timeout=20)
        worker.join(timeout=20)
        assert worker.exitcode == -signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
    assert loading._explain("anything", 2) is None
