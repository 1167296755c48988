"""A step over slices of its batch, where class logits of the whole would not fit.

The class logits of every token of a batch, [batch token class], are by far the largest
arrays of a step once there are very many classes: for B/16, 32 images and the 21,843
classes of ImageNet-21k one takes 525 MiB, and several live at once. The images of a
batch have nothing to do with each other, so such a step takes them slice after slice
inside one program, and only rows outlive a slice: there `identifiability` needs 664 MiB
beside the weights instead of 2,185 on a CPU, and `one_pass` 1,364 instead of 4,323.

Slices of images and not of classes: no stream is projected more often, and the logits
that a rank compares still come out of one product.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vitjax.models.model import Model
from vitjax.types import Batch

Step = TypeVar("Step", bound=Callable[..., dict[str, Array]])

PRODUCT_BYTES = 256 << 20
"""The most that class logits of every token of a slice may take; one image's are the
least there can be.
"""


def microbatched(step: Step) -> Step:
    """The same step, whose class logits [batch token class] keep to `PRODUCT_BYTES`.

    A batch that keeps to them as a whole is handed on as it is.

    Args:
        step: of a model, a batch and whatever else; its results have a leading batch
            axis, and an image's do not depend on the others.

    Returns:
        The step, taken for one slice of the batch after the other where it must be.
    """

    @functools.wraps(step)
    def sliced(model: Model, batch: Batch, *others: Any, **options: Any):
        images = len(batch.label)
        size = slice_size(images, product_bytes(model))
        if size == images:
            return step(model, batch, *others, **options)

        def apart(leaf):  # the last slice is filled up with zeros
            missing = [(0, -images % size), *[(0, 0)] * (leaf.ndim - 1)]
            return jnp.pad(leaf, missing).reshape(-1, size, *leaf.shape[1:])

        def together(leaf):
            return leaf.reshape(-1, *leaf.shape[2:])[:images]

        def rows(part):
            return step(model, part, *others, **options)

        found = jax.lax.map(rows, jax.tree.map(apart, batch))
        return jax.tree.map(together, found)

    return sliced  # pyright: ignore


def product_bytes(model: Model) -> int:
    """What class logits of every token of an image take, in float32 at least."""
    width = max(jnp.dtype(model.dtype).itemsize, 4)
    return model.config.tokens * model.num_classes * width


def slice_size(images: int, each: int) -> int:
    """Images in a slice: as few slices as keep to the limit, of about one size.

    Args:
        images: of the batch.
        each: bytes of an image.
    """
    most = max(PRODUCT_BYTES // each, 1)
    slices = -(-images // most)
    return -(-images // slices)
