"""Rates leave the compiling first step out; lines go where no terminal is."""

import pytest

from vitjax.runner.progress import Rate, clock_time, progress


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_the_first_step_does_not_count():
    clock = Clock()
    rate = Rate(40, clock=clock)
    assert rate.images_per_second is None and rate.seconds_left is None
    assert str(rate) == "compiling"
    clock.now += 60
    rate.advance(10)
    assert rate.images_per_second == pytest.approx(10 / 60)  # all that is known yet
    clock.now += 4
    rate.advance(20)
    assert rate.images_per_second == pytest.approx(5)
    assert rate.seconds_left == pytest.approx(2)
    assert str(rate) == "5.0 images/s, 0:00:02 left"


def test_clock_time():
    assert [clock_time(s) for s in (0.0, 59.6, 3725.0)] == [
        "0:00:00",
        "0:01:00",
        "1:02:05",
    ]


def test_lines_where_there_is_no_terminal(capsys):
    clock = Clock()
    rate = Rate(30, clock=clock)
    with progress(rate, title="asking", done=10, show=True) as tick:
        tick(10)
        clock.now += 20
        tick(10)
        tick(10)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "asking: 10/40 images",
        "asking: 30/40 images",
        "asking: 40/40 images",
    ]


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    rate = Rate(4, clock=Clock())
    with progress(rate, title="asking", done=0, show=True) as tick:
        tick(4)
    shown = capsys.readouterr().err
    assert "asking" in shown and "4/4" in shown and "images/s" in shown


def test_silence(capsys):
    rate = Rate(4)
    with progress(rate, title="asking", done=0, show=False) as tick:
        tick(4)
    assert rate.done == 4 and capsys.readouterr() == ("", "")
