"""Replacing an adapter on disk: a kill, a full disk, readers and writers at the same moment."""

from __future__ import annotations

import builtins
import errno
import json
import os
import shutil
import textwrap
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import fresh
import pytest
from saved_adapters import make, same

from fastht import CheckpointError, HTConfig
from fastht.saved import CONFIG_NAME, WEIGHTS_NAME, read_adapter, write_adapter

OLD = make(seed=1)
NEW = make(seed=2, config=HTConfig(variant="noise_aware", bottleneck_dim=6, dropout=0.3))


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the slow part of syncing; test_files.py asserts that files are synced, and when."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Killed(BaseException):
    """Stands for SIGKILL: no handler runs to an effect after it."""


class Disk:
    """Lets the first ``limit`` steps that change the disk happen, then raises ``failure``.

    With ``Killed`` every later step raises too, so that clean-up changes nothing, as in a process
    that is no more. A write stops half way.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit: int, failure: BaseException) -> None:
        self.left, self.failure, self.failed = limit, failure, False
        for owner, name in (
            (os, "replace"),
            (os, "fsync"),
            (shutil, "copymode"),
            (Path, "unlink"),
            (Path, "mkdir"),
        ):
            monkeypatch.setattr(owner, name, self.counted(getattr(owner, name)))
        monkeypatch.setattr(builtins, "open", self.opened(builtins.open))

    def step(self) -> None:
        if self.failed and not isinstance(self.failure, Killed):
            return
        if self.left == 0:
            self.failed = True
            raise self.failure
        self.left -= 1

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self.step()
            return function(*args, **kwargs)

        return run

    def opened(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if "r" in mode:
                return function(file, mode, *args, **kwargs)
            self.step()
            handle = function(file, mode, *args, **kwargs)
            write = handle.write

            def half(data: bytes) -> None:
                write(data[: len(data) // 2])
                handle.flush()
                self.step()
                write(data[len(data) // 2 :])

            handle.write = half  # type: ignore[method-assign]
            return handle

        return run


def write_until(limit: int, failure: BaseException, folder: Path) -> bool:
    """Write the new adapter on a disk that fails after ``limit`` steps; tell whether it failed."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, limit, failure)
        try:
            write_adapter(NEW, folder)
        except type(failure):
            assert disk.failed
    return disk.failed


FAILURES = [Killed(), OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt()]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_a_failure_at_any_step_leaves_the_old_or_the_new_adapter(
    tmp_path: Path, failure: BaseException
) -> None:
    seen = []
    for limit in count():
        folder = tmp_path / str(limit)
        write_adapter(OLD, folder)
        (folder / "notes.txt").write_text("mine")
        failed = write_until(limit, failure, folder)
        found = read_adapter(folder)
        assert same(found, OLD) or same(found, NEW), limit
        seen.append("new" if same(found, NEW) else "old")
        assert (folder / "notes.txt").read_text() == "mine"
        litter = set(os.listdir(folder)) - {CONFIG_NAME, WEIGHTS_NAME, "notes.txt"}
        assert not litter or isinstance(failure, Killed)
        # The next save works, and clears away what the killed one left.
        write_adapter(OLD, folder)
        assert same(read_adapter(folder), OLD)
        assert sorted(os.listdir(folder)) == sorted([CONFIG_NAME, WEIGHTS_NAME, "notes.txt"])
        assert "previous" not in json.loads((folder / CONFIG_NAME).read_text())
        if not failed:
            break
    # Three files of some steps each; the new adapter takes over at one of them and stays.
    assert len(seen) > 12
    assert seen == sorted(seen, reverse=True)
    assert {"old", "new"} == set(seen)


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_a_first_save_that_fails_is_an_error_to_read_until_it_is_whole(
    tmp_path: Path, failure: BaseException
) -> None:
    for limit in count():
        folder = tmp_path / str(limit) / "nested"
        failed = write_until(limit, failure, folder)
        if (folder / CONFIG_NAME).exists():
            assert same(read_adapter(folder), NEW)
        else:
            assert failed
            with pytest.raises(CheckpointError, match="complete once its first save has ended"):
                read_adapter(folder)
        write_adapter(OLD, folder)
        assert same(read_adapter(folder), OLD)
        if not failed:
            break
    assert limit > 12


def test_killed_again_and_again_at_any_step_it_still_holds_one_of_the_two(tmp_path: Path) -> None:
    write_adapter(OLD, tmp_path)
    for limit in [*range(20), 7, 3, 12, 5, 16, 1, 14]:
        before = read_adapter(tmp_path)
        write_until(limit, Killed(), tmp_path)
        after = read_adapter(tmp_path)
        assert same(after, NEW) or same(after, before), limit


def test_a_damaged_adapter_can_be_replaced(tmp_path: Path) -> None:
    for name, data in ((CONFIG_NAME, b"{"), (WEIGHTS_NAME, b"damaged")):
        write_adapter(OLD, tmp_path)
        (tmp_path / name).write_bytes(data)
        write_adapter(NEW, tmp_path)
        assert same(read_adapter(tmp_path), NEW)


def test_equal_weights_with_another_config_are_replaced_too(tmp_path: Path) -> None:
    other = replace(OLD, config=replace(OLD.config, dropout=0.7))
    write_adapter(OLD, tmp_path)
    write_adapter(other, tmp_path)
    assert same(read_adapter(tmp_path), other)


SAVER = """
    import os, signal, sys, time
    from saved_adapters import make, same
    from fastht.saved import read_adapter, write_adapter
    import torch

    torch.set_num_threads(1)
    folder, kills = sys.argv[1], int(sys.argv[2])
    adapters = [make(seed) for seed in range(2)]
    write_adapter(adapters[0], folder)
    for i in range(kills):
        saver = os.fork()
        if saver == 0:
            while True:
                for adapter in adapters:
                    write_adapter(adapter, folder)
        time.sleep(0.02 + 0.0037 * i)
        os.kill(saver, signal.SIGKILL)
        os.waitpid(saver, 0)
        found = read_adapter(folder)
        assert any(same(found, adapter) for adapter in adapters), i
        print("whole", flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_a_process_killed_while_saving_leaves_a_whole_adapter(tmp_path: Path) -> None:
    kills = 12
    code = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    result = fresh.run(code + textwrap.dedent(SAVER), str(tmp_path / "adapter"), str(kills))
    assert result.stdout.split() == ["whole"] * kills, result.stderr


def run_together(*functions: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def guarded(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_readers_meanwhile_get_the_old_or_the_new_adapter(tmp_path: Path) -> None:
    write_adapter(OLD, tmp_path)
    done = threading.Event()

    def write() -> None:
        try:
            for i in range(30):
                write_adapter((NEW, OLD)[i % 2], tmp_path)
        finally:
            done.set()

    def read() -> None:
        while not done.is_set():
            found = read_adapter(tmp_path)
            assert same(found, OLD) or same(found, NEW)

    run_together(write, read, read)


@pytest.mark.skipif(os.name != "posix", reason="POSIX locks")
def test_writers_at_the_same_moment_leave_one_of_their_adapters(tmp_path: Path) -> None:
    def writer(adapter: Any) -> Callable[[], None]:
        def write() -> None:
            for _ in range(10):
                write_adapter(adapter, tmp_path)
                found = read_adapter(tmp_path)
                assert same(found, OLD) or same(found, NEW)

        return write

    run_together(writer(OLD), writer(NEW), writer(OLD))
    assert sorted(os.listdir(tmp_path)) == sorted([CONFIG_NAME, WEIGHTS_NAME])


def test_a_reader_gives_up_when_the_adapter_never_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_adapter(OLD, tmp_path)
    (tmp_path / WEIGHTS_NAME).write_bytes(b"of another save each time")
    versions = count()
    monkeypatch.setattr("fastht.saved._read_config", lambda folder: {"version": next(versions)})
    with pytest.raises(CheckpointError, match="written again and again; read it later"):
        read_adapter(tmp_path)


PEFT = {"peft_type": "LORA", "r": 16, "base_model_name_or_path": "clip"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (PEFT, "peft wrote it"),
        ({"a": 1}, 'it has no "format": "fastht-adapter"'),
        ({"format": "fastht-adapter", "format_version": 9}, "upgrade fastht"),
    ],
)
def test_an_adapter_of_others_is_neither_read_nor_overwritten(
    tmp_path: Path, content: Any, reason: str
) -> None:
    (tmp_path / CONFIG_NAME).write_text(json.dumps(content))
    (tmp_path / WEIGHTS_NAME).write_bytes(b"theirs")
    with pytest.raises(CheckpointError, match=rf"not of a fastht adapter: .*{reason}"):
        read_adapter(tmp_path)
    with pytest.raises(CheckpointError, match=rf"{tmp_path} holds .*{reason}.*another folder"):
        write_adapter(NEW, tmp_path)
    assert json.loads((tmp_path / CONFIG_NAME).read_text()) == content
    assert (tmp_path / WEIGHTS_NAME).read_bytes() == b"theirs"
    assert len(os.listdir(tmp_path)) == 2
