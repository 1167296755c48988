"""Ctrl-C while a command's own imports run: one word and the exit status, no traceback.

The imports take the better part of a command's first second. `vitjax/__init__.py` takes
this file before all others; who imports vitjax in a program keeps Python's own way.
"""

import os
import pathlib
import re
import signal
import sys
import threading
from collections.abc import Sequence


def is_command(argv: Sequence[str], original: Sequence[str]) -> bool:
    """Whether this process is `vitjax` or `python -m vitjax`.

    Args:
        argv: of `sys`; its first is "-m" while `python -m` imports the package, then
            the path of `__main__.py`, which workers inherit.
        original: of `sys`: what the interpreter was given.
    """
    if argv[:1] == ["-m"]:  # also as -um vitjax, or -mvitjax
        for word, following in zip(original[1:], [*original[2:], ""]):
            found = re.fullmatch("-[A-Za-z]*?m(.*)", word)
            if found:
                return (found[1] or following) == "vitjax"
        return False
    path = pathlib.PurePath(argv[0] if argv else "")
    return path.stem == "vitjax" or path.parts[-2:] == ("vitjax", "__main__.py")


def stop(number, frame) -> None:
    """End at once: nothing is computed so far, so there is nothing to keep."""
    os.write(2, b"Stopped.\n")
    os._exit(130)


def watch() -> None:
    """From here on Ctrl-C ends a command; `over` takes that back.

    Workers inherit the command's arguments, but they answer as Python does: who feeds
    on them waits for them to say that they stopped.
    """
    worker = "--multiprocessing-fork" in sys.orig_argv
    ours = is_command(sys.argv, sys.orig_argv) and not worker
    main = threading.current_thread() is threading.main_thread()
    if ours and main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)


def over() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt again, and the command handles it."""
    if signal.getsignal(signal.SIGINT) is stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


watch()
