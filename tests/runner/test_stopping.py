"""Kills, signals, several processes: nothing is lost, and the bytes are the same."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import vitjax
from vitjax.cli import main
from vitjax.runner import interrupt
from vitjax.runner.interrupt import Terminated, check_interrupt, handle_signals
from vitjax.runner.store import ROWS, Folder

CONFIG = vitjax.Config(64, 16, dim=16, depth=2, heads=2, mlp_dim=32)

# One process imports everything, then forks what is killed: JAX starts in the children.
HARNESS = """
import os, pathlib, random, signal, sys, time
import vitjax
from vitjax.runner import loop, writer

out, model, images, rounds, seed = *sys.argv[1:3], *map(int, sys.argv[3:])
writer.CHUNK_BYTES = 8 * 2 * 17 * 4  # of one batch
step = loop.Job.step

def slowly(self, *arguments):
    time.sleep(0.02)
    return step(self, *arguments)

def start(folder, process):
    child = os.fork()
    if child:
        return child
    try:
        loop.Job.step = slowly
        vitjax.run(
            "identifiability", vitjax.load(model), "textured_digits", folder,
            limit=images, batch_size=8, show_progress=False, process=process,
        )
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)
    os._exit(0)

def wait(children):
    for child in children:
        assert os.waitpid(child, 0)[1] == 0

def done():
    folder = pathlib.Path(out, "rows.zarr/done/c")
    return len(os.listdir(folder)) if folder.is_dir() else 0

draw = random.Random(seed)
kills, history = 0, []
for turn in range(rounds):
    count = 1 + turn % 4
    pairs = [(index, count) for index in range(count)]
    if turn == rounds - 1:
        pairs = [(0, 1), (0, 1)]  # two commands at once
    children = [start(out, pair) for pair in pairs]
    before = done()
    while done() < before + draw.randint(1, 3):
        if all(os.waitid(os.P_PID, c, os.WEXITED | os.WNOHANG | os.WNOWAIT)
               for c in children):
            break
        time.sleep(0.005)
    time.sleep(draw.uniform(0, 0.05))
    for child in children:
        os.kill(child, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    if turn % 3 == 2:  # a chunk is lost, another is corrupt
        rows = pathlib.Path(out, "rows.zarr")
        files = sorted(path for path in rows.rglob("c/*") if path.is_file())
        if files:
            draw.choice(files).unlink()
            path = draw.choice([p for p in files if p.exists()])
            path.write_bytes(path.read_bytes()[:-1])
    history.append(done())
wait([start(out, (index, 3)) for index in range(3)])
wait([start(out, (0, 1))])
wait([start(out + "-whole", (0, 1))])
print(kills, history)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    names = tuple(map(str, vitjax.load("textured_digits").classes))
    vitjax.save(vitjax.init(CONFIG, classes=names), folder)
    return str(folder)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def rows(out):
    """The objects of a run; half a file that a killed process left is none."""
    folder = Folder(out)
    return {name: folder.read(name) for name in folder.list(ROWS)}


@pytest.mark.slow
def test_kills_processes_and_damage_change_no_byte(model, environment, tmp_path):
    images, rounds = 240, 4
    out = str(tmp_path / "run")
    command = [sys.executable, "-c", HARNESS, out, model, str(images), str(rounds), "0"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=500
    )
    assert done.returncode == 0, done.stderr
    kills = int(done.stdout.split()[0])
    assert kills >= rounds, done.stdout
    results = vitjax.open_results(out)
    assert results.manifest["finished"] and not len(results.pending)
    assert rows(out) == rows(out + "-whole")


def start(model, out, environment, *flags):
    command = ["run", "identifiability", "--model", model, "--data", "textured_digits"]
    command += ["--limit", "200", "--batch-size", "8", "--out", str(out), *flags]
    return subprocess.Popen(
        [sys.executable, "-m", "vitjax", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@pytest.mark.slow
def test_the_command_in_several_processes(model, environment, tmp_path):
    """One is killed: it costs its own chunks, and the same command finishes."""
    out, count = tmp_path / "run", 2

    def start_all():
        shared = ["--distributed", "--processes", str(count)]
        return [
            start(model, out, environment, *shared, "--process", str(index))
            for index in range(count)
        ]

    first, other = start_all()
    first.kill()
    first.communicate()
    _, error = other.communicate(timeout=300)
    assert other.returncode == 0, error
    pending = vitjax.open_results(out).pending
    size = vitjax.open_results(out).manifest["images_per_chunk"]
    assert len(pending) and set(pending // size % count) == {0}
    for member in start_all():
        _, error = member.communicate(timeout=300)
        assert member.returncode == 0, error
    results = vitjax.open_results(out)
    assert results.manifest["finished"] and not len(results.pending)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_signal_ends_a_command_with_one_paragraph(
    model, environment, tmp_path, number, status
):
    process = start(model, tmp_path / "run", environment, "--limit", "5000")
    done = tmp_path / "run" / "rows.zarr" / "done" / "c"
    while not done.is_dir() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == status, error
    assert "Traceback" not in error and "images are done" in error
    assert f"vitjax run identifiability --model {model}" in error


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


@pytest.mark.slow
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
