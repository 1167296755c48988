"""One run at a time in a folder; a dead one does not stand in the way."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
from vitjax.runner.storage import StorageError

from vitjax.runner import lease

HOLD = """
import sys
from vitjax.runner.lease import held
with held(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that keeps the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_living_process_is_named_and_a_killed_one_forgotten(tmp_path, other):
    with (
        pytest.raises(StorageError, match=f"Process {other.pid} on .* is writing"),
        lease.held(tmp_path),
    ):
        pass
    other.kill()
    other.wait()
    with lease.held(tmp_path):
        holder = json.loads((tmp_path / lease.LEASE).read_text())
        assert holder["pid"] == os.getpid()
    assert not (tmp_path / lease.LEASE).exists()


def test_this_process_keeps_a_folder_once(tmp_path):
    with lease.held(tmp_path):
        with (
            pytest.raises(StorageError, match="Another call in this process"),
            lease.held(tmp_path),
        ):
            pass
        assert (tmp_path / lease.LEASE).exists()
    with lease.held(tmp_path), lease.held(tmp_path / "other"):
        pass


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A lease of another machine, and short times."""
    monkeypatch.setattr(lease, "EXPIRE_SECONDS", 0.3)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    holder = lease.Holder("far", 7, "", "token")
    path = tmp_path / lease.LEASE
    path.write_bytes(holder.content())
    return holder, path


def test_a_lease_elsewhere_that_is_not_renewed_ends(tmp_path, elsewhere):
    said = []
    with lease.held(tmp_path, say=said.append):
        pass
    assert "A process on far may still be writing" in said[0]


def test_a_lease_elsewhere_that_is_renewed_holds(tmp_path, elsewhere):
    holder, path = elsewhere

    def renewed(message):
        path.write_bytes(dataclasses.replace(holder, renewed=1).content())

    with pytest.raises(StorageError, match="Process 7 on far is writing"):
        lease.outlive(
            lease.open_folder(str(tmp_path)), str(tmp_path), holder.content(), renewed
        )


def test_a_lease_that_cannot_be_read_is_watched_too(tmp_path, elsewhere):
    elsewhere[1].write_text("{")
    said = []
    with lease.held(tmp_path, say=said.append):
        pass
    assert "another machine" in said[0]


def test_a_lease_is_renewed_until_it_is_given_back(tmp_path, elsewhere):
    elsewhere[1].unlink()
    with lease.held(tmp_path):
        first, store = elsewhere[1].read_bytes(), lease.open_folder(str(tmp_path))
        assert lease.changes(store, str(tmp_path), first)
        now = lease.parse(store.read(lease.LEASE).result().value)
        assert now.token == lease.parse(first).token and now.renewed > 0


def test_a_number_that_another_process_has_now_is_no_sign_of_life():
    mine = lease.Holder(lease.host(), os.getppid(), "long ago", "token")
    assert lease.alive(mine) is False
    now = dataclasses.replace(mine, started=lease.started(os.getppid()))
    assert lease.alive(now) is True
    assert lease.alive(dataclasses.replace(mine, host="far")) is None
