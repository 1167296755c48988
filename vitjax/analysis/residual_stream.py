"""What attention and MLP add: towards the class or not, and whose answer survives."""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vitjax.analysis.class_space import Labels, take_label
from vitjax.analysis.interventions import Convention
from vitjax.types import ArrayLike

Composition = dict[
    Literal["previous", "attention", "mlp", "several", "composed"],
    Bool[Array, "..."],
]
"""Where the top class of a block's output comes from."""


def similarity_change(
    logits_before: Float[ArrayLike, "*any class"],
    logits_after: Float[ArrayLike, "*any class"],
    label: Labels,
) -> Bool[Array, "*any"]:
    """Whether a step brings a state nearer to its class.

    p'_c > p_c (Vilas et al. 2023, section 6.1: class similarity change), where p' are
    the class logits of what a layer writes, or of the stream after it, and p those of
    what it read. Its share over tokens is the change rate, 0.5 by chance. The published
    code compares both sub-layers with the block's input; what the MLP truly reads is
    the stream after attention.

    Args:
        logits_before: class logits p, any leading axes.
        logits_after: class logits p', of the same shape.
        label: class numbers, as for `rank`.

    Returns:
        True where the label's logit rises.

    Raises:
        ValueError: the shapes differ, or the label has too many axes.
    """
    before, after = jnp.asarray(logits_before), jnp.asarray(logits_after)
    if before.shape != after.shape:
        raise ValueError(
            f"Class logits before, {before.shape}, and after, {after.shape}, must have "
            "one shape."
        )
    wide = np.promote_types(before.dtype, after.dtype)
    risen, read = take_label(after, label), take_label(before, label)
    return risen.astype(wide) > read.astype(wide)


def residual_composition(
    after: Int[ArrayLike, "*any"],
    *,
    before: Int[ArrayLike, "*any"],
    attention: Int[ArrayLike, "*any"],
    mlp: Int[ArrayLike, "*any"],
    convention: Convention = "paper",
) -> Composition:
    """Whose top class a block's output has: of its input, of an update, or a new one.

    With t the top class of a state, "previous" is t_after = t_before, "attention" and
    "mlp" t_after = t of what that sub-layer writes (Vilas et al. 2023, section 6.1;
    Geva et al. 2022). "paper": exactly one of them; "several" more than one;
    "composed" none: the answer is new. The five exclude each other and add to one.
    "vilas2023_code": the three overlap, and "composed" is neither previous nor
    attention, the MLP not being looked at (bars that add to up to 206 %); "several" is
    False.

    Args:
        after: top class of the stream after the block.
        before: of the stream entering it.
        attention: of what attention adds.
        mlp: of what the MLP adds.
        convention: see above.

    Returns:
        One array of True and False for each of the five.

    Raises:
        ValueError: an unknown convention.
    """
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
    if convention != "paper":
        raise ValueError(f"convention {convention!r} is not 'paper', 'vilas2023_code'.")
    count = jnp.stack(matches).sum(0, dtype=jnp.int32)
    only = count == 1
    return {
        "previous": previous & only,
        "attention": by_attention & only,
        "mlp": by_mlp & only,
        "several": count > 1,
        "composed": count == 0,
    }
