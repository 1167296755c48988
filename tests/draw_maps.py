"""Draw the pictures of the guide's cards: scikit-image's cat, by ViT-Ti/16.

`python tests/draw_maps.py WEIGHTS [METHOD...]`, by default of every method.
"""

import io
import pathlib
import sys

import jax
from PIL import Image
from skimage import data

import vitjax
from vitjax.saliency.methods import METHODS

FOLDER = pathlib.Path(__file__).parents[1] / "vitjax" / "guide" / "maps"
CAT = 285
"""Egyptian cat."""


def draw(checkpoint: str, *methods: str) -> None:
    """Write `METHOD.webp` of each: the photo and the map laid over it."""
    model = vitjax.load("vit_ti16", checkpoint=checkpoint)
    cat = Image.fromarray(data.chelsea())
    image = model.preprocess(cat)
    photo = model.preprocess.resized_to(448, 448).resized(cat)
    for method in methods or METHODS:
        with jax.default_matmul_precision("highest"):
            (values,) = vitjax.explain(model, image[None], CAT, method=method)
        buffer = io.BytesIO()
        vitjax.show(photo, {method: values}, width=3.6).savefig(buffer, dpi=110)
        picture = Image.open(buffer).convert("RGB")
        picture.save(FOLDER / f"{method}.webp", quality=60, method=6)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    draw(*sys.argv[1:])
