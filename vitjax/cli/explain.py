"""The command `explain`: explanation maps of image files, as a figure and arrays."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro
from jaxtyping import Float, Int, UInt8

from vitjax import api
from vitjax.checkpoints import loading
from vitjax.cli.command import Command, make_folder, metavar
from vitjax.data.images import Preprocess, open_image
from vitjax.data.labels import match_label
from vitjax.models.model import Model
from vitjax.runner.options import PRECISION
from vitjax.saliency.methods import Method


@dataclasses.dataclass(frozen=True, eq=False)
class Explanations:
    """Maps of some images.

    Args:
        names: of the files.
        images: as the model saw them.
        target: class that is explained.
        prediction: class that the model predicts.
        probability: of the target, softmax of the logits.
        maps: method -> [image row column], signed, not normalized.
    """

    names: tuple[str, ...]
    images: UInt8[np.ndarray, "image height width 3"]
    target: Int[np.ndarray, " image"]
    prediction: Int[np.ndarray, " image"]
    probability: Float[np.ndarray, " image"]
    maps: Mapping[str, Float[np.ndarray, "image row column"]]


def explain_images(
    model: Model,
    paths: Sequence[str | os.PathLike],
    *,
    methods: Sequence[str],
    target: str | int | None = None,
    dtype: str = "float32",
    **options: Any,
) -> Explanations:
    """Read image files and explain a class in each, one at a time.

    `target` is a class id, name or number; None explains what the model predicts.
    `options` are those of `vitjax.explain`.

    Raises:
        ValueError: an unknown method, class, block or head, or no image.
        ImageError: an image cannot be read.
    """
    if not paths or not methods:
        raise ValueError("Give at least one image and one method.")
    if target is not None:
        target = match_label(target, model.classes, model.class_ids)
    preprocess = model.preprocess or Preprocess(*model.config.shape)
    model = model.astype(dtype)

    def explain_image(path):
        image = preprocess(open_image(path))
        batch = image[None]
        logits = np.asarray(api.forward(model, batch)[0], np.float32)[0]
        prediction = int(logits.argmax())
        label = prediction if target is None else target
        maps = [
            api.explain(model, batch, np.array([label]), method=name, **options)
            for name in methods
        ]
        shape = len(methods), *model.config.grid
        return (
            preprocess.denormalize(image),
            label,
            prediction,
            jax.nn.softmax(logits)[label],
            np.asarray(maps, np.float32).reshape(shape),
        )

    with jax.default_matmul_precision(PRECISION[dtype]):
        rows = [explain_image(path) for path in paths]
    images, targets, predictions, probabilities, maps = map(np.stack, zip(*rows))
    return Explanations(
        names=tuple(os.path.basename(os.fspath(path)) for path in paths),
        images=images,
        target=targets,
        prediction=predictions,
        probability=probabilities,
        maps=dict(zip(methods, np.moveaxis(maps, 1, 0))),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explain(Command):
    """Draw which parts of images are evidence for a class.

    Example: vitjax explain cat.png --model vit_ti16 --method relevancy,chefer

    Args:
        images: image files.
        model: a name that `vitjax list` shows, or a converted folder.
        class_: id, name or number of the class to explain; by default the class that
            the model predicts for each image.
        method: names of explanation methods. relevancy is the paper's; on the removal
            test consensus is the most faithful, and class_projection finds
            objects best (see the guide's page on methods).
        blocks: only these, from 0 or negative from the end, of methods that have a map
            of each block and head.
        heads: only these, likewise.
        out: folder for explain.png and explain.npz, the arrays.
        json: print what is explained, and where the files are, as JSON.
        checkpoint: your own file with the model's weights, or a converted folder.
        dtype: what the model computes in.
    """

    images: tyro.conf.Positional[Annotated[tuple[str, ...], metavar("IMAGE...")]]
    model: Annotated[str, metavar("NAME")]
    class_: Annotated[str | None, tyro.conf.arg(name="class", metavar="NAME|ID")] = None
    method: tuple[Method, ...] = ("relevancy",)
    blocks: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    out: Annotated[pathlib.Path, metavar("DIR")] = pathlib.Path("vitjax-explain")
    checkpoint: Annotated[str | None, metavar("FILE")] = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    json: bool = False

    def __call__(self) -> Explanations:
        from vitjax.report import map_grid

        make_folder(self.out)
        model = loading.load(self.model, checkpoint=self.checkpoint)
        explanations = explain_images(
            model,
            self.images,
            methods=self.method,
            target=self.class_,
            layers=self.blocks or None,
            heads=self.heads or None,
            dtype=self.dtype,
        )
        rows = [
            {
                "name": name,
                "class": model.classes[target],
                "answer": model.classes[prediction],
                "probability": float(probability),
            }
            for name, target, prediction, probability in zip(
                explanations.names,
                explanations.target,
                explanations.prediction,
                explanations.probability,
            )
        ]
        titles = [
            f"for {row['class'].split(',')[0]} ({row['probability']:.3f})\n"
            f"prediction: {row['answer'].split(',')[0]}"
            for row in rows
        ]
        figure, arrays = self.out / "explain.png", self.out / "explain.npz"
        figure.write_bytes(map_grid.png(explanations.images, titles, explanations.maps))
        fields: dict[str, Any] = {
            name: np.asarray(getattr(explanations, name))
            for name in ("names", "target", "prediction", "probability")
        }
        maps = {f"map_{name}": values for name, values in explanations.maps.items()}
        np.savez(arrays, **fields, **maps)
        if self.json:
            facts = {"pictures": rows, "methods": list(self.method)}
            files = {"figure": str(figure), "arrays": str(arrays)}
            print(json.dumps(facts | files))
            return explanations
        for row, title in zip(rows, titles):
            print(f"{row['name']}: {' '.join(title.split())}")
        print(f"Figure and arrays: {figure}, {arrays}")
        return explanations
