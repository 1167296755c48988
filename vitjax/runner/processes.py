"""Many processes, one run: they start together, wait for each other, and stop together.

All of it is JAX's coordination service: its heartbeats say who lives, its key-value
store carries a few words between processes. No array ever passes through here.
"""

import atexit
import contextlib
import dataclasses
import functools
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from vitjax.runner.last_words import LastWords

HEARTBEAT_SECONDS = 30
"""A process that was silent for so long is gone; the others know within twice that."""

START_SECONDS = 300
"""How long processes wait for each other at the start."""

GRACE_SECONDS = 30.0
"""A main thread that waits for a lost process inside the runtime ends after so long."""

POLL_SECONDS = 0.5

SESSIONS = itertools.count()
"""Numbers of runs; all processes do the same ones, so they count alike."""


class PeerError(ConnectionError):
    """Another process of the run is gone or has stopped."""


def join(
    *, coordinator: str | None, processes: int | None, process: int | None
) -> None:
    """Make this process one of many, before JAX computes anything.

    Args:
        coordinator: HOST:PORT on the machine of process 0, free there; None where JAX
            finds it by itself, on TPU pods and under SLURM.
        processes: how many there are.
        process: which one this is, from 0.

    Raises:
        ValueError: JAX does not find out who takes part.
        PeerError: the others did not come.
    """
    given = (coordinator, processes, process)
    if None in given and given != (None, None, None):
        raise ValueError("Give --coordinator, --processes and --process together.")
    if processes is not None and not 0 <= (process or 0) < processes:
        raise ValueError(f"--process is {process}; it must be in 0..{processes - 1}.")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Its handler of SIGTERM would take the place of ours, which keeps rows and stops.
    jax.config.update("jax_enable_preemption_service", False)
    # Who loses a process is told and not aborted, so that it can keep its rows.
    jax.config.update("jax_enable_recoverability", True)
    try:
        jax.distributed.initialize(
            *given,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except ValueError as error:
        raise ValueError(
            f"JAX finds neither a TPU pod nor SLURM here ({error}) Give --coordinator "
            "HOST:PORT --processes N --process I."
        ) from error
    except jax.errors.JaxRuntimeError as error:
        raise PeerError(
            f"The {processes or ''} processes did not find each other at "
            f"{coordinator or 'their coordinator'}: {str(error).splitlines()[0]}"
        ) from error


def leave() -> None:
    """Part from the others. Process 0, through which they talk, goes last."""
    if client() is None:
        return
    others = jax.process_count() - 1
    if jax.process_index() == 0:
        wait_until(lambda: len(roll(client()).gone) == others, seconds=GRACE_SECONDS)
    roll(client()).end()


def refuse(what: str) -> None:
    """Raise where there are several processes.

    Raises:
        ValueError: there are.
    """
    if jax.process_count() > 1:
        raise ValueError(
            f"{what} in one process, on all of its devices; this is one of "
            f"{jax.process_count()}. Leave out --distributed."
        )


def client() -> Any:
    """JAX's door to its coordination service; None without one.

    No public function leads there; Orbax takes the same way.
    """
    from jax._src.distributed import global_state

    return global_state.client


def coordinator_address() -> str:
    """HOST:PORT of the coordination service."""
    from jax._src.distributed import global_state

    return global_state.coordinator_address or ""


class Roll:
    """Keeps count of the processes for as long as this one lives.

    Args:
        client: of the coordination service.
    """

    def __init__(self, client: Any):
        self.client, self.count = client, jax.process_count()
        self.gone: set[int] = set()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.call, daemon=True)
        self.thread.start()
        atexit.register(self.end)

    def call(self) -> None:
        """Ask again and again who is there; the answer waits for all who live."""
        everyone = set(range(self.count))
        while not self.over.is_set():
            try:
                there = self.client.get_live_nodes(sorted(everyone))
            except jax.errors.JaxRuntimeError:
                return  # this process leaves, or JAX ends it as its coordinator is gone
            self.gone |= everyone - set(there)
            self.over.wait(POLL_SECONDS)

    def end(self) -> None:
        """Part from the service, so that the thread's question comes back: a thread
        that returns from the runtime while Python ends would abort the program.
        """
        self.over.set()
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # its coordinator is gone
            jax.distributed.shutdown()
        self.thread.join(GRACE_SECONDS)


@functools.cache
def roll(client: Any) -> Roll:
    """The one roll of this process."""
    return Roll(client)


@dataclasses.dataclass
class Group:
    """The processes of a run, as one of them sees them; alone by default.

    Args:
        index: which one this is.
        count: how many there are.
        client: of the coordination service.
        name: of the run among those of these processes.
        lost: what happened to another process, if anything did.
    """

    index: int = 0
    count: int = 1
    client: Any = None
    name: str = ""
    lost: str | None = None
    over: threading.Event = dataclasses.field(default_factory=threading.Event)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes what is written once."""
        return self.index == 0

    def check(self) -> None:
        """Raise where another process is lost.

        Raises:
            PeerError: it is.
        """
        if self.lost is not None:
            raise PeerError(self.lost)

    def meet(self, place: str) -> None:
        """Wait for all others to get here.

        Raises:
            PeerError: one of them is lost.
        """
        if self.count == 1:
            return
        self.client.key_value_set(f"{self.name}/{place}/{self.index}", "here")
        self.wait(lambda: len(self.words(place)) == self.count)

    def share(self, content: bytes) -> bytes:
        """Process 0's content, in all processes.

        Raises:
            PeerError: one of them is lost.
        """
        if self.count == 1:
            return content
        if self.first:
            self.client.key_value_set_bytes(f"{self.name}/shared/0", content)
            return content
        directory = f"{self.name}/shared/"
        self.wait(lambda: bool(self.client.key_value_dir_get_bytes(directory)))
        ((_, content),) = self.client.key_value_dir_get_bytes(directory)
        return content

    def wait(self, ready: Callable[[], bool]) -> None:
        """Wait for others, or for word that one of them is lost."""
        while not ready():
            self.check()
            time.sleep(0.05)

    def words(self, place: str) -> dict[int, str]:
        """What processes said in one place."""
        said = self.client.key_value_dir_get(f"{self.name}/{place}/")
        return {int(key.rpartition("/")[2]): word for key, word in said}

    def stop(self, error: BaseException) -> None:
        """Tell the others that this process stops, and why."""
        if self.count == 1 or isinstance(error, PeerError):
            return
        reason = "told to" if isinstance(error, KeyboardInterrupt) else str(error)
        reason = reason or type(error).__name__
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self.client.key_value_set(f"{self.name}/stopped/{self.index}", reason)

    def watch(self) -> None:
        """Notice lost processes, in a thread; end this one if it is stuck for them."""
        try:
            while self.lost is None:
                if self.over.wait(POLL_SECONDS):
                    return
                self.lost = self.missing()
        except jax.errors.JaxRuntimeError:
            self.lost = self.says(0, "is gone")
        if not self.over.wait(GRACE_SECONDS):
            message = f"vitjax: {self.lost} This one waits for it no longer."
            print(message, file=sys.stderr, flush=True)
            os._exit(1)

    def missing(self) -> str | None:
        """What happened to another process, if anything did."""
        for index, reason in self.words("stopped").items():
            if index != self.index:
                return self.says(index, f"stopped: {reason}")
        for index in sorted(roll(self.client).gone):
            return self.says(index, "is gone")
        return None

    def says(self, index: int, what: str) -> str:
        """A sentence about a process."""
        return f"Process {index} of {self.count} {what.rstrip('.')}."


@contextlib.contextmanager
def together(out: str | os.PathLike) -> Iterator[Group]:
    """All processes for the length of a run.

    Args:
        out: the run directory.

    Yields:
        The group; in a single process one that never waits.

    Raises:
        PeerError: another process is gone or has stopped.
    """
    if jax.process_count() == 1:
        yield Group()
        return
    group = Group(
        index=jax.process_index(),
        count=jax.process_count(),
        client=client(),
        name=f"vitjax/{next(SESSIONS)}",
    )
    watcher = threading.Thread(target=group.watch, daemon=True)
    watcher.start()
    words = LastWords(os.fspath(out), group.index, group.count, coordinator_address())
    farewell: Callable[[], Any] = words.withdraw
    try:
        with told(group):
            yield group
    except BaseException:
        # Not before the reason is said: JAX may end this process at any moment.
        farewell = functools.partial(atexit.register, words.withdraw)
        raise
    finally:
        group.over.set()
        farewell()
        watcher.join(GRACE_SECONDS)


@contextlib.contextmanager
def told(group: Group) -> Iterator[None]:
    """Tell the others why this process stops; where a lost one is why, say so."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        # Exchange with a process that is gone fails before its heartbeats are missed.
        full = "RESOURCE_EXHAUSTED" in str(error)
        if not full and wait_until(lambda: group.lost, seconds=2.0 * HEARTBEAT_SECONDS):
            failure = PeerError(group.lost)
            for note in getattr(error, "__notes__", ()):
                failure.add_note(note)
            raise failure from error
        group.stop(error)
        raise
    except BaseException as error:
        group.stop(error)
        raise


def wait_until(ready: Callable[[], Any], *, seconds: float) -> bool:
    """Whether something becomes true in time."""
    end = time.monotonic() + seconds
    while not (found := ready()) and time.monotonic() < end:
        time.sleep(0.05)
    return bool(found)
