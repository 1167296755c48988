"""Contributions of a model's parts to a logit: direct ones, and first-order effects."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vitjax import messages
from vitjax.analysis.class_space import Labels, broadcast_labels, nan_without_class
from vitjax.checks import checked
from vitjax.models.backward import block_inputs
from vitjax.models.forward import (
    block_counter,
    class_tokens,
    forward,
    scan_forward,
)
from vitjax.models.heads import mean_of_patches, pool, pooled_rows
from vitjax.models.model import Model
from vitjax.saliency.passes import Images, Target
from vitjax.types import (
    FIELD_AXES,
    TRACE_FIELDS,
    Edits,
    along_last,
    inverse_length,
    layer_norm,
    to_float32,
)


def logit_attribution(
    model: Model,
    images: Images,
    target: Labels,
    *,
    neurons: bool = False,
    edits: Edits | None = None,
) -> dict[str, Float[Array, "..."]]:
    """What every part of the model writes directly into a class's logit.

    The final state x is the sum of what was written into the residual stream. With the
    deviation sigma of the final LayerNorm held at its value, the logit is

        z_c = u . x + E_c . beta + b_c,   u = center(E_c * gamma) / sigma,

    so that a written vector w contributes u . w (for CLIP: Gandelsman et al. 2024,
    arXiv 2310.05916). A head writes A[row, token] W_o v[token] from every source token;
    LayerScale and, in residual-post-norm blocks, the norm with its own deviation belong
    to W_o. What is written at several tokens is pooled as the head pools, by each
    token's own u where they are normalized first. Of a cosine, the length of the
    image's embedding is held, of attention pooling the head's attention weights; what
    the MLP of that head adds is no sum of parts and an entry of its own.

    Args:
        model, images: the model, and preprocessed pixels.
        target: class number of each image, or one for all.
        neurons: also what every neuron of the MLPs writes. Static.
        edits: interventions.

    Returns:
        In units of logits, adding up to the logit: "embedding" [batch]; "attention"
        [layer batch head token], by source token, prefix tokens first; "attention_bias"
        [layer batch], the output projection's bias and whatever edits write beside;
        "mlp" [layer batch]; "bias" [batch]; with attention pooling "head" [batch], of
        its MLP. With `neurons`, "neurons" [layer batch hidden] is "mlp" but for its
        bias.

    Example:
        >>> parts = vitjax.logit_attribution(model, images, label)
        >>> parts["attention"].sum(-1)  # of each head
    """
    config, edits = model.config, edits or Edits()
    if config.distilled:
        raise ValueError(
            "Contributions add up to the logit of one head, and a distilled model "
            "averages two: load the weights without the distillation head."
        )
    target = broadcast_labels(target, images.shape[:1])
    images = model.check_images(images)
    embedding = model.apply(images, edits, method="embed")
    logit = functools.partial(held_logit, model, target, edits)
    held: list[Any] = []

    def record(value):
        held.append(value)
        return value

    def replay(*states):
        values = iter(held)
        return logit(lambda value: next(values), *states)

    x, tokens, head = jnp.zeros_like(embedding), None, None
    function: Any = functools.partial(logit, jnp.ones_like)
    if config.normalizes_first:  # a token's direction depends on its final state
        x, streams = block_inputs(model, images, edits)
        tokens, function = class_tokens(config, streams, x), replay
        _, head = logit(record, x, tokens)
    total = lambda *states: function(*states)[0].sum()  # noqa: E731
    direction, earlier = jax.grad(total, (0, 1))(x, tokens)
    if earlier is not None:  # what a block writes stays in all later ones
        earlier = jnp.cumsum(earlier[::-1], axis=0)[::-1]
    rows = pooled_rows(config)

    def at_block(index):
        if earlier is None:
            return direction[:, rows]
        return direction.at[:, 0].add(earlier[index])[:, rows]

    def written(x, direction):
        return jnp.einsum("bqd,bqd->b", x[:, rows], direction)

    def read(index, params, stream_in, trace):
        block = model, params, trace, at_block(index)
        attention = written_by_heads(*block)
        mlp = written(trace.mlp_update, block[-1])
        rest = written(trace.residual - stream_in, block[-1]) - mlp
        rest = rest - attention.sum((1, 2))
        out = {"attention": attention, "attention_bias": rest, "mlp": mlp}
        if neurons:
            out["neurons"] = written_by_neurons(*block)
        return index + 1, out

    x, _, parts = scan_forward(model, embedding, read, edits=edits, state=block_counter)
    parts = {"embedding": written(embedding, at_block(0)), **parts}
    if not config.normalizes_first:  # one factor for all that is written
        logit(record, x, None)
        factor = functools.reduce(jnp.multiply, held)[:, 0]
        for name, each in parts.items():
            shape = [1] * each.ndim
            shape[min(1, each.ndim - 1)] = len(factor)
            parts[name] = each.astype(factor.dtype) * factor.reshape(shape)
    parts["bias"], _ = replay(*jax.tree.map(jnp.zeros_like, (x, tokens)))
    if config.pooling == "map":
        parts["head"] = head
    return {
        name: nan_without_class(
            each, target, model.num_classes, axis=min(1, each.ndim - 1)
        )
        for name, each in parts.items()
    }


def held_logit(
    model: Model, target: Int[Array, " batch"], edits: Edits, hold: Any, x, class_tokens
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """The target's logit but for what the MLP of attention pooling adds, and that.

    Affine in the final states and in [CLS] after each block but for what `hold` is put
    on: 1 / sigma of the final norm, attention weights, temperature over length.
    """
    config, space = model.config, model.class_space

    def normalize(x):
        norm = space.norm_scale, space.norm_shift
        return layer_norm(to_float32(x), *norm, epsilon=space.epsilon, factor=hold)

    def dot(x, embedding):
        rows = to_float32(jnp.asarray(embedding)[target])
        return jnp.einsum("bd,bd->b", x, rows)

    first, x = config.normalizes_first, to_float32(x)
    z = normalize(x if first else pool(x, edits, config))
    bias = to_float32(jnp.asarray(space.bias)[target])
    if config.pooling == "cls_mean":
        logit = dot(z[:, 0], space.embedding) + bias
        logit = logit + dot(mean_of_patches(z, edits, config), space.patch_embedding)
        if config.head_blocks > 1:
            z = normalize(class_tokens[-config.head_blocks : -1])
            kernels = model.params["head_earlier"]["kernel"]
            rows = to_float32(kernels[..., target])
            logit = logit + jnp.einsum("lbd,ldb->b", z, rows)
        return logit, jnp.zeros_like(logit)
    if config.pooling == "map":
        attention = hold(model.apply(z, edits, method="head_attention"))
        f = model.apply(z, attention, method="attend")
    else:
        f = space.embed(pool(z, edits, config) if first else z)
    added = jnp.zeros_like(f) if space.mlp is None else space.transform(f)
    if space.temperature is not None:
        factor: Any = inverse_length(f + added)
        factor = hold(factor * along_last(space.temperature, factor))
        f, added = f * factor, added * factor
    linear = space.class_embedding is None
    embedding = space.embedding if linear else space.class_embedding
    return dot(f, embedding) + bias, dot(added, embedding)


def class_projection(
    model: Model, images: Images, target: Target, edits: Edits
) -> Float[Array, "layer batch head patch"]:
    """What each patch writes into the target's logit through each attention head.

    The patches' part of "attention" of `vitjax.logit_attribution`. Signed, in units of
    logits: with the prefix tokens', these add up to all that attention adds to the
    logit but for biases.
    """
    parts = logit_attribution(model, images, target, edits=edits)
    return parts["attention"][..., model.config.prefix :]


def written_by_heads(model, params, trace, direction):
    """u . (A[row, token] W_o v[token]), summed over rows, [batch head token]."""
    rows = pooled_rows(model.config)
    out = params["MultiHeadDotProductAttention_0"]["out"]
    mixed = trace.mixed_values[:, rows]
    update = jnp.einsum("bqhk,hkd->bqd", mixed, out["kernel"])
    update = update + out["bias"][None, None]
    u = through_norm(model, params, 0, update, direction)
    of_values = jnp.einsum("bqd,hkd->bqhk", u, out["kernel"])
    weights = trace.attention_weights[:, :, rows]
    of_values = jnp.einsum("bhqt,bqhk->bthk", weights, of_values)
    return jnp.einsum("bthk,bthk->bht", trace.values, of_values)


def written_by_neurons(model, params, trace, direction):
    """u . (hidden[row, neuron] w[neuron]), summed over rows, [batch hidden]."""
    rows = pooled_rows(model.config)
    out = params["MlpBlock_0"]["Dense_1"]
    hidden = trace.mlp_hidden[:, rows]
    update = hidden @ out["kernel"] + out["bias"][None, None]
    u = through_norm(model, params, 1, update, direction)
    return jnp.einsum("bqn,bqn->bn", hidden, u @ out["kernel"].T)


def through_norm(model, params, index, update, u):
    """u of each row before LayerScale and the norm of a residual-post-norm block."""
    config = model.config
    if config.layer_scale:
        u = u * params[f"LayerScale_{index}"]["gamma"][None, None]
    if config.norm == "residual_post":
        scale = params[f"LayerNorm_{index}"]["scale"][None, None]
        u = center(u * scale) / deviation(update, config.epsilon)[..., None]
    return u


def center(x):
    """x minus its mean over the last axis."""
    return x - x.mean(-1, keepdims=True)


def deviation(x, epsilon: float):
    """sigma of LayerNorm, over the last axis."""
    return jnp.sqrt(jnp.square(center(x)).mean(-1) + epsilon)


@checked
def attribution_patching(
    model: Model,
    clean: Images,
    corrupted: Images,
    metric: Callable[[Float[Array, "batch class"]], Float[Array, " batch"]],
    *,
    fields: Sequence[str] = ("residual", "mixed_values", "mlp_update"),
    edits: Edits | None = None,
) -> dict[str, Float[Array, "..."]]:
    """The effect of patching, to first order, of all entries at once.

    effect(a) = (a_clean - a_corrupted) . d metric / d a at the corrupted run, summed
    over the width of a (Nanda 2023, "Attribution patching"): what putting the clean
    run's entry a into the corrupted run would add to the metric, were the model linear.
    Two forward passes and one backward. Not compiled, since it takes a function of
    yours: put it into your own `jax.jit`.

    Args:
        model: the model.
        clean, corrupted: preprocessed pixels, in pairs.
        metric: class logits -> a score of each image, such as a logit or a difference
            of two.
        fields: fields of `Trace`.
        edits: interventions on both runs.

    Returns:
        Field -> effect, with the axes of the field but for `dim` and `key`: [layer
        batch token] of the residual stream and updates, [layer batch token head] of
        vectors of heads, [layer batch head query key] of attention weights and scores,
        [layer batch token hidden] of neurons; "embedding" [batch token].

    Raises:
        ValueError: a field does not exist.

    Example:
        >>> logit = lambda logits: logits[:, 3]
        >>> effect = vitjax.attribution_patching(model, images, noise, logit)
        >>> effect["residual"][-1, :, 0]  # of [CLS] after the last block
    """
    fields = (fields,) if isinstance(fields, str) else fields
    for field in fields:
        messages.check_one_of("fields", field, TRACE_FIELDS)
    edits, names = edits or Edits(), tuple(fields)
    _, clean_trace = forward(model, clean, capture=names, edits=edits)
    start = model.apply(model.check_images(corrupted), edits, method="embed")
    corrupted_trace = jax.eval_shape(
        lambda: forward(model, corrupted, capture=names, edits=edits)[1]
    )

    def score(offsets):
        of_blocks = {f: x for f, x in offsets.items() if f != "embedding"}
        embedding = start + offsets.get("embedding", 0)

        def read(params, stream_in, trace):
            return {field: getattr(trace, field) for field in of_blocks}

        x, tokens, values = scan_forward(
            model, embedding, read, edits=edits, offsets=of_blocks, checkpoint=True
        )
        values["embedding"] = embedding
        logits = model.apply(x, edits, tokens, method="unembed")
        return metric(logits).sum(), values

    zeros = {f: jnp.zeros_like(getattr(corrupted_trace, f)) for f in names}
    gradients, values = jax.grad(score, has_aux=True)(zeros)
    effects = {}
    for field in names:
        difference = jnp.asarray(getattr(clean_trace, field)) - values[field]
        effect = difference * gradients[field]
        width = FIELD_AXES[field][-1] in ("dim", "key")
        effects[field] = effect.sum(-1) if width else effect
    return effects
