"""Layer-wise relevance propagation (LRP) through the ViT, by two sets of rules.

A backward pass with other rules at each operation. Chefer et al.'s rules divide what
arrives, so their cotangent IS the relevance, and operations that pass it on unchanged
do just that. AttnLRP's rules are linear in what arrives: their cotangent is relevance
over value, and most of them are the ordinary derivative.
"""

import functools

import jax
import jax.numpy as jnp

from vitjax import messages
from vitjax.models.backward_rules import (
    Rules,
    keep_value,
    linear,
    weighted_sum,
    with_backward,
)
from vitjax.models.model import Model
from vitjax.saliency.gradients import times_gradient
from vitjax.saliency.passes import Reader, Target, row_of_head
from vitjax.types import Config, Edits, layer_norm

SMALL = 1e-9
"""Keeps a quotient of relevance finite where the denominator is nearly 0."""


def lrp(model: Model, target: Target, edits: Edits) -> Reader:
    """Transformer attribution: relevance times gradient of attention, rolled out.

    C_b = I + mean_h max(dz_c/dA_b * R(A_b), 0) and the map is the head's row of C_L ...
    C_1 (Chefer, Gur and Wolf, CVPR 2021, arXiv 2012.09838, section 3.3; from block 0
    on, the default of their code, which leaves it out for segmentation), where A_b are
    the attention weights of block b and R(A_b) is their relevance, begun with 1 at the
    logit z_c. Relevance passes a dense layer by the z+ rule, R_i = sum_j (x_i w_ij)+
    R_j / sum_k (x_k w_kj)+, without its bias; a product in halves, each factor's
    entries in proportion to what they contribute; a residual addition in proportion,
    then scaled so that each side's total has weight |total| over the sum of both;
    norms, GELU, softmax and factors unchanged.

    At least 0; of a selection, the selected patches. Where the head reads patches (new
    here: the paper's models read [CLS]), relevance passes the mean by the z+ rule, and
    the rollout is read at the rows of the head's tokens, averaged by their weights; a
    cosine's length passes it on unchanged.
    """
    check_rules(model.config)

    def backward(row, ordinary, relevance):
        product = ordinary.weights_gradient * relevance.weights_gradient
        mixing = jnp.maximum(product, 0).mean(1)
        return row + jnp.einsum("bq,bqt->bt", row, mixing), None

    start = row_of_head(model, edits)
    return Reader(backward=backward, start=start, rules=(Rules(), CHEFER))


def attnlrp(
    model: Model, target: Target, edits: Edits, *, gamma: float = 0.05
) -> Reader:
    """AttnLRP: relevance of each patch for a logit, signed, in units of the logit.

    R = sum over channels of x * g, where x is the embedded patch and g the derivative
    of z_c under other rules (Achtibat et al., ICML 2024, section 3): softmax by its
    Taylor expansion, R_i = x_i (R'_i - s_i sum_j R'_j), which is its ordinary
    derivative; a product of two activations in halves; LayerNorm with sigma, a cosine
    with the length held fixed; GELU passing its relevance on; dense layers by the gamma
    rule, R_i = sum_j (z_ij + gamma z_ij^s) R_j / sum_k (z_kj + gamma z_kj^s), where
    z_ij = x_i w_ij, the sum over k has the bias in it and z^s are those of the sign of
    the output. What biases get is not passed on.

    `gamma` (static), at least 0, is that of the dense layers in the blocks; 0 is the
    epsilon rule in its limit, which is noisy on a ViT. With it and the tokens that are
    no patches, the map sums to the logit less what biases and softmax absorb. Of a
    selection, the map holds the selected patches.
    """
    messages.check_range("gamma", gamma, 0)
    check_rules(model.config)
    return times_gradient(rules=attention_aware(gamma))


def no_rules(config: Config) -> str:
    """Why LRP has no rules for a head; nothing where it has."""
    if config.distilled:
        return (
            "LRP starts from one head, and a distilled model averages two: use "
            "another method, or load the weights without the distillation head."
        )
    if config.pooling == "map":
        return (
            "LRP has no rules for a head that pools by attention (Config.pool='map'), "
            "whose query is a parameter: use another method."
        )
    if config.head_blocks > 1:
        return (
            "LRP starts from one state, and this head reads [CLS] of "
            f"{config.head_blocks} blocks (Config.head_blocks): use another method, or "
            "a head of one block."
        )
    return ""


def check_rules(config: Config) -> None:
    """Raise ValueError where LRP has no rules for a head."""
    if reason := no_rules(config):
        raise ValueError(reason)


# Rules whose cotangent is the relevance itself (Chefer et al. 2021, section 3.1).


def divide(left, right):
    """left / right, and 0 where right is 0."""
    finite = right + jnp.where(right < 0, -SMALL, SMALL).astype(right.dtype)
    return jnp.where(right == 0, 0, left / finite)


unchanged = with_backward(keep_value, lambda relevance, *_: (relevance, None))


def unchanged_norm(x, scale, bias, *, epsilon):
    """LayerNorm, whose relevance is x's."""
    return unchanged(x, layer_norm(x, scale, bias, epsilon=epsilon))


def share_of_dense(relevance, y, x, kernel, bias):
    """The z+ rule: by positive contributions."""
    # (x w)+ = (|x| |w| + x w) / 2: one product more than the layer itself.
    plain = linear(x, kernel, None)
    positive = jnp.maximum(linear(jnp.abs(x), jnp.abs(kernel), None) + plain, 0) / 2
    ratio = divide(relevance, positive)
    plain = x * jnp.matmul(ratio, kernel.T)
    absolute = jnp.abs(x) * jnp.matmul(ratio, jnp.abs(kernel).T)
    return (plain + absolute) / 2, None, None


positive_dense = with_backward(linear, share_of_dense)


def share_of_sum(relevance, y, x, weights):
    """The z+ rule for a weighted sum over tokens."""
    positive = jnp.maximum(x * weights, 0)
    return positive * divide(relevance, positive.sum(1))[:, None], None


positive_sum = with_backward(weighted_sum, share_of_sum)


def shared_product(equation, left, right):
    """An einsum; each factor gets half the relevance, by contribution."""
    einsum = functools.partial(jnp.einsum, equation)

    def backward(relevance, y, *factors):
        ratios = jax.vjp(einsum, *factors)[1](divide(relevance, y))
        return tuple(factor * ratio / 2 for factor, ratio in zip(factors, ratios))

    return with_backward(einsum, backward)(left, right)


def share_of_add(relevance, y, *parts):
    """By contribution, the two totals of one image rescaled."""
    ratio = divide(relevance, y)
    parts = [part * ratio for part in parts]
    axes = tuple(range(1, relevance.ndim))
    totals = [part.sum(axes, keepdims=True) for part in parts]
    # Only where the totals differ in sign does this change anything.
    total = relevance.sum(axes, keepdims=True)
    unit = divide(total, jnp.abs(totals[0]) + jnp.abs(totals[1]))
    return tuple(p * divide(jnp.abs(t) * unit, t) for p, t in zip(parts, totals))


normalized_add = with_backward(jnp.add, share_of_add)

CHEFER = Rules(
    dense=positive_dense,
    head=positive_dense,
    product=shared_product,
    norm=unchanged_norm,
    add=normalized_add,
    mean=positive_sum,
    softmax=unchanged,
    gelu=unchanged,
    scaled=unchanged,
    length=unchanged,
)


# Rules whose cotangent is relevance over value (Achtibat et al. 2024, section 3).


def attention_aware(gamma: float) -> Rules:
    """AttnLRP's rules; all others are the ordinary derivative."""
    return Rules(
        dense=functools.partial(gamma_dense, gamma) if gamma else None,
        product=halved_product,
        norm=functools.partial(layer_norm, factor=constant),
        gelu=proportional,
        length=proportional,
    )


def halved_product(equation, left, right):
    """An einsum, each of its factors with half the derivative."""
    return jnp.einsum(equation, *((x + constant(x)) / 2 for x in (left, right)))


# Unlike `stop_gradient`, x still has its derivative where a map is itself
# differentiated: only the pass that makes the map follows the rule.
constant = with_backward(lambda x: x, lambda cotangent, y, x: (jnp.zeros_like(x),))


def slope_through_zero(cotangent, y, x, _):
    """The derivative of y as if it were x times a constant."""
    zero = x == 0
    factor = jnp.where(zero, 0.5, y / jnp.where(zero, 1, x))  # GELU's slope at 0
    return cotangent * factor.astype(x.dtype), None


proportional = with_backward(keep_value, slope_through_zero)


def gamma_dense(gamma, x, kernel, bias):
    """A dense layer, its relevance by contributions, those of its own sign more."""

    def backward(cotangent, y, x, kernel, bias):
        # z^s sums to (|x| |w| s + x w) / 2: one product more than the layer itself.
        size = jnp.abs(y)
        of_bias = None if bias is None else jnp.abs(bias)
        absolute = linear(jnp.abs(x), jnp.abs(kernel), of_bias)
        ratio = divide(size, size + gamma / 2 * (size + absolute))
        scaled = cotangent * ratio
        plain = jnp.matmul(scaled, kernel.T)
        absolute = jnp.sign(x) * jnp.matmul(jnp.sign(y) * scaled, jnp.abs(kernel).T)
        return (1 + gamma / 2) * plain + gamma / 2 * absolute, None, None

    return with_backward(linear, backward)(x, kernel, bias)
