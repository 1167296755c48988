"""The command line. A command is a frozen dataclass, its fields are the flags.

From Python the same object does the same thing:

    vitjax.cli.Run(recipe="identifiability", model="vit_ti16", data="folder:photos",
                   out="results")()
"""

import contextlib
import shlex
import signal
import sys
import traceback as tracebacks
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import jax
import tyro

import vitjax
from vitjax.commands.command import Command
from vitjax.commands.compiled import keep_compiled
from vitjax.commands.measuring import Bench, Estimate
from vitjax.commands.reading import Explain, Neurons, Report
from vitjax.commands.running import Demo, Run
from vitjax.commands.weights import Convert, List, Train

EXPECTED = (ValueError, OSError, ImportError, MemoryError, jax.errors.JaxRuntimeError)
"""Failures whose message says what to do; anything else is a fault of ours."""

COMMANDS = {
    "run": Run,
    "report": Report,
    "explain": Explain,
    "demo": Demo,
    "list": List,
    "convert": Convert,
    "bench": Bench,
    "estimate": Estimate,
    "neurons": Neurons,
    "train": Train,
}


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a scheduler sends before it kills."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command of the command line.

    Args:
        arguments: without the program's name; by default those of this process.

    Returns:
        The exit status: 0, or 1 after an error, 130 after Ctrl-C, 143 after SIGTERM.
        Wrong usage exits with 2.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
        print(vitjax.__version__)
        return 0
    command = parse(arguments)
    try:
        with terminable():
            keep_compiled()
            command()
    except KeyboardInterrupt as stop:
        say("Stopped.", stop)
        if getattr(stop, "__notes__", ()):
            print(f"  vitjax {shlex.join(arguments)}", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130
    except EXPECTED as error:
        if command.traceback:
            tracebacks.print_exc()
        else:
            say(f"vitjax: {paragraph(error)}", error)
        return 1
    return 0


def parse(arguments: Sequence[str]) -> Command:
    """The command that the arguments name; in the list of all, a line for each."""
    chosen = bool(arguments) and arguments[0] in COMMANDS
    commands: Any = None
    for name, kind in COMMANDS.items():
        line = None if chosen else str(kind.__doc__).split("\n", 1)[0]
        choice = Annotated[kind, tyro.conf.subcommand(name, description=line)]
        commands = choice if commands is None else commands | choice
    return tyro.cli(
        commands,
        prog="vitjax",
        description=vitjax.__doc__,
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does: rows that are computed are kept."""

    def stop(number, frame):
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def paragraph(error: BaseException) -> str:
    """What went wrong and what to do, for a person."""
    text = str(error) or type(error).__name__
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return f"Out of memory; give a smaller --batch-size. ({text.splitlines()[0]})"
    return text


def say(message: str, error: BaseException) -> None:
    """A message on stderr, with what the error's notes add, but not JAX's own."""
    notes = getattr(error, "__notes__", ())
    notes = [note for note in notes if "JAX_TRACEBACK_FILTERING" not in note]
    print(" ".join([message, *notes]), file=sys.stderr)
