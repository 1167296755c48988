"""The command line. A command is a frozen dataclass, its fields are the flags.

From Python the same object does the same thing:

    vitjax.cli.run.Run(recipe="identifiability", model="vit_ti16", data="folder:photos",
                       out="results")()

A recipe of your own becomes a subcommand of `run` and `estimate`, its options flags:

    if __name__ == "__main__":
        sys.exit(vitjax.cli.main.main(recipes=[MY_RECIPE]))
"""

import contextlib
import dataclasses
import inspect
import os
import select
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import jax
import tyro

import vitjax
from vitjax.cli.bench import Bench
from vitjax.cli.command import FLAG_TYPES, Command
from vitjax.cli.compilation_cache import enable_compilation_cache
from vitjax.cli.estimate import Estimate
from vitjax.cli.explain import Explain
from vitjax.cli.models import Convert, List
from vitjax.cli.neurons import Neurons
from vitjax.cli.report import Report
from vitjax.cli.run import Demo, RecipeCommand, Run
from vitjax.messages import unknown
from vitjax.recipes.recipe import Recipe
from vitjax.recipes.registry import RECIPES, find_recipe

EXPECTED = (ValueError, OSError, ImportError, MemoryError, jax.errors.JaxRuntimeError)
"""Failures whose message says what to do; anything else is a bug of vitjax."""

COMMANDS: dict[str, type[Command]] = {
    "run": Run,
    "report": Report,
    "explain": Explain,
    "demo": Demo,
    "list": List,
    "convert": Convert,
    "bench": Bench,
    "estimate": Estimate,
    "neurons": Neurons,
}

REMOVED = {
    "train": "The embedded model is trained by the repository's script "
    "checkpoints/train_textured_digits.py.",
}
"""Commands of earlier versions, and what replaced them."""

RENAMED_FLAGS = {"probes": {"--memory": "--max-memory"}}
"""Flags of earlier versions, by recipe, and what replaced them."""

STATUS = """\
Exit status: 0 done; 1 an error, with one paragraph on stderr that says what to do;
2 wrong usage; 130 after Ctrl-C and 143 after SIGTERM, with what was computed kept."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a scheduler sends before it kills."""


def main(
    arguments: Sequence[str] | None = None, *, recipes: Sequence[Recipe] = ()
) -> int:
    """Run one command of the command line.

    Args:
        arguments: without the program's name; by default those of this process.
        recipes: of your own, beside those of vitjax.

    Returns:
        The exit status: 0, or 1 after an error, 130 after Ctrl-C, 143 after SIGTERM.
        Wrong usage exits with 2.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
        print(vitjax.__version__)
        return 0
    command = Command()
    try:
        with sigterm_as_interrupt():
            command = parse(arguments, recipes)
            enable_compilation_cache()
            command()
    except KeyboardInterrupt as error:
        print_error("Stopped.", error)
        if getattr(error, "__notes__", ()):
            print(f"  vitjax {shlex.join(arguments)}", file=sys.stderr)
        return 143 if isinstance(error, Terminated) else 130
    except EXPECTED as error:
        if isinstance(error, BrokenPipeError) and stdout_closed():
            return 1
        if command.traceback:
            traceback.print_exc()
        else:
            print_error(f"vitjax: {format_error(error)}", error)
        return 1
    return 0


def parse(arguments: Sequence[str], recipes: Sequence[Recipe] = ()) -> Any:
    """The command that the arguments name.

    Raises:
        SystemExit: help was asked for (0), or they are no command's (2).
        ValueError: there is no such recipe.
    """
    name, *words = arguments or ("",)
    if name.startswith("-") or not name:
        return parse_choice(COMMANDS, arguments, f"{vitjax.__doc__}\n\n{STATUS}")
    if name not in COMMANDS:
        reason = REMOVED.get(name) or unknown("command", name, COMMANDS)
        print(f"vitjax: {reason}", file=sys.stderr)
        raise SystemExit(2)
    kind: Any = COMMANDS[name]
    if not issubclass(kind, RecipeCommand):
        return parse_flags(kind, f"vitjax {name}", words)
    known = RECIPES | {recipe.name: recipe for recipe in recipes}
    if not words or words[0].startswith("-"):
        about, _, _ = str(inspect.getdoc(kind)).partition("\n\nArgs:")
        return parse_choice(known, words, about, f"vitjax {name}")
    recipe = known.get(words[0]) or find_recipe(words[0])
    for old, new in RENAMED_FLAGS.get(recipe.name, {}).items():
        for position, word in enumerate(words):
            if word.partition("=")[0] == old:
                print(f"{old} is now {new}.", file=sys.stderr)
                words[position] = word.replace(old, new, 1)
    return parse_flags(kind.of(recipe), f"vitjax {name} {recipe.name}", words[1:])


def parse_flags(kind: type[Command], prog: str, words: Sequence[str]) -> Any:
    """A command of its flags."""
    with FLAG_TYPES:
        return tyro.cli(
            kind,
            prog=prog,
            args=words,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
        )


def parse_choice(
    choices: Mapping[str, Any], words: Sequence[str], about: str, prog: str = "vitjax"
) -> Any:
    """Show what there is to choose from: help was asked for, or nothing was chosen."""
    nothing: Any = dataclasses.make_dataclass("Nothing", ())
    kinds: Any = None
    for name, choice in choices.items():
        step = getattr(choice, "step", None) or getattr(choice, "passes", None)
        line = str((step or choice).__doc__).split("\n", 1)[0]
        kind = Annotated[nothing, tyro.conf.subcommand(name, description=line)]
        kinds = kind if kinds is None else kinds | kind
    return tyro.cli(kinds, prog=prog, description=about, args=words)


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Stop at SIGTERM as at Ctrl-C, with what was computed kept."""

    def stop(number, frame):
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def stdout_closed() -> bool:
    """Whether nobody reads stdout any more (`vitjax list | head`); then, be silent."""
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


def format_error(error: BaseException) -> str:
    """What went wrong and what to do, in a paragraph."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror and error.filename:
        return (
            f"{error.filename} cannot be used: {error.strerror}. Give a path that "
            "exists and may be read, or a folder that may be written to."
        )
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return f"Out of memory; give a smaller --batch-size. ({text.splitlines()[0]})"
    return text


def print_error(message: str, error: BaseException) -> None:
    """Print a message on stderr with the error's notes, but not JAX's own."""
    notes = getattr(error, "__notes__", ())
    notes = [note for note in notes if "JAX_TRACEBACK_FILTERING" not in note]
    print(" ".join([message, *notes]), file=sys.stderr)
