"""The base class of commands, and how flags become values."""

import dataclasses
import os
import pathlib
from typing import Any, get_args

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
)

from vitjax.messages import unknown

FLAG_TYPES = ConstructorRegistry()
"""How tyro reads flags of vitjax; a context manager."""


def metavar(text: str) -> Any:
    """What stands for a value in the help."""
    return tyro.conf.arg(metavar=text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A command of the command line; its fields are the flags.

    Args:
        traceback: show the Python traceback of an error.
    """

    traceback: bool = False

    def __call__(self) -> Any:
        """Run it: print what it found, and return it."""
        raise TypeError(f"{type(self).__name__} is not a command by itself.")


@FLAG_TYPES.primitive_rule
def comma_separated(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Read `tuple[X, ...]` from `a b c` and from `a,b,c`; not paths, which have no flag
    and may contain commas.
    """
    element, *rest = get_args(info.type) or (None,)
    positional = get_args(tyro.conf.Positional[int])[-1]
    if info.type_origin is not tuple or rest != [...] or positional in info.markers:
        return None
    inner: Any = ConstructorRegistry.get_primitive_spec(
        PrimitiveTypeInfo.make(element, info.markers)
    )

    def read(words: list[str]) -> tuple[Any, ...]:
        words = [part for word in words for part in word.split(",") if part]
        for word in words:
            if inner.choices and word not in inner.choices:
                raise ValueError(unknown("value", word, inner.choices))
        return tuple(inner.instance_from_str([word]) for word in words)

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"{inner.metavar}...",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [str(item) for item in value],
    )


@FLAG_TYPES.primitive_rule
def optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Read `X | None` as X: None is what a flag is that was not given."""
    kinds = get_args(info.type)
    if len(kinds) != 2 or kinds[1] is not type(None):
        return None
    inner: Any = ConstructorRegistry.get_primitive_spec(
        PrimitiveTypeInfo.make(kinds[0], info.markers)
    )
    return dataclasses.replace(
        inner,
        is_instance=lambda value: value is None or inner.is_instance(value),
        str_from_instance=lambda value: (
            ["None"] if value is None else inner.str_from_instance(value)
        ),
    )


def make_folder(folder: pathlib.Path) -> pathlib.Path:
    """Make a folder for results, before anything is computed for it.

    Raises:
        ValueError: it cannot be made, or not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        problem = "" if os.access(folder, os.W_OK) else "you may not write there"
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        raise ValueError(
            f"Cannot write to {folder}: {problem}. Give another --out, where you "
            "may write."
        )
    return folder
