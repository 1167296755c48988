"""Signals: one error, which nothing swallows and no second signal disturbs."""

import gc
import signal
import subprocess
import sys
import threading

import pytest

from vitjax.cli import main
from vitjax.runner import interrupt
from vitjax.runner.interrupt import Terminated, check_interrupt, handle_signals

PROGRAM = """
import os, signal, sys
from vitjax.cli import main, models

def call(self):
    try:
        os.kill(os.getpid(), signal.SIG{0})
    finally:  # while the first is on its way
        for number in 4 * [signal.SIGINT, signal.SIGTERM]:
            os.kill(os.getpid(), number)

models.List.__call__ = call
sys.argv[1:] = ["list"]
status = main.main()
os.kill(os.getpid(), signal.SIGINT)  # while the process ends
sys.exit(status)
"""


@pytest.mark.parametrize(("name", "status"), [("INT", 130), ("TERM", 143)])
def test_many_signals_are_one_word(name, status):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(name)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (status, "Stopped.\n")


def test_a_signal_in_a_callback_of_the_garbage_collector_is_not_lost(monkeypatch):
    lost = []
    monkeypatch.setattr(sys, "unraisablehook", lost.append)

    def callback(phase, info):
        gc.callbacks.remove(callback)
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with handle_signals(restore=True), pytest.raises(Terminated):
        gc.callbacks.append(callback)
        gc.collect()
        assert lost
        check_interrupt()
    check_interrupt()  # forgotten
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_reads_which_signal_came(run_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(interrupt, "received", [signal.SIGTERM])
    with pytest.raises(Terminated):
        run_tiny(tmp_path / "run")


def test_a_later_signal_stops_what_no_loop_reads(monkeypatch):
    monkeypatch.setattr(interrupt, "SECONDS", 0)
    with handle_signals(restore=True):
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)


def test_signals_are_handled_in_the_main_thread_only(capsys):
    before = signal.getsignal(signal.SIGTERM)
    statuses = []

    def call():
        statuses.append(main.main(["list", "--json"]))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    call()
    assert statuses == [0, 0] and signal.getsignal(signal.SIGTERM) is before
