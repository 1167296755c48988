"""The recipe `faithfulness`: maps of several methods, put to the test on one data set.

Protocols, by name:

- `vilas_removal` (Vilas et al. 2023, section 7): patches are removed after position
  embedding, least important first (negative) or most important first (positive).
- `chefer_perturbation` (Chefer et al. 2021, section 4.2): pixels are blackened in steps
  of a tenth of the picture, by the map enlarged bilinearly, in both orders.
- `segmentation` (the same): the map as a mask of the object, at the resolution of
  patches, where the data has masks.
"""

import time
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vitjax.analysis.class_space import take_label
from vitjax.analysis.faithfulness import localisation
from vitjax.models.forward import final_residual
from vitjax.models.model import Model
from vitjax.recipes import identifiability as base
from vitjax.recipes.recipe import Prepared, Recipe
from vitjax.saliency.methods import METHODS, check_method, explain
from vitjax.saliency.removal import removal_curve
from vitjax.types import Batch, Edits

Protocol = Literal["vilas_removal", "chefer_perturbation", "segmentation"]
PROTOCOLS: tuple[str, ...] = get_args(Protocol)
ORDERS = ("negative", "positive")
MEASURES = (
    *("pixel_accuracy", "mean_iou", "average_precision", "average_precision_both"),
    *("true_positives", "false_positives", "false_negatives", "true_negatives"),
)
IMPORTANCES = tuple(name for name in METHODS if name != "helpful_minus_attended")
"""Methods whose maps say how important a patch is."""

LEVELS = 10
STEPS = 20


def kept_counts(patches: int, steps: int) -> tuple[int, ...]:
    """How many patches each step of a curve keeps, between none and all.

    Args:
        patches: how many there are.
        steps: equal parts of the way from all to none; `patches` for every count.

    Returns:
        Increasing, 0 and `patches` left out: they are the same for every order.

    Raises:
        ValueError: fewer than two steps.
    """
    if steps < 2:
        raise ValueError(f"steps is {steps}; a curve needs at least 2.")
    counts = np.unique(np.round(np.linspace(0, patches, min(steps, patches) + 1)))
    return tuple(int(count) for count in counts if 0 < count < patches)


def faithfulness(
    model: Model,
    batch: Batch,
    aux: Any,
    *,
    methods: tuple[str, ...],
    protocols: tuple[str, ...],
    steps: int,
    target: Literal["label", "predicted"],
) -> dict[str, Array]:
    """Maps of every method, and what each protocol says about them.

    Args:
        model: the model.
        batch: images and labels.
        aux: the seed of the method "random": an order of its own for every picture.
        methods: names of `explain`.
        protocols: names out of `PROTOCOLS`.
        steps: of a removal curve.
        target: whose class is explained: the label, or the model's answer.

    Returns:
        map_METHOD [image patch]; removal_ORDER_METHOD [image step], whether the answer
        is right with `kept` patches; pixels_ORDER_METHOD [image level], with a tenth
        and more of the pixels black; MEASURE_METHOD [image]; prediction_empty [image],
        the answer without any patch; and the rows of `identifiability`.

    Raises:
        ValueError: an unknown method or protocol.
    """
    check_names(methods, protocols)
    rows = base.identifiability(model, batch)
    label = jnp.maximum(batch.label, 0)
    asked = rows["prediction"] if target == "predicted" else label
    named: Any = methods  # checked above
    maps = {
        name: explain(model, batch.images, asked, method=name, seed=aux)
        for name in named
    }
    rows |= {f"map_{name}": maps[name] for name in methods}
    stacked = jnp.stack([maps[name] for name in methods])
    # In the negative order the least important go first, in the other the contrary.
    both = jnp.concatenate([stacked, -stacked])
    names = [f"{order}_{name}" for order in ORDERS for name in methods]
    if "vilas_removal" in protocols:
        counts = kept_counts(model.config.patches, steps)
        right = removal_rows(model, batch, both, counts, label)
        rows |= {f"removal_{name}": row for name, row in zip(names, right)}
        none = Edits(keep=jnp.zeros((1, model.config.patches), bool))
        empty, _ = final_residual(model, batch.images, edits=none)
        rows["prediction_empty"] = jnp.argmax(empty, -1).astype(jnp.int32)
    if "chefer_perturbation" in protocols:
        right = perturbation_rows(model, batch, both, label)
        rows |= {f"pixels_{name}": row for name, row in zip(names, right)}
    if "segmentation" in protocols and batch.patch_label is not None:
        kind = jnp.asarray(batch.patch_label)
        for name in methods:
            found = localisation(maps[name], kind == 1, where=kind >= 0)
            rows |= {f"{measure}_{name}": found[measure] for measure in MEASURES}
    return rows


def check_names(methods, protocols) -> None:
    """Refuse methods and protocols that do not exist."""
    for method in methods:
        check_method(method)
        if method not in IMPORTANCES:
            raise ValueError(
                f"{method!r} says what a model neglects, not how important a patch is; "
                "no protocol tests that."
            )
    unknown = [name for name in protocols if name not in PROTOCOLS]
    if unknown or not methods or not protocols:
        raise ValueError(
            f"protocols={tuple(protocols)} must be out of {', '.join(PROTOCOLS)}, and "
            "there must be at least one method."
        )


def removal_rows(model, batch, maps, counts, label) -> Bool[Array, "map image step"]:
    """One removal curve per map, by one program."""

    def curve(importance):
        return removal_curve(model, batch.images, label, importance, keep_counts=counts)

    return jax.lax.map(curve, maps)


def perturbation_rows(model, batch, maps, label) -> Bool[Array, "map image level"]:
    """Whether the answer is right with 10, 20 ... 90 % of the pixels black."""
    images = model.check_images(batch.images)
    height, width = images.shape[1:3]
    black = black_level(model, images.dtype)
    levels = jnp.arange(1, LEVELS) * (height * width) // LEVELS

    def of_map(values):
        place = pixel_order(values, model.config.grid, (height, width))

        def at(removed):
            gone = (place < removed)[..., None]
            logits, _ = final_residual(model, jnp.where(gone, black, images))
            return jnp.argmax(logits, -1) == label

        return jax.lax.map(at, levels).T

    return jax.lax.map(of_map, maps)


def pixel_order(
    values: Float[Array, "image patch"], grid: tuple[int, int], shape: tuple[int, int]
):
    """When each pixel goes, the least important first; the map enlarged bilinearly."""
    batch = values.shape[0]
    enlarged = jax.image.resize(
        values.reshape(batch, *grid), (batch, *shape), method="bilinear"
    )
    order = jnp.argsort(enlarged.reshape(batch, -1), axis=1, stable=True)
    return jnp.argsort(order, axis=1).reshape(batch, *shape)


def black_level(model: Model, dtype: Any) -> Float[Array, "one one one channel"]:
    """What a black pixel is after normalisation; -1 for a model without its own."""
    known = model.preprocess
    mean, std = (0.5, 0.5) if known is None else (known.mean, known.std)
    level = np.broadcast_to(-np.asarray(mean) / np.asarray(std), (3,))
    return jnp.asarray(level, dtype).reshape(1, 1, 1, 3)


def prepare(model: Model, *, seed: int, steps: int, **options: Any) -> Prepared:
    """The counts that removal curves keep, and the seed.

    Args:
        model: the model.
        seed: of the method "random".
        steps: of a curve.
        options: of the step, not used here.

    Returns:
        The seed for the steps; once: kept [step].
    """
    counts = kept_counts(model.config.patches, steps)
    return Prepared(jnp.int32(seed), {"kept": jnp.asarray(counts, jnp.float32)})


def measure(
    model: Model, batch: Batch, *, methods: tuple[str, ...], **options: Any
) -> dict[str, Any]:
    """Images per second of every method, compiled, at the batch size of the run.

    Args:
        model: the model, placed.
        batch: of the run's size.
        methods: names of `explain`.
        options: of the step, not used here.

    Returns:
        "images_per_second": method -> the median of three calls; "forward" is a plain
        forward pass.
    """
    target = jnp.maximum(jnp.asarray(batch.label), 0)

    def plain(model, images, target):
        return take_label(final_residual(model, images)[0], target)

    def of_method(name: Any):
        return lambda model, images, target: explain(model, images, target, method=name)

    programs = {"forward": plain} | {name: of_method(name) for name in methods}
    found = {}
    for name, function in programs.items():
        compiled = jax.jit(function).lower(model, batch.images, target).compile()
        jax.block_until_ready(compiled(model, batch.images, target))
        laps = []
        for _ in range(3):
            start = time.perf_counter()
            jax.block_until_ready(compiled(model, batch.images, target))
            laps.append(time.perf_counter() - start)
        found[name] = len(target) / sorted(laps)[1]
    return {"images_per_second": found}


TESTED: dict[str, tuple[str, ...]] = {
    **{f"map_{name}": ("patch",) for name in IMPORTANCES},
    **{f"removal_{o}_{name}": ("step",) for o in ORDERS for name in IMPORTANCES},
    **{f"pixels_{o}_{name}": ("level",) for o in ORDERS for name in IMPORTANCES},
    **{f"{measure}_{name}": () for measure in MEASURES for name in IMPORTANCES},
}

FAITHFULNESS = Recipe(
    name="faithfulness",
    step=faithfulness,
    dims={**base.DIMS, **TESTED, "prediction_empty": ()},
    labelled=(*base.IDENTIFIABILITY.labelled, *TESTED),
    options={
        "methods": IMPORTANCES,
        "protocols": PROTOCOLS,
        "steps": STEPS,
        "target": "label",
    },
    prepare=prepare,
    once={"kept": ("step",)},
    measure=measure,
)
