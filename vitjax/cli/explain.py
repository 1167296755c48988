"""The command `explain`: explanation maps laid over photos, as figures and arrays."""

import dataclasses
import functools
import itertools
import os
import pathlib
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
import tyro
from jaxtyping import UInt8

from vitjax import api
from vitjax.cli.command import BLOCKS, ModelCommand, make_folder, metavar
from vitjax.data.images import (
    Preprocess,
    image_errors,
    open_image,
    printable,
    upright_size,
)
from vitjax.data.labels import match_label
from vitjax.messages import check_one_of, check_range
from vitjax.models.model import Model
from vitjax.recipes import schema
from vitjax.runner.options import PRECISION
from vitjax.saliency.methods import (
    FUNCTIONS,
    PER_HEAD,
    SIGNED_METHODS,
    Method,
    default_method,
)
from vitjax.types import Edits

PHOTO = 512
"""Pixels of a photo's longer side in a figure, at most."""


class Explanation(NamedTuple):
    """The maps of one image for one class, and what the model predicts.

    A map of `maps`, by method, is [row column], after the axes of a grid; `words` are
    class number -> its name and probability.
    """

    photo: UInt8[np.ndarray, "height width 3"]
    target: int
    prediction: int
    probabilities: np.ndarray
    words: Any
    maps: dict[str, np.ndarray]

    @property
    def title(self) -> str:
        """The class that is explained and the prediction."""
        if self.target == self.prediction:
            return f"for {self.words(self.target)}, the prediction"
        predicted = self.words(self.prediction)
        return f"for {self.words(self.target)}\nprediction: {predicted}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explain(ModelCommand):
    """Draw which parts of photos are evidence for a class, laid over the photos.

    Example: vitjax explain cat.png --model vit_ti16 --class tabby,lynx

    Args:
        images: image files.
        class_: ids, names or numbers of the classes to explain; by default the class
            that the model predicts for each image.
        method: names of explanation methods. libragrad, the default where the model's
            head allows it and else chefer, is faithful on removal tests and cheap,
            class_projection finds objects best; relevancy, the paper's, shows where
            more attention would help the class (see the guide's page on methods).
        grid: a map of every block, or of every head of every block, of methods that
            have them, in one figure on one scale.
        layers: only these blocks, from 0 or negative from the end, of methods that have
            a map of each block and head.
        heads: only these heads, likewise.
        style: maps laid over the photos, or each patch in its color without the photo.
        format: of the figures, one or several.
        width: of the figures in inches, such as 5.5 for a page.
        out: folder for explain.png, or another format, and explain.npz, the arrays.
        dtype: what the model computes in.
    """

    images: tyro.conf.Positional[Annotated[tuple[str, ...], metavar("IMAGE...")]]
    class_: Annotated[
        tuple[str, ...], tyro.conf.arg(name="class", metavar="NAME|ID...")
    ] = ()
    method: tuple[Method, ...] = ()
    grid: Literal["blocks", "heads"] | None = None
    layers: Annotated[tuple[int, ...], BLOCKS] = ()
    heads: tuple[int, ...] = ()
    style: Literal["overlay", "patches"] = "overlay"
    format: tuple[Literal["png", "pdf", "svg"], ...] = ("png",)
    width: Annotated[float | None, metavar("INCHES")] = None
    out: Annotated[pathlib.Path, metavar("DIR")] = pathlib.Path("vitjax-explain")
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __call__(self) -> dict[str, Any]:
        """The arrays of explain.npz: names, target, prediction, probability (the
        target's), and `map_METHOD` [image row column], signed and not normalized.

        Of several classes, all but names have an axis for them after `image`; with
        `grid`, maps have axes for `blocks`, or `blocks` and `heads`, before `row`.
        """
        if not (self.images and self.format):
            raise ValueError("Give at least one image and one format.")
        make_folder(self.out)
        model = self.load()
        methods = self.methods(model)
        for name in methods if self.grid else ():
            check_one_of(f"with grid={self.grid!r}, method", name, PER_HEAD)
        chosen = (self.class_,) if isinstance(self.class_, str) else self.class_
        targets = [match_label(c, model.classes, model.class_ids) for c in chosen]
        targets = list(dict.fromkeys(targets))  # "tench, Tinca tinca" is one class
        every = [e for path in self.images for e in self.explain(model, path, targets)]
        names = [printable(os.path.basename(path)) for path in self.images]

        def stack(values):
            shape = (len(names), len(targets)) if len(targets) > 1 else (len(names),)
            return np.reshape(values, shape + np.shape(values)[1:])

        arrays = {
            "names": np.array(names),
            "target": stack([e.target for e in every]),
            "prediction": stack([e.prediction for e in every]),
            "probability": stack([e.probabilities[e.target] for e in every]),
        }
        for name in methods:
            arrays[schema.MAP(name)] = stack([e.maps[name] for e in every])
        if self.grid:
            arrays["blocks"], arrays["heads"] = self.parts(model)
        archive, paths = str(self.out / "explain.npz"), []
        np.savez(archive, **arrays)
        figures = self.draw(model, every)
        for number, figure in enumerate(figures):
            stem = "explain" if len(figures) == 1 else f"explain-{number}"
            for kind in self.format:
                paths.append(str(self.out / f"{stem}.{kind}"))
                figure.savefig(paths[-1], dpi=300)
        of_each = [name for name in names for _ in targets or [None]]
        pictures = [
            {
                "name": name,
                "class": model.classes[e.target],
                "answer": model.classes[e.prediction],
                "probability": float(e.probabilities[e.target]),
            }
            for name, e in zip(of_each, every)
        ]
        lines = [f"{n}: {e.title}".replace("\n", "; ") for n, e in zip(of_each, every)]
        lines.append(f"Figure and arrays: {', '.join((*paths, archive))}")
        facts = {
            "pictures": pictures,
            "methods": methods,
            "figure": paths[0],
            "figures": paths,
            "arrays": archive,
        }
        self.show(facts, "\n".join(lines))
        return arrays

    def explain(self, model: Model, path: str, targets: list[int]) -> list[Explanation]:
        """The maps of an image for each class; one program for any number of them."""
        preprocess = model.preprocess or Preprocess(*model.config.shape)
        with image_errors(printable(path)):
            image = open_image(path)
            inputs, photo = preprocess(image)[None], photo_of(image, preprocess)
        model = model.astype(self.dtype)
        with jax.default_matmul_precision(PRECISION[self.dtype]):
            logits, _ = api.forward(model, inputs)
            shares = np.asarray(model.class_space.probabilities(logits), np.float32)[0]

            def words(number: int) -> str:
                name = model.classes[number].split(",")[0]
                return f"{name} ({100 * shares[number]:.1f} %)"

            methods = self.methods(model)
            best, explanations = int(shares.argmax()), []
            for target in targets or [best]:
                maps = {m: self.map_of(model, inputs, target, m) for m in methods}
                explanation = Explanation(photo, target, best, shares, words, maps)
                explanations.append(explanation)
        return explanations

    def methods(self, model: Model) -> tuple[str, ...]:
        """The chosen methods, or the default one."""
        return self.method or (default_method(model.config),)

    def map_of(self, model: Model, image: Any, target: int, method: str) -> np.ndarray:
        """The map of one image, or those of its blocks and heads."""
        targets = np.array([target], np.int32)
        if self.grid is None:
            options = {"layers": self.layers or None, "heads": self.heads or None}
            values = api.explain(model, image, targets, method=method, **options)[0]
        else:
            values = maps_of_heads(method)(model, image, targets, Edits())[:, 0]
            values = np.asarray(values, np.float32)[np.ix_(*self.parts(model))]
            values = values.sum(1) if self.grid == "blocks" else values
        shape = *values.shape[:-1], *model.config.grid
        return np.asarray(values, np.float32).reshape(shape)

    def parts(self, model: Model) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the chosen blocks and heads, from 0."""
        numbers = []
        for name, chosen, size in (
            ("blocks", self.layers, model.config.depth),
            ("heads", self.heads, model.config.heads),
        ):
            check_range(name, chosen, -size, size - 1)
            numbers.append(np.array(chosen or range(size)) % size)
        return numbers[0], numbers[1]

    def draw(self, model: Model, every: list[Explanation]) -> list[Any]:
        """The figures: with `grid`, one for each image, class and method; else one with
        a row for each image and a column for each class or, of several methods, a row
        for each image and class and a column for each method.
        """
        from vitjax.report.overlays import in_words, show

        look: dict[str, Any] = {"style": self.style, "width": self.width}
        methods = self.methods(model)
        if self.grid:
            blocks, heads = self.parts(model)
            figures = []
            for e, method in itertools.product(every, methods):
                rows: Any = {f"block {b}": m for b, m in zip(blocks, e.maps[method])}
                if self.grid == "heads":
                    rows = [
                        {f"block {b}, head {h}": m for h, m in zip(heads, each)}
                        for b, each in zip(blocks, e.maps[method])
                    ]
                look |= {"titles": f"{in_words(method)}\n{e.title}", "shared": True}
                look |= {"columns": 6 if self.grid == "blocks" else len(heads)}
                look |= {"signed": method in SIGNED_METHODS}
                figures.append(show(e.photo, rows, **look))
            return figures
        method, *others = methods
        count = len(every) // len(self.images)
        firsts = every[::count]
        if others or count == 1:
            photos, titles = [e.photo for e in every], [e.title for e in every]
            return [show(photos, [e.maps for e in every], titles=titles, **look)]
        rows = [
            {f"for {e.words(e.target)}": e.maps[method] for e in row}
            for row in (every[i : i + count] for i in range(0, len(every), count))
        ]
        titles = [
            f"{in_words(method)}\nprediction: {e.words(e.prediction)}" for e in firsts
        ]
        look |= {"titles": titles, "signed": method in SIGNED_METHODS}
        return [show([e.photo for e in firsts], rows, **look)]


@functools.cache
def maps_of_heads(method: str) -> Any:
    """(model, images, target, edits) -> [layer batch head patch], jitted."""
    return jax.jit(FUNCTIONS[method])


def photo_of(image: Any, preprocess: Preprocess) -> UInt8[np.ndarray, "height width 3"]:
    """What the model sees of a photo, as sharp as it is and not squashed."""
    longest = max(preprocess.height, preprocess.width)
    if preprocess.resize == "squash":
        width, height = image.size
        if preprocess.orient:
            width, height = upright_size(image)
        scale = min(1, PHOTO / max(width, height))
        size = max(1, round(height * scale)), max(1, round(width * scale))
    else:
        scale = max(1, min(PHOTO / longest, min(image.size) / preprocess.side))
        size = round(preprocess.height * scale), round(preprocess.width * scale)
    return preprocess.resized_to(*size).resized(image)
