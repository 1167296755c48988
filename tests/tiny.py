"""Miniature models of every architecture."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import vitjax
from vitjax.models.model import Model, parameter_shapes, unflatten
from vitjax.types import TRACE_FIELDS, Batch, Config, Edits

SHAPE = dict(image_size=32, patch_size=8, dim=16, depth=2, heads=2, mlp_dim=24)

CONFIGS = {
    "plain": Config(**SHAPE),
    "no_qkv_bias": Config(**SHAPE, qkv_bias=False),
    "gap": Config(**SHAPE, class_token=False, norm="residual_post", qkv_bias=False),
    "layer_scale": Config(**SHAPE, layer_scale=True),
    "registers": Config(**SHAPE, registers=3),
    "registers_gap": Config(**SHAPE, registers=2, class_token=False),
    "tanh": Config(**SHAPE, gelu="tanh", epsilon=1e-12),
    "post_cls": Config(**SHAPE, norm="residual_post", layer_scale=True),
    "one_block": Config(**SHAPE | {"depth": 1}),
    "wide": Config(**SHAPE | {"image_size": (16, 40)}),
    "refinement": Config(**SHAPE | {"depth": 3}, refinement=True),
    "swiglu": Config(**SHAPE, mlp="swiglu", qk_norm=True, layer_scale=True),
    "distilled": Config(**SHAPE, registers=1, distilled=True),
}
ENCODERS = {
    "clip": Config(
        **SHAPE,
        embed_norm=True,
        patch_bias=False,
        gelu="quick",
        epsilon=1e-5,
        projection=12,
        head="cosine",
    ),
    "siglip": Config(
        **SHAPE, class_token=False, pool="map", gelu="tanh", head="cosine", sigmoid=True
    ),
    "dinov2": Config(
        **SHAPE | {"depth": 5},
        registers=2,
        layer_scale=True,
        pool="cls_mean",
        head_blocks=4,
    ),
    "cls_mean": Config(**SHAPE, pool="cls_mean", mlp="swiglu"),
    "mean_with_cls": Config(**SHAPE, registers=1, pool="mean"),
    "mean_of_norms": Config(
        **SHAPE, registers=1, pool="mean", pool_norm="before", head="cosine"
    ),
    "map_linear": Config(**SHAPE, registers=1, pool="map"),
    "clip_linear": Config(**SHAPE, embed_norm=True, projection=12, truncate=True),
}
"""Kinds whose head is not a linear one that reads [CLS] or all there is."""
QUICK = "clip", "siglip", "dinov2"
POOLED = dataclasses.replace(CONFIGS["gap"], registers=2, layer_scale=True)
"""All that differs from a model with [CLS], at once."""
KINDS = CONFIGS | ENCODERS | {"pooled": POOLED}
HEADS = {"pooled": POOLED, **ENCODERS}
HEADS |= {name: CONFIGS[name] for name in ("refinement", "distilled", "post_cls")}
"""Heads of every kind."""
CLASSES = tuple("abcdefg")


def slow_but(names, *quick):
    """Parameters of a test, all but some of them slow."""
    slow = pytest.mark.slow
    return [n if n in quick else pytest.param(n, marks=slow) for n in names]


def make(config: Config, *, classes=CLASSES, seed: int = 0) -> Model:
    """A model whose every parameter, norms and biases too, is random."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        one = path.endswith(("scale", "gamma", "var", "temperature"))
        values = rng.normal(1.0 if one else 0.0, 0.2, shape).astype(np.float32)
        return np.abs(values) if path.endswith("var") else values

    shapes = parameter_shapes(config, len(classes))
    params = unflatten({path: draw(path, shape) for path, shape in shapes.items()})
    return Model(
        params=jax.device_put(params), config=config, classes=classes, class_ids=classes
    )


def images(config: Config, count: int = 3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, *config.shape, config.channels)).astype(np.float32)


def keep(config: Config) -> np.ndarray:
    """Patches of three images: all of the first, and some of the others."""
    patches = np.arange(config.patches)
    return np.stack([patches >= 0, patches % 3 > 0, patches % 3 == 1])


@functools.cache
def traced(kind: str, *, kept: bool = False):
    """(model, images, class logits, every field of the trace), once for all tests."""
    config = KINDS[kind]
    model, pixels = make(config), images(config)
    edits = Edits(keep=keep(config)) if kept else None
    results = vitjax.forward(model, pixels, capture=TRACE_FIELDS, edits=edits)
    return model, pixels, *jax.device_get(results)


@jax.jit
def attention_slopes(model: Model, pixels, weights):
    """Gradients, with respect to attention, of class logits times `weights`."""
    total = lambda logits: (logits * weights).sum()  # noqa: E731
    return vitjax.attention_gradients(model, pixels, total)


def total(parts: dict) -> np.ndarray:
    """Contributions to the logits of three images, added up."""
    images_first = (
        np.asarray(x if x.ndim == 1 else x.swapaxes(0, 1)) for x in parts.values()
    )
    return sum(x.reshape(3, -1).sum(1) for x in images_first)


def batch_of(images, label, patch_label=None) -> Batch:
    """A batch of nothing but valid images."""
    count = len(images)
    return Batch(
        images=images,
        label=np.asarray(label, np.int32),
        valid=np.ones(count, bool),
        index=np.arange(count, dtype=np.int32),
        patch_label=patch_label,
    )
