"""Ctrl-C and SIGTERM: one `KeyboardInterrupt`, however many signals come.

What a handler raises is lost where Python happens to be in a callback that must not
fail, such as JAX's on garbage collection. So the handler also notes the signal, and the
loop over batches reads the note.
"""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a scheduler sends before it kills."""


ERRORS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
SECONDS = 1.0
"""A signal so soon after another is the same wish."""

received: list[int] = []
"""Signals of this process since `handle_signals`."""


def check_interrupt() -> None:
    """Raise the error of the first signal, if there was one."""
    if received:
        raise ERRORS[signal.Signals(received[0])]


@contextlib.contextmanager
def handle_signals(*, restore: bool) -> Iterator[None]:
    """Stop at SIGINT and SIGTERM with what was computed kept.

    Without `restore`, for a process that ends afterwards, later signals cannot disturb
    its end. Only the main thread may handle signals; elsewhere nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    latest = -math.inf

    def stop(number, frame):
        nonlocal latest
        received.append(number)
        before, latest = latest, time.monotonic()
        if latest - before > SECONDS:
            check_interrupt()

    received.clear()
    handlers = {number: signal.signal(number, stop) for number in ERRORS}
    try:
        yield
    finally:
        if restore:
            received.clear()
            for number, handler in handlers.items():
                signal.signal(number, handler)
