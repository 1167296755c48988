"""Rows of the recipe `paper` about key-value memories, of layers and of heads."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vitjax.analysis import interventions, memory
from vitjax.analysis.top_k import fast_top_k_indices
from vitjax.types import Trace

SYSTEMS = ("attention", "mlp")


def memory_rows(
    aux: dict[str, Any],
    index: Int[Array, ""],
    trace: Trace,
    label: Int[Array, " batch"],
    tops: dict[str, Int[Array, "batch token"]],
    *,
    k: int,
    heads: bool,
) -> dict[str, Array]:
    """What the strongest memories of every token say.

    Args:
        aux: of `paper.prepare`.
        index: of the block.
        trace: of the block.
        label: true classes.
        tops: system to the top class of what it writes.
        k: memories of a token, and classes of a memory, that count.
        heads: rows of every attention head too.

    Returns:
        The rows of `paper.one_pass` about memories.
    """
    conventions: tuple[interventions.Convention, ...] = ("paper", "vilas2023_code")
    called = [memory.memory_coefficients(trace, convention=c) for c in conventions]
    orders, found = aux["permutations"], {}
    for system in SYSTEMS:
        known = jax.tree.map(lambda leaf: leaf[index], aux[system])
        count = min(k, known.classes.shape[-1])
        strongest = [
            fast_top_k_indices(coefficients[system], count) for coefficients in called
        ]
        for prefix, which, convention in zip(("", "code_"), strongest, conventions):
            hit, chance = agreement_and_chance(
                known, which, label, orders, convention=convention
            )
            found[f"agreement_{prefix}{system}"] = hit
            found[f"chance_{prefix}{system}"] = chance
        top = tops[system]
        found[f"simple_{system}"] = memory.top1_of_one_memory(known, strongest[0], top)
        chance = [
            memory.top1_of_one_memory(known, strongest[0], o[top]).mean(-1)
            for o in orders
        ]
        found[f"chance_simple_{system}"] = jnp.stack(chance).mean(0)
        if heads and system == "attention":
            mixed = jnp.asarray(trace.mixed_values)
            found |= head_rows(known, mixed, label, top, orders, k=count)
    return found


def head_rows(
    known: memory.MemoryClasses,
    mixed: Float[Array, "batch token head key"],
    label: Int[Array, " batch"],
    top: Int[Array, "batch token"],
    permutations: Int[Array, "permutation class"],
    *,
    k: int,
) -> dict[str, Float[Array, "batch head"]]:
    """The same of every attention head, whose memories are `key` consecutive ones.

    Args:
        known: the layer's attention memories in class space, head-major.
        mixed: with which coefficients each head calls its own.
        label: true classes.
        top: top class of what attention, all heads together, writes.
        permutations: of the classes.
        k: memories of a token within the head (all, if it has fewer), and classes of
            a memory.

    Returns:
        Means over tokens: agreement_head, key-value agreement as the paper defines it;
        simple_head, whether attention's top class is that of one of the head's
        strongest memories; chance_head and chance_simple_head, with permuted classes.
    """
    heads, key = mixed.shape[-2:]
    first = (key * jnp.arange(heads, dtype=jnp.int32)).reshape(1, 1, heads, 1)
    strongest = fast_top_k_indices(mixed, min(k, key)) + first
    shape = strongest.shape[:-1]

    def agree(label):
        spread = jnp.broadcast_to(label[:, None, None], shape)
        return memory.agreement(known, strongest, spread, k=k).mean(1)

    def says(top):
        spread = jnp.broadcast_to(top[..., None], shape)
        return memory.top1_of_one_memory(known, strongest, spread).mean(1)

    def by_chance(of, classes):
        return jnp.stack([of(order[classes]) for order in permutations]).mean(0)

    return {
        "agreement_head": agree(label),
        "chance_head": by_chance(agree, label),
        "simple_head": says(top),
        "chance_simple_head": by_chance(says, top),
    }


def agreement_and_chance(
    known: memory.MemoryClasses,
    strongest: Int[Array, "batch token top"],
    label: Int[Array, " batch"],
    permutations: Int[Array, "permutation class"],
    *,
    convention: interventions.Convention,
) -> tuple[Bool[Array, "batch token"], Float[Array, " batch"]]:
    """Key-value agreement with the label, and its mean over tokens with other classes.

    Args:
        known: the layer's memories in class space.
        strongest: those that every token calls most.
        label: true classes.
        permutations: of the classes; each puts another class in the label's place.
        convention: of `key_value_agreement`.

    Returns:
        Hits, and the chance level of each image.
    """
    k = strongest.shape[-1]

    def hits(label):
        spread = jnp.broadcast_to(label[:, None], strongest.shape[:-1])
        return memory.agreement(known, strongest, spread, k=k, convention=convention)

    chance = jnp.stack([hits(order[label]).mean(-1) for order in permutations])
    return hits(label), chance.mean(0)
