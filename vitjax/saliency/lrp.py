"""Layer-wise relevance propagation through the ViT, in two sets of rules.

A backward pass with other rules at each operation. Chefer et al.'s rules divide what
arrives, so their cotangent IS the relevance, and operations that hand it on unchanged
do just that. AttnLRP's rules are linear in what arrives: their cotangent is relevance
over value, and most of them are the ordinary derivative.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitjax.analysis.class_space import Labels, take_label
from vitjax.models.backward_rules import Rules, layer_norm
from vitjax.models.edits import split_edits
from vitjax.models.forward import ATTENTION, apply_block, run_blocks
from vitjax.models.model import Model
from vitjax.models.vit import pool_weights
from vitjax.types import ArrayLike, Edits

SMALL = 1e-9
"""Keeps a quotient of relevance finite where the denominator is nearly 0."""


def lrp(
    model: Model,
    images: Float[ArrayLike, "batch height width channel"],
    target: Labels,
    *,
    edits: Edits | None = None,
) -> Float[Array, "batch patch"]:
    """Transformer attribution: relevance times gradient of attention, rolled out.

    C_b = I + mean_h max(dz_c/dA_b * R(A_b), 0) and the map is the row of [CLS] of
    C_L ... C_1 (Chefer, Gur and Wolf 2021, section 3.3), where A_b are the attention
    weights of block b and R(A_b) is their relevance, begun with 1 at the logit z_c.
    Relevance passes a dense layer by the z+ rule, R_i = sum_j (x_i w_ij)+ R_j /
    sum_k (x_k w_kj)+, without its bias; a product in halves, each factor's entries in
    proportion to what they contribute; a residual addition in proportion, then scaled
    so that each side's total has weight |total| over the sum of both; norms, GELU,
    softmax and factors unchanged.

    One scan backward over the blocks carries the gradient, the relevance and the row
    of the rollout; of the forward pass only each block's input is kept.

    Args:
        model: the model. Without [CLS], relevance passes the mean by the z+ rule, and
            the rollout is read at the rows that the mean reads, averaged (ours; the
            paper's models have a [CLS]).
        images: preprocessed pixels.
        target: class number of each image, or one for all.
        edits: interventions; of a selection, the map holds the selected patches.

    Returns:
        At least 0; prefix tokens are left out; not normalised.

    Reference:
        Chefer, Gur, Wolf, "Transformer Interpretability Beyond Attention
        Visualization", CVPR 2021; start_layer=0 of its code.
    """
    edits = Edits() if edits is None else edits
    config = model.config
    shared, layered = split_edits(edits, config)
    _, last, logits, streams = run_blocks(model, images, stream_in, edits=edits)
    batch, length, _ = last.shape
    target = jnp.broadcast_to(jnp.asarray(target), (batch,))
    one = jax.nn.one_hot(target, logits.shape[-1], dtype=last.dtype)
    weights = jnp.zeros((batch, config.heads, length, length), last.dtype)

    def above(rules):
        """What arrives at the last stream."""
        return jax.vjp(lambda x: readout(model, x, edits, rules), last)[1](one)[0]

    def through(rules, params, links, x, arriving):
        """What arrives at the block's input and at its attention weights."""

        def block(x, zeros):
            entry = {ATTENTION: {"attention_weights": {"value": zeros}}}
            x, _ = apply_block(
                *(model, params, x, (shared, links)),
                fields=(),
                perturbations=entry,
                rules=rules,
            )
            return x

        return jax.vjp(block, x, weights)[1](arriving)

    def step(carry, per_block):
        row, gradient, relevance = carry
        params, links, x = per_block
        gradient, of_logit = through(Rules(), params, links, x, gradient)
        relevance, relevant = through(CHEFER, params, links, x, relevance)
        mixing = jnp.maximum(of_logit * relevant, 0).mean(1)
        row = row + jnp.einsum("bq,bqt->bt", row, mixing)
        return (row, gradient, relevance), None

    start = (pool_weights(last, edits, config), above(Rules()), above(CHEFER))
    blocks = (model.block_params, layered, streams)
    (row, _, _), _ = jax.lax.scan(step, start, blocks, reverse=True)
    return row[:, config.prefix :]


def attnlrp(
    model: Model,
    images: Float[ArrayLike, "batch height width channel"],
    target: Labels,
    *,
    gamma: float = 0.05,
    edits: Edits | None = None,
) -> Float[Array, "batch patch"]:
    """AttnLRP: relevance of each patch for a logit.

    R = sum over channels of x * g, where x is the embedded patch and g the derivative
    of z_c under other rules (Achtibat et al. 2024, section 3): softmax by its Taylor
    expansion, R_i = x_i (R'_i - s_i sum_j R'_j), which is its ordinary derivative; a
    product of two activations in halves; LayerNorm with sigma held fixed; GELU handing
    its relevance on; dense layers by the gamma rule, R_i = sum_j (z_ij + gamma z_ij^s)
    R_j / sum_k (z_kj + gamma z_kj^s), where z_ij = x_i w_ij, the sum over k has the
    bias in it and z^s are those of the sign of the output. What biases get is not
    handed on.

    Args:
        model: the model.
        images: preprocessed pixels.
        target: class number of each image, or one for all.
        gamma: of the dense layers in the blocks, at least 0. Static. 0 is the epsilon
            rule in its limit, which is noisy on a ViT.
        edits: interventions; of a selection, the map holds the selected patches.

    Returns:
        Signed, in units of the logit. With gamma=0 and the tokens that are no patches,
        it sums to the logit less what biases and softmax absorb.

    Raises:
        ValueError: gamma is negative.

    Reference:
        Achtibat, Hatefi, Dreyer, Jain, Wiegand, Lapuschkin, Samek, "AttnLRP:
        Attention-Aware Layer-Wise Relevance Propagation for Transformers", ICML 2024;
        made from its formulas.
    """
    if gamma < 0:
        raise ValueError(f"gamma={gamma} must be at least 0.")
    x, gradient = attnlrp_gradient(model, images, target, gamma=gamma, edits=edits)
    return (x * gradient).sum(-1)[:, model.config.prefix :]


def attnlrp_gradient(model, images, target, *, gamma, edits):
    """The stream entering block 0, and AttnLRP's derivative of the logit there."""
    edits = Edits() if edits is None else edits
    images = model.check_images(images)
    target = jnp.broadcast_to(jnp.asarray(target), (images.shape[0],))
    shared, layered = split_edits(edits, model.config)
    rules = attention_aware(gamma)

    def step(x, per_block):
        params, links = per_block
        links = (shared, links)
        return apply_block(model, params, x, links, fields=(), rules=rules)[0], None

    def explained(x):
        # Kept of each block is its input; the scan is its own barrier against CSE.
        body = jax.checkpoint(step, prevent_cse=False)
        x, _ = jax.lax.scan(body, x, (model.block_params, layered))
        return take_label(readout(model, x, edits, attention_aware(0.0)), target).sum()

    embedding = model.apply(images, edits, method="embed")
    return embedding, jax.grad(explained)(embedding)


def readout(model: Model, x: Any, edits: Edits, rules: Rules) -> Any:
    """Class logits of the last stream, by the rules."""
    config, space = model.config, model.class_space
    if config.class_token:
        state = x[:, 0]
    else:
        state = rules.mean(x, pool_weights(x, edits, config)[:, :, None])
    norm = (space.norm_scale, space.norm_shift)
    state = rules.norm(state, *norm, epsilon=space.epsilon)
    return (rules.dense or linear)(state, space.embedding.T, space.bias)


def stream_in(params, stream_in, trace):
    """A `read` for `run_blocks` that keeps what enters each block."""
    return stream_in


def linear(x, kernel, bias):
    """x W + b."""
    y = jnp.matmul(x, kernel)
    return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)


# Rules whose cotangent is the relevance itself (Chefer et al. 2021, section 3.1).


def divide(left, right):
    """left / right, and 0 where right is 0."""
    finite = right + jnp.where(right < 0, -SMALL, SMALL).astype(right.dtype)
    return jnp.where(right == 0, 0, left / finite)


@jax.custom_vjp
def unchanged(x, y):
    """y, whose relevance is x's."""
    return y


unchanged.defvjp(lambda x, y: (y, None), lambda _, relevance: (relevance, None))


def unchanged_norm(x, scale, bias, *, epsilon):
    """LayerNorm, whose relevance is x's."""
    return unchanged(x, layer_norm(x, scale, bias, epsilon=epsilon))


@jax.custom_vjp
def positive_dense(x, kernel, bias):
    """A dense layer, its relevance by positive contributions: the z+ rule."""
    return linear(x, kernel, bias)


def _positive_dense_forward(x, kernel, bias):
    # (x w)+ = (|x| |w| + x w) / 2: one product more than the layer itself.
    plain = linear(x, kernel, None)
    positive = jnp.maximum(linear(abs(x), abs(kernel), None) + plain, 0) / 2
    return linear(x, kernel, bias), (x, kernel, positive)


def _positive_dense_backward(kept, relevance):
    x, kernel, positive = kept
    share = divide(relevance, positive)
    plain = x * jnp.matmul(share, kernel.T)
    absolute = abs(x) * jnp.matmul(share, abs(kernel).T)
    return (plain + absolute) / 2, None, None


positive_dense.defvjp(_positive_dense_forward, _positive_dense_backward)


@jax.custom_vjp
def positive_sum(x, weights):
    """A weighted sum over tokens, its relevance by positive contributions."""
    return (x * weights).sum(1)


def _positive_sum_backward(kept, relevance):
    positive = jnp.maximum(kept[0] * kept[1], 0)
    return positive * divide(relevance, positive.sum(1))[:, None], None


positive_sum.defvjp(lambda x, w: ((x * w).sum(1), (x, w)), _positive_sum_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def shared_product(equation, left, right):
    """An einsum; each factor gets half the relevance, by contribution."""
    return jnp.einsum(equation, left, right)


def _shared_product_forward(equation, left, right):
    return jnp.einsum(equation, left, right), (left, right)


def _shared_product_backward(equation, kept, relevance):
    y, back = jax.vjp(functools.partial(jnp.einsum, equation), *kept)
    shares = back(divide(relevance, y))
    return tuple(factor * share / 2 for factor, share in zip(kept, shares))


shared_product.defvjp(_shared_product_forward, _shared_product_backward)


@jax.custom_vjp
def normalised_add(x, update):
    """A sum, its relevance by contribution, the two totals of one image rescaled."""
    return x + update


def _normalised_add_backward(kept, relevance):
    share = divide(relevance, kept[0] + kept[1])
    parts = [part * share for part in kept]
    axes = tuple(range(1, relevance.ndim))
    totals = [part.sum(axes, keepdims=True) for part in parts]
    # Only where the totals differ in sign does this change anything.
    whole = relevance.sum(axes, keepdims=True)
    unit = divide(whole, abs(totals[0]) + abs(totals[1]))
    return tuple(p * divide(abs(t) * unit, t) for p, t in zip(parts, totals))


normalised_add.defvjp(lambda x, u: (x + u, (x, u)), _normalised_add_backward)

CHEFER = Rules(
    dense=positive_dense,
    product=shared_product,
    norm=unchanged_norm,
    add=normalised_add,
    mean=positive_sum,
    softmax=unchanged,
    gelu=unchanged,
    scaled=unchanged,
)


# Rules whose cotangent is relevance over value (Achtibat et al. 2024, section 3).


def attention_aware(gamma: float) -> Rules:
    """AttnLRP's; everything that is not named is the ordinary derivative."""
    return Rules(
        dense=functools.partial(gamma_dense, gamma) if gamma else None,
        product=halved_product,
        norm=functools.partial(layer_norm, factor=constant),
        gelu=proportional,
    )


def halved_product(equation, left, right):
    """An einsum, each of its factors with half the derivative."""
    return jnp.einsum(equation, *((x + constant(x)) / 2 for x in (left, right)))


@jax.custom_vjp
def constant(x):
    """x, as if it did not depend on what is explained.

    Unlike `stop_gradient` it still does where a map is itself differentiated: only the
    pass that makes the map follows the rule.
    """
    return x


constant.defvjp(lambda x: (x, None), lambda _, cotangent: (jnp.zeros_like(cotangent),))


@jax.custom_vjp
def proportional(x, y):
    """y, as if it were x times a constant."""
    return y


def _proportional_backward(kept, cotangent):
    x, y = kept
    zero = x == 0
    factor = jnp.where(zero, 0.5, y / jnp.where(zero, 1, x))  # GELU's slope at 0
    return cotangent * factor.astype(x.dtype), None


proportional.defvjp(lambda x, y: (y, (x, y)), _proportional_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def gamma_dense(gamma, x, kernel, bias):
    """A dense layer, its relevance by contributions, those of its own sign more."""
    return linear(x, kernel, bias)


def _gamma_dense_forward(gamma, x, kernel, bias):
    # z^s sums to (|x| |w| s + x w) / 2: one product more than the layer itself.
    y = linear(x, kernel, bias)
    absolute = linear(abs(x), abs(kernel), None if bias is None else abs(bias))
    size = abs(y)
    share = divide(size, size + gamma / 2 * (size + absolute))
    return y, (x, kernel, share, jnp.sign(y))


def _gamma_dense_backward(gamma, kept, cotangent):
    x, kernel, share, sign = kept
    shared = cotangent * share
    plain = jnp.matmul(shared, kernel.T)
    absolute = jnp.sign(x) * jnp.matmul(sign * shared, abs(kernel).T)
    return (1 + gamma / 2) * plain + gamma / 2 * absolute, None, None


gamma_dense.defvjp(_gamma_dense_forward, _gamma_dense_backward)
