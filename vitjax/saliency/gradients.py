"""Baseline maps, each from its paper's formula; see `attention` for what they share."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from vitjax import messages
from vitjax.analysis.class_space import take_label
from vitjax.models.backward_rules import Rules
from vitjax.models.edits import patch_mask, token_mask
from vitjax.models.forward import after_attention, final_residual
from vitjax.models.heads import mean_weights
from vitjax.models.layers import mix
from vitjax.models.model import Model
from vitjax.saliency.passes import (
    Images,
    Map,
    Reader,
    Target,
    read_map,
    row_of_head,
    target_logit,
)
from vitjax.types import Edits

Seed = int | Int[Array, ""]

CHUNK = 8
"""Occluded copies of a batch that run together."""


def path_integral(slope: Callable[[Any], Map], steps: int, dtype: Any) -> Map:
    """The integral of `slope(a)`, steepest near 0, by nodes of that over sqrt(a)."""
    messages.check_range("steps", steps, 1)
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    roots = (nodes + 1) / 2
    maps = jax.lax.map(slope, jnp.asarray(roots**2, dtype))
    return (maps * jnp.asarray(roots * weights, maps.dtype)[:, None, None]).sum(0)


def chefer(model: Model, target: Target, edits: Edits) -> Reader:
    """Gradient times attention (Chefer, Gur and Wolf, ICCV 2021, arXiv 2103.15679).

    R = I; block after block R += C.R with C = mean over heads of relu(dz/dA * A); the
    map is the head's row of R (equations 5 and 6), at least 0. From block 0 on and
    without normalization, as in the authors' code for ViT, and as Vilas et al. 2023
    compare with. Since only one row is read, it is computed from the last
    block down as r += r.C, without any product of token matrices. Where the head reads
    patches, R's identity adds their weight in it to each.
    """

    def backward(row, grads):
        mixed = jax.nn.relu(grads.weights_gradient * grads.weights).mean(1)
        return row + jnp.einsum("bq,bqt->bt", row, mixed), None

    return Reader(backward=backward, start=row_of_head(model, edits))


def gradcam(model: Model, target: Target, edits: Edits) -> Reader:
    """Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) on the last block's input.

    relu(sum over channels d of a_d x_d), where x is the residual stream entering the
    last block and a_d the mean over patches that exist of dz/dx_d; later, patches no
    longer reach [CLS].
    """
    keep = patch_mask(edits)

    def backward(_, grads):
        gradient = grads.stream_gradient[:, model.config.prefix :]
        mean = jnp.einsum("bpd,bp->bd", gradient, mean_weights(gradient, keep))
        return None, jax.nn.relu(jnp.einsum("btd,bd->bt", grads.stream_in, mean))

    return Reader(lambda reads: reads.backward[-1], backward=backward, blocks=1)


def legrad(model: Model, target: Target, edits: Edits) -> Reader:
    """LeGrad (Bousselham et al. 2024, arXiv 2404.03214), at least 0.

    mean over heads and query rows of relu(dz_l / dA_l), where z_l is the target's logit
    of the mean of all tokens, prefix tokens too, of block l's own output. So their code
    has it (github.com/WalBouss/LeGrad), which adds up the last two blocks; its maps are
    these enlarged and scaled to [0, 1]. A head's map is its share of the mean. The mean
    state is read as `vitjax.project` reads any state. [layer batch head token]
    """
    exists = token_mask(edits, model.config)

    def forward(params, stream_in, trace, context):
        block = params, stream_in, trace, context
        of_mean = mean_weights(stream_in, exists)

        def logit(weights):
            states, _ = after_attention(model, mix(weights, trace.values), *block)
            state = jnp.einsum("btd,bt->bd", states, of_mean)
            return target_logit(target)(model.class_space.logits(state))

        gradient = jax.nn.relu(jax.grad(logit)(jnp.asarray(trace.attention_weights)))
        return jnp.einsum("bhqt,bq->bht", gradient, of_mean) / model.config.heads

    return Reader(lambda reads: reads.forward, forward)


def input_x_gradient(model: Model, target: Target, edits: Edits) -> Reader:
    """Input times gradient: sum over channels of x dz/dx, x what enters block 0.

    Signed, in units of the logit (Shrikumar et al. 2016, arXiv 1605.01713, at the
    embedded patches instead of the pixels).
    """
    return times_gradient()


def times_gradient(times: Any = None, rules: Rules = Rules()) -> Reader:
    """Sum over channels of x, or of `times`, and dz/dx by the rules, at block 0."""

    def backward(_, grads):
        x = grads.stream_in if times is None else times
        return jnp.einsum("btd,btd->bt", x, grads.stream_gradient), None

    def start(x, gradient):
        return jnp.zeros(x.shape[:2], x.dtype)

    return Reader(backward=backward, start=start, rules=(rules,), fields=())


def integrated_gradients(
    model: Model, images: Images, target: Target, edits: Edits, *, steps: int = 64
) -> Map:
    """Integrated gradients (Sundararajan, Taly and Yan 2017, arXiv 1703.01365).

    integral over a in [0, 1] of (x - x') . dz/dx at x' + a (x - x'), summed over each
    patch's pixels; x' is the image of zeros, gray for the usual normalization. The
    patch embedding is linear, so that the sum over pixels is one over channels of
    tokens. Signed; sums to z(x) - z(x') up to the error of `steps` (static)
    Gauss-Legendre nodes of the integral over sqrt(a) (completeness): by default 1 % on
    photos, 2.5 % with 48, 13 % with 16 (ViT-Ti/16).
    """
    images = model.check_images(images)

    def embed(pixels):
        return model.apply(pixels, edits, method="embed")

    times = times_gradient(embed(images) - embed(jnp.zeros_like(images)))

    def slope(alpha):
        return read_map(lambda *_: times, model, images * alpha, target, edits)

    return path_integral(slope, steps, images.dtype)


def occlusion(model: Model, images: Images, target: Target, edits: Edits) -> Map:
    """What the target's logit loses when a patch does not exist: z - z without it.

    The patch is removed after its position was added (Zeiler and Fergus 2014, arXiv
    1311.2901, cover it instead); one forward pass per patch, some at a time. Of a
    selection, the selected patches.
    """
    patches, batch = model.config.patches, images.shape[0]
    places = jnp.arange(patches, dtype=jnp.int32)[None]
    occluded = places
    if edits.select is not None:
        occluded = jnp.asarray(edits.select, jnp.int32)

    def logit(edits):
        return take_label(final_residual(model, images, edits=edits)[0], target)

    def without_patch(patch):
        keep = jnp.broadcast_to(places != patch[:, None], (batch, patches))
        return logit(edits & Edits(keep=keep))

    together = max(1, CHUNK // batch) if batch else None
    without = jax.lax.map(without_patch, occluded.T, batch_size=together)
    return logit(edits)[:, None] - without.T


def random(
    model: Model, images: Images, target: Target, edits: Edits, *, seed: Seed = 0
) -> Map:
    """Noise, uniform in [0, 1): the control that every table needs.

    Drawn from the seed and the image's own bits, so that an image has the same map
    wherever it stands in a batch. Of a selection, the selected patches; `target` is
    not used.
    """
    pixels = jnp.asarray(images, jnp.float32)
    pixels = pixels.reshape(len(images), math.prod(images.shape[1:]))
    bits = jax.lax.bitcast_convert_type(pixels, jnp.uint32)
    factors = jnp.arange(bits.shape[1], dtype=jnp.uint32) * 2 + 1
    digests = (bits * factors[None]).sum(1, dtype=jnp.uint32)

    def draw(digest) -> Any:
        key = jax.random.fold_in(jax.random.key(seed), digest)
        return jax.random.uniform(key, (model.config.patches,))

    maps = jax.vmap(draw)(digests)
    if edits.select is None:
        return maps
    return jnp.take_along_axis(maps, jnp.asarray(edits.select), axis=1)
