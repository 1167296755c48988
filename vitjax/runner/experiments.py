"""Recipes: what is asked of every image of a data set.

A recipe's step is `step(model, batch) -> {array name: rows}`, pure and traceable; every
array it returns has a leading image axis. The stream jits it once, and writes what it
returns for the images that are valid.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vitjax.analysis import readouts
from vitjax.analysis.projection import rank, take_label, top_k
from vitjax.models.capture import first_block, refine_block, scan_blocks
from vitjax.models.model import Model
from vitjax.models.vit import pool
from vitjax.types import Batch, Edits

STREAMS = ("residual", "attention_update", "mlp_update")
TOP = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """A question asked of every image.

    Args:
        name: what it is called on the command line.
        step: `step(model, batch, **options) -> {array name: rows}`.
        dims: for every array that the step may return, the names of its axes after
            `image`.
        labelled: arrays that mean nothing for an image without a known class; the
            stream leaves them unwritten there.
        options: keywords of the step, recorded in the manifest.
    """

    name: str
    step: Callable[..., dict[str, Array]]
    dims: Mapping[str, tuple[str, ...]]
    labelled: tuple[str, ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def identifiability(
    model: Model, batch: Batch, *, top: int = TOP
) -> dict[str, jax.Array]:
    """Where the true class stands in every token's class logits, block by block.

    For the stream after each block and for what attention and MLP add to it: the rank
    and the logit of the true class among `project(model.class_space, state)`. The
    stream's class logits are carried through the blocks: see `analysis.readouts`.

    Args:
        model: the model.
        batch: images and labels.
        top: how many classes of the readout state ([CLS] or the pooled tokens) to keep.

    Returns:
        rank_* int [image layer token] and logit_* [image layer token] for each of
        residual, attention_update, mlp_update; top_classes and top_logits
        [image layer top]; prediction [image]. With refinement modules also rank_refined
        and logit_refined [image refined], their answer after every block but the last.
    """
    space = readouts.readout(model.class_space)
    label = jnp.maximum(batch.label, 0)
    k = min(top, model.num_classes)

    def embed(embedding):
        return readouts.product(space, embedding), first_block(embedding)

    def read(state, params, stream_in, trace):
        before, index = state
        updates = {name: getattr(trace, name) for name in STREAMS[1:]}
        products = {name: readouts.product(space, x) for name, x in updates.items()}
        after = before + products["attention_update"] + products["mlp_update"]
        states = {"residual": trace.residual} | updates
        rows = {}
        for name, product in ({"residual": after} | products).items():
            place, logit = readouts.rank_and_logit(space, product, states[name], label)
            rows |= {f"rank_{name}": place, f"logit_{name}": logit}
        best = top_k(readouts.logits(space, *pooled(after, trace.residual)), k=k)
        rows |= {"top_classes": best.classes, "top_logits": best.logits}
        if model.config.refinement:
            refined = refine_block(model, index, trace.residual)
            rows["rank_refined"] = rank(refined, label)
            rows["logit_refined"] = take_label(refined, label)
        return (after, index + 1), rows

    def pooled(*states):
        return [pool(state, Edits(), model.config) for state in states]

    logits, rows = scan_blocks(model, batch.images, read, state=embed)
    rows = {name: jnp.moveaxis(values, 0, 1) for name, values in rows.items()}
    for name in set(REFINED) & set(rows):
        rows[name] = rows[name][:, :-1]
    return rows | {"prediction": jnp.argmax(logits, -1).astype(jnp.int32)}


PER_TOKEN = {
    f"{kind}_{stream}": ("layer", "token")
    for stream in STREAMS
    for kind in ("rank", "logit")
}

REFINED = {name: ("refined",) for name in ("rank_refined", "logit_refined")}

RECIPES = {
    "identifiability": Recipe(
        name="identifiability",
        step=identifiability,
        dims={
            **PER_TOKEN,
            **REFINED,
            "top_classes": ("layer", "top"),
            "top_logits": ("layer", "top"),
            "prediction": (),
        },
        labelled=(*PER_TOKEN, *REFINED),
        options={"top": TOP},
    )
}


def find_recipe(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in RECIPES:
        raise ValueError(f"There is no recipe {name!r}; known: {', '.join(RECIPES)}.")
    return RECIPES[name]
