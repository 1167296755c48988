"""The command `explain`: explanation maps of image files, as a figure and arrays."""

import dataclasses
import os
import pathlib
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from vitjax import api
from vitjax.cli.command import ModelCommand, make_folder, metavar
from vitjax.data.images import Preprocess, image_errors, open_image, printable
from vitjax.data.labels import match_label
from vitjax.recipes import schema
from vitjax.runner.options import PRECISION
from vitjax.saliency.methods import Method


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explain(ModelCommand):
    """Draw which parts of images are evidence for a class.

    Example: vitjax explain cat.png --model vit_ti16 --method relevancy,chefer

    Args:
        images: image files.
        class_: id, name or number of the class to explain; by default the class that
            the model predicts for each image.
        method: names of explanation methods. relevancy is the paper's; on the removal
            test consensus is the most faithful, and class_projection finds
            objects best (see the guide's page on methods).
        blocks: only these, from 0 or negative from the end, of methods that have a map
            of each block and head.
        heads: only these heads, likewise.
        out: folder for explain.png and explain.npz, the arrays.
        dtype: what the model computes in.
    """

    images: tyro.conf.Positional[Annotated[tuple[str, ...], metavar("IMAGE...")]]
    class_: Annotated[str | None, tyro.conf.arg(name="class", metavar="NAME|ID")] = None
    method: tuple[Method, ...] = ("relevancy",)
    blocks: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    out: Annotated[pathlib.Path, metavar("DIR")] = pathlib.Path("vitjax-explain")
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __call__(self) -> dict[str, Any]:
        """The arrays of explain.npz: names, target, prediction, probability (the
        target's), and `map_METHOD` [image row column], signed and not normalized.
        """
        from vitjax.report import map_grid

        if not self.images or not self.method:
            raise ValueError("Give at least one image and one method.")
        make_folder(self.out)
        model = self.load()
        label = None
        if self.class_ is not None:
            label = match_label(self.class_, model.classes, model.class_ids)
        preprocess = model.preprocess or Preprocess(*model.config.shape)
        model = model.astype(self.dtype)
        names = [printable(os.path.basename(path)) for path in self.images]
        inputs = []
        for path in self.images:
            with image_errors(printable(path)):
                inputs.append(preprocess(open_image(path)))
        images = np.stack(inputs)
        answers, maps, facts, titles = [], [], [], []
        for name, image in zip(names, images):  # one program for any number of images
            with jax.default_matmul_precision(PRECISION[self.dtype]):
                logits, _ = api.forward(model, image[None])
                logits = np.asarray(logits, np.float32)[0]
                prediction = int(logits.argmax())
                target = prediction if label is None else label
                options = {"layers": self.blocks or None, "heads": self.heads or None}
                targets = np.array([target], np.int32)
                maps += [
                    api.explain(model, image[None], targets, method=method, **options)
                    for method in self.method
                ]
            probability = float(model.class_space.probabilities(logits)[target])
            answers.append((target, prediction, probability))
            explained, answer = model.classes[target], model.classes[prediction]
            fact = {"name": name, "class": explained, "answer": answer}
            facts.append(fact | {"probability": probability})
            titles.append(
                f"for {explained.split(',')[0]} ({probability:.3f})\n"
                f"prediction: {answer.split(',')[0]}"
            )
        keys = "target", "prediction", "probability"
        arrays: dict[str, Any] = dict(zip(keys, map(np.array, zip(*answers))))
        arrays["names"] = np.array(names)
        grids = np.asarray(maps, np.float32)
        grids = grids.reshape(len(names), len(self.method), *model.config.grid)
        columns = {name: grids[:, i] for i, name in enumerate(self.method)}
        arrays |= {schema.MAP(name): values for name, values in columns.items()}
        figure, archive = self.out / "explain.png", self.out / "explain.npz"
        shown = np.stack([preprocess.denormalize(image) for image in images])
        figure.write_bytes(map_grid.png(shown, titles, columns))
        np.savez(archive, **arrays)
        lines = [f"{n}: {' '.join(t.split())}" for n, t in zip(names, titles)]
        lines.append(f"Figure and arrays: {figure}, {archive}")
        files = {"figure": str(figure), "arrays": str(archive)}
        facts = {"pictures": facts, "methods": self.method, **files}
        self.show(facts, "\n".join(lines))
        return arrays
