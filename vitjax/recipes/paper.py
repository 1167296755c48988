"""The recipe `paper`: sections 5 and 6 of the paper, in as few passes as possible.

One forward pass answers everything that needs no intervention; every intervention is
one more.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from vitjax.analysis import fused_projection, interventions, memory
from vitjax.analysis.class_space import project, rank
from vitjax.analysis.top_k import argmax
from vitjax.models.forward import block_counter, final_residual, scan_blocks
from vitjax.models.heads import memory_values
from vitjax.models.model import Model, initialize
from vitjax.recipes import identifiability as base
from vitjax.recipes.memories import SYSTEMS, memory_rows
from vitjax.recipes.microbatch import microbatched
from vitjax.recipes.recipe import Prepared, Recipe
from vitjax.types import ArrayLike, Batch, Edits

K = 5
PERMUTATIONS = 4
"""Of the classes: the chance level of the key-value agreement is their mean."""


@microbatched
def one_pass(
    model: Model,
    batch: Batch,
    aux: dict[str, Any],
    *,
    top: int,
    k: int,
    heads: bool,
) -> dict[str, Array]:
    """Everything that needs no intervention, from one forward pass.

    Args:
        model: the model.
        batch: images and labels.
        aux: of `prepare`.
        top: classes of the readout state to keep.
        k: memories of a token, and classes of a memory, that count.
        heads: rows of every attention head too.

    Returns:
        The rows of `identifiability`; logit_middle [image layer token], of the stream
        between attention and MLP; first_* [image layer token], the top class of every
        stream; logit_embedding and first_embedding [image token], of the stream
        entering block 0; for both memory systems agreement_* and agreement_code_*,
        key-value agreement as the paper and as its code define it, chance_* [image
        layer] the same with permuted classes, mean over tokens, and simple_*, whether
        the top class is that of a single memory (NOT composed), with chance_simple_*;
        with `heads` also agreement_head, simple_head and their chance_* [image layer
        head], means over tokens: see `memories.head_rows`.
    """
    space = fused_projection.fold(model.class_space)
    label = jnp.maximum(batch.label, 0)

    def true_logit(product, state):
        chosen = jnp.take_along_axis(product, label[:, None, None], axis=-1)[..., 0]
        scaled = chosen * fused_projection.inverse_sigma(space, state)
        return scaled + space.beta[label][:, None]

    def embed(embedding):
        return fused_projection.product(space, embedding), block_counter(embedding)

    def read(state, params, stream_in, trace):
        before, index = state
        products, rows = base.stream_products(space, before, trace), {}
        for name, product in products.items():
            states = getattr(trace, name)
            place, logit = fused_projection.rank_and_logit(
                space, product, states, label
            )
            rows |= {f"rank_{name}": place, f"logit_{name}": logit}
            rows[f"first_{name}"] = argmax(
                fused_projection.logits(space, product, states)
            )
        middle = stream_in + trace.attention_update
        rows["logit_middle"] = true_logit(before + products[base.STREAMS[1]], middle)
        after, stream = products["residual"], trace.residual
        rows |= base.readout_rows(model, space, after, stream, top=top)
        rows |= base.refined_rows(model, index, stream, label)
        tops = {system: rows[f"first_{system}_update"] for system in SYSTEMS}
        rows |= memory_rows(aux, index, trace, label, tops, k=k, heads=heads)
        return (after, index + 1), rows

    logits, reads = scan_blocks(model, batch.images, read, state=embed)
    # Under jit, the compiler shares this with the scan's own beginning.
    images = model.check_images(batch.images)
    embedding = model.apply(images, Edits(), method="embed")
    product = fused_projection.product(space, embedding)
    return base.as_rows(reads) | {
        "logit_embedding": true_logit(product, embedding),
        "first_embedding": argmax(fused_projection.logits(space, product, embedding)),
        "prediction": jnp.argmax(logits, -1).astype(jnp.int32),
    }


Builder = Callable[[Model, Batch, Array], Edits | None]


def of_attention(builder, **options) -> Builder:
    """An intervention on attention, which needs no masks."""

    def build(model, batch, key):
        if builder is interventions.no_cls and not model.config.class_token:
            return None
        return builder(model.config, **options)

    return build


def of_tokens(kind: int, *, random: bool) -> Builder:
    """Only tokens of one kind stay, or as many of any kind; needs masks."""

    def build(model, batch, key):
        if batch.patch_label is None:
            return None
        keep = batch.patch_label == kind
        if random:
            keep = as_many_at_random(keep, batch.index, key)
        return interventions.keep_tokens(keep)

    return build


def as_many_at_random(
    keep: Bool[ArrayLike, "batch patch"], index: Int[ArrayLike, " batch"], key: Array
) -> Bool[Array, "batch patch"]:
    """For every image as many patches, any of them; the same for the same image."""

    def draw(index, row):
        noise = jax.random.uniform(jax.random.fold_in(key, index), row.shape)
        return jnp.argsort(jnp.argsort(noise)) < row.sum()

    return jax.vmap(draw)(index, keep)


INTERVENTIONS: dict[str, Builder] = {
    "self_only": of_attention(interventions.self_only),
    "self_only_renormalized": of_attention(interventions.self_only, renormalize=True),
    "self_only_code": of_attention(
        interventions.self_only, convention="vilas2023_code"
    ),
    "no_cls": of_attention(interventions.no_cls),
    "no_cls_renormalized": of_attention(interventions.no_cls, renormalize=True),
    "without_context": of_tokens(1, random=False),
    "without_class": of_tokens(0, random=False),
    "random_as_class": of_tokens(1, random=True),
    "random_as_context": of_tokens(0, random=True),
}
"""Name -> what builds the edits; None where a model or its data have none."""


def intervene(
    model: Model, batch: Batch, edits: Edits
) -> tuple[Int[Array, "batch token"], Int[Array, " batch"]]:
    """Ranks of the true class in the last block, and the answer, under edits.

    Args:
        model: the model.
        batch: images and labels.
        edits: the intervention.

    Returns:
        Ranks, -1 at tokens that were removed; predictions.
    """
    logits, stream = final_residual(model, batch.images, edits=edits)
    label = jnp.maximum(batch.label, 0)
    ranks = rank(project(model.class_space, stream), label[:, None])
    if edits.keep is not None:
        there = jnp.asarray(edits.keep)
        prefix = jnp.ones((there.shape[0], model.config.prefix), bool)
        ranks = jnp.where(jnp.concatenate([prefix, there], axis=1), ranks, -1)
    return ranks, jnp.argmax(logits, -1).astype(jnp.int32)


@microbatched
def step(
    model: Model,
    batch: Batch,
    aux: dict[str, Any],
    *,
    top: int,
    k: int,
    heads: bool,
    interventions: tuple[str, ...],
) -> dict[str, Array]:
    """One pass, and one more for each intervention.

    Args:
        model: the model.
        batch: images and labels.
        aux: of `prepare`.
        top: classes of the readout state to keep.
        k: memories and classes that count.
        heads: rows of every attention head too.
        interventions: names out of `INTERVENTIONS`.

    Returns:
        The rows of `one_pass`; rank_NAME [image token] and prediction_NAME [image] of
        every intervention that the model and its data have.
    """
    rows = one_pass(model, batch, aux, top=top, k=k, heads=heads)
    for name in interventions:
        edits = INTERVENTIONS[name](model, batch, aux["key"])
        if edits is not None:
            rows[f"rank_{name}"], rows[f"prediction_{name}"] = intervene(
                model, batch, edits
            )
    return rows


def prepare(model: Model, *, seed: int, k: int, **options: Any) -> Prepared:
    """What the weights alone say: memories in class space, and their controls.

    Args:
        model: the model.
        seed: of the permutations of classes, of the random keep-sets, and of the
            random-init control.
        k: memories and classes that count.
        options: of the step, not used here.

    Returns:
        Memories and permutations for the steps; once: class_value_* [layer class],
        class-value agreement of attention, MLP and every head of attention
        (class_value_head [layer head class]); the same of a randomly initialised model
        (_control) and of value vectors with permuted components (_shuffled).
    """
    space, values = model.class_space, memory_values(model.params)
    keys = jax.random.split(jax.random.key(seed), 3)
    classes = model.num_classes
    permutations = jax.vmap(lambda key: jax.random.permutation(key, classes))(
        jax.random.split(keys[0], PERMUTATIONS)
    )
    aux: dict[str, Any] = {"permutations": permutations, "key": keys[1]}
    control = initialize(model.config, classes=model.classes, seed=seed)
    order = jax.random.permutation(keys[2], model.config.dim)
    once, agree = {}, memory.class_value_agreement
    for system in SYSTEMS:
        count = min(k, classes, values[system].shape[1])
        aux[system] = memory.memory_classes(space, values[system], k=count)
        shuffled = values[system][..., order]
        random_values = memory_values(control.params)[system]
        once[f"class_value_{system}"] = agree(space, values[system])
        once[f"class_value_{system}_shuffled"] = agree(space, shuffled)
        once[f"class_value_{system}_control"] = agree(
            control.class_space, random_values
        )
    cfg = model.config
    shape = (cfg.depth, cfg.heads, cfg.head_dim, cfg.dim)
    once["class_value_head"] = agree(space, values["attention"].reshape(shape))
    return Prepared(aux, once)


PER_TOKEN = {
    **{f"first_{stream}": ("layer", "token") for stream in base.STREAMS},
    "logit_middle": ("layer", "token"),
    "logit_embedding": ("token",),
    "first_embedding": ("token",),
    **{f"simple_{system}": ("layer", "token") for system in SYSTEMS},
}

AGREEMENT = {
    f"{kind}_{which}{system}": axes
    for kind, axes in (("agreement", ("layer", "token")), ("chance", ("layer",)))
    for which in ("", "code_")
    for system in SYSTEMS
} | {f"chance_simple_{system}": ("layer",) for system in SYSTEMS}

OF_HEADS = {
    name: ("layer", "head")
    for name in ("agreement_head", "chance_head", "simple_head", "chance_simple_head")
}

INTERVENED = {
    f"{kind}_{name}": axes
    for name in INTERVENTIONS
    for kind, axes in (("rank", ("token",)), ("prediction", ()))
}

PAPER = Recipe(
    name="paper",
    step=step,
    dims={**base.DIMS, **PER_TOKEN, **AGREEMENT, **OF_HEADS, **INTERVENED},
    labelled=(
        *base.IDENTIFIABILITY.labelled,
        *("logit_middle", "logit_embedding"),
        *AGREEMENT,
        *("agreement_head", "chance_head"),
        *(name for name in INTERVENED if name.startswith("rank")),
    ),
    options={
        **{"top": base.TOP, "k": K, "heads": True},
        "interventions": tuple(INTERVENTIONS),
    },
    prepare=prepare,
    once={
        **{
            f"class_value_{system}{control}": ("layer", "class")
            for system in SYSTEMS
            for control in ("", "_control", "_shuffled")
        },
        "class_value_head": ("layer", "head", "class"),
    },
)

ONE_PASS = Recipe(
    name="one_pass",
    step=one_pass,
    dims={**base.DIMS, **PER_TOKEN, **AGREEMENT},
    labelled=tuple(
        name for name in PAPER.labelled if name not in {**INTERVENED, **OF_HEADS}
    ),
    options={"top": base.TOP, "k": K, "heads": False},
    prepare=prepare,
    once=PAPER.once,
)
