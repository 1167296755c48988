"""Metrics of sections 5 and 6 of the paper, image by image.

Tokens are averaged within an image first; later averages are over images. Blocks are
compared with what entered them, so that the first one counts as well; the paper's
figures begin at the second.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int

from vitjax.analysis.interventions import Convention
from vitjax.analysis.residual_stream import residual_composition
from vitjax.recipes import schema
from vitjax.report.per_image import Run

UPDATES = ("attention_update", "mlp_update")
COMPARED = {
    "residual": "block output against block input",
    "attention_update": "attention against its input",
    "mlp_update": "MLP against its input",
    "mlp_update_vilas2023": "MLP against the block's input (published)",
}
"""What class-similarity change compares: a stream with what its layer read."""

CATEGORIES = {
    "previous": "the block's input",
    "attention": "attention",
    "mlp": "MLP",
    "several": "more than one of them",
    "composed": "none: a new class",
}
"""Where the top class after a block comes from: see `vitjax.residual_composition`."""

CONVENTIONS: dict[str, Convention] = {"paper": "paper", "vilas2023": "vilas2023_code"}
AGREEMENTS = (schema.AGREEMENT, schema.AGREEMENT_VILAS2023)
CHANCES = (schema.CHANCE, schema.CHANCE_VILAS2023)
"""In the order of `CONVENTIONS`."""

HEADS = ("agreement_head", "chance_head", "simple_head", "chance_simple_head")
"""Arrays that are metrics as they are."""


def paper_metrics(run: Run) -> xr.Dataset:
    """The metrics of a run with rows of section 6 and at least one image.

    Dimensions have names and keys; NaN where an image has no such token.
    """
    interventions = [n for n in schema.INTERVENTIONS if schema.RANK_EDITED(n) in run]
    windows = [_window(run, images, interventions) for images in run.windows()]
    systems = list(schema.SYSTEMS)
    names = [[schema.CLASS_VALUE(system) for system in systems]]
    for control in schema.CONTROLS:
        names.append([schema.CLASS_VALUE_CONTROL(s, control) for s in systems])
    values = [[run.results[name].values for name in pair] for pair in names]
    heads = run.results[schema.CLASS_VALUE_HEAD()].values
    metrics = xr.concat(windows, dim="image", data_vars="all")
    metrics["class_value"] = ("weights", "system", "layer", "class"), np.array(values)
    metrics["class_value_head"] = ("layer", "head", "class"), heads
    return metrics.assign_coords(
        compared=list(COMPARED),
        update=list(UPDATES),
        tokens=list(run.tokens),
        convention=list(CONVENTIONS),
        category=list(CATEGORIES),
        system=systems,
        intervention=interventions,
        weights=["trained", *schema.CONTROLS],
    )


def _window(run: Run, images: np.ndarray, interventions: list[str]) -> xr.Dataset:
    """The metrics of some images, without those of the weights."""
    read = functools.partial(run.read, images=images)
    logits = {stream: read(schema.LOGIT(stream)) for stream in schema.STREAMS}
    before = entering(read(schema.LOGIT_EMBEDDING()), logits["residual"])
    steps = {
        "residual": (before, logits["residual"]),
        "attention_update": (before, logits["attention_update"]),
        "mlp_update": (read(schema.LOGIT_MIDDLE()), logits["mlp_update"]),
        "mlp_update_vilas2023": (before, logits["mlp_update"]),
    }
    tops = {stream: read(schema.FIRST(stream)) for stream in schema.STREAMS}
    after = tops["residual"]
    sources = {
        "before": entering(read(schema.FIRST_EMBEDDING()), after),
        "attention": tops["attention_update"],
        "mlp": tops["mlp_update"],
    }
    parts = [
        residual_composition(after, **sources, convention=convention)
        for convention in CONVENTIONS.values()
    ]
    kinds = [run.members(kind, images) for kind in run.tokens]
    head, patches = run.members(run.pooled, images), run.members("image", images)
    pooled = [over_tokens(read(name), head) for name in schema.AGREEMENT.names]
    last, label = read(schema.RANK("residual"))[:, -1], read(schema.LABEL())
    edited = [read(schema.RANK_EDITED(name)) for name in interventions]
    stay = [(ranks >= 0) & patches for ranks in edited]
    answers = [read(schema.PREDICTION_EDITED(name)) for name in interventions]
    systems = schema.SYSTEMS
    by_kind = ("tokens", "image", "layer")
    by_system = ("system", "image", "layer")
    by_edit = ("intervention", "image")
    metrics = {
        "change": (  # share of tokens whose class logit rises
            ("compared", *by_kind),
            [
                [over_tokens(end > start, kind).astype(np.float32) for kind in kinds]
                for start, end in steps.values()
            ],
        ),
        "gain": (  # of an update's class logit over that of its input
            ("update", *by_kind),
            [
                [over_tokens(end - start, kind) for kind in kinds]
                for start, end in (steps[update] for update in UPDATES)
            ],
        ),
        "composition": (
            ("convention", "category", "image", "layer"),
            [[np.asarray(hit).mean(-1) for hit in hits.values()] for hits in parts],
        ),
        "composition_chance": (
            ("image", "convention", "category", "layer"),
            composition_chance(after, sources),
        ),
        "agreement": (
            ("convention", *by_system),
            [[read(name(s)).mean(-1) for s in systems] for name in AGREEMENTS],
        ),
        "agreement_chance": (
            ("convention", *by_system),
            [[read(name(s)) for s in systems] for name in CHANCES],
        ),
        "agreement_pooled": (by_system, [hits.astype(np.float32) for hits in pooled]),
        "simple": (by_system, [read(schema.SIMPLE(s)).mean(-1) for s in systems]),
        "simple_chance": (by_system, [read(schema.CHANCE_SIMPLE(s)) for s in systems]),
        # Identifiable image tokens in the last block, of those that stay.
        "before": (by_edit, [over_tokens(last == 0, kind) for kind in stay]),
        "after": (
            by_edit,
            [over_tokens(e == 0, kind) for e, kind in zip(edited, stay)],
        ),
        "correct": (by_edit, [answer == label for answer in answers]),
    }
    for name in filter(run.__contains__, HEADS):
        metrics[name] = ("image", "layer", "head"), read(name)
    return xr.Dataset(
        {n: (dims, np.array(v)) for n, (dims, v) in metrics.items() if len(v)}
    )


def entering(embedding: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """What entered each block: the embedding, then the stream after the one before."""
    return np.concatenate([embedding[:, None], residual[:, :-1]], axis=1)


def over_tokens(
    values: Bool[np.ndarray, "image ... token"] | Float[np.ndarray, "image ... token"],
    member: Bool[np.ndarray, "image_or_1 token"],
) -> Float[np.ndarray, "image ..."]:
    """Mean over member tokens; NaN where an image has none."""
    member = np.expand_dims(member, tuple(range(1, values.ndim - 1)))
    total = np.where(member, values, 0).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / member.sum(-1).astype(float)


def composition_chance(
    after: Int[np.ndarray, "image layer token"],
    sources: Mapping[str, Int[np.ndarray, "image layer token"]],
) -> Float[np.ndarray, "image convention category layer"]:
    """The composition that is left where answers and sources are of different tokens.

    The exact mean over all pairs of tokens of an image, as cyclic shifts: what remains
    because the tokens of an image tend to the same classes. NaN where an image has a
    single token.
    """
    tokens = after.shape[-1]
    total = np.asarray(_count_pairs(after, sources)).transpose(2, 0, 1, 3)
    return total / (tokens * (tokens - 1) or np.nan)


@jax.jit
def _count_pairs(after, sources) -> Int[jax.Array, "convention category image layer"]:
    """Pairs of different tokens in every category, one cyclic shift after another."""

    def add(shift, total):
        shifted = {name: jnp.roll(tops, shift, -1) for name, tops in sources.items()}
        hits = [
            list(residual_composition(after, **shifted, convention=convention).values())
            for convention in CONVENTIONS.values()
        ]
        return total + jnp.array(hits).sum(-1, dtype=jnp.int32)

    images, depth, tokens = after.shape
    start = jnp.zeros((len(CONVENTIONS), len(CATEGORIES), images, depth), jnp.int32)
    return jax.lax.fori_loop(1, tokens, add, start)
