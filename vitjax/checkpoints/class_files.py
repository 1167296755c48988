"""Class files: embeddings of class names, made anywhere, for CLIP and SigLIP.

An npz or safetensors file of `embeddings` [class embed], `classes`, their names, and,
where it has them, `class_ids`, `logit_scale` (the logarithm of the temperature, as
CLIP and SigLIP store it) and `logit_bias`. safetensors has no strings: there, names are
a JSON list in the metadata, or the bytes of one in an array.
"""

import json
import math
import os
import struct
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from vitjax import messages
from vitjax.checkpoints.files import Arrays, CheckpointError, file_format, open_arrays
from vitjax.checkpoints.json_fields import class_names
from vitjax.models.class_heads import zero_shot
from vitjax.models.model import Model

SUFFIXES = (".npz", ".safetensors")

LARGEST_SCALE = 10.0
"""CLIP clips its temperature at 100, whose logarithm is 4.6."""


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
