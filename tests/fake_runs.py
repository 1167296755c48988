"""Runs made up from the schema, small enough to compute every number by hand."""

import dataclasses

import numpy as np

from vitjax.recipes import schema
from vitjax.recipes.registry import RECIPES
from vitjax.runner.results import Results
from vitjax.types import Config

METHODS = ("chefer", "class_projection", "random")
UNUSED = {
    "faithfulness": tuple(f"_{method}" for method in {*schema.METHODS} - {*METHODS}),
    "one_pass": ("agreement_head", "chance_head", "simple_head"),
}
"""Recipe -> how names of arrays end that its runs do not hold."""

KEPT = (4, 8, 12)

STUDY = {
    "probes": 153,
    "groups": 2,
    "train": {"images": 50},
    "bytes": {"weights": 2 * 2**20, "class_embedding": 2**20},
}
MEASURED = {
    "projection_seconds_per_image": 1.0,
    "passes": [
        {"pass": "fit 1/2", "setup": 6.0, "steps": 1.0},
        {"pass": "fit 2/2", "setup": 4.0, "steps": 3.0},
        {"pass": "removal", "setup": 0.0, "steps": 9.0},
    ],
}
"""What the recipe `probes` notes in its manifest."""

RANKS = ("rank_",)
CLASSES = ("first_", "prediction_")
HITS = ("agreement_", "simple_", "removal_", "pixels_", "correct_", "edited_correct_")
"""How names of arrays begin that hold such numbers; the others are in [0, 1)."""


def fake_run(
    recipe="identifiability",
    *,
    images=9,
    classes=5,
    previews=2,
    masks=False,
    seed=0,
    change=None,
    manifest=None,
    path="",
    **fields,
):
    """A run of a recipe, with ranks that improve over the blocks.

    `change` replaces or adds arrays, `manifest` entries; `fields` are those of Config.
    """
    config = {"image_size": 16, "patch_size": 4, "dim": 8, "depth": 3}
    config = Config(**{**config, "heads": 2, "mlp_dim": 16, **fields})
    draw = np.random.default_rng(seed)
    previews = min(previews, images)
    names = ["label", "valid", *RECIPES[recipe].dims, *RECIPES[recipe].static]
    names += ["patch_label"] if masks else []
    names += ["preview_image", "preview_index"] if previews else []
    unused = UNUSED.get(recipe, ()) + (("_refined",) if not config.refinement else ())
    names = [name for name in names if not name.endswith(unused)]
    sizes = {
        "image": images,
        "layer": config.depth,
        "token": config.tokens,
        "patch": config.patches,
        "head": config.heads,
        "class": classes,
        "top": min(5, classes),
        "chosen": min(3, classes),
        "rival": min(6, classes),
        "step": len(KEPT),
        "level": 9,
        "count": 2,
        "draw": 4,
        "group": 5,
        "edited": 3,
        "refined": config.depth - 1,
        "preview": previews,
        "height": config.shape[0],
        "width": config.shape[1],
        "channel": 3,
    }

    def values(array):
        shape = tuple(sizes[axis] for axis in array.axes)
        if array.name.startswith(RANKS):
            improve = np.ones(len(shape[1:]))
            if "layer" in array.axes:
                improve = np.linspace(1, 0.1, config.depth)
                improve = improve.reshape(-1, *[1] * (len(shape) - 2))
            return (draw.random(shape) * improve * classes).astype(np.int32)
        if array.name.startswith(CLASSES):
            return draw.integers(classes, size=shape, dtype=np.int32)
        if array.name.startswith(HITS) and "head" not in array.name:
            return draw.random(shape) < 0.6
        return draw.random(shape, dtype=np.float32)

    arrays = {name: values(schema.SCHEMA[name]) for name in names}
    label = draw.integers(classes, size=images, dtype=np.int32)
    wrong = draw.random(images) < 0.3
    prediction = np.where(wrong, (label + 1) % classes, label).astype(np.int32)
    top = (prediction[:, None, None] + np.arange(sizes["top"])) % classes
    patch_label = draw.integers(-1, 2, (images, config.patches)).astype(np.int8)
    pixels = draw.integers(256, size=(previews, *config.shape, 3))
    ordered = draw.random((images, config.depth, config.tokens, classes)).argsort(-1)
    chosen = (label[:, None] + np.arange(sizes["chosen"])) % classes
    tokens = images, config.depth, config.tokens
    attention = draw.integers(256, size=(*tokens, config.patches), dtype=np.uint8)
    ranks = draw.integers(classes, size=(*tokens, sizes["chosen"]), dtype=np.int32)
    shares = np.sort(arrays.get(schema.TOKEN_PROBABILITIES(), np.zeros(1)))[..., ::-1]
    rivals = (prediction[:, None] + np.arange(sizes["rival"])) % classes
    special = {
        "rivals": rivals.astype(np.int32),
        "label": label,
        "valid": np.ones(images, bool),
        "prediction": prediction,
        "top_classes": np.repeat(top, config.depth, axis=1).astype(np.int32),
        "patch_label": patch_label,
        "preview_image": pixels.astype(np.uint8),
        "preview_index": np.arange(previews, dtype=np.int32),
        "token_classes": ordered[..., : sizes["top"]].astype(np.int32),
        "token_probabilities": shares,
        "token_attention": attention,
        "chosen_classes": chosen.astype(np.int32),
        "chosen_ranks": ranks,
        "kept": np.asarray(KEPT, np.float32),
        "ablated": np.asarray([1, 2], np.float32),
        "edited_memories": np.asarray([1, 5], np.float32),
        "edited_role": (np.arange(images)[:, None] + np.arange(3)) % 4 - 1,
    }
    arrays |= {name: value for name, value in special.items() if name in arrays}
    if "rank_without_context" in arrays and masks:
        for name, stays in (("without_context", 1), ("without_class", 0)):
            gone = np.pad(patch_label != stays, ((0, 0), (config.prefix, 0)))
            arrays[schema.RANK_EDITED(name)][gone] = -1
    arrays |= {"done": np.ones(images, bool), **(change or {})}
    axes = {name: array.axes for name, array in schema.SCHEMA.items()}
    axes["done"] = ("image",)
    names = [f"kind {number}" for number in range(classes)]
    attrs = {
        "recipe": recipe,
        "recipe_options": {"methods": METHODS},
        "model": {
            "name": "vit_test",
            "config": dataclasses.asdict(config),
            "classes": names,
            "class_ids": names,
            "checkpoint": "/somewhere/weights.npz",
            "sha256": "0123456789abcdef" * 4,
            "preprocess": None,
        },
        "data": {"spec": "folder:photos", "id": "sha256:feed", "images": images},
        "batch_size": 4,
        "dtype": "float32",
        "matmul_precision": "highest",
        "seed": 0,
        "limit": None,
        "versions": {"vitjax": "0.1.0", "jax": "0.10.2", "python": "3.11.2"},
        "devices": {"platform": "cpu", "count": 2},
        "created": "2025-01-01T10:00:00+00:00",
        "finished": "2025-01-01T10:01:00+00:00",
        "images_per_second": 31.5,
        "skipped": [],
    }
    for key, value in (manifest or {}).items():
        nested = isinstance(value, dict) and isinstance(attrs.get(key), dict)
        attrs[key] = {**attrs[key], **value} if nested else value
    results = Results({n: (axes[n], value) for n, value in arrays.items()}, attrs=attrs)
    results.encoding["source"] = str(path)
    return results
