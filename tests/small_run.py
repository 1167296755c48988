"""A run directory of a few small arrays, and rows to put into it."""

import numpy as np
from vitjax.runner.folder import start_run

from vitjax.runner.results import ArraySpec

IMAGES, LAYERS, TOKENS = 10, 3, 4


def manifest(**changes):
    base = {
        "format": "vitjax-run",
        "format_version": 1,
        "recipe": "identifiability",
        "recipe_options": {"top": 5},
        "model": {"name": "tiny", "checkpoint": "/a", "sha256": "1", "classes": ["a"]},
        "data": {"spec": "folder:x", "id": "folder/1", "images": IMAGES},
        "batch_size": 4,
        "dtype": "float32",
        "matmul_precision": "highest",
        "seed": 0,
        "limit": None,
    }
    return base | changes


SPECS = {
    "rank": ArraySpec(("image", "layer", "token"), (IMAGES, LAYERS, TOKENS), "int32"),
    "logit": ArraySpec(("image", "layer"), (IMAGES, LAYERS), "float32"),
    "valid": ArraySpec(("image",), (IMAGES,), "bool"),
    "kind": ArraySpec(("image",), (IMAGES,), "int8"),
    "picture": ArraySpec(("shown", "height"), (2, 6), "uint8"),
}
COORDINATES = {
    "image": np.arange(IMAGES, dtype=np.int32),
    "layer": np.arange(LAYERS, dtype=np.int32),
}


def start(path, **changes):
    return start_run(
        path, manifest(**changes), SPECS, coordinates=COORDINATES, batch_size=4
    )


def rows(start, stop):
    rng = np.random.default_rng(0)
    rank = rng.integers(9, size=(IMAGES, LAYERS, TOKENS)).astype(np.int32)
    logit = rng.standard_normal((IMAGES, LAYERS)).astype(np.float32)
    return {"rank": rank[start:stop], "logit": logit[start:stop]}
