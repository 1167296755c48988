"""Faithfulness of explanation maps: token removal, pixel perturbation, segmentation.

Protocols, by name:

- `vilas_removal` (Vilas et al. 2023, section 7): patches are removed after position
  embedding, least important first (negative) or most important first (positive). Of
  the same passes: insertion and deletion, the probability of the explained class.
- `chefer_perturbation` (Chefer et al. 2021, section 4.2): pixels are blackened in steps
  of a tenth of the image, by the map enlarged bilinearly, in both orders.
- `saco` (Wu et al. 2024): whether more salient tenths of the patches matter more, each
  replaced by the image's mean color.
- `segmentation` (Chefer et al. 2021): the map as a mask of the object, at the
  resolution of patches, where the data has masks.
"""

import dataclasses
import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vitjax.analysis.class_space import take_label
from vitjax.analysis.faithfulness import localisation, saco, salience_groups
from vitjax.data.images import Preprocess
from vitjax.messages import check_range
from vitjax.models.forward import final_residual
from vitjax.models.model import Model
from vitjax.recipes import identifiability as base
from vitjax.recipes import schema
from vitjax.recipes.recipe import Recipe, Setup, median_seconds
from vitjax.saliency import lrp
from vitjax.saliency.methods import explain, explain_by_all
from vitjax.saliency.removal import is_largest, read_removal
from vitjax.types import Batch, Edits

Protocol = Literal["vilas_removal", "chefer_perturbation", "saco", "segmentation"]
LEVELS = 10
GROUPS = 10
"""Of patches, of `saco`."""
TIMED = 4
"""Images in a timed call, on CPUs."""
LRP = {"lrp", "attnlrp", "libragrad", "half_libragrad"}


def faithfulness(
    model: Model,
    batch: Batch,
    carry: Any,
    *,
    methods: tuple[Any, ...],
    protocols: tuple[str, ...],
    steps: int,
    target: Literal["label", "predicted"],
) -> dict[str, Array]:
    """Compute the map of every method, and put it to the test by every protocol.

    `carry` is the seed of the method "random": an order of its own for every image.
    There are no rows of segmentation where the batch has no masks.
    """
    rows = base.identifiability(model, batch)
    methods = applicable(methods, model)
    label = jnp.maximum(batch.label, 0)
    explained = rows["prediction"] if target == "predicted" else label
    maps = explain_by_all(model, batch.images, explained, methods, seed=carry)
    rows |= {schema.MAP(name): maps[name] for name in methods}
    stacked = jnp.stack([maps[name] for name in methods])
    # The negative order removes the least important first, the positive the contrary.
    both = jnp.concatenate([stacked, -stacked])
    names = [(order, name) for order in schema.ORDERS for name in methods]
    if "vilas_removal" in protocols:
        counts = kept_counts(model.config.patches, steps)

        def read(logits):
            shares = probability(model, logits, explained)
            return is_largest(logits, label), shares

        correct, shares = removal_curves(model, batch, both, counts, read)
        rows |= {schema.REMOVAL(*key): row for key, row in zip(names, correct)}
        rows |= {schema.PROBABILITY(*key): row for key, row in zip(names, shares)}
        none = Edits(keep=jnp.zeros((1, model.config.patches), bool))
        for end, edits in (("whole", None), ("empty", none)):
            logits, _ = final_residual(model, batch.images, edits=edits)
            rows[schema.PROBABILITY_ENDS(end)] = probability(model, logits, explained)
        rows["prediction_empty"] = jnp.argmax(logits, -1).astype(jnp.int32)
    if "chefer_perturbation" in protocols:
        correct = perturbation_curves(model, batch, both, label)
        rows |= {schema.PIXELS(*key): row for key, row in zip(names, correct)}
    if "saco" in protocols:
        values = saco_of_maps(model, batch, stacked, explained)
        rows |= {schema.SACO(name): row for name, row in zip(methods, values)}
    if "segmentation" in protocols and batch.patch_label is not None:
        kind = jnp.asarray(batch.patch_label)
        for name in methods:
            measures = localisation(maps[name], kind == 1, where=kind >= 0)
            rows |= {
                schema.SEGMENTATION(measure, name): measures[measure]
                for measure in schema.MEASURES
            }
    return rows


def applicable(methods: tuple[Any, ...], model: Model) -> tuple[Any, ...]:
    """The methods that have rules for the model's head; ValueError if none has."""
    reason = lrp.no_rules(model.config)
    chosen = tuple(m for m in methods if not (reason and m in LRP))
    if not chosen:
        raise ValueError(reason)
    return chosen


def kept_counts(patches: int, steps: int) -> tuple[int, ...]:
    """How many patches each step of a curve keeps: `steps` equal parts of the way.

    Increasing; 0 and `patches` are left out, being the same for every order.
    """
    counts = np.unique(np.round(np.linspace(0, patches, min(steps, patches) + 1)))
    return tuple(int(count) for count in counts if 0 < count < patches)


def removal_curves(model, batch, maps, counts, read):
    """`read_removal` of every map, [map image step], by one program."""

    def curve(importance):
        return read_removal(model, batch.images, importance, read, keep_counts=counts)

    return jax.lax.map(curve, maps)


def probability(model: Model, logits, target) -> Float[Array, " image"]:
    """The target's probability."""
    return take_label(model.class_space.probabilities(logits), target)


def saco_of_maps(model, batch, maps, target) -> Float[Array, "map image"]:
    """`analysis.faithfulness.saco` of every map, its groups taken out of the pixels."""
    images = model.check_images(batch.images)
    mean = images.mean((1, 2), keepdims=True)
    (height, width), config = images.shape[1:3], model.config
    rows, columns = (np.arange(n) // config.patch_size for n in (height, width))
    patch = np.minimum(rows, config.grid[0] - 1)[:, None] * config.grid[1]
    patch = patch + np.minimum(columns, config.grid[1] - 1)[None]  # of each pixel
    whole = probability(model, final_residual(model, images)[0], target)

    def of_map(values):
        group = salience_groups(values, GROUPS)

        def without(number):
            gone = (group == number)[:, patch, None]
            logits, _ = final_residual(model, jnp.where(gone, mean, images))
            members = (group == number).astype(values.dtype)
            salience = (values * members).sum(1) / jnp.maximum(members.sum(1), 1)
            return salience, whole - probability(model, logits, target)

        salience, drop = jax.lax.map(without, jnp.arange(GROUPS))
        return saco(salience.T, drop.T)

    return jax.lax.map(of_map, maps)


def perturbation_curves(model, batch, maps, label) -> Bool[Array, "map image level"]:
    """Whether the prediction is right with 10, 20 ... 90 % of the pixels black."""
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
    """A black pixel after normalization; -1 for a model without preprocessing."""
    preprocess = model.preprocess or Preprocess(*model.config.shape)
    return jnp.asarray(preprocess.normalize(np.zeros((1, 1, 1, 3), np.uint8)), dtype)


def setup(model: Model, *, seed: int, steps: int, **options: Any) -> Setup:
    """The seed for the steps, and how many patches removal curves keep."""
    counts = kept_counts(model.config.patches, steps)
    return Setup(jnp.int32(seed), {"kept": jnp.asarray(counts, jnp.float32)})


def benchmark(
    model: Model, batch: Batch, *, methods: tuple[Any, ...], **options: Any
) -> dict[str, Any]:
    """Images per second of every method by itself and of a plain forward pass,
    compiled: the median of three calls; and each method's cost in forward passes.
    """
    target, speeds = jnp.maximum(jnp.asarray(batch.label), 0), {}
    few = slice(TIMED if jax.default_backend() == "cpu" else None)

    def call(name: Any, model, images, target):
        images, target = images[few], target[few]
        if name == "forward":
            return take_label(final_residual(model, images)[0], target)
        return explain(model, images, target, method=name)

    for name in ("forward", *applicable(methods, model)):
        function = functools.partial(call, name)
        seconds = median_seconds(function, model, batch.images, target)
        speeds[name] = len(range(len(target))[few]) / seconds
    passes = {name: speeds["forward"] / speed for name, speed in speeds.items()}
    return {"images_per_second": speeds, "passes": passes}


@dataclasses.dataclass(frozen=True)
class FaithfulnessOptions:
    """Options of `faithfulness`.

    Args:
        methods: explanation methods to put to the test; those of layer-wise relevance
            propagation are left out where they have no rules for the model's head.
        protocols: by which; segmentation needs a data set with masks.
        steps: points of a removal curve: equal parts of the way from all patches to
            none.
        target: whose class is explained: the label's, or the predicted one.
    """

    methods: tuple[schema.Method, ...] = tuple(schema.METHODS)
    protocols: tuple[Protocol, ...] = get_args(Protocol)
    steps: int = 20
    target: Literal["label", "predicted"] = "label"

    def __post_init__(self):
        if not self.methods or not self.protocols:
            raise ValueError(
                f"methods={self.methods} and protocols={self.protocols} must hold at "
                "least one name each."
            )
        check_range("steps", self.steps, 2)


FAITHFULNESS = Recipe(
    name="faithfulness",
    step=faithfulness,
    **schema.rows(*base.FAMILIES, *schema.between(schema.MAP, schema.KEPT)),
    options=FaithfulnessOptions(),
    setup=setup,
    benchmark=benchmark,
    many_passes=True,
)
