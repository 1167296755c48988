"""Sections 5 and 6 of Vilas et al. 2023: identifiability, its sources, interventions.

`one_pass` answers from a single forward pass everything that needs no intervention: how
identifiable tokens are, which classes sub-layers add, and what key-value memories say.
`paper` adds one forward pass for each intervention.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vitjax.analysis import fused_projection, interventions, memory
from vitjax.analysis.class_space import project_tokens, rank
from vitjax.analysis.top_k import argmax, fast_top_k_indices
from vitjax.models.forward import final_residual, run_blocks
from vitjax.models.model import Model, initialize, memory_values
from vitjax.recipes import identifiability as base
from vitjax.recipes import schema
from vitjax.recipes.recipe import Recipe, Setup, image_noise, microbatched
from vitjax.types import Batch, Convention, Edits, Trace

PERMUTATIONS = 4
"""Of the classes: chance levels are means over them."""


class Carry(NamedTuple):
    """What every step needs of the model: memories are in class space, by system."""

    memories: dict[str, memory.MemoryClasses]
    permutations: Int[Array, "permutation class"]
    key: Array  # of random keep-sets


@microbatched
def one_pass(
    model: Model, batch: Batch, carry: Carry, *, top: int, k: int, heads: bool
) -> dict[str, Array]:
    """Compute everything that needs no intervention, from one forward pass."""
    space = fused_projection.fold(model.class_space, model.config.prefix)
    label = jnp.maximum(batch.label, 0)

    def true_logit(product, state):
        return fused_projection.label_logit(space, product, state, label)

    def read(state, params, stream_in, trace, context):
        before, index = state
        products, rows = base.read_block(
            model, space, state, trace, label, context, top=top
        )
        for name, product in products.items():
            logits = fused_projection.logits(space, product, getattr(trace, name))
            rows[schema.FIRST(name)] = argmax(logits)
        middle = stream_in + trace.attention_update
        rows["logit_middle"] = true_logit(before + products["attention_update"], middle)
        tops = {name: rows[schema.FIRST(f"{name}_update")] for name in schema.SYSTEMS}
        rows |= memory_rows(carry, index, trace, label, tops, k=k, heads=heads)
        return (products["residual"], index + 1), rows

    embed = functools.partial(base.first_state, space)
    _, _, logits, reads = run_blocks(
        model, batch.images, read, edits=None, state=embed, pass_context=True
    )
    # Under jit, the compiler shares this with the scan's own beginning.
    images = model.check_images(batch.images)
    embedding = model.apply(images, Edits(), method="embed")
    product = fused_projection.product(space, embedding)
    return base.images_first(reads) | {
        "logit_embedding": true_logit(product, embedding),
        "first_embedding": argmax(fused_projection.logits(space, product, embedding)),
        "prediction": jnp.argmax(logits, -1).astype(jnp.int32),
    }


AGREEMENTS: dict[Convention, tuple[schema.Family, schema.Family]] = {
    "paper": (schema.AGREEMENT, schema.CHANCE),
    "vilas2023_code": (schema.AGREEMENT_VILAS2023, schema.CHANCE_VILAS2023),
}


def memory_rows(
    carry: Carry,
    index: Int[Array, ""],
    trace: Trace,
    label: Int[Array, " batch"],
    tops: dict[str, Int[Array, "batch token"]],
    *,
    k: int,
    heads: bool,
) -> dict[str, Array]:
    """What the strongest memories of every token in block `index` say.

    `tops` is the top class of what each memory system writes.
    """
    orders, rows = carry.permutations, {}
    for system, top in tops.items():
        known = jax.tree.map(lambda leaf: leaf[index], carry.memories[system])
        count, strongest = min(k, known.classes.shape[-1]), {}
        for convention, (agreements, chances) in AGREEMENTS.items():
            called: Any = memory.memory_coefficients(trace, convention=convention)
            strongest[convention] = fast_top_k_indices(called[system], count)
            agree = functools.partial(
                memory.agreement,
                known,
                strongest[convention],
                k=count,
                convention=convention,
            )
            rows[agreements(system)] = agree(label[:, None])
            rows[chances(system)] = chance(agree, label[:, None], orders)
        is_simple = functools.partial(
            memory.top1_of_one_memory, known, strongest["paper"]
        )
        rows[schema.SIMPLE(system)] = is_simple(top)
        rows[schema.CHANCE_SIMPLE(system)] = chance(is_simple, top, orders)
        if heads and system == "attention":
            mixed = jnp.asarray(trace.mixed_values)
            rows |= head_rows(known, mixed, label, top, orders, k=count)
    return rows


def head_rows(
    known: memory.MemoryClasses,
    mixed: Float[Array, "batch token head key"],
    label: Int[Array, " batch"],
    top: Int[Array, "batch token"],
    permutations: Int[Array, "permutation class"],
    *,
    k: int,
) -> dict[str, Float[Array, "batch head"]]:
    """The same within every attention head, means over tokens.

    A head's memories are `key` consecutive ones of the layer's, `mixed` their
    coefficients; k of them count, or all. `top` is the class that all heads together
    write.
    """
    heads, key = mixed.shape[-2:]
    first = (key * jnp.arange(heads, dtype=jnp.int32)).reshape(1, 1, heads, 1)
    strongest = fast_top_k_indices(mixed, min(k, key)) + first
    agree = functools.partial(memory.agreement, known, strongest, k=k)
    is_simple = functools.partial(memory.top1_of_one_memory, known, strongest)
    label, top = label[:, None, None], top[..., None]
    return {
        "agreement_head": agree(label).mean(1),
        "chance_head": chance(agree, label, permutations),
        "simple_head": is_simple(top).mean(1),
        "chance_simple_head": chance(is_simple, top, permutations),
    }


def chance(
    hits: Callable[[Array], Bool[Array, "batch token *head"]],
    classes: Int[Array, " batch *token"],
    permutations: Int[Array, "permutation class"],
) -> Float[Array, " batch *head"]:
    """Share of tokens that hit, with permuted classes in place of `classes`."""
    return jnp.stack([hits(order[classes]).mean(1) for order in permutations]).mean(0)


@microbatched
def paper(
    model: Model,
    batch: Batch,
    carry: Carry,
    *,
    top: int,
    k: int,
    heads: bool,
    interventions: tuple[str, ...],
) -> dict[str, Array]:
    """Compute the rows of `one_pass`, and those of interventions on the last block."""
    rows = one_pass(model, batch, carry, top=top, k=k, heads=heads)
    for name in interventions:
        edits = make_edits(name, model, batch, carry.key)
        if edits is not None:
            rows[schema.RANK_EDITED(name)], rows[schema.PREDICTION_EDITED(name)] = (
                intervene(model, batch, edits)
            )
    return rows


ATTENTION_EDITS: dict[str, Callable[..., Edits]] = {
    "self_only": interventions.self_only,
    "self_only_renormalized": functools.partial(
        interventions.self_only, renormalize=True
    ),
    "self_only_vilas2023": functools.partial(
        interventions.self_only, convention="vilas2023_code"
    ),
    "no_cls": interventions.no_cls,
    "no_cls_renormalized": functools.partial(interventions.no_cls, renormalize=True),
}

KEPT_PATCH_LABELS = {
    "without_context": 1,
    "without_class": 0,
    "random_as_class": 1,
    "random_as_context": 0,
}


def make_edits(name: str, model: Model, batch: Batch, key: Array) -> Edits | None:
    """The edits of an intervention; None without a [CLS] or without masks."""
    if name in ATTENTION_EDITS:
        if name.startswith("no_cls") and not model.config.class_token:
            return None
        return ATTENTION_EDITS[name](model.config)
    if batch.patch_label is None:
        return None
    keep = batch.patch_label == KEPT_PATCH_LABELS[name]
    if name.startswith("random"):  # as many, any of them
        noise = image_noise(key, batch.index, keep.shape[1])
        keep = jnp.argsort(jnp.argsort(noise)) < keep.sum(1, keepdims=True)
    return interventions.keep_tokens(keep)


def intervene(
    model: Model, batch: Batch, edits: Edits
) -> tuple[Int[Array, "batch token"], Int[Array, " batch"]]:
    """Ranks of the true class in the last block, -1 at removed tokens; predictions."""
    logits, stream = final_residual(model, batch.images, edits=edits)
    label = jnp.maximum(batch.label, 0)
    ranks = rank(project_tokens(model, stream), label[:, None])
    if edits.keep is not None:
        keep = jnp.asarray(edits.keep)
        prefix = jnp.ones((keep.shape[0], model.config.prefix), bool)
        ranks = jnp.where(jnp.concatenate([prefix, keep], axis=1), ranks, -1)
    return ranks, jnp.argmax(logits, -1).astype(jnp.int32)


def setup(model: Model, *, seed: int, k: int, **options: Any) -> Setup:
    """Project the memories onto the class space, and compare them with two controls.

    Permutations, random keep-sets and the control's parameters depend on `seed`.
    """
    space, values = model.class_space, memory_values(model)
    config, classes = model.config, model.num_classes
    keys = jax.random.split(jax.random.key(seed), 3)
    permutations = jax.vmap(lambda key: jax.random.permutation(key, classes))(
        jax.random.split(keys[0], PERMUTATIONS)
    )
    control = initialize(config, classes=model.classes, seed=seed)
    control_values = memory_values(control)
    order = jax.random.permutation(keys[2], config.dim)
    memories, static, agree = {}, {}, memory.class_value_agreement
    for system in schema.SYSTEMS:
        count = min(k, classes, values[system].shape[1])
        memories[system] = memory.memory_classes(space, values[system], k=count)
        static[schema.CLASS_VALUE(system)] = agree(space, values[system])
        static[schema.CLASS_VALUE_CONTROL(system, "shuffled")] = agree(
            space, values[system][..., order]
        )
        static[schema.CLASS_VALUE_CONTROL(system, "control")] = agree(
            control.class_space, control_values[system]
        )
    shape = config.depth, config.heads, config.head_dim, config.dim
    static["class_value_head"] = agree(space, values["attention"].reshape(shape))
    return Setup(Carry(memories, permutations, keys[1]), static)


@dataclasses.dataclass(frozen=True)
class OnePassOptions:
    """Options of `one_pass`.

    Args:
        top: classes of the pooled token to keep, block by block.
        k: memories of a token, and classes of a memory, that count as its strongest.
        heads: also measure the memories of every attention head by themselves.
    """

    top: int = 5
    k: int = 5
    heads: bool = False


@dataclasses.dataclass(frozen=True)
class PaperOptions(OnePassOptions):
    """Options of `paper`.

    Args:
        interventions: which; each is one more forward pass. Those that remove tokens
            need a data set with masks.
    """

    heads: bool = True
    interventions: tuple[schema.Intervention, ...] = tuple(schema.INTERVENTIONS)


FAMILIES = (
    *base.FAMILIES,
    *schema.between(schema.FIRST, schema.CHANCE_SIMPLE_HEAD),
    *schema.between(schema.CLASS_VALUE, schema.CLASS_VALUE_HEAD),
)

ONE_PASS = Recipe(
    name="one_pass",
    step=one_pass,
    **schema.rows(*FAMILIES),
    options=OnePassOptions(),
    setup=setup,
)

PAPER = Recipe(
    name="paper",
    step=paper,
    **schema.rows(*FAMILIES, schema.RANK_EDITED, schema.PREDICTION_EDITED),
    options=PaperOptions(),
    setup=setup,
)
