"""Microbatches of a step whose class logits would not fit in memory as a whole.

Class logits of every token, [batch token class], are by far the largest arrays of a
step with very many classes, and several live at once. A step takes one microbatch of
images after the other inside one program, and only rows outlive it: for B/16, 32 images
and 21,843 classes `identifiability` needs 664 MiB beside the weights instead of 2,185
on a CPU. Classes are not split: the logits that a rank compares are of one product.
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

LOGIT_BYTES = 256 << 20
"""The most that class logits of a microbatch may take, unless it is a single image."""


def microbatched(step: Step) -> Step:
    """A recipe's step over microbatches; a batch that fits is passed on as it is."""

    @functools.wraps(step)
    def wrapped(model: Model, batch: Batch, *carry: Any, **options: Any):
        images = len(batch.label)
        size = microbatch_size(images, logit_bytes(model))
        if size == images:
            return step(model, batch, *carry, **options)

        def split(leaf):  # the last microbatch is padded with zeros
            padding = [(0, -images % size), *[(0, 0)] * (leaf.ndim - 1)]
            return jnp.pad(leaf, padding).reshape(-1, size, *leaf.shape[1:])

        def join(leaf):
            return leaf.reshape(-1, *leaf.shape[2:])[:images]

        def rows(part):
            return step(model, part, *carry, **options)

        return jax.tree.map(join, jax.lax.map(rows, jax.tree.map(split, batch)))

    return wrapped  # pyright: ignore


def logit_bytes(model: Model) -> int:
    """Bytes of the class logits of every token of an image, in float32 at least."""
    width = max(jnp.dtype(model.dtype).itemsize, 4)
    return model.config.tokens * model.num_classes * width


def microbatch_size(images: int, bytes_per_image: int) -> int:
    """Images of a microbatch: as few microbatches as fit, of about one size."""
    limit = max(LOGIT_BYTES // bytes_per_image, 1)
    count = -(-images // limit)
    return -(-images // count)
