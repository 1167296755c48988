"""The command line. A command is a frozen dataclass, its fields are the flags.

From Python the same object does the same thing:

    vitjax.cli.Run(recipe="identifiability", model="vit_ti16", data="folder:photos",
                   out="results")()
"""

import contextlib
import dataclasses
import difflib
import os
import select
import shlex
import signal
import sys
import traceback as tracebacks
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, get_args, get_type_hints

import jax
import tyro

import vitjax
from vitjax.cli import starting
from vitjax.cli.bench import Bench, Estimate
from vitjax.cli.command import Command
from vitjax.cli.compilation_cache import keep_compiled
from vitjax.cli.models import Convert, List, Train
from vitjax.cli.report import Explain, Neurons, Report
from vitjax.cli.run import Demo, Run

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


STATUS = """\
Exit status: 0 done; 1 an error, with one paragraph on stderr that says what to do;
2 wrong usage; 130 after Ctrl-C and 143 after SIGTERM, with what was computed kept."""


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
    starting.over()
    command = Command()
    try:
        command = parse(arguments)
        with terminable():
            keep_compiled()
            command()
    except KeyboardInterrupt as stop:
        say("Stopped.", stop)
        if getattr(stop, "__notes__", ()):
            print(f"  vitjax {shlex.join(arguments)}", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130
    except EXPECTED as error:
        if isinstance(error, BrokenPipeError) and reader_has_left():
            return 1
        if command.traceback:
            tracebacks.print_exc()
        else:
            say(f"vitjax: {paragraph(error)}", error)
        return 1
    return 0


def reader_has_left() -> bool:
    """Whether nobody reads stdout any more (`vitjax list | head`); then, silence."""
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):  # of a notebook or a test
        return False
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(output, 0)
        if not any(event & select.POLLERR for _, event in poll.poll(0)):
            return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


def parse(arguments: Sequence[str]) -> Command:
    """The command that the arguments name; without one, the list of all is said.

    Raises:
        SystemExit: help was asked for (0), or they are no command's (2).
    """
    name, *flags = arguments or ("",)
    if name in COMMANDS:
        return parse_flags(name, flags)
    if name and not name.startswith("-"):
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        known = f"Known: {', '.join(COMMANDS)}; vitjax --help has a line for each."
        print(f"vitjax: There is no command {name!r}.{hint} {known}", file=sys.stderr)
        raise SystemExit(2)
    commands: Any = None
    for name, kind in COMMANDS.items():
        line = str(kind.__doc__).split("\n", 1)[0]
        choice = Annotated[kind, tyro.conf.subcommand(name, description=line)]
        commands = choice if commands is None else commands | choice
    about = f"{vitjax.__doc__}\n\n{STATUS}"
    return tyro.cli(commands, prog="vitjax", description=about, args=arguments)


def parse_flags(name: str, flags: Sequence[str]) -> Command:
    """One command of its flags; of a flag that is none, the nearest is named."""
    try:
        return tyro.cli(
            COMMANDS[name],
            prog=f"vitjax {name}",
            args=flags,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except SystemExit as leave:
        hint = near_flags(COMMANDS[name], flags) if leave.code else ""
        if hint:
            print(f"vitjax: {hint}", file=sys.stderr)
        raise


def near_flags(kind: type[Command], words: Sequence[str]) -> str:
    """What was meant by flags that a command does not have; "" where it has them."""
    hints = get_type_hints(kind, include_extras=True)
    positional = get_args(tyro.conf.Positional[int])[-1]
    names = [
        field.name.strip("_")
        for field in dataclasses.fields(kind)
        if positional not in getattr(hints[field.name], "__metadata__", ())
    ]
    known = ["--help", *("--" + name.replace("_", "-") for name in names)]
    said = []
    for word in words:
        flag = word.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and "." not in flag and flag not in known:
            near = difflib.get_close_matches(flag, known, n=1)
            said += [f"{flag} is no flag. Did you mean {near[0]}?"] if near else []
    return " ".join(said)


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
    if isinstance(error, OSError) and error.strerror and error.filename:
        return (
            f"{error.filename} cannot be used: {error.strerror}. Give a path that is "
            "there and may be read, or a folder that may be written to."
        )
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return f"Out of memory; give a smaller --batch-size. ({text.splitlines()[0]})"
    return text


def say(message: str, error: BaseException) -> None:
    """A message on stderr, with what the error's notes add, but not JAX's own."""
    notes = getattr(error, "__notes__", ())
    notes = [note for note in notes if "JAX_TRACEBACK_FILTERING" not in note]
    print(" ".join([message, *notes]), file=sys.stderr)
