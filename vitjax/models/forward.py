"""The forward passes that analyses go through: block by block, and by gradient."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vitjax.models.backward_rules import Rules
from vitjax.models.edits import AttentionMasks, split_edits
from vitjax.models.model import Model
from vitjax.models.vit import Block, Tap
from vitjax.types import BLOCK_FIELDS, TRACE_FIELDS, ArrayLike, Edits, Trace

Read = Callable[..., Any]


def scan_blocks(
    model: Model,
    images: Float[ArrayLike, "batch height width channel"],
    read: Read,
    *,
    edits: Edits | None = None,
    state: Any = None,
) -> tuple[Float[Array, "batch class"], Any]:
    """Run the model and call `read` inside the scan over its blocks.

    Only what `read` returns is kept, stacked on a leading `layer` axis; arrays of the
    trace that it does not touch are never computed. This is how a question about a
    whole data set keeps memory small.

    Args:
        model: the model.
        images: preprocessed pixels.
        read: `read(block_params, stream_in, trace) -> pytree`, where `stream_in` is the
            stream entering the block, [batch token dim], and `trace` holds every field
            of that block without the layer axis. With `state`, it is instead
            `read(state, block_params, stream_in, trace) -> (state, pytree)`.
        edits: interventions.
        state: None, or `state(embedding) -> pytree`: what `read` is handed at block 0,
            made from the stream entering it.

    Returns:
        Class logits, and the pytree of `read` with a leading `layer` axis.
    """
    _, _, logits, reads = run_blocks(model, images, read, edits=edits, state=state)
    return logits, reads


def final_residual(
    model: Model,
    images: Float[ArrayLike, "batch height width channel"],
    *,
    edits: Edits | None = None,
) -> tuple[Float[Array, "batch class"], Float[Array, "batch token dim"]]:
    """Class logits and the stream after the last block; nothing of the others is kept.

    Args:
        model: the model.
        images: preprocessed pixels.
        edits: interventions.

    Returns:
        Both; the stream is as long as the edits leave it.
    """
    _, stream, logits, _ = run_blocks(model, images, read_nothing, edits=edits)
    return logits, stream


def read_nothing(params, stream_in, trace) -> tuple[()]:
    """A `read` for `scan_blocks` that keeps nothing."""
    return ()


def run_blocks(model: Model, images, read: Read, *, edits, state=None):
    """`scan_blocks`, with both ends: (embedding, last stream, class logits, reads)."""
    edits = Edits() if edits is None else edits
    images = model.check_images(images)
    embedding = model.apply(images, edits, method="embed")
    shared, layered = split_edits(edits, model.config)

    def step(carry, per_block):
        x, state_in = carry
        params, links = per_block
        x_out, trace = apply_block(model, params, x, (shared, links))
        if state is None:
            return (x_out, None), read(params, x, trace)
        state_out, out = read(state_in, params, x, trace)
        return (x_out, state_out), out

    start = (embedding, None if state is None else state(embedding))
    (x, _), reads = jax.lax.scan(step, start, (model.block_params, layered))
    return embedding, x, model.apply(x, edits, method="readout"), reads


def apply_block(
    model: Model,
    params: Any,
    x: Float[Array, "batch token dim"],
    links: tuple[AttentionMasks, ...],
    *,
    fields: Sequence[str] = BLOCK_FIELDS,
    perturbations: Any = None,
    rules: Rules = Rules(),
) -> tuple[Float[Array, "batch token dim"], Trace]:
    """One encoder block, and the fields of its trace that were asked for.

    `perturbations` are added at taps; `rules` say how it is differentiated.
    """
    variables = {"params": params}
    if perturbations is not None:
        variables["perturbations"] = perturbations
    (x, _), captured = Block(model.config, rules=rules).apply(
        variables,
        x,
        *links,
        capture_intermediates=lambda module, _: (
            isinstance(module, Tap) and module.name in fields
        ),
        mutable=["intermediates"],
    )
    return x, Trace(**tapped(captured.get("intermediates", {})))


def tapped(tree: Any) -> dict[str, Array]:
    """Flax's nested intermediates as {tap name: array}."""
    found = {}
    for name, value in tree.items():
        if name in BLOCK_FIELDS:
            (found[name],) = value["__call__"]
        else:
            found |= tapped(value)
    return found


def forward(
    model: Model,
    images: Float[ArrayLike, "batch height width channel"],
    *,
    capture: tuple[str, ...] = (),
    edits: Edits | None = None,
) -> tuple[Float[Array, "batch class"], Trace]:
    """Class logits, and the intermediates that were asked for.

    Args:
        model: the model.
        images: preprocessed pixels, as `model.preprocess` makes them.
        capture: names of `Trace` fields; static.
        edits: interventions.

    Returns:
        Class logits [batch class], and a `Trace` whose asked-for fields carry a leading
        `layer` axis (all but `embedding`); the others are None.

    Raises:
        ValueError: `capture` holds a name that is no field of `Trace`, or the images
            do not fit the model.
    """
    unknown = [name for name in capture if name not in TRACE_FIELDS]
    if unknown or isinstance(capture, str):
        raise ValueError(
            f"capture={capture!r} must be a tuple of names out of {TRACE_FIELDS}."
        )
    names = tuple(name for name in capture if name in BLOCK_FIELDS)

    def read(params, stream_in, trace):
        return {name: getattr(trace, name) for name in names}

    embedding, _, logits, fields = run_blocks(model, images, read, edits=edits)
    if "embedding" in capture:
        fields["embedding"] = embedding
    return logits, Trace(**fields)


def attention_gradients(
    model: Model,
    images: Float[ArrayLike, "batch height width channel"],
    scalar_fn: Callable[[Float[Array, "batch class"]], Float[Array, ""]],
    *,
    edits: Edits | None = None,
) -> Float[Array, "layer batch head token token"]:
    """Gradient of a scalar of the class logits with respect to attention weights.

    d scalar_fn(logits) / d A[layer, batch, head, query, key], where A are the weights
    after the softmax and after edits; taken through zeros added to every block's A in
    one backward pass through the whole model.

    Args:
        model: the model.
        images: preprocessed pixels.
        scalar_fn: class logits [batch class] to a scalar; static.
        edits: interventions.

    Returns:
        The gradient, 0 where a weight has no influence.
    """
    edits = Edits() if edits is None else edits
    images = model.check_images(images)
    links = split_edits(edits, model.config)
    x = model.apply(images, edits, method="embed")
    length = x.shape[1]
    cfg = model.config
    shape = (cfg.depth, x.shape[0], cfg.heads, length, length)

    def scalar(zeros):
        def step(x, per_block):
            params, layered, zero = per_block
            entry = {ATTENTION: {"attention_weights": {"value": zero}}}
            x, _ = apply_block(
                model, params, x, (links[0], layered), fields=(), perturbations=entry
            )
            return x, None

        out, _ = jax.lax.scan(step, x, (model.block_params, links[1], zeros))
        return scalar_fn(model.apply(out, edits, method="readout"))

    return jax.grad(scalar)(jnp.zeros(shape, x.dtype))


def refinement_logits(
    model: Model,
    images: Float[ArrayLike, "batch height width channel"],
    *,
    edits: Edits | None = None,
) -> Float[Array, "refined batch class"]:
    """Class logits of the token-refinement module of every block but the last.

    See `vitjax.models.refinement.Refinement` for the definition (Naseer et al. 2022).

    Args:
        model: with `Config(refinement=True)`, such as "vit_b16_refinement_heads".
        images: preprocessed pixels.
        edits: interventions on attention; none on which tokens exist, for a module
            sees the patches on their grid.

    Returns:
        Entry b stands for block b, 0-based; there are `depth - 1`.

    Raises:
        ValueError: the model has no refinement modules, or the edits remove tokens.
    """
    if not model.config.refinement:
        raise ValueError(
            "This model has no token-refinement modules; load one that has, such as "
            "'vit_b16_refinement_heads', or pass Config(refinement=True)."
        )
    if edits is not None and (edits.keep is not None or edits.select is not None):
        raise ValueError(
            "Token refinement needs every patch on its grid; Edits with keep or select "
            "do not combine with refinement_logits."
        )

    def read(index, params, stream_in, trace):
        return index + 1, refine_block(model, index, trace.residual)

    _, logits = scan_blocks(model, images, read, edits=edits, state=block_counter)
    return logits[:-1]


def block_counter(embedding: Float[Array, "batch token dim"]) -> Int[Array, ""]:
    """The number of the first block, as a state to count from."""
    return jnp.zeros((), jnp.int32)


def refine_block(
    model: Model, index: Int[Array, ""], stream: Float[Array, "batch token dim"]
) -> Float[Array, "batch class"]:
    """Class logits of the refinement module of a block; meaningless for the last."""
    index = jnp.minimum(index, model.config.depth - 2)
    params = jax.tree.map(lambda leaf: leaf[index], model.params["refinement"])
    return model.apply(params, stream, method="refine")


ATTENTION = "MultiHeadDotProductAttention_0"
