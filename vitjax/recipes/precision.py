"""The recipe `precision`: what another precision changes in every analysis.

The same batch goes through the model twice: in float32 with matrix products at the
highest precision, which is the reference, and in what it is compared with.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from vitjax.analysis.faithfulness import area_under_curve
from vitjax.models.forward import final_residual
from vitjax.models.model import Model
from vitjax.recipes import identifiability as base
from vitjax.recipes import paper, precision_metrics
from vitjax.recipes.faithfulness import ORDERS, kept_counts
from vitjax.recipes.memories import SYSTEMS
from vitjax.recipes.microbatch import microbatched
from vitjax.recipes.recipe import Prepared, Recipe
from vitjax.saliency.methods import METHODS, check_method, explain
from vitjax.saliency.removal import patch_order
from vitjax.types import Batch, Edits

AGAINST = ("bfloat16", "float32")
"""Compared with: the model in bfloat16, or in float32 with matrix products at JAX's own
default precision (TF32 on GPUs, bfloat16 factors on TPUs, nothing else on CPUs)."""

SLOW = ("integrated_gradients", "integrated_presence", "consensus", "occlusion")
QUICK = tuple(name for name in METHODS if name not in (*SLOW, "random"))
"""Methods that are compared unless others are asked for; "random" has no precision."""

SIDES = {"fine": "highest", "coarse": "default"}
"""The reference and what is compared with it: precision of their matrix products."""

EDITS = ("self_only", "no_cls")
STEPS = 5


@microbatched
def precision(
    model: Model,
    batch: Batch,
    aux: dict[str, Any],
    *,
    methods: tuple[str, ...],
    steps: int,
    against: str,
) -> dict[str, Array]:
    """What another precision changes, image by image.

    Memory is that of two passes of `paper.one_pass`, one after the other: class logits
    of one block at a time. Maps explain the label's class or, without a label, the one
    that float32 answers; patches are removed in the order of the first method's float32
    map.

    Args:
        model: the model, in float32.
        batch: images and labels.
        aux: of `prepare`.
        methods: names of `explain`, at least one.
        steps: of a removal curve.
        against: what float32 is compared with.

    Returns:
        The float32 rows of `identifiability`; and those of `comparing`: same_*, shares
        of equal answers, and shift_*, the other precision minus float32, of streams,
        changes, composition, memories, interventions, maps and removal curves
        (same_removal_ORDER [image step], shift_removal_ORDER [image], of areas).

    Raises:
        ValueError: the model is not in float32, or an option does not exist.
    """
    check_asked(model, methods, against)
    models = {"fine": model, "coarse": other(model, against)}

    def twice(function: Callable[[Model, Any], Any]) -> list[Any]:
        return [at_precision(k, function)(models[k], aux[k]) for k in SIDES]

    def one_pass(model, aux):
        rows = paper.one_pass(model, batch, aux, top=base.TOP, k=paper.K, heads=False)
        return rows | {"logits": final_residual(model, batch.images)[0]}

    fine, coarse = twice(one_pass)
    config, classes = model.config, model.num_classes
    rows = {name: fine[name] for name in base.DIMS if name in fine}
    rows |= precision_metrics.logit_rows(fine["logits"], coarse["logits"])
    rows |= precision_metrics.projection_rows(
        fine, coarse, classes=classes, config=config
    )
    rows |= precision_metrics.change_rows(fine, coarse, config=config)
    rows |= precision_metrics.composition_rows(fine, coarse)
    rows |= precision_metrics.memory_rows(fine, coarse)
    for name in EDITS:
        rows |= edit_rows(twice, batch, name)
    label = jnp.asarray(batch.label)
    target = jnp.where(label >= 0, label, fine["prediction"])
    order = None
    for name in methods:
        named: Any = name  # checked above
        maps = twice(lambda m, _, n=named: explain(m, batch.images, target, method=n))
        rows |= precision_metrics.map_rows(*maps, name=name)
        order = maps[0] if order is None else order
    answers = [fine["prediction"], coarse["prediction"]]
    return rows | removal_rows(twice, batch, order, answers, steps=steps, config=config)


def other(model: Model, against: str) -> Model:
    """The model that float32 is compared with."""
    return model.astype(jnp.bfloat16) if against == "bfloat16" else model


def at_precision(key: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose matrix products have the precision of one side."""

    def call(*arguments, **keywords):
        with jax.default_matmul_precision(SIDES[key]):
            return function(*arguments, **keywords)

    return call


def check_asked(model: Model, methods: tuple[str, ...], against: str) -> None:
    """Refuse a model in another dtype, and options that do not exist."""
    if model.dtype != jnp.float32:
        raise ValueError(
            f"The recipe 'precision' runs the model in float32 and compares by itself; "
            f"leave dtype at float32 instead of {model.dtype}."
        )
    if against not in AGAINST:
        raise ValueError(f"against={against!r} is one of {AGAINST}.")
    if not methods:
        raise ValueError("The recipe 'precision' needs at least one method of explain.")
    for method in methods:
        check_method(method)


def edit_rows(twice, batch: Batch, name: str) -> dict[str, Array]:
    """`rank_rows` of the last block under an intervention, and same_prediction_*."""

    def intervened(model, aux):
        edits = paper.INTERVENTIONS[name](model, batch, aux["key"])
        return None if edits is None else paper.intervene(model, batch, edits)

    fine, coarse = twice(lambda model, aux: (model, intervened(model, aux)))
    (model, ours), (_, theirs) = fine, coarse
    if ours is None:
        return {}
    sizes = {"classes": model.num_classes, "config": model.config}
    rows = precision_metrics.rank_rows(ours[0], theirs[0], name=name, **sizes)
    return rows | {f"same_prediction_{name}": ours[1] == theirs[1]}


def removal_rows(twice, batch: Batch, importance, answers, *, steps, config):
    """Answers with few patches, in the order of a float32 map, in both orders.

    Args:
        twice: runs a function in both precisions.
        batch: images and labels.
        importance: the map.
        answers: of either precision with all patches.
        steps: of a curve.
        config: the architecture.

    Returns:
        same_removal_ORDER [image step]; shift_removal_ORDER [image], of the area under
        the curve of right answers, from no patch to all.
    """
    counts, label = kept_counts(config.patches, steps), jnp.asarray(batch.label)
    none = Edits(keep=jnp.zeros((1, config.patches), bool))

    def answer(model, edits):
        logits, _ = final_residual(model, batch.images, edits=edits)
        return jnp.argmax(logits, -1).astype(jnp.int32)

    empty = twice(lambda model, _: answer(model, none))
    rows = {}
    for order in ORDERS:
        chosen = patch_order(importance, order)
        few = twice(lambda m, _, c=chosen: answers_with(answer, m, c, counts))
        rows[f"same_removal_{order}"] = few[0] == few[1]
        curves = [jnp.stack([a, *b.T, c], 1) for a, b, c in zip(empty, few, answers)]
        kept = (0, *counts, config.patches)
        areas = [
            area_under_curve(curve == label[:, None], kept, tokens=config.patches)
            for curve in curves
        ]
        rows[f"shift_removal_{order}"] = areas[1] - areas[0]
    return rows


def answers_with(
    answer, model: Model, order: Int[Array, "image patch"], counts: tuple[int, ...]
) -> Int[Array, "image step"]:
    """The answer with only the first patches of an order, really shorter sequences."""
    found = [answer(model, Edits(select=order[:, :count])) for count in counts]
    return jnp.stack(found, 1)


def prepare(
    model: Model,
    *,
    seed: int,
    methods: tuple[str, ...],
    steps: int,
    against: str,
) -> Prepared:
    """Memories in class space in both precisions, and what the weights alone say.

    Args:
        model: the model, in float32.
        seed: of what `paper.prepare` draws.
        methods: names of `explain`.
        steps: of a removal curve.
        against: what float32 is compared with.

    Returns:
        Two of `paper.prepare` for the steps; once: class_value_* [layer class],
        class-value agreement in float32, and shift_class_value_*, the other precision
        minus it; kept [step].

    Raises:
        ValueError: the model is not in float32, or an option does not exist.
    """
    check_asked(model, methods, against)
    models = {"fine": model, "coarse": other(model, against)}
    fine, coarse = (
        at_precision(key, paper.prepare)(models[key], seed=seed, k=paper.K)
        for key in SIDES
    )
    once: dict[str, Array] = {}
    for system in SYSTEMS:
        key = f"class_value_{system}"
        once |= {key: fine.once[key], f"shift_{key}": coarse.once[key] - fine.once[key]}
    counts = kept_counts(model.config.patches, steps)
    once["kept"] = jnp.asarray(counts, jnp.float32)
    return Prepared({"fine": fine.aux, "coarse": coarse.aux}, once)


def measure(model: Model, batch: Batch, *, against: str, **options: Any):
    """Images per second of a plain forward pass and of `identifiability`, both ways.

    Args:
        model: the model, placed.
        batch: of the run's size.
        against: what float32 is compared with.
        options: of the step, not used here.

    Returns:
        "images_per_second": program -> {"fine": float32, "coarse": the other}, at the
        median of five calls in turns.
    """
    programs: dict[str, Callable[..., Any]] = {
        "forward": lambda model, batch: final_residual(model, batch.images)[0],
        "identifiability": base.identifiability,
    }
    models = {"fine": model, "coarse": other(model, against)}
    found = {}
    for name, function in programs.items():
        compiled = {
            key: jax.jit(at_precision(key, function)).lower(m, batch).compile()
            for key, m in models.items()
        }
        laps: dict[str, list[float]] = {key: [] for key in models}
        for turn in range(6):
            for key, run in compiled.items():
                start = time.perf_counter()
                jax.block_until_ready(run(models[key], batch))
                laps[key] += [time.perf_counter() - start] * (turn > 0)
        size = len(batch.label)
        found[name] = {k: size / statistics.median(v) for k, v in laps.items()}
    return {"images_per_second": found}


RANKED = ("same_rank", "near_rank", "shift", "distance")

OF_TOKENS: dict[str, tuple[str, ...]] = {
    **{f"{kind}_{s}": ("layer", "kind") for s in base.STREAMS for kind in RANKED},
    **{
        f"{kind}_change_{name}": ("layer", "kind")
        for name in precision_metrics.CHANGES
        for kind in ("same", "shift")
    },
    **{f"{kind}_{name}": ("kind",) for name in EDITS for kind in RANKED},
    **{
        f"{kind}_{name}": ("layer",)
        for name in precision_metrics.MEMORIES
        if name.startswith("agreement")
        for kind in ("same", "shift")
    },
    **{f"shift_removal_{order}": () for order in ORDERS},
}
"""What is about the true class."""

OF_ANSWERS: dict[str, tuple[str, ...]] = {
    "same_prediction": (),
    "distance_logits": (),
    **{f"same_first_{stream}": ("layer", "kind") for stream in base.STREAMS},
    "same_composition": ("layer",),
    "shift_composition": ("layer", "category"),
    **{
        f"{kind}_simple_{system}": ("layer",)
        for system in SYSTEMS
        for kind in ("same", "shift")
    },
    **{f"same_prediction_{name}": () for name in EDITS},
    **{f"same_removal_{order}": ("step",) for order in ORDERS},
    **{
        f"{kind}_{name}": ()
        for name in METHODS
        for kind in ("pearson", "spearman", "overlap")
    },
}

PRECISION = Recipe(
    name="precision",
    step=precision,
    dims={**base.DIMS, **OF_TOKENS, **OF_ANSWERS},
    labelled=(*base.IDENTIFIABILITY.labelled, *OF_TOKENS),
    options={"methods": QUICK, "steps": STEPS, "against": "bfloat16"},
    prepare=prepare,
    once={
        "kept": ("step",),
        **{
            f"{shift}class_value_{system}": ("layer", "class")
            for system in SYSTEMS
            for shift in ("", "shift_")
        },
    },
    measure=measure,
)
