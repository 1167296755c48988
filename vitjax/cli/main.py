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
import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Union

import jax
import tyro

import vitjax
from vitjax.checkpoints.download import cache_folder
from vitjax.cli.bench import Bench
from vitjax.cli.command import FLAG_TYPES, Command, check_platform, make_folder
from vitjax.cli.explain import Explain
from vitjax.cli.look import Look
from vitjax.cli.models import Convert, List
from vitjax.cli.neurons import Neurons
from vitjax.cli.report import Report
from vitjax.cli.run import Demo, Estimate, RecipeCommand, Run
from vitjax.messages import unknown
from vitjax.recipes import registry
from vitjax.recipes.recipe import Recipe
from vitjax.runner.interrupt import Terminated, check_interrupt, handle_signals

EXPECTED = (ValueError, OSError, ImportError, MemoryError, RuntimeError)
"""Failures whose message says what to do; anything else is a bug of vitjax."""

COMMANDS: dict[str, type[Command]] = {
    "run": Run,
    "report": Report,
    "explain": Explain,
    "look": Look,
    "demo": Demo,
    "list": List,
    "convert": Convert,
    "bench": Bench,
    "estimate": Estimate,
    "neurons": Neurons,
}

REMOVED = registry.REMOVED | {
    "train": "The embedded model is trained by the repository's script "
    "checkpoints/train_textured_digits.py.",
    "--topology": "--topology is gone: run `vitjax estimate` on the TPUs themselves, "
    "or compile a recipe's step by jax.experimental.topologies.",
}
"""Commands, recipes and flags of earlier versions, and what replaced them."""

RENAMED_FLAGS = {"--memory": "--max-memory"}

ABOUT = f"""{str(vitjax.__doc__).splitlines()[0]}

Exit status: 0 done; 1 an error, with one paragraph on stderr that says what to do;
2 wrong usage; 130 after Ctrl-C and 143 after SIGTERM, with what was computed kept."""


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
    own_process = arguments is None
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments in (["--version"], ["version"]):
        print(vitjax.__version__)
        return 0
    command: Any = Command()
    streams: tuple[Any, ...] = (sys.stdout, sys.stderr) if own_process else ()
    for stream in streams:
        stream.reconfigure(errors="surrogateescape")  # names of files are bytes
    with handle_signals(restore=not own_process):
        try:
            command = parse(arguments, recipes)
            enable_compilation_cache()
            if command.needs_device:
                check_platform()
            command()
            check_interrupt()
            sys.stdout.flush()
        except KeyboardInterrupt as error:
            print_error("Stopped.", error)
            if getattr(error, "__notes__", ()):
                program = f"python {sys.argv[0]}" if recipes else "vitjax"
                print(f"  {program} {shlex.join(arguments)}", file=sys.stderr)
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
    """The command that the arguments name; exit after help (0) or wrong usage (2)."""
    name, *words = arguments or ("",)
    if name == "help":
        return parse([*words, "--help"], recipes)
    if name.startswith("-") or not name:
        lines = {n: str(kind.__doc__).splitlines()[0] for n, kind in COMMANDS.items()}
        return show_choices(lines, arguments, ABOUT, "vitjax")
    kind: Any = choose("command", name, COMMANDS)
    if not issubclass(kind, RecipeCommand):
        return parse_flags(kind, f"vitjax {name}", words)
    known = registry.RECIPES | {recipe.name: recipe for recipe in recipes}
    if not words or words[0].startswith("-"):
        about, _, _ = str(inspect.getdoc(kind)).partition("\n\nArgs:")
        lines = {name: recipe.about for name, recipe in known.items()}
        return show_choices(lines, words, about, f"vitjax {name}")
    recipe = choose("recipe", words.pop(0), known)
    for position, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag in REMOVED:
            choose("flag", flag, ())
        if flag in RENAMED_FLAGS:
            print(f"{flag} is now {RENAMED_FLAGS[flag]}.", file=sys.stderr)
            words[position] = RENAMED_FLAGS[flag] + equals + value
    return parse_flags(kind.of(recipe), f"vitjax {name} {recipe.name}", words)


def choose(what: str, name: str, known: Any) -> Any:
    """The command or recipe of a name; exit where there is none."""
    if name not in known:
        reason = REMOVED.get(name) or unknown(what, name, known)
        print(f"vitjax: {reason}", file=sys.stderr)
        raise SystemExit(2)
    return known[name]


def parse_flags(kind: type[Command], prog: str, words: Sequence[str]) -> Any:
    """A command of its flags; those of a base class with a `group` are one in help."""
    groups: dict[type[Command], list[Any]] = {}
    hidden, nested = [], []
    for field in dataclasses.fields(kind):
        base = next(b for b in kind.__mro__ if field.name in inspect.get_annotations(b))
        if "group" in vars(base):
            groups.setdefault(base, []).append((field.name, field.type, field))
            no_flag = dataclasses.field(default=None, init=False)
            hidden.append((field.name, Any, no_flag))
    for base, fields in reversed(groups.items()):  # what is required comes first
        group = dataclasses.make_dataclass(base.group, fields, kw_only=True)
        group.__doc__ = base.__doc__
        flags = Annotated[group, tyro.conf.arg(name=base.group, help=" ")]
        nested.append((f"{base.group}_flags", flags))
    grouped: Any = dataclasses.make_dataclass(
        kind.__name__, hidden + nested, bases=(kind,), frozen=True, kw_only=True
    )
    grouped.__doc__ = kind.__doc__
    config = tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes
    with FLAG_TYPES:
        parsed = tyro.cli(grouped, prog=prog, args=words, config=config)
    values = vars(parsed)
    for name, _ in nested:
        values = values | vars(values[name])
    return kind(**{f.name: values[f.name] for f in dataclasses.fields(kind) if f.init})


def show_choices(
    choices: Mapping[str, str], words: Sequence[str], about: str, prog: str
) -> Any:
    """Exit with what there is to choose from, each with a line on it."""
    nothing: Any = dataclasses.make_dataclass("Nothing", ())
    kinds: Any = Union[
        tuple(
            Annotated[nothing, tyro.conf.subcommand(name, description=line)]
            for name, line in choices.items()
        )
    ]
    return tyro.cli(kinds, prog=prog, description=about, args=words)


def enable_compilation_cache() -> None:
    """Keep compiled programs on disk, so that the next command starts sooner.

    A folder that the user chose, as by `JAX_COMPILATION_CACHE_DIR`, stays; where none
    can be written, nothing is cached. JAX's keys tell the kinds of processors apart.
    """
    name, folder = "jax_compilation_cache_dir", cache_folder() / "compiled"
    if getattr(jax.config, name) is None:
        with contextlib.suppress(OSError, ValueError):
            make_folder(folder)
            jax.config.update(name, str(folder))


def stdout_closed() -> bool:
    """Whether nobody reads stdout any more (`vitjax list | head`); then, be silent."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


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
