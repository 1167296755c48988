"""Integrated presence: how much a class owes to each patch being there at all."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from vitjax.analysis.class_space import take_label
from vitjax.models.backward import forward_streams, scan_back_from
from vitjax.models.model import Model
from vitjax.models.vit import pool
from vitjax.saliency.attention import Images, Map
from vitjax.types import ArrayLike, Edits

Score = Literal["log_probability", "logit"]

SCORES = {
    "log_probability": lambda logits: jax.nn.log_softmax(logits),
    "logit": lambda logits: logits,
}


def integrated_presence(
    model: Model,
    images: Images,
    target: Int[ArrayLike, " batch"],
    *,
    steps: int = 8,
    score: Score = "logit",
    edits: Edits | None = None,
) -> Map:
    """How much the score owes to each patch, on the way from no patches to all.

    A patch of presence m in [0, 1] takes part in every softmax of attention with its
    exponential times m, and in a mean-pooled readout with weight m: m = 0 is the model
    without the patch, exactly as removal tests remove it. The map is the path integral
    (integrated gradients, Sundararajan et al. 2017, of presence instead of pixels; the
    Aumann-Shapley value of the patches as players)

        integral over a in (0, 1) of d score / d m_t at m = (a, ..., a)
        d score / d log m_t = sum over blocks, heads and queries q of
                              A_qt (g_qt - sum_u A_qu g_qu),   g = d score / d A.

    Ours. Each step costs about three forward passes.

    Args:
        model: the model.
        images: preprocessed pixels.
        target: class that is explained.
        steps: Gauss-Legendre nodes of the integral over sqrt(a), at least 1. Static.
        score: the target's "logit", or its "log_probability", which saturates where the
            model is sure. Static.
        edits: interventions.

    Returns:
        Signed, in units of the score; sums to the score with all patches less that
        without any, up to the integral's error.

    Raises:
        ValueError: no step, or an unknown score.
    """
    if steps < 1 or score not in SCORES:
        raise ValueError(
            f"steps={steps} must be at least 1, and score={score!r} one of "
            f"{', '.join(SCORES)}."
        )
    batch, tokens = images.shape[0], model.config.tokens
    dtype = np.promote_types(model.dtype, jnp.float32)
    others = Edits() if edits is None else edits
    patch = np.arange(tokens) >= model.config.prefix

    def node(total, place):
        root, weight = place
        presence = root**2  # the integrand is steepest where hardly anything is there
        attend = jnp.where(patch, presence, 1.0).reshape(1, 1, 1, 1, tokens)
        edits = others & Edits(attend=attend)
        found = presence_gradient(model, images, target, score, edits)
        return total + 2 * weight / root * found.astype(total.dtype), None

    nodes, weights = np.polynomial.legendre.leggauss(steps)
    places = jnp.asarray(np.stack([(nodes + 1) / 2, weights / 2], 1), dtype)
    patches = model.config.patches if others.select is None else others.select.shape[1]
    start = jnp.zeros((batch, patches), dtype)
    return jax.lax.scan(node, start, places)[0]


def presence_gradient(
    model: Model, images: Images, target: Int[ArrayLike, " batch"], score: Score, edits
) -> Map:
    """d score / d log m of each patch, where the edits already hold m."""
    cfg = model.config

    def of_logits(logits):
        return take_label(SCORES[score](logits), target).sum()

    def read(total, found):
        owed = found.weights * found.weights_gradient
        owed = owed - found.weights * owed.sum(-1, keepdims=True)
        return total + owed.sum((1, 2)), None

    streams = forward_streams(model, images, edits)
    last = streams[1]
    start = jnp.zeros(last.shape[:2], last.dtype)
    if not cfg.class_token:
        # Presence is also the weight in the pooled mean, which it moves apart from it.
        at_readout = jax.grad(
            lambda x: of_logits(model.apply(x, edits, method="readout"))
        )(last)
        apart = last - pool(last, edits, cfg)[:, None]
        start = start + jnp.einsum("btd,btd->bt", at_readout, apart)
    total, _ = scan_back_from(model, streams, of_logits, read, state=start, edits=edits)
    return total[:, cfg.prefix :]
