"""One process at a time keeps a run directory; a dead one is told from a living one.

`lease.json` names the process that writes. Two on one machine see each other's process;
elsewhere, a lease that its holder no longer renews has ended. Clocks are not compared:
who waits watches whether the file changes.
"""

import contextlib
import dataclasses
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from vitjax.runner.storage import StorageError, kvstore, run_path, wait

LEASE = "lease.json"

RENEW_SECONDS = 15.0
"""How often a running process writes its lease again."""

EXPIRE_SECONDS = 60.0
"""So long after its last renewal a lease on another machine has ended."""

HELD: set[str] = set()
"""Tokens of the leases that this process holds."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who writes to a run directory.

    Args:
        host: name of the machine, and its process table where it may have several.
        pid: number of the process.
        started: when the process began, as its machine counts; "" where it cannot tell.
        token: of this one lease.
        renewed: how often it was renewed.
    """

    host: str
    pid: int
    started: str
    token: str
    renewed: int = 0

    def content(self) -> bytes:
        """As it stands in the file."""
        return json.dumps(dataclasses.asdict(self)).encode()


@contextlib.contextmanager
def held(
    path: str | os.PathLike, *, say: Callable[[str], None] = lambda message: None
) -> Iterator[None]:
    """Keep a run directory for this process.

    Args:
        path: the run directory.
        say: is told where the holder may be alive elsewhere and is waited for.

    Raises:
        StorageError: another process writes there, or the folder cannot be written.
    """
    path = run_path(path)
    mine = Holder(host(), os.getpid(), started(os.getpid()), uuid.uuid4().hex)
    take(path, mine, say)
    HELD.add(mine.token)
    stop = threading.Event()
    renewal = threading.Thread(target=renew, args=(path, mine, stop), daemon=True)
    renewal.start()
    try:
        yield
    finally:
        stop.set()
        renewal.join()
        HELD.discard(mine.token)
        with contextlib.suppress(StorageError):  # then it ends by itself
            release(path, mine)


def take(path: str, mine: Holder, say: Callable[[str], None]) -> None:
    """Write the lease where none stands, or one that has ended."""
    store = open_folder(path)
    while True:
        found = wait(store.read(LEASE), doing="read the lease of", path=path)
        if found.state == "value":
            outlive(store, path, found.value, say)
        # Only if it still is what was looked at: of two that come at once, one gets it.
        stamp = found.stamp.generation
        written = store.write(LEASE, mine.content(), if_equal=stamp)
        if wait(written, doing="write to", path=path).generation:
            return


def outlive(store: Any, path: str, content: bytes, say: Callable[[str], None]) -> None:
    """Return once a lease has ended.

    Raises:
        StorageError: its holder lives.
    """
    holder = parse(content)
    living = None if holder is None else alive(holder)
    if living is None:
        where = "another machine" if holder is None else holder.host
        say(
            f"A process on {where} may still be writing to {path}; waiting up to "
            f"{EXPIRE_SECONDS:g} s for a sign of life."
        )
        living = changes(store, path, content)
    if living:
        raise refusal(path, holder)


def refusal(path: str, holder: Holder | None) -> StorageError:
    """That somebody else writes, who, and what to do."""
    who = "Another process"
    if holder is not None:
        who = f"Process {holder.pid} on {holder.host.partition(' ')[0]}"
        if holder.token in HELD:
            who = "Another call in this process"
    return StorageError(
        f"{who} is writing a run to {path}. Wait for it or stop it, or give another "
        "--out: two runs in one folder would mix their rows."
    )


def changes(store: Any, path: str, content: bytes) -> bool:
    """Whether a lease is renewed while it is watched; False once it is gone."""
    end = time.monotonic() + EXPIRE_SECONDS
    while time.monotonic() < end:
        time.sleep(min(1.0, EXPIRE_SECONDS / 10))
        found = wait(store.read(LEASE), doing="read the lease of", path=path)
        if found.state != "value":
            return False
        if found.value != content:
            return True
    return False


def renew(path: str, mine: Holder, stop: threading.Event) -> None:
    """Write the lease anew until told to stop, as long as it is still ours."""
    store = open_folder(path)
    while not stop.wait(RENEW_SECONDS):
        mine = dataclasses.replace(mine, renewed=mine.renewed + 1)
        with contextlib.suppress(StorageError):  # the rows' own writes will say
            found = wait(store.read(LEASE), doing="read the lease of", path=path)
            if found.state != "value" or not is_of(mine, found.value):
                return
            wait(store.write(LEASE, mine.content()), doing="write to", path=path)


def release(path: str, mine: Holder) -> None:
    """Remove the lease if it is ours."""
    store = open_folder(path)
    found = wait(store.read(LEASE), doing="read the lease of", path=path)
    if found.state == "value" and is_of(mine, found.value):
        wait(store.write(LEASE, None), doing="write to", path=path)


def is_of(mine: Holder, content: bytes) -> bool:
    """Whether a lease's content is a lease of the same token."""
    holder = parse(content)
    return holder is not None and holder.token == mine.token


def parse(content: bytes) -> Holder | None:
    """What stands in a lease; None where it cannot be read."""
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):
        return None


def alive(holder: Holder) -> bool | None:
    """Whether a process lives; None where that cannot be seen from here."""
    if holder.host != host() or os.name != "posix":
        return None
    if holder.pid == os.getpid():
        return holder.token in HELD
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return started(holder.pid) == holder.started


def host() -> str:
    """The machine's name, with its process table: containers may share a name."""
    name = socket.gethostname()
    with contextlib.suppress(OSError):
        name = f"{name} {os.readlink('/proc/self/ns/pid')}"
    return name


def started(pid: int) -> str:
    """When a process began, in ticks since its machine did, where that can be read.

    A number of a dead process is given to another one in time.
    """
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
    except OSError:
        return ""
    # A zombie has ended; its parent has not yet looked.
    return "" if fields[0] == "Z" else f"{boot} {fields[19]}"


def open_folder(path: str) -> Any:
    """The folder as tensorstore sees it."""
    import tensorstore

    return wait(tensorstore.KvStore.open(kvstore(path)), doing="open", path=path)
