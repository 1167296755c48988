"""Maps of single pictures: files in, arrays out."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from vitjax import api
from vitjax.data.images import Preprocess, open_image
from vitjax.data.matching import match_label
from vitjax.models.model import Model
from vitjax.runner import mesh as meshes
from vitjax.saliency.methods import PER_HEAD, Method, check_method


@dataclasses.dataclass(frozen=True, eq=False)
class Explanations:
    """Maps of some pictures.

    Args:
        names: of the files.
        pictures: as the model saw them.
        target: class that is explained.
        prediction: the model's answer.
        probability: of the target, softmax of the logits.
        maps: method -> [picture row column], signed, not normalised.
    """

    names: tuple[str, ...]
    pictures: UInt8[np.ndarray, "picture height width 3"]
    target: Int[np.ndarray, " picture"]
    prediction: Int[np.ndarray, " picture"]
    probability: Float[np.ndarray, " picture"]
    maps: Mapping[str, Float[np.ndarray, "picture row column"]]


def explain_pictures(
    model: Model,
    paths: Sequence[str | os.PathLike],
    *,
    methods: Sequence[Method],
    target: str | int | None = None,
    layers: tuple[int, ...] | None = None,
    heads: tuple[int, ...] | None = None,
    dtype: str = "float32",
    **options: Any,
) -> Explanations:
    """Read pictures and explain a class in each, one at a time.

    Args:
        model: the model.
        paths: of image files.
        methods: names of `vitjax.explain`.
        target: class id, name or number; None explains each picture's own answer.
        layers: only these blocks, of methods that have a map of each.
        heads: only these heads, likewise.
        dtype: what the model computes in.
        options: of `vitjax.explain`.

    Returns:
        Maps and what they are of.

    Raises:
        ValueError: an unknown method, class, block or head, or no picture.
        ImageError: a picture cannot be read.
    """
    if not paths or not methods:
        raise ValueError("Give at least one picture and one method.")
    for method in methods:
        check_method(method)
        if method not in PER_HEAD and (layers is not None or heads is not None):
            raise ValueError(
                f"{method!r} is one map of the whole model; blocks and heads can be "
                f"chosen for {', '.join(PER_HEAD)}."
            )
    number = None
    if target is not None:
        number = match_label(target, model.classes, model.class_ids)
    preprocess = model.preprocess or Preprocess(*model.config.shape)
    placed = model.astype(dtype)
    found = []
    with jax.default_matmul_precision(meshes.precision_of(dtype)):
        for path in paths:
            image = preprocess(open_image(path))
            one = one_picture(
                *(placed, image, number, methods),
                layers=layers,
                heads=heads,
                **options,
            )
            found.append((preprocess.denormalise(image), *one))
    pictures, targets, predictions, chances, maps = zip(*found)
    return Explanations(
        names=tuple(os.path.basename(os.fspath(path)) for path in paths),
        pictures=np.stack(pictures),
        target=np.asarray(targets, np.int32),
        prediction=np.asarray(predictions, np.int32),
        probability=np.asarray(chances, np.float32),
        maps={name: np.stack([one[name] for one in maps]) for name in methods},
    )


def one_picture(model: Model, image, number, methods, *, layers, heads, **options):
    """(target, answer, the target's probability, maps) of one picture."""
    batch = np.asarray(image)[None]
    logits = np.asarray(api.forward(model, batch)[0], np.float32)[0]
    prediction = int(logits.argmax())
    target = prediction if number is None else number
    chance = float(jax.nn.softmax(logits)[target])
    maps = {}
    for method in methods:
        some = dict(layers=layers, heads=heads) if method in PER_HEAD else {}
        values = api.explain(
            *(model, batch, np.array([target], np.int32)),
            method=method,
            **some,
            **options,
        )
        grid = model.config.grid
        maps[method] = np.asarray(values, np.float32)[0].reshape(grid)
    return target, prediction, chance, maps
