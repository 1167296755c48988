"""The maps that people compare with, each from its paper's formula.

All are batched and pure, and read where the model reads its answer: at [CLS], or
averaged over the query rows of image tokens where there is none. Prefix tokens are
never part of a map. Methods with one map per block and head return
[layer batch head patch]; `maps.methods` adds them up.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from vitjax.analysis.class_space import project, take_label
from vitjax.models.backward import forward_streams, scan_back_from, scan_backward
from vitjax.models.edits import split_edits
from vitjax.models.forward import apply_block, final_residual, scan_blocks
from vitjax.models.model import Model
from vitjax.models.partial_block import block_output
from vitjax.models.vit import mix, pool, pool_weights
from vitjax.saliency.attention import Images, Map, Maps
from vitjax.types import ArrayLike, Edits

Target = Int[ArrayLike, " batch"]
Seed = int | Int[Array, ""]

CHUNK = 8
"""Occluded copies of a batch that run together."""


def target_logit(target: Target):
    """Class logits -> the sum over images of each one's target logit."""
    return lambda logits: take_label(logits, target).sum()


def chefer(
    model: Model, images: Images, target: Target, *, edits: Edits | None = None
) -> Map:
    """Gradient times attention (Chefer, Gur and Wolf, ICCV 2021, arXiv 2103.15679).

    R = I; block after block R += C.R with C = mean over heads of relu(dz/dA * A), z the
    target's final logit; the map is the answer's row of R (equations 5 and 6). This is
    what Vilas et al. 2023 compare with. Since only one row is read, it is computed from
    the last block down as r += r.C, without any product of token matrices.

    Args:
        model: the model.
        images: preprocessed pixels.
        target: class whose logit is explained.
        edits: interventions.

    Returns:
        At least 0. Without [CLS] every patch holds 1/patches of R's identity besides.
    """
    cfg = model.config

    def read(row, found):
        mixed = jax.nn.relu(found.weights_gradient * found.weights).mean(1)
        return row + jnp.einsum("bq,bqt->bt", row, mixed), None

    edits = Edits() if edits is None else edits
    streams = forward_streams(model, images, edits)
    start = pool_weights(streams[1], edits, cfg)
    row, _ = scan_back_from(
        *(model, streams, target_logit(target), read), state=start, edits=edits
    )
    return row[:, cfg.prefix :]


def gradcam(
    model: Model, images: Images, target: Target, *, edits: Edits | None = None
) -> Map:
    """Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) on the last block's tokens.

    relu(sum over channels d of a_d x_d), where x is the stream entering the last block
    and a_d the mean over patches of dz/dx_d; later, patches no longer reach [CLS].

    Args:
        model: the model.
        images: preprocessed pixels.
        target: class whose logit z is explained.
        edits: interventions.

    Returns:
        At least 0.
    """
    edits = Edits() if edits is None else edits
    _, _, streams = forward_streams(model, images, edits)
    shared, layered = split_edits(edits, model.config)
    params, links = jax.tree.map(lambda leaf: leaf[-1], (model.block_params, layered))

    def answer(x):
        x, _ = apply_block(model, params, x, (shared, links), fields=())
        return target_logit(target)(model.apply(x, edits, method="readout"))

    states = streams[-1][:, model.config.prefix :]
    gradient = jax.grad(answer)(streams[-1])[:, model.config.prefix :]
    return jax.nn.relu(jnp.einsum("bpd,bd->bp", states, gradient.mean(1)))


def legrad(
    model: Model, images: Images, target: Target, *, edits: Edits | None = None
) -> Maps:
    """LeGrad (Bousselham et al. 2024, arXiv 2404.03214).

    mean over query rows of relu(dz_l / dA_l), where z_l is the target's logit of block
    l's own output (projected as the head would); that of [CLS] depends on its own row
    alone. Their map is the mean over blocks and heads.

    Args:
        model: the model.
        images: preprocessed pixels.
        target: class whose logit is explained.
        edits: interventions.

    Returns:
        At least 0.
    """
    cfg, edits = model.config, Edits() if edits is None else edits
    rows = slice(0, 1) if cfg.class_token else slice(cfg.prefix, None)

    def read(params, stream_in, trace):
        part = pool_weights(stream_in, edits, cfg)[:, rows, None]

        def logit(weights):
            mixed = mix(weights, trace.values)
            states = block_output(cfg, params, mixed, stream_in[:, rows])
            state = (states * part).sum(1)
            return take_label(project(model.class_space, state), target).sum()

        gradient = jax.grad(logit)(trace.attention_weights[:, :, rows])
        share = gradient.shape[2] / gradient.shape[3]  # the other rows' are zero
        return jax.nn.relu(gradient).mean(2)[..., cfg.prefix :] * share

    return scan_blocks(model, images, read, edits=edits)[1]


def integrated_gradients(
    model: Model,
    images: Images,
    target: Target,
    *,
    steps: int = 16,
    edits: Edits | None = None,
) -> Map:
    """Integrated gradients (Sundararajan, Taly and Yan 2017, arXiv 1703.01365).

    integral over a in [0, 1] of (x - x') . dz/dx at x' + a (x - x'), summed over each
    patch's pixels; x' is the image of zeros, grey for the usual normalisation. The
    patch embedding is linear, so that the sum over pixels is one over channels of
    tokens. Gauss-Legendre nodes.

    Args:
        model: the model.
        images: preprocessed pixels.
        target: class whose logit z is explained.
        steps: nodes of the integral, at least 1. Static.
        edits: interventions.

    Returns:
        Signed; sums to z(x) - z(x') up to the integral's error (completeness).

    Raises:
        ValueError: no step.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1.")
    edits = Edits() if edits is None else edits
    images, prefix = model.check_images(images), model.config.prefix

    def patches(pixels):
        return model.apply(pixels, edits, method="embed")[:, prefix:]

    way = patches(images) - patches(jnp.zeros_like(images))

    def read(state, found):
        return found.stream_gradient, None

    def node(total, place):
        alpha, weight = place
        gradient, _ = scan_backward(
            *(model, images * alpha, target_logit(target), read),
            state=jnp.zeros_like(model.apply(images, edits, method="embed")),
            edits=edits,
        )
        part = jnp.einsum("bpd,bpd->bp", gradient[:, prefix:], way)
        return total + weight * part, None

    nodes, weights = np.polynomial.legendre.leggauss(steps)
    places = jnp.asarray(np.stack([(nodes + 1) / 2, weights / 2], 1), way.dtype)
    start = jnp.zeros(way.shape[:2], way.dtype)
    return jax.lax.scan(node, start, places)[0]


def class_projection(
    model: Model, images: Images, target: Target, *, edits: Edits | None = None
) -> Maps:
    """What each patch writes into the answer's logit through each attention head.

    sum over the answer's rows of A[layer, head, row, patch] (W_o v_patch) . u, where
    u . x is the target's logit of a state x with the final LayerNorm's own deviation
    sigma held at its value (as Gandelsman et al. 2024, arXiv 2310.05916, do for CLIP).
    LayerScale and, in residual-post-norm blocks, the norm with its deviation belong to
    W_o. With the prefix tokens', these add up to all that attention adds to the logit
    but for biases.

    Args:
        model: the model.
        images: preprocessed pixels.
        target: class whose logit is explained.
        edits: interventions.

    Returns:
        Signed, in units of logits.
    """
    cfg, space = model.config, model.class_space
    scale = jnp.asarray(space.norm_scale)[None]
    direction = centred(jnp.asarray(space.embedding)[target] * scale)
    rows = slice(0, 1) if cfg.class_token else slice(cfg.prefix, None)
    edits = Edits() if edits is None else edits

    def read(params, stream_in, trace):
        part = pool_weights(stream_in, edits, cfg)[:, rows]
        out = params["MultiHeadDotProductAttention_0"]["out"]
        u = direction
        if cfg.layer_scale:
            u = u * params["LayerScale_0"]["gamma"][None]
        share = jnp.full((1, 1), 1.0, u.dtype)
        if cfg.norm == "residual_post":
            mixed = trace.mixed_values[:, rows]
            update = jnp.einsum("bqhk,hkd->bqd", mixed, out["kernel"])
            update = update + out["bias"][None, None]
            share = 1 / deviation(update, cfg.epsilon)
            u = centred(u * params["LayerNorm_0"]["scale"][None])
        written = jnp.einsum("bthk,hkd,bd->bht", trace.values, out["kernel"], u)
        weights = trace.attention_weights[:, :, rows]
        read_from = jnp.einsum("bhqt,bq->bht", weights, part * share)
        state = pool(trace.residual, edits, cfg)
        return (read_from * written)[..., cfg.prefix :], state

    _, (parts, states) = scan_blocks(model, images, read, edits=edits)
    return parts / deviation(states[-1], cfg.epsilon)[None, :, None, None]


def centred(x):
    """x minus its mean over the last axis: LayerNorm subtracts it from every state."""
    return x - x.mean(-1, keepdims=True)


def deviation(x, epsilon: float):
    """sigma of LayerNorm, over the last axis."""
    return jnp.sqrt(jnp.square(centred(x)).mean(-1) + epsilon)


def occlusion(
    model: Model, images: Images, target: Target, *, edits: Edits | None = None
) -> Map:
    """What the target's logit loses when a patch does not exist: z - z without it.

    The patch is removed after its position was added (Zeiler and Fergus 2014, arXiv
    1311.2901, cover it instead); one forward pass per patch, some at a time.

    Args:
        model: the model.
        images: preprocessed pixels.
        target: class whose logit z is explained.
        edits: interventions.

    Returns:
        Signed, in units of logits.
    """
    patches, batch = model.config.patches, images.shape[0]
    others = Edits() if edits is None else edits

    def logit(keep):
        removed = others & Edits(keep=jnp.broadcast_to(keep, (batch, patches)))
        return take_label(final_residual(model, images, edits=removed)[0], target)

    whole = take_label(final_residual(model, images, edits=edits)[0], target)
    keeps = ~jnp.eye(patches, dtype=bool)
    without = jax.lax.map(logit, keeps[:, None], batch_size=max(1, CHUNK // batch))
    return whole[:, None] - without.T


def random(
    model: Model,
    images: Images,
    target: Target,
    *,
    seed: Seed = 0,
    edits: Edits | None = None,
) -> Map:
    """Noise: the control that every table needs.

    Drawn from the seed and the picture's own bits, so that a picture has the same map
    wherever it stands in a batch.

    Args:
        model: the model; its number of patches counts.
        images: preprocessed pixels.
        target: not used.
        seed: which noise.
        edits: not used.

    Returns:
        Uniform in [0, 1).
    """
    pixels = jnp.asarray(images, jnp.float32).reshape(images.shape[0], -1)
    bits = jax.lax.bitcast_convert_type(pixels, jnp.uint32)
    places = jnp.arange(bits.shape[1], dtype=jnp.uint32) * 2 + 1
    own = (bits * places[None]).sum(1, dtype=jnp.uint32)

    def draw(own) -> Any:
        key = jax.random.fold_in(jax.random.key(seed), own)
        return jax.random.uniform(key, (model.config.patches,))

    return jax.vmap(draw)(own)
