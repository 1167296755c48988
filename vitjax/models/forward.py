"""Forward passes, block by block: captured intermediates and gradients of attention."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vitjax.checks import checked
from vitjax.models.backward_rules import Rules, cached_mlp
from vitjax.models.edits import BlockEdits, join_taps, split_edits
from vitjax.models.layers import Block, Tap
from vitjax.models.model import Model
from vitjax.types import (
    BLOCK_FIELDS,
    TRACE_FIELDS,
    ArrayLike,
    Config,
    Edits,
    TapEdit,
    Trace,
)

Read = Callable[..., Any]
Offsets = Mapping[str, Float[Array, "..."]]


@checked
def scan_blocks(
    model: Model,
    images: Float[ArrayLike, "batch height width channel"],
    read: Read,
    *,
    edits: Edits | None = None,
    state: Any = None,
    args: Any = None,
) -> tuple[Float[Array, "batch class"], Any]:
    """Run the model and call `read` inside the scan over its blocks.

    Only what `read` returns is kept, stacked on a leading `layer` axis; arrays of the
    trace that it does not use are never computed, so that memory stays small. This
    function is not compiled, since it takes a function of yours: put it into your own
    `jax.jit`, and pass what changes from call to call, such as labels, as `args`.

    Args:
        model, images: the model, and preprocessed pixels.
        read: `read(block_params, stream_in, trace) -> pytree`, where `stream_in` is the
            residual stream entering the block, [batch token dim], and `trace` holds
            every field of that block without the layer axis. With `state`, it is
            instead `read(state, block_params, stream_in, trace) -> (state, pytree)`;
            with `args`, these are its last argument.
        edits: interventions.
        state: None, or `state(embedding) -> pytree`: the state at block 0, made from
            the residual stream entering it.
        args: None, or a pytree of data for `read`.

    Returns:
        Class logits, and the pytree of `read` with a leading `layer` axis.

    Example:
        >>> def norms(block_params, stream_in, trace):
        ...     return jnp.linalg.norm(trace.residual, axis=-1)
        >>> _, lengths = vitjax.scan_blocks(model, images, norms)  # [layer batch token]
    """
    _, _, logits, reads = run_blocks(
        model, images, read, edits=edits, state=state, args=args
    )
    return logits, reads


def final_residual(
    model: Model, images, *, edits: Edits | None = None
) -> tuple[Float[Array, "batch class"], Float[Array, "batch token dim"]]:
    """Class logits and the residual stream after the last block."""
    _, x, logits, _ = run_blocks(model, images, read_nothing, edits=edits)
    return logits, x


def read_nothing(params, stream_in, trace) -> tuple[()]:
    """A `read` that keeps nothing."""
    return ()


def run_blocks(model: Model, images, read: Read, *, edits, **options: Any):
    """(embedding, final residual stream, class logits, reads); of `scan_forward`."""
    edits = edits or Edits()
    images = model.check_images(images)
    embedding = model.apply(images, edits, method="embed")
    x, tokens, reads = scan_forward(model, embedding, read, edits=edits, **options)
    return embedding, x, model.apply(x, edits, tokens, method="unembed"), reads


class BlockContext(NamedTuple):
    """A block's edits, and the third argument of `unembed` after it, or None."""

    edits: tuple[BlockEdits, ...]
    class_tokens: Float[Array, "layer batch dim"] | None


def scan_forward(
    model: Model,
    embedding: Float[Array, "batch token dim"],
    read: Read,
    *,
    edits: Edits,
    state: Any = None,
    args: Any = None,
    offsets: Offsets | None = None,
    rules: Rules = Rules(),
    checkpoint: bool = False,
    pass_context: bool = False,
):
    """The loop over blocks, from what enters block 0: (final residual stream, [CLS]
    after the last of them where `unembed` reads it, reads).

    `offsets` are added to the running sequence's fields, after edits; `rules` say how
    blocks are differentiated; with `checkpoint`, only their inputs are kept for that.
    With `pass_context`, the last argument of `read` is the `BlockContext`.
    """
    shared, layered = split_edits(edits, model.config)

    def step(carry, per_block):
        x, tokens, state_in = carry
        params, of_block, offset = per_block
        block_edits = shared, of_block
        x_out, trace = apply_block(
            model, params, x, block_edits, offsets=offset, rules=rules
        )
        if tokens is not None:
            tokens = jnp.concatenate([tokens[1:], x_out[None, :, 0]])
        extra = (args,) if args is not None else ()
        extra += (BlockContext(block_edits, tokens),) if pass_context else ()
        if state is None:
            return (x_out, tokens, None), read(params, x, trace, *extra)
        state_out, out = read(state_in, params, x, trace, *extra)
        return (x_out, tokens, state_out), out

    if checkpoint:  # the scan is its own barrier against common subexpressions
        step = jax.checkpoint(step, prevent_cse=False)
    tokens, blocks = None, model.config.head_blocks
    if blocks > 1:  # before there are as many blocks, what enters block 0
        tokens = jnp.tile(embedding[None, :, 0], (blocks, 1, 1))
    start = (embedding, tokens, None if state is None else state(embedding))
    per_block = (model.block_params, layered, offsets)
    (x, tokens, _), reads = jax.lax.scan(step, start, per_block)
    return x, tokens, reads


def apply_block(
    model: Model,
    params: Any,
    x: Float[Array, "batch token dim"],
    edits: tuple[BlockEdits, ...],
    *,
    offsets: Offsets | None = None,
    rules: Rules = Rules(),
    mixed: Float[Array, "batch token head key"] | None = None,
) -> tuple[Float[Array, "batch token dim"], Trace]:
    """One encoder block: the residual stream after it, and its trace.

    With `mixed`, the values mixed by attention, the block is a function of each token
    by itself, and x may hold only some of them. `offsets` are added to its fields.
    """
    if offsets:
        taps = join_taps(*edits)
        for field, offset in offsets.items():
            taps[field] = taps.get(field, TapEdit()).then(TapEdit(add=offset))
        masks = [each._replace(taps={}) for each in edits] or [BlockEdits()]
        masks[0] = masks[0]._replace(taps={n: vars(tap) for n, tap in taps.items()})
        edits = tuple(masks)
    (x, _), captured = Block(model.config, rules=rules).apply(
        {"params": params},
        x,
        *edits,
        mixed=mixed,
        capture_intermediates=lambda module, _: isinstance(module, Tap),
        mutable=["intermediates"],
    )
    return x, Trace(**tapped(captured["intermediates"]))


def resume_forward(
    model: Model,
    streams: Float[Array, "layer batch token dim"],
    start: Int[ArrayLike, ""] | int,
    *,
    edits: Edits = Edits(),
) -> Float[Array, "batch class"]:
    """Class logits of an edited pass, run from block `start` on.

    `streams` enter the blocks of the same pass without these edits, which must leave
    earlier blocks alone. `start` may be traced: passes of any length are one program.
    """
    shared, layered = split_edits(edits, model.config)

    def step(index, carry):
        x, tokens = carry
        params, of_block = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False),
            (model.block_params, layered),
        )
        x, _ = apply_block(model, params, x, (shared, of_block))
        return x, None if tokens is None else tokens.at[index].set(x[:, 0])

    x = jax.lax.dynamic_index_in_dim(streams, start, keepdims=False)
    tokens = class_tokens(model.config, streams, streams[-1])
    x, tokens = jax.lax.fori_loop(start, model.config.depth, step, (x, tokens))
    return model.apply(x, edits, tokens, method="unembed")


def class_tokens(
    config: Config, streams: Float[Array, "layer batch token dim"], x
) -> Float[Array, "layer batch dim"] | None:
    """[CLS] after every block, where the head reads it; `x` leaves the last block."""
    if config.head_blocks == 1:
        return None
    return jnp.concatenate([streams[1:], x[None]])[:, :, 0]


def after_attention(
    model: Model,
    mixed: Any,
    params: Any,
    stream_in: Any,
    trace: Trace,
    context: BlockContext,
    rows: slice = slice(None),
) -> tuple[Float[Array, "batch row dim"], Trace]:
    """A block at some rows as a function of the values mixed there, before their tap.

    The others are what `read` is given of the whole block, whose MLP need not be
    multiplied by again where no tap edits what is known of it.
    """
    edited = {field for each in context.edits for field in each.taps}
    known = not edited & {"mlp_preactivation", "mlp_update"}
    return apply_block(
        model,
        params,
        stream_in[:, rows],
        tuple(each.at_rows(rows) for each in context.edits),
        mixed=mixed,
        rules=cached_mlp(model.config, trace, rows) if known else Rules(),
    )


def tapped(tree: Any) -> dict[str, Array]:
    """Flax's nested intermediates as {tap name: array}."""
    arrays = {}
    for name, value in tree.items():
        if name in BLOCK_FIELDS:
            (arrays[name],) = value["__call__"]
        else:
            arrays |= tapped(value)
    return arrays


def forward(
    model: Model,
    images: Float[ArrayLike, "batch height width channel"],
    *,
    capture: tuple[str, ...] = (),
    edits: Edits | None = None,
) -> tuple[Float[Array, "batch class"], Trace]:
    """Class logits, and the intermediates named in `capture`.

    Args:
        model, images: the model, and pixels as `model.preprocess` makes them.
        capture: names of `Trace` fields; static.
        edits: interventions.

    Returns:
        Class logits [batch class], and a `Trace` whose captured fields carry a leading
        `layer` axis (all but `embedding`); the others are None.

    Raises:
        ValueError: `capture` holds a name that is no field of `Trace`, or the images
            do not fit the model.

    Example:
        >>> logits, trace = vitjax.forward(model, images, capture=("residual",))
        >>> trace.residual.shape  # [layer batch token dim]
    """
    unknown = [name for name in capture if name not in TRACE_FIELDS]
    if unknown or isinstance(capture, str):
        raise ValueError(
            f"capture={capture!r} must be a tuple of names out of {TRACE_FIELDS}."
        )

    def read(params, stream_in, trace):
        return {n: getattr(trace, n) for n in capture if n != "embedding"}

    embedding, _, logits, fields = run_blocks(model, images, read, edits=edits)
    if "embedding" in capture:
        fields["embedding"] = embedding
    return logits, Trace(**fields)


@checked
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
    one backward pass through the whole model. Not compiled, since it takes a function
    of yours: put it into your own `jax.jit`.

    Args:
        model, images: the model, and preprocessed pixels.
        scalar_fn: class logits [batch class] to a scalar.
        edits: interventions.

    Returns:
        The gradient, 0 where a weight has no influence.

    Example:
        >>> grads = vitjax.attention_gradients(model, images, lambda z: z[:, 3].sum())
        >>> grads.mean((1, 2)).shape  # [layer token token]
    """
    edits, cfg = edits or Edits(), model.config
    embedding = model.apply(model.check_images(images), edits, method="embed")
    batch, length, _ = embedding.shape

    def scalar(weights):
        offsets = {"attention_weights": weights}
        x, tokens, _ = scan_forward(
            model, embedding, read_nothing, edits=edits, offsets=offsets
        )
        return scalar_fn(model.apply(x, edits, tokens, method="unembed"))

    shape = (cfg.depth, batch, cfg.heads, length, length)
    return jax.grad(scalar)(jnp.zeros(shape, embedding.dtype))


def refinement_logits(
    model: Model,
    images: Float[ArrayLike, "batch height width channel"],
    *,
    edits: Edits | None = None,
) -> Float[Array, "refined batch class"]:
    """Class logits of the token-refinement module of every block but the last.

    See `vitjax.models.heads.Refinement` for the definition (Naseer et al. 2022).

    Args:
        model: with `Config(refinement=True)`, such as "vit_b16_refinement_heads".
        images: preprocessed pixels.
        edits: interventions on attention; none that remove tokens, since a module
            needs every patch on its grid.

    Returns:
        Entry b stands for block b, 0-based; there are `depth - 1`.

    Raises:
        ValueError: the model has no refinement modules, or the edits remove tokens.

    Example:
        >>> model = vitjax.load("vit_b16_refinement_heads")
        >>> vitjax.refinement_logits(model, images).argmax(-1)  # block by block
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
    """A `state` of `scan_blocks` that counts blocks from 0."""
    return jnp.zeros((), jnp.int32)


def refine_block(model: Model, index, x) -> Float[Array, "batch class"]:
    """Class logits of the refinement module of a block; meaningless for the last."""
    index = jnp.minimum(index, model.config.depth - 2)
    params = jax.tree.map(lambda leaf: leaf[index], model.params["refinement"])
    return model.apply(params, x, method="refine")
