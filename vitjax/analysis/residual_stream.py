"""Residual stream analyses: class similarity change and residual composition."""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vitjax import messages
from vitjax.analysis.class_space import Labels, take_label
from vitjax.checks import checked
from vitjax.types import CONVENTIONS, ArrayLike, Convention

Composition = dict[
    Literal["previous", "attention", "mlp", "several", "composed"],
    Bool[Array, "..."],
]
"""Where the top class of a block's output comes from."""


@checked
def similarity_change(
    logits_before: Float[ArrayLike, "*any class"],
    logits_after: Float[ArrayLike, "*any class"],
    label: Labels,
) -> Bool[Array, "*any"]:
    """Whether a step brings a state nearer to its class.

    p'_c > p_c (Vilas et al. 2023, section 6: class similarity change), where p' are
    the class logits of what a layer writes, or of the residual stream after it, and p
    those of its input. Its mean over tokens is the change rate, 0.5 by chance. The
    published code compares both sub-layers with the block's input; the MLP's input is
    really the residual stream after attention.

    Args:
        logits_before: class logits p, any leading axes.
        logits_after: class logits p', of the same shape.
        label: class numbers, as for `rank`.

    Returns:
        True where the label's logit rises.

    Raises:
        ValueError: the shapes differ, or the label has too many axes.

    Example:
        >>> before = vitjax.project(model.class_space, trace.residual[:-1])
        >>> after = vitjax.project(model.class_space, trace.residual[1:])
        >>> vitjax.similarity_change(before, after, label[:, None]).mean((1, 2))
    """
    before, after = jnp.asarray(logits_before), jnp.asarray(logits_after)
    if before.shape != after.shape:
        raise ValueError(
            f"Class logits before, {before.shape}, and after, {after.shape}, must have "
            "one shape."
        )
    dtype = np.promote_types(before.dtype, after.dtype)
    before, after = take_label(before, label), take_label(after, label)
    return after.astype(dtype) > before.astype(dtype)


@checked
def residual_composition(
    after: Int[ArrayLike, "*any"],
    *,
    before: Int[ArrayLike, "*any"],
    attention: Int[ArrayLike, "*any"],
    mlp: Int[ArrayLike, "*any"],
    convention: Convention = "paper",
) -> Composition:
    """Where a block's top class comes from: its input, an update, or neither.

    With t the top class of a state, "previous" is t_after = t_before, "attention" and
    "mlp" t_after = t of what that sub-layer writes (Vilas et al. 2023, section 6;
    Geva et al. 2022). "paper": exactly one of them; "several" more than one;
    "composed" none: the class is new. The five exclude each other and add to one.
    "vilas2023_code": the three overlap, "composed" is neither previous nor attention,
    whatever the MLP (bars add up to as much as 206 %), and "several" is False.

    Args:
        after: top class of the stream after the block.
        before, attention, mlp: of the stream entering it, and of what they add.
        convention: see above.

    Returns:
        One array of True and False for each of the five.

    Raises:
        ValueError: an unknown convention, or numbers that are no integers.

    Example:
        >>> streams = (trace.residual, trace.attention_update, trace.mlp_update)
        >>> tops = [vitjax.project(model.class_space, x).argmax(-1) for x in streams]
        >>> after, attention, mlp = (top[1:] for top in tops)
        >>> updates = {"before": tops[0][:-1], "attention": attention, "mlp": mlp}
        >>> vitjax.residual_composition(after, **updates)["composed"].mean()
    """
    messages.check_one_of("convention", convention, CONVENTIONS)
    ids = [jnp.asarray(x).astype(jnp.int32) for x in (after, before, attention, mlp)]
    matches = [source == ids[0] for source in ids[1:]]
    previous, by_attention, by_mlp = matches
    if convention == "vilas2023_code":
        return {
            "previous": previous,
            "attention": by_attention,
            "mlp": by_mlp,
            "several": jnp.zeros_like(previous),
            "composed": ~(previous | by_attention),
        }
    count = jnp.stack(matches).sum(0, dtype=jnp.int32)
    only = count == 1
    return {
        "previous": previous & only,
        "attention": by_attention & only,
        "mlp": by_mlp & only,
        "several": count > 1,
        "composed": count == 0,
    }
