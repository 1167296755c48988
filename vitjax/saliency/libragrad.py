"""LibraGrad: input times gradient of every block under balanced rules."""

import dataclasses

import jax.numpy as jnp

from vitjax.models.model import Model
from vitjax.saliency.lrp import (
    attention_aware,
    check_rules,
    constant,
    halved_product,
)
from vitjax.saliency.passes import Reader, Target
from vitjax.types import Edits


def gated_product(equation, left, right):
    """The product of a SwiGLU's branches gives each half the derivative."""
    product = halved_product if equation == "btm,btm->btm" else jnp.einsum
    return product(equation, left, right)


LIBRA = dataclasses.replace(
    attention_aware(0.0), product=gated_product, softmax=lambda x, y: constant(y)
)


def libragrad(
    model: Model, target: Target, edits: Edits, *, blocks: int | None = None
) -> Reader:
    """FullGrad+ under LibraGrad's rules (Mehri et al., CVPR 2025, arXiv 2411.16760).

    sum over blocks l of sum over channels of x_l g_l, where x_l enters block l and g_l
    is the derivative of the logit z there, plus the same of every bias, at the token
    where it is added. In the derivative, 1 / sigma of LayerNorm, the gate Phi(x) of
    GELU (y = x Phi(x)), attention weights and a cosine's length are held constant; the
    branches of a SwiGLU get half each. Then x_0 g_0 and the biases add up to z, with
    those of the head, which belong to no patch.

    Signed, in units of logits, one term per block. What biases add to an output is what
    the rules do not trace back to its inputs, so that each is the difference of two
    products, whatever the block consists of. `blocks` is how many of the last ones are
    summed, by default all; the authors also have the second half (SkipPLUS).
    """
    check_rules(model.config)

    def dot(left, right):
        axes = tuple(range(2, left.ndim))
        return (left * right).sum(axes)

    def backward(_, grads):
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

    return Reader(
        lambda reads: reads.backward[0].sum(0) + reads.backward[1].sum(0),
        backward=backward,
        rules=(LIBRA,),
        fields=("values", "mixed_values", "attention_update", "mlp_update"),
        blocks=blocks,
    )
