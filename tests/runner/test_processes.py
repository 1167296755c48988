"""A group waits for its members, and stops where one of them is lost."""

import jax
import pytest
from vitjax.runner.processes import Group, PeerError, join, refuse, together

from vitjax.runner import processes


class Service:
    """A key-value store as JAX's coordination service has one."""

    def __init__(self):
        self.kept, self.alive = {}, [0, 1]

    def key_value_set(self, key, value):
        self.kept[key] = value

    key_value_set_bytes = key_value_set

    def key_value_dir_get(self, directory):
        return [(k, v) for k, v in self.kept.items() if k.startswith(directory)]

    key_value_dir_get_bytes = key_value_dir_get

    def get_live_nodes(self, everyone):
        return {index: 1 for index in self.alive}


@pytest.fixture
def pair(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "POLL_SECONDS", 0.01)
    service = Service()
    return service, Group(0, 2, service, "run/0"), Group(1, 2, service, "run/0")


def test_alone_nobody_waits(tmp_path):
    with together(tmp_path) as group:
        assert group.first and group.count == 1
        group.meet("anywhere")
        assert group.share(b"mine") == b"mine"
        group.check()
        group.stop(ValueError("no one to tell"))
    processes.leave()


def test_members_meet_and_share(pair):
    service, first, second = pair
    second.client.key_value_set("run/0/here/1", "here")
    first.meet("here")
    assert first.words("here").keys() == {0, 1}
    assert first.share(b"\x00done") == second.share(b"") == b"\x00done"


def test_who_waits_learns_that_another_stopped(pair):
    _, first, second = pair
    second.stop(ValueError("broken.png cannot be read."))
    assert second.missing() is None
    first.lost = first.missing()
    with pytest.raises(PeerError, match="Process 1 of 2 stopped: broken.png cannot"):
        first.meet("nowhere")
    first.stop(PeerError(first.lost))  # that is no reason of its own
    assert set(first.words("stopped")) == {1}
    second.stop(KeyboardInterrupt())
    assert first.missing() == "Process 1 of 2 stopped: told to."


def test_a_silent_process_is_gone(pair, monkeypatch, capsys):
    ended = []
    monkeypatch.setattr(processes.os, "_exit", ended.append)
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.01)
    service, first, _ = pair
    service.alive = [0]
    assert processes.wait_until(first.missing, seconds=5.0)
    assert first.missing() == "Process 1 of 2 is gone."
    first.watch()  # in a thread, as long as the run lasts
    assert ended == [1] and first.lost == "Process 1 of 2 is gone."
    assert "gone. This one waits for it no longer" in capsys.readouterr().err


def test_a_failure_of_the_runtime_is_laid_to_the_lost_one(pair):
    _, first, _ = pair
    first.lost = "Process 1 of 2 is gone."
    failure = jax.errors.JaxRuntimeError("connection closed by peer")
    failure.add_note("3 of 4 images are done.")
    with pytest.raises(PeerError, match="is gone") as caught, processes.told(first):
        raise failure
    assert caught.value.__notes__ == ["3 of 4 images are done."]
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match="EXHAUSTED"),
        processes.told(first),
    ):
        raise full
    assert "EXHAUSTED" in first.words("stopped")[0]


def test_no_thread_outlives_the_end(pair):
    service, _, _ = pair
    counting = processes.roll(service)
    assert counting is processes.roll(service) and counting.thread.is_alive()
    counting.end()
    assert not counting.thread.is_alive()


def test_what_runs_in_one_process_says_so(pair):
    with pytest.raises(ValueError, match="Probes are fitted in one process.*one of 2"):
        refuse("Probes are fitted")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"coordinator": "localhost:1"}, "--processes and --process together"),
        (
            {"coordinator": "localhost:1", "processes": 2, "process": 2},
            "--process is 2; it must be in 0..1",
        ),
    ],
)
def test_flags_that_say_too_little(flags, message):
    flags = {"coordinator": None, "processes": None, "process": None} | flags
    with pytest.raises(ValueError, match=message):
        join(**flags)


class Words:
    """Last words that note their farewell."""

    def __init__(self, *about):
        self.withdrawn = False

    def withdraw(self):
        self.withdrawn = True


def test_a_process_that_fails_says_farewell_after_its_own_words(tmp_path, monkeypatch):
    words, at_exit = Words(), []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "client", lambda: None)
    monkeypatch.setattr(processes, "coordinator_address", lambda: "localhost:1")
    monkeypatch.setattr(processes, "LastWords", lambda *about: words)
    monkeypatch.setattr(processes.atexit, "register", at_exit.append)
    monkeypatch.setattr(Group, "watch", lambda group: None)
    with pytest.raises(PeerError), together(tmp_path):
        raise PeerError("Process 0 of 2 is gone.")
    assert not words.withdrawn and at_exit == [words.withdraw]
    with together(tmp_path):
        pass
    assert words.withdrawn
