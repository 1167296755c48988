"""Metrics of sections 5 and 6 of the paper, image by image.

Tokens are averaged within an image first; later averages are over images. Blocks are
compared with what entered them, so that the first one counts as well; the paper's
figures begin at the second.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int

from vitjax.analysis.interventions import Convention
from vitjax.analysis.residual_stream import residual_composition, similarity_change
from vitjax.recipes import schema
from vitjax.report.per_image import Run

UPDATES = ("attention_update", "mlp_update")
COMPARED = ("residual", *UPDATES, "mlp_update_vilas2023")
"""What class-similarity change compares: a stream with what its layer read; the
published code compares the MLP with the block's input."""

CATEGORIES = ("previous", "attention", "mlp", "several", "composed")
"""Where the top class after a block comes from: see `vitjax.residual_composition`."""

CONVENTIONS: dict[str, Convention] = {"paper": "paper", "vilas2023": "vilas2023_code"}
AGREEMENTS = {
    "paper": (schema.AGREEMENT, schema.CHANCE),
    "vilas2023": (schema.AGREEMENT_VILAS2023, schema.CHANCE_VILAS2023),
}
HEAD_METRICS = (
    schema.AGREEMENT_HEAD,
    schema.CHANCE_HEAD,
    schema.SIMPLE_HEAD,
    schema.CHANCE_SIMPLE_HEAD,
)

PaperMetrics = xr.Dataset
"""Metrics with named dimensions; NaN where an image has no such token."""


def paper_metrics(run: Run) -> PaperMetrics:
    """The metrics of a run with rows of section 6 and at least one image."""
    interventions = [n for n in schema.INTERVENTIONS if schema.RANK_EDITED(n) in run]
    windows = [_window(run, images, interventions) for images in run.windows()]
    metrics = xr.concat(windows, dim="image", data_vars="all")
    controls = [
        [schema.CLASS_VALUE(system) for system in schema.SYSTEMS],
        *(
            [schema.CLASS_VALUE_CONTROL(system, control) for system in schema.SYSTEMS]
            for control in schema.CONTROLS
        ),
    ]
    values = [[run.results[name].values for name in names] for names in controls]
    heads = run.results[schema.CLASS_VALUE_HEAD()].values
    return metrics.assign(
        class_value=(("weights", "system", "layer", "class"), np.array(values)),
        class_value_head=(("layer", "head", "class"), heads),
    ).assign_coords(
        compared=list(COMPARED),
        update=list(UPDATES),
        tokens=list(run.tokens),
        convention=list(CONVENTIONS),
        category=list(CATEGORIES),
        system=list(schema.SYSTEMS),
        intervention=interventions,
        weights=["trained", *schema.CONTROLS],
    )


def _window(run: Run, images: Any, interventions: list[str]) -> PaperMetrics:
    """The metrics of some images, without those of the weights."""

    def read(name: str) -> np.ndarray:
        return run.read(name, images)

    def stack(compute: Callable[[Any], np.ndarray], keys: Iterable) -> np.ndarray:
        return np.stack([compute(key) for key in keys], axis=1)

    members = [run.members(kind, images) for kind in run.tokens]
    logits = {stream: read(schema.LOGIT(stream)) for stream in schema.STREAMS}
    middle = read(schema.LOGIT_MIDDLE())
    before = entering(read(schema.LOGIT_EMBEDDING()), logits["residual"])
    steps = {
        "residual": (before, logits["residual"]),
        "attention_update": (before, logits["attention_update"]),
        "mlp_update": (middle, logits["mlp_update"]),
        "mlp_update_vilas2023": (before, logits["mlp_update"]),
    }

    def change(compared: str) -> np.ndarray:
        """Share of tokens whose class logit rises."""
        start, end = (logit[..., None] for logit in steps[compared])
        rises = np.asarray(similarity_change(start, end, 0))
        return stack(lambda m: over_tokens(rises, m).astype(np.float32), members)

    def gain(update: str) -> np.ndarray:
        """Mean of an update's class logit minus its input's."""
        start, end = steps[update]
        return stack(lambda member: over_tokens(end - start, member), members)

    tops = {stream: read(schema.FIRST(stream)) for stream in schema.STREAMS}
    sources = {
        "before": entering(read(schema.FIRST_EMBEDDING()), tops["residual"]),
        "attention": tops["attention_update"],
        "mlp": tops["mlp_update"],
    }

    def composition(convention: str) -> np.ndarray:
        categories = residual_composition(
            tops["residual"], **sources, convention=CONVENTIONS[convention]
        )
        return stack(lambda c: np.asarray(categories[c]).mean(-1), CATEGORIES)

    def agreement(convention: str) -> np.ndarray:
        family, _ = AGREEMENTS[convention]
        return stack(lambda s: read(family(s)).mean(-1), schema.SYSTEMS)

    def agreement_chance(convention: str) -> np.ndarray:
        _, family = AGREEMENTS[convention]
        return stack(lambda s: read(family(s)), schema.SYSTEMS)

    def agreement_pooled(system: str) -> np.ndarray:
        """At the tokens that the head reads."""
        hits = read(schema.AGREEMENT(system))
        return over_tokens(hits, pooled).astype(np.float32)

    pooled = run.members(run.pooled, images)
    chance = composition_chance(tops["residual"], *sources.values())
    simple = stack(lambda s: read(schema.SIMPLE(s)).mean(-1), schema.SYSTEMS)
    simple_chance = stack(lambda s: read(schema.CHANCE_SIMPLE(s)), schema.SYSTEMS)
    by_kind, by_system = ("tokens", "layer"), ("system", "layer")
    by_category = ("convention", "category", "layer")
    by_convention = ("convention", "system", "layer")
    metrics = {
        "change": (("compared", *by_kind), stack(change, COMPARED)),
        "gain": (("update", *by_kind), stack(gain, UPDATES)),
        "composition": (by_category, stack(composition, CONVENTIONS)),
        "composition_chance": (by_category, chance),
        "agreement": (by_convention, stack(agreement, CONVENTIONS)),
        "agreement_chance": (by_convention, stack(agreement_chance, CONVENTIONS)),
        "agreement_pooled": (by_system, stack(agreement_pooled, schema.SYSTEMS)),
        "simple": (by_system, simple),
        "simple_chance": (by_system, simple_chance),
    }
    names = [family() for family in HEAD_METRICS if family() in run]
    metrics |= {name: (("layer", "head"), read(name)) for name in names}
    # Identifiable image tokens in the last block, of those that exist after the edit.
    identifiable = read(schema.RANK("residual"))[:, -1] == 0
    label, prediction = read(schema.LABEL()), read(schema.PREDICTION())
    image = np.arange(run.config.tokens) >= run.config.prefix
    edited = np.empty((4, len(images), len(interventions)))
    for place, name in enumerate(interventions):
        ranks = read(schema.RANK_EDITED(name))
        member = (ranks >= 0) & image
        edited[:, :, place] = (
            over_tokens(identifiable, member),
            over_tokens(ranks == 0, member),
            prediction == label,
            read(schema.PREDICTION_EDITED(name)) == label,
        )
    names = ("before", "after", "correct_before", "correct_after")
    metrics |= {name: (("intervention",), e) for name, e in zip(names, edited)}
    return xr.Dataset({n: (("image", *dims), v) for n, (dims, v) in metrics.items()})


def entering(embedding: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """What entered each block: the embedding, then the stream after the one before."""
    return np.concatenate([embedding[:, None], residual[:, :-1]], axis=1)


def over_tokens(
    values: Bool[np.ndarray, "image ... token"] | Float[np.ndarray, "image ... token"],
    member: Bool[np.ndarray, "image_or_1 token"],
) -> Float[np.ndarray, "image ..."]:
    """Mean over member tokens; NaN where an image has none."""
    axes = tuple(range(1, values.ndim - 1))
    member = np.expand_dims(member, axes)
    total = np.where(member, values, 0).sum(-1)
    count = member.sum(-1).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / count


def composition_chance(
    after: Int[np.ndarray, "image layer token"],
    before: Int[np.ndarray, "image layer token"],
    attention: Int[np.ndarray, "image layer token"],
    mlp: Int[np.ndarray, "image layer token"],
) -> Float[np.ndarray, "image convention category layer"]:
    """The composition that is left where answers and sources are of different tokens.

    The exact mean over all pairs of tokens of an image, without a draw: what remains
    because the tokens of an image tend to the same classes. NaN where an image has a
    single token.
    """
    images, depth, tokens = after.shape
    total = tokens * (tokens - 1)
    classes = 1 + max(part.max(initial=0) for part in (after, before, attention, mlp))
    row = np.arange(images)[:, None]
    chance = np.zeros((images, len(CONVENTIONS), len(CATEGORIES), depth))
    for layer in range(depth):
        answer = after[:, layer]
        counts = np.zeros((images, classes), np.int64)
        np.add.at(counts, (row, answer), 1)
        p, a, m = sources = [source[:, layer] for source in (before, attention, mlp)]
        # How many other tokens of the image answer with each token's source.
        from_p, from_a, from_m = (counts[row, s] - (s == answer) for s in sources)
        several = np.where((p == a) | (p == m), from_p, np.where(a == m, from_a, 0))
        exclusive = [
            np.where((p == a) | (p == m), 0, from_p),
            np.where((p == a) | (a == m), 0, from_a),
            np.where((p == m) | (a == m), 0, from_m),
            several,
        ]
        either = from_p + np.where(p == a, 0, from_a)
        paper = [*exclusive, (tokens - 1) - sum(exclusive)]
        vilas2023 = [from_p, from_a, from_m, 0 * from_p, (tokens - 1) - either]
        for place, parts in enumerate((paper, vilas2023)):
            chance[:, place, :, layer] = np.stack(parts, 1).sum(-1)
    return chance / (total or np.nan)
