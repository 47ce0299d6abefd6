"""Files replaced in one step, whatever goes wrong on the way."""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from pathlib import Path

import pytest

from fastht.files import (
    check_writable,
    exclusive,
    make_directory,
    new_files,
    remove_leftovers,
    sync_directory,
    write_atomically,
)

posix_only = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions and locks")


def failing(error: BaseException):
    def fail(*args, **kwargs):
        raise error

    return fail


@pytest.mark.parametrize("old", [None, b"old"])
def test_writes_the_whole_content_and_leaves_no_litter(tmp_path: Path, old: bytes | None) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    write_atomically(path, b"new" * 1000)
    assert path.read_bytes() == b"new" * 1000
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt()])
def test_a_failure_keeps_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, error: BaseException
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, function, failing(error))
    with pytest.raises(type(error)):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_content_is_on_disk_before_the_rename_and_the_rename_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(descriptor: int) -> None:
        kind = "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        calls.append(f"sync {kind} of {os.fstat(descriptor).st_size if kind == 'file' else ''}")
        fsync(descriptor)

    def spy_replace(source: str, target: str) -> None:
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    write_atomically(tmp_path / "file", b"12345")
    directory = ["sync directory of "] if os.name == "posix" else []
    assert calls == ["sync file of 5", "rename", *directory]


@posix_only
def test_a_new_file_has_the_usual_permissions_and_an_old_one_keeps_its_own(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "new", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640

    (tmp_path / "private").write_bytes(b"old")
    (tmp_path / "private").chmod(0o600)
    write_atomically(tmp_path / "private", b"new")
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600


@posix_only
def test_a_link_is_replaced_and_its_target_left_alone(tmp_path: Path) -> None:
    target, link = tmp_path / "shared", tmp_path / "link"
    target.write_bytes(b"others read this")
    link.symlink_to(target)
    write_atomically(link, b"new")
    assert (target.read_bytes(), link.read_bytes()) == (b"others read this", b"new")


def test_only_the_leftovers_of_that_file_are_removed(tmp_path: Path) -> None:
    kept = ["a", ".a.txt", ".ab.1234.tmp", "a.1234.tmp", ".b.1234.tmp"]
    for name in [*kept, ".a.1234.tmp", ".a.5678.tmp"]:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "a")
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


@posix_only
def test_every_made_directory_is_synced_into_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr("fastht.files.sync_directory", synced.append)
    make_directory(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert synced == [tmp_path, tmp_path / "a"]
    make_directory(tmp_path / "a" / "b")
    assert len(synced) == 2


@posix_only
def test_a_file_system_that_cannot_sync_a_directory_is_no_error_but_a_broken_disk_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(OSError(errno.EINVAL, "not supported")))
    sync_directory(tmp_path)
    monkeypatch.setattr(os, "fsync", failing(OSError(errno.EIO, "disk broken")))
    with pytest.raises(OSError, match="disk broken"):
        sync_directory(tmp_path)


@posix_only
def test_the_lock_lets_one_in_at_a_time_and_frees_itself_after_an_error(tmp_path: Path) -> None:
    inside, most = [0], [0]

    def enter() -> None:
        for _ in range(20):
            with exclusive(tmp_path) as held:
                assert held
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                threading.Event().wait(0.0005)
                inside[0] -= 1

    with pytest.raises(RuntimeError, match="mine"), exclusive(tmp_path):
        raise RuntimeError("mine")
    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert os.listdir(tmp_path) == []


@posix_only
def test_without_locks_the_context_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", failing(OSError(errno.ENOLCK, "no locks")))
    with exclusive(tmp_path) as held:
        assert not held
    with exclusive(tmp_path / "absent") as held:
        assert not held


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*state\.pt'") as caught:
        write_atomically(tmp_path / "state.pt", b"content")
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_folder_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as root may write anywhere
    with pytest.raises(PermissionError, match=rf"cannot be written: '{re.escape(str(tmp_path))}'"):
        check_writable(tmp_path / "a" / "b")


def write_two(target: Path, meanwhile: str | None = None) -> None:
    with new_files(target) as path:
        path.write_bytes(b"1")
        path.with_name(f"{path.name}.data").write_bytes(b"2")
        assert not target.exists()
        if meanwhile is not None:
            target.with_name(meanwhile).write_bytes(b"meanwhile")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_new_files_come_into_place_together(tmp_path: Path) -> None:
    write_two(tmp_path / "m")
    assert content(tmp_path) == {"m": b"1", "m.data": b"2"}


@pytest.mark.parametrize("there", ["m", "m.data"])
def test_new_files_replace_none_and_come_all_or_none(tmp_path: Path, there: str) -> None:
    with pytest.raises(FileExistsError, match=f"{there} exists; remove it, or give another path"):
        write_two(tmp_path / "m", meanwhile=there)
    assert content(tmp_path) == {there: b"meanwhile"}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_new_files_that_fail_in_the_last_step_leave_nothing(
    tmp_path: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = os.replace

    def replace(one: Path, other: Path) -> None:
        if other.name == "m":
            raise error
        own(one, other)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(type(error)) as raised:
        write_two(tmp_path / "m")
    assert content(tmp_path) == {}
    if isinstance(raised.value, OSError):
        assert raised.value.filename == str(tmp_path / "m")
