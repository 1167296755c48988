"""Checks of arguments: images, class numbers, edits and arrays of public functions.

`checked` stands on every public function that takes arrays, outside of `jit`, and reads
its annotations: what is annotated as an array may be a list, or anything that numpy
understands, and must be of the annotated kind. Numbers may be given as integers, and
small integers are widened to int32; anything else is a ValueError that names the
argument. Shapes and dtypes are checked always. Values are checked where they are known:
not inside a `jit`, `vmap` or `grad` of the user. There, a class number outside of [0,
class) gives NaN where a function returns numbers, and False or the last rank where it
returns those.
"""

import collections.abc
import functools
import inspect
import types
import typing
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from vitjax import messages
from vitjax.types import Edits

P = ParamSpec("P")
R = TypeVar("R")

SMALLEST_CLASS = {"target": 0, "label": 0, "predicted": 0, "class_": 0}
SMALLEST_CLASS |= {"labels": -1, "ids": 0}
"""Arguments that are class numbers, or numbers of tokens in a vocabulary; probes leave
out examples of class -1."""

NEED_CLASSES = {"target", "label", "predicted", "class_", "class_space", "class_logits"}
"""Arguments that mean nothing without classes."""

IMAGES = {"images", "clean", "corrupted"}
"""Arguments that are images."""

LARGEST_PIXEL = 30.0
"""No usual normalization brings pixels in [0, 1] beyond it; pixels up to 255 are."""


class Expected(typing.NamedTuple):
    """What an annotation allows: kinds of arrays, a sequence, and other classes."""

    kinds: frozenset[str]
    sequence: bool
    classes: tuple[type, ...]


def expected_of(annotation: Any) -> Expected:
    """Read an annotation, which may be a union."""
    kinds, sequence, classes = set(), False, []
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    for part in typing.get_args(annotation) if union else (annotation,):
        origin = typing.get_origin(part) or part
        if dtypes := getattr(part, "dtypes", None):  # jaxtyping's arrays
            names = {"float32": "float", "int32": "int", "bool": "bool"}
            kinds |= {kind for dtype, kind in names.items() if dtype in dtypes}
        elif origin in (tuple, collections.abc.Sequence):
            sequence = True
        elif isinstance(part, type) and part not in (int, np.integer):
            classes.append(part)
    return Expected(frozenset(kinds), sequence, tuple(classes))


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """A public function whose arguments are checked; see the module."""
    signature = inspect.signature(function)
    expected = {
        name: expected_of(parameter.annotation)
        for name, parameter in signature.parameters.items()
    }

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{function.__name__}: {error}") from None
        arguments = bound.arguments
        for name, value in arguments.items():
            arguments[name] = convert(name, value, expected[name])
        for name in IMAGES & arguments.keys() if "model" in arguments else ():
            check_images(name, arguments[name], arguments["model"].image_shape)
            check_pixels(name, arguments[name])
        if NEED_CLASSES & arguments.keys():
            messages.check_classes(count_classes(arguments))
        check_class_numbers(arguments)
        if isinstance(edits := arguments.get("edits"), Edits):
            check_edits(edits, arguments["model"].config.patches)
        for name, value in arguments.items():
            if expected[name].kinds == {"int"} and hasattr(value, "dtype"):
                arguments[name] = widened(value)
        return function(*bound.args, **bound.kwargs)

    return call


def convert(name: str, value: Any, expected: Expected) -> Any:
    """A value as an array or a tuple of an expected kind; else ValueError."""
    if value is None or not (expected.kinds or expected.sequence):
        return value
    if isinstance(value, expected.classes):
        return value
    if expected.sequence and isinstance(value, list | range):
        value = tuple(value)
    if expected.sequence and not expected.kinds and isinstance(value, np.ndarray):
        value = tuple(value.tolist())
    if not expected.kinds or (expected.sequence and isinstance(value, tuple)):
        return value  # static numbers
    return of_kind(name, as_array(name, value), expected.kinds)


def as_array(name: str, value: Any) -> Any:
    """A numpy or JAX array."""
    if isinstance(value, jax.Array | np.ndarray):
        return value
    traced = any(isinstance(x, Tracer) for x in jax.tree.leaves(value))
    try:
        return jnp.asarray(value) if traced else np.asarray(value)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{name} cannot be made an array; its parts must have one shape: {error}"
        ) from error


def of_kind(name: str, value: Any, kinds: frozenset[str]) -> Any:
    """The array, converted to floating point where numbers are expected."""
    dtype = value.dtype
    if jnp.issubdtype(dtype, jnp.floating):
        kind = "float"
    elif jnp.issubdtype(dtype, jnp.integer):
        kind = "int"
    else:
        kind = str(dtype)
    if kind in kinds:
        return value
    if name in IMAGES:
        raise ValueError(
            f"{name} of dtype {dtype} are no normalized pixels; pass what "
            "model.preprocess makes of an image, floating point [batch height width "
            "channel]."
        )
    if "float" in kinds and kind in ("int", "bool"):
        return value.astype(np.float32)
    if not value.size and kind == "float":  # np.asarray([])
        return value.astype(np.int32 if "int" in kinds else bool)
    names = {"float": "numbers", "int": "integers", "bool": "True and False"}
    wanted = " or ".join(names[kind] for kind in names if kind in kinds)
    raise ValueError(
        f"{name} has dtype {dtype}, but must hold {wanted}; convert it, by "
        "`.astype(int)` or by a comparison, if that is what it means."
    )


def widened(value: Any) -> Any:
    """Integers as int32 where they are smaller or without a sign."""
    narrow = value.dtype.itemsize < 4 or jnp.issubdtype(
        value.dtype, jnp.unsignedinteger
    )
    return value.astype(np.int32) if narrow else value


def known_values(value: Any) -> np.ndarray | None:
    """The numbers of an array, or None where a transformation hides them."""
    if isinstance(value, Tracer) or not hasattr(value, "dtype"):
        return None
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return None
    return np.asarray(value)


def check_images(name: str, images: Any, shape: tuple[int, int, int]) -> None:
    """Raise ValueError unless images are [batch *shape] of floating point."""
    of_kind(name, images, frozenset({"float"}))
    if images.ndim != 4 or images.shape[1:] != shape:
        raise ValueError(
            f"{name} of shape {images.shape} do not fit the model, which takes [batch "
            f"{' '.join(map(str, shape))}]; use model.preprocess, or load the model "
            "with another image_size."
        )


def check_pixels(name: str, images: Any) -> None:
    """Warn of pixels that look unnormalized, where looking costs no transfer."""
    if isinstance(images, np.ndarray) and images.size:
        largest = float(max(images.max(), -images.min()))
        if largest > LARGEST_PIXEL:
            warnings.warn(
                f"{name} hold values up to {largest:g}, which look like pixels that "
                "are not normalized; pass what model.preprocess makes of an image.",
                stacklevel=3,
            )


def check_class_numbers(arguments: Mapping[str, Any]) -> None:
    """Raise ValueError for class numbers that are known not to be a class."""
    for name in SMALLEST_CLASS.keys() & arguments.keys():
        values = known_values(arguments[name])
        if values is None or not values.size:
            continue
        low, high = SMALLEST_CLASS[name], count_classes(arguments) - 1
        ends = int(values.min()), int(values.max())
        if not low <= ends[0] <= ends[1] <= high:
            wrong = ends[0] if ends[0] < low else ends[1]
            hint = "; -1 stands for an unknown class" if wrong == -1 else ""
            raise ValueError(
                messages.out_of_range(name, wrong, low, high)[:-1] + f"{hint}."
            )


def count_classes(arguments: Mapping[str, Any]) -> int:
    """How many classes, or tokens of a vocabulary, there are, by other arguments."""
    if "ids" in arguments:
        return arguments["text"].config.vocab
    if "model" in arguments:
        return arguments["model"].num_classes
    if "class_space" in arguments:
        return arguments["class_space"].embedding.shape[0]
    for name in ("class_logits", "logits_before"):
        if name in arguments:
            return arguments[name].shape[-1]
    return arguments["classes"]


def check_edits(edits: Edits, patches: int) -> None:
    """Raise ValueError for other dtypes, and for selected patches that do not exist."""
    for name, kind in (("keep", "bool"), ("select", "int")):
        if (value := getattr(edits, name)) is not None:
            of_kind(f"Edits.{name}", value, frozenset({kind}))
    values = known_values(edits.select)
    if values is not None and values.size:
        ends = int(values.min()), int(values.max())
        messages.check_range("Edits.select", ends, 0, patches - 1)
