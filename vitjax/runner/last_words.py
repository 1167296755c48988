"""What is said of a process that was ended and cannot say it itself.

JAX ends a process at once whose coordinator is gone, and `kill -9` asks nobody. So a
small process stands by: where its parent ends without a farewell, it says on stderr
what happened and how to go on. Run as a file, it imports nothing of ours before that.
"""

import contextlib
import socket
import subprocess
import sys


class LastWords:
    """Speaks for this process if it ends before `withdraw`.

    Args:
        out: the run directory.
        index: of this process.
        count: of all.
        coordinator: HOST:PORT of process 0.
    """

    def __init__(self, out: str, index: int, count: int, coordinator: str):
        words = [out, str(index), str(count), coordinator]
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us
        )

    def withdraw(self) -> None:
        """Say farewell: this process speaks for itself."""
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate(b"farewell")


def main(out: str, index: str, count: str, coordinator: str) -> None:
    """Wait for the end of the parent; without a farewell, say what happened."""
    if sys.stdin.read():
        return
    if index == "0" or answers(coordinator):
        what = f"Process {index} of {count} was ended."
    else:
        what = f"Process 0 of {count} is gone; process {index} ends with it."
    print(f"vitjax: {what} {note(out)}", file=sys.stderr)


def answers(address: str) -> bool:
    """Whether somebody listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
            return True
    except (OSError, ValueError):
        return False


def note(out: str) -> str:
    """What is done, and how to go on."""
    from vitjax.runner.results import open_results

    try:
        done = open_results(out)["done"][:]
    except (OSError, ValueError, KeyError):
        return (
            f"What was written to {out} is kept; the same command goes on from there."
        )
    return (
        f"{done.sum()} of {len(done)} images are done and kept in {out}; the same "
        "command goes on from there."
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
