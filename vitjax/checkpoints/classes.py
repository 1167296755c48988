"""Class names, their number, or a class file: embeddings of names for CLIP and SigLIP.

A class file is made anywhere: an npz or safetensors file of `embeddings`
[class embed], `classes`, their names, and, where it has them, `class_ids`,
`logit_scale` (the logarithm of the temperature, as CLIP and SigLIP store it) and
`logit_bias`. safetensors has no strings: there, names are a JSON list in the metadata,
or the bytes of one in an array.
"""

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from vitjax import messages
from vitjax.checkpoints.files import Arrays, CheckpointError, file_format, open_arrays
from vitjax.checkpoints.json_fields import class_name, class_names
from vitjax.data.labels import Labels
from vitjax.models.class_heads import zero_shot
from vitjax.models.model import Model

Classes = Any
"""Class names in any iterable or by number, their number, a class file, or None."""

SUFFIXES = (".npz", ".safetensors")

LARGEST_SCALE = 10.0
"""CLIP clips its temperature at 100, whose logarithm is 4.6."""


def numbered(count: int) -> Labels:
    """Names and ids of classes that have none: their numbers."""
    names = tuple(map(str, range(count)))
    return names, names


def labels(classes: Classes, known: Labels) -> Labels:
    """(class names, class ids): those known, or of the caller's names or number."""
    if hasattr(classes, "tolist"):  # numpy's and JAX's arrays and numbers
        classes = classes.tolist()  # pyright: ignore
    if classes is None:
        return known
    if isinstance(classes, int) and not isinstance(classes, bool):
        messages.check_range("classes", classes, 1)
        return known if classes == len(known[0]) else numbered(classes)
    if isinstance(classes, Mapping):
        names = class_names("classes", classes)
    elif isinstance(classes, Iterable) and not isinstance(classes, str | bytes | set):
        names = tuple(map(class_name, classes))
    else:
        names = ()
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"classes must be distinct names, or their number; got {classes!r}."
        )
    return names, names


class ClassFile(NamedTuple):
    """What a class file holds; None stands for the model's own."""

    path: str
    embeddings: np.ndarray
    classes: tuple[str, ...]
    class_ids: tuple[str, ...] | None
    temperature: float | None
    bias: float | None

    def apply(self, model: Model) -> Model:
        """The model with these classes; CheckpointError where they do not fit it."""
        try:
            model = zero_shot(
                model,
                self.embeddings,
                classes=self.classes,
                temperature=self.temperature,
                bias=self.bias,
            )
        except ValueError as error:
            raise CheckpointError(f"The class file {self.path}: {error}") from error
        ids = model.class_ids if self.class_ids is None else self.class_ids
        return model.replace(class_ids=ids)


def read_class_file(path: str | os.PathLike) -> ClassFile:
    """Read a class file, local or remote; CheckpointError where it is none."""
    path = os.path.expanduser(os.fspath(path))
    if not epath.Path(path).exists():
        raise FileNotFoundError(f"There is no class file {path}.")
    with open_arrays(path) as arrays:
        metadata = read_metadata(epath.Path(path))
        missing = {"embeddings", "classes"} - arrays.keys() - metadata.keys()
        if "embeddings" not in arrays or missing:
            raise CheckpointError(
                f"{path} is no class file: it lacks {' and '.join(sorted(missing))}. "
                "It needs the arrays embeddings [class embed] and classes, the names."
            )
        embeddings = np.asarray(arrays["embeddings"]())
        if embeddings.ndim != 2 or embeddings.dtype.kind not in "fV":
            raise CheckpointError(
                f"{path}: embeddings are {embeddings.dtype} {embeddings.shape}; "
                "expected floating point [class embed]."
            )
        embeddings = embeddings.astype(np.float32)
        names = read_names("classes", arrays, metadata)
        ids = None
        if "class_ids" in {*arrays, *metadata}:
            ids = read_names("class_ids", arrays, metadata)
        numbers = {
            name: float(np.asarray(arrays[name]()).astype(np.float32).reshape(()))
            for name in ("logit_scale", "logit_bias")
            if name in arrays
        }
    lengths = np.linalg.norm(embeddings, axis=1)
    wrong = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0))).tolist()
    if wrong:
        raise CheckpointError(
            f"{path}: {len(wrong)} rows of embeddings are 0, NaN or infinite, such as "
            f"row {wrong[0]}."
        )
    if ids is not None and (len(set(ids)), len(ids)) != (len(names),) * 2:
        raise CheckpointError(
            f"{path}: class_ids must be {len(names)} distinct ids, one for each class."
        )
    temperature = None
    if "logit_scale" in numbers:
        scale = numbers["logit_scale"]
        if not abs(scale) <= LARGEST_SCALE:
            reason = messages.out_of_range(
                "logit_scale", scale, -LARGEST_SCALE, LARGEST_SCALE
            )
            raise CheckpointError(
                f"{path}: {reason} It is the logarithm of the temperature."
            )
        temperature = math.exp(scale)
    bias = numbers.get("logit_bias")
    return ClassFile(path, embeddings, names, ids, temperature, bias)


def read_names(key: str, arrays: Arrays, metadata: dict[str, Any]) -> tuple[str, ...]:
    """Names in an array of strings, or a JSON list in the metadata or in bytes."""
    value: Any = metadata.get(key)
    if key in arrays:
        array = np.asarray(arrays[key]())
        value = bytes(array).decode() if array.dtype == np.uint8 else array.tolist()
    try:
        return class_names(key, json.loads(value) if isinstance(value, str) else value)
    except ValueError as error:
        raise CheckpointError(f"{key} is no list of names: {error}") from error


def read_metadata(path: Any) -> dict[str, Any]:
    """The metadata in the header of a safetensors file; empty of others."""
    if file_format(path) != "safetensors":
        return {}
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length)).get("__metadata__", {})
