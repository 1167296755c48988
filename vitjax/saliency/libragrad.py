"""Input times gradient, and LibraGrad: the same of every block under balanced rules."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitjax.analysis.class_space import broadcast_labels, take_label
from vitjax.models.backward import block_inputs, scan_backward, scan_reverse
from vitjax.models.backward_rules import Rules
from vitjax.models.model import Model
from vitjax.saliency.attention import Images, Map, Target
from vitjax.saliency.gradients import target_logit
from vitjax.saliency.lrp import (
    check_rules,
    constant,
    halved_product,
    proportional,
    unembed,
)
from vitjax.types import Edits, layer_norm


def input_x_gradient(
    model: Model, images: Images, target: Target, *, edits: Edits | None = None
) -> Map:
    """Input times gradient: sum over channels of x dz/dx, x what enters block 0.

    Signed, in units of the logit (Shrikumar et al. 2016, arXiv 1605.01713, at the
    embedded patches instead of the pixels). About three forward passes.
    """

    def read(state, grads):
        return jnp.einsum("btd,btd->bt", grads.stream_in, grads.stream_gradient), None

    state, _ = scan_backward(
        model,
        images,
        target_logit(target),
        read,
        state=lambda x, gradient: jnp.zeros(x.shape[:2], x.dtype),
        edits=edits,
    )
    return state[:, model.config.prefix :]


def gated_product(equation, left, right):
    """The product of a SwiGLU's branches gives each half the derivative."""
    product = halved_product if equation == "btm,btm->btm" else jnp.einsum
    return product(equation, left, right)


LIBRA = Rules(
    product=gated_product,
    norm=functools.partial(layer_norm, factor=constant),
    softmax=lambda x, y: constant(y),
    gelu=proportional,
    length=proportional,
)


def libragrad(
    model: Model, images: Images, target: Target, *, edits: Edits | None = None
) -> Map:
    """FullGrad+ under LibraGrad's rules (Mehri et al., CVPR 2025, arXiv 2411.16760).

    sum over blocks l of sum over channels of x_l g_l, where x_l enters block l and g_l
    is the derivative of the logit z there, plus the same of every bias, at the token
    where it is added. In the derivative, 1 / sigma of LayerNorm, the gate Phi(x) of
    GELU (y = x Phi(x)), attention weights and a cosine's length are held constant; the
    branches of a SwiGLU get half each. Then x_0 g_0 and the biases add up to z.

    Signed, in units of logits, one term per block. About three forward passes.
    """
    products, biases, _ = libragrad_terms(model, images, target, edits=edits)
    total = products.sum(0) + biases.sum(0)
    return total[:, model.config.prefix :]


def libragrad_terms(
    model: Model, images: Images, target: Target, *, edits: Edits | None = None
) -> tuple[
    Float[Array, "layer batch token"],
    Float[Array, "layer batch token"],
    Float[Array, " batch"],
]:
    """x_l g_l; the biases of each block; those of the head.

    The first block's products and all biases add up to the logit. What biases add to an
    output is what the rules do not trace back to its inputs, so that each is the
    difference of two products, whatever the block consists of.
    """
    edits = edits or Edits()
    check_rules(model.config)
    x, inputs = block_inputs(model, images, edits)
    target = broadcast_labels(target, x.shape[:1])
    one = jax.nn.one_hot(target, model.num_classes, dtype=x.dtype)
    logits, pull = jax.vjp(lambda x: unembed(model, x, edits, LIBRA), x)
    (gradient,) = pull(one)

    def dot(left, right):
        axes = tuple(range(2, left.ndim))
        return (left * right).sum(axes)

    def read(_, grads):
        trace, fields = grads.trace, grads.fields
        after_attention = fields["attention_update"]
        middle = grads.stream_in + trace.attention_update
        product = dot(grads.stream_in, grads.stream_gradient)
        biases = (
            dot(trace.values, fields["values"])
            - dot(grads.stream_in, grads.stream_gradient - after_attention)
            + dot(trace.attention_update, after_attention)
            - dot(trace.mixed_values, fields["mixed_values"])
            + dot(trace.mlp_update, fields["mlp_update"])
            - dot(middle, after_attention - fields["mlp_update"])
        )
        return None, (product, biases)

    _, (products, biases) = scan_reverse(
        model,
        inputs,
        (gradient,),
        read,
        state=None,
        edits=edits,
        rules=(LIBRA,),
        fields=("values", "mixed_values", "attention_update", "mlp_update"),
    )
    return products, biases, take_label(logits, target) - dot(x, gradient).sum(1)
