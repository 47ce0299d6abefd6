"""Progress of long work: lines where nobody sees a bar move, none where it is soon over."""

import sys

import pytest

from fastht.tasks.training import progress
from fastht.tasks.training.progress import ProgressBar


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def work(monkeypatch, seconds, shown=True):
    """Ten items of some seconds each."""
    clock = Clock()
    bar = ProgressBar(range(10), total=10, title="epoch 1/3", shown=shown)
    if shown:
        bar._time = clock
        bar.start_t = bar.last_print_t = 0.0
    for item in bar:
        clock.now += seconds
        bar.set_postfix(loss=f"{item}.5", refresh=False)


def test_a_log_file_gets_a_line_every_half_minute(monkeypatch, capsys):
    assert not sys.stderr.isatty()
    work(monkeypatch, 12)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 4
    assert all(line.startswith("epoch 1/3: ") and "/10 [" in line for line in lines)
    assert "loss=" in lines[0]
    assert progress._EVERY == 30


@pytest.mark.parametrize(("seconds", "shown"), [(1, True), (100, False)])
def test_short_work_and_other_processes_are_silent(monkeypatch, capsys, seconds, shown):
    work(monkeypatch, seconds, shown)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True, raising=False)
    list(ProgressBar(range(3), total=3, title="held out"))
    assert "\r" in capsys.readouterr().err
