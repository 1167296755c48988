"""Metrics of sections 5 and 6 of the paper, image by image.

Tokens are averaged within an image first; later averages are over images. Blocks are
compared with what entered them, so that the first one counts as well; the paper's
figures begin at the second.
"""

from collections.abc import Callable

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int

from vitjax.analysis.residual_stream import residual_composition, similarity_change
from vitjax.recipes import schema
from vitjax.report.per_image import Run

UPDATES = ("attention_update", "mlp_update")
COMPARED = ("residual", *UPDATES, "mlp_update_vilas2023")
"""What class-similarity change compares: a stream with what its layer read; the
published code compares the MLP with the block's input."""

CATEGORIES = ("previous", "attention", "mlp", "several", "composed")
"""Where the top class after a block comes from: see `vitjax.residual_composition`."""

CONVENTIONS = {"paper": "paper", "vilas2023": "vilas2023_code"}
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

DIMS = {
    # Share of tokens whose class logit rises; mean of an update's minus its input's.
    "change": ("image", "compared", "tokens", "layer"),
    "gain": ("image", "update", "tokens", "layer"),
    # Share of all tokens; by chance, with the sources of every other token.
    "composition": ("image", "convention", "category", "layer"),
    "composition_chance": ("image", "convention", "category", "layer"),
    # Share of all tokens; of those that the head reads; with permuted classes.
    "agreement": ("image", "convention", "system", "layer"),
    "agreement_chance": ("image", "convention", "system", "layer"),
    "agreement_pooled": ("image", "system", "layer"),
    # Share of all tokens whose answer is that of one memory.
    "simple": ("image", "system", "layer"),
    "simple_chance": ("image", "system", "layer"),
    # Where the recipe's option `heads` is set.
    **{family(): ("image", "layer", "head") for family in HEAD_METRICS},
    # Identifiable image tokens in the last block, of those that exist after the edit.
    "before": ("image", "intervention"),
    "after": ("image", "intervention"),
    "correct_before": ("image", "intervention"),
    "correct_after": ("image", "intervention"),
    # Of the weights.
    "class_value": ("weights", "system", "layer", "class"),
    "class_value_head": ("layer", "head", "class"),
}
"""Variable -> its dimensions. NaN where an image has no such token."""

PaperMetrics = xr.Dataset
"""The variables of `DIMS`, with coordinates but for image, layer, head and class."""


def paper_metrics(run: Run) -> PaperMetrics:
    """The metrics of a run with rows of section 6 and at least one image."""
    interventions = [n for n in schema.INTERVENTIONS if schema.RANK_EDITED(n) in run]
    windows = [_window(run, images, interventions) for images in run.windows()]
    metrics = {
        name: np.concatenate([window[name] for window in windows])
        for name in windows[0]
    }

    def of_weights(control: str) -> list[np.ndarray]:
        family, keys = schema.CLASS_VALUE_CONTROL, (control,)
        if control == "trained":
            family, keys = schema.CLASS_VALUE, ()
        return [run.results[family(system, *keys)].values for system in schema.SYSTEMS]

    weights = ["trained", *schema.CONTROLS]
    metrics["class_value"] = np.stack([of_weights(control) for control in weights])
    metrics["class_value_head"] = run.results[schema.CLASS_VALUE_HEAD()].values
    coordinates = {
        "compared": COMPARED,
        "update": UPDATES,
        "tokens": run.tokens,
        "convention": CONVENTIONS,
        "category": CATEGORIES,
        "system": schema.SYSTEMS,
        "intervention": interventions,
        "weights": weights,
    }
    return xr.Dataset(
        {name: (DIMS[name], values) for name, values in metrics.items()},
        coords={name: list(labels) for name, labels in coordinates.items()},
    )


def _window(
    run: Run, images: Int[np.ndarray, " image"], interventions: list[str]
) -> dict[str, np.ndarray]:
    """Variable -> values of some images, of those that have an image axis."""

    def read(name: str) -> np.ndarray:
        return run.read(name, images)

    def stack(compute: Callable[..., np.ndarray], keys) -> np.ndarray:
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
        start, end = (logit[..., None] for logit in steps[compared])
        rises = np.asarray(similarity_change(start, end, 0))
        return stack(lambda m: over_tokens(rises, m).astype(np.float32), members)

    def gain(update: str) -> np.ndarray:
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

    pooled = run.members(run.pooled, images)

    def agreement_pooled(system: str) -> np.ndarray:
        hits = read(schema.AGREEMENT(system))
        return over_tokens(hits, pooled).astype(np.float32)

    metrics = {
        "change": stack(change, COMPARED),
        "gain": stack(gain, UPDATES),
        "composition": stack(composition, CONVENTIONS),
        "composition_chance": composition_chance(tops["residual"], *sources.values()),
        "agreement": stack(agreement, CONVENTIONS),
        "agreement_chance": stack(agreement_chance, CONVENTIONS),
        "agreement_pooled": stack(agreement_pooled, schema.SYSTEMS),
        "simple": stack(lambda s: read(schema.SIMPLE(s)).mean(-1), schema.SYSTEMS),
        "simple_chance": stack(lambda s: read(schema.CHANCE_SIMPLE(s)), schema.SYSTEMS),
    }
    for family in HEAD_METRICS:
        if family() in run:
            metrics[family()] = read(family())
    if interventions:
        image = np.arange(run.config.tokens) >= run.config.prefix
        label, prediction = read(schema.LABEL()), read(schema.PREDICTION())
        first = read(schema.RANK("residual"))[:, -1] == 0
        edited = [read(schema.RANK_EDITED(name)) for name in interventions]
        stays = [(ranks >= 0) & image for ranks in edited]
        predictions = [read(schema.PREDICTION_EDITED(name)) for name in interventions]
        metrics |= {
            "before": stack(lambda member: over_tokens(first, member), stays),
            "after": np.stack(
                [over_tokens(r == 0, m) for r, m in zip(edited, stays)], axis=1
            ),
            "correct_before": stack(lambda _: prediction == label, interventions),
            "correct_after": stack(lambda edited: edited == label, predictions),
        }
    return metrics


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
    classes = 1 + max(part.max(initial=0) for part in (after, before, attention, mlp))
    row = np.arange(images)[:, None]
    chance = np.zeros((images, len(CONVENTIONS), len(CATEGORIES), depth))
    for layer in range(depth):
        answer = after[:, layer]
        counts = np.bincount(
            (row * classes + answer).reshape(-1), minlength=images * classes
        ).reshape(images, classes)
        p, a, m = (source[:, layer] for source in (before, attention, mlp))
        # How many other tokens of the image answer with each token's source.
        from_p, from_a, from_m = (
            counts[row, source] - (source == answer) for source in (p, a, m)
        )
        same_pa, same_pm, same_am = p == a, p == m, a == m
        several = np.where(same_pa | same_pm, from_p, np.where(same_am, from_a, 0))
        paper = [
            np.where(same_pa | same_pm, 0, from_p),
            np.where(same_pa | same_am, 0, from_a),
            np.where(same_pm | same_am, 0, from_m),
            several,
        ]
        vilas2023 = [from_p, from_a, from_m, np.zeros_like(from_p)]
        either = from_p + np.where(same_pa, 0, from_a)
        for place, (parts, composed_of) in enumerate(
            ((paper, np.sum(paper, axis=0)), (vilas2023, either))
        ):
            pairs = [part.sum(-1) for part in parts]
            pairs.append(tokens * (tokens - 1) - composed_of.sum(-1))
            chance[:, place, :, layer] = np.stack(pairs, axis=1)
    return chance / (tokens * (tokens - 1) or np.nan)
