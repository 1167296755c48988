"""Contributions of a model's parts to a logit: direct ones, and first-order effects."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitjax import messages
from vitjax.analysis.class_space import Labels, broadcast_labels, nan_without_class
from vitjax.checks import checked
from vitjax.models.forward import forward, run_blocks, scan_forward
from vitjax.models.heads import pool, pool_weights, pooled_rows
from vitjax.models.model import Model
from vitjax.saliency.attention import Images, Maps, Target
from vitjax.types import FIELD_AXES, TRACE_FIELDS, Edits


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
    to W_o. Without [CLS], what is written is pooled as the head pools.

    Args:
        model, images: the model, and preprocessed pixels.
        target: class number of each image, or one for all.
        neurons: also what every neuron of the MLPs writes. Static.
        edits: interventions.

    Returns:
        In units of logits, adding up to the logit: "embedding" [batch]; "attention"
        [layer batch head token], by source token, prefix tokens first; "attention_bias"
        [layer batch], the output projection's bias and whatever edits write beside;
        "mlp" [layer batch]; "bias" [batch]. With `neurons`, "neurons" [layer batch
        hidden] is "mlp" but for its bias.

    Example:
        >>> parts = vitjax.logit_attribution(model, images, label)
        >>> parts["attention"].sum(-1)  # of each head
    """
    config, space, edits = model.config, model.class_space, edits or Edits()
    if config.distilled:
        raise ValueError(
            "Contributions add up to the logit of one head, and a distilled model "
            "averages two: load the weights without the distillation head."
        )
    target = broadcast_labels(target, images.shape[:1])
    embedding_row = jnp.asarray(space.embedding)[target]
    direction = center(embedding_row * jnp.asarray(space.norm_scale)[None])

    def written(x):
        """u . x of the pooled state, but for sigma."""
        return jnp.einsum("bd,bd->b", pool(x, edits, config), direction)

    def read(params, stream_in, trace):
        attention = written_by_heads(model, params, stream_in, trace, direction, edits)
        mlp = written(trace.mlp_update)
        rest = written(trace.residual - stream_in) - mlp - attention.sum((1, 2))
        out = {"attention": attention, "attention_bias": rest, "mlp": mlp}
        if neurons:
            arguments = model, params, stream_in, trace, direction, edits
            out["neurons"] = written_by_neurons(*arguments)
        return out, pool(trace.residual, edits, config)

    embedding, _, _, (parts, states) = run_blocks(model, images, read, edits=edits)
    sigma = deviation(states[-1], config.epsilon)
    parts = {
        name: each / sigma.reshape(1, -1, *(1,) * (each.ndim - 2))
        for name, each in parts.items()
    }
    bias = jnp.einsum("bd,d->b", embedding_row, jnp.asarray(space.norm_shift))
    bias = bias + jnp.asarray(space.bias)[target]
    parts = {"embedding": written(embedding) / sigma, **parts, "bias": bias}
    return {
        name: nan_without_class(
            each, target, model.num_classes, axis=min(1, each.ndim - 1)
        )
        for name, each in parts.items()
    }


def class_projection(
    model: Model, images: Images, target: Target, *, edits: Edits | None = None
) -> Maps:
    """What each patch writes into the target's logit through each attention head.

    The patches' part of "attention" of `vitjax.logit_attribution`. Signed, in units of
    logits: with the prefix tokens', these add up to all that attention adds to the
    logit but for biases.
    """
    parts = logit_attribution(model, images, target, edits=edits)
    return parts["attention"][..., model.config.prefix :]


def written_by_heads(model, params, stream_in, trace, direction, edits):
    """u . (A[row, token] W_o v[token]), pooled over rows, [batch head token]."""
    rows = pooled_rows(model.config)
    out = params["MultiHeadDotProductAttention_0"]["out"]
    mixed = trace.mixed_values[:, rows]
    update = jnp.einsum("bqhk,hkd->bqd", mixed, out["kernel"])
    update = update + out["bias"][None, None]
    u, row_weight = through_norm(model, params, 0, stream_in, update, direction, edits)
    written = jnp.einsum("bthk,hkd,bd->bht", trace.values, out["kernel"], u)
    weights = trace.attention_weights[:, :, rows]
    attended = jnp.einsum("bhqt,bq->bht", weights, row_weight)
    return attended * written


def written_by_neurons(model, params, stream_in, trace, direction, edits):
    """u . (hidden[row, neuron] w[neuron]), pooled over rows, [batch hidden]."""
    rows = pooled_rows(model.config)
    out = params["MlpBlock_0"]["Dense_1"]
    hidden = trace.mlp_hidden[:, rows]
    update = hidden @ out["kernel"] + out["bias"][None, None]
    u, row_weight = through_norm(model, params, 1, stream_in, update, direction, edits)
    pooled = jnp.einsum("bqn,bq->bn", hidden, row_weight)
    return pooled * (u @ out["kernel"].T)


def through_norm(model, params, index, stream_in, update, direction, edits):
    """(u, weight of each pooled row) in front of what follows a sub-layer's output
    projection: LayerScale, and the norm of a residual-post-norm block.
    """
    config, u = model.config, direction
    row_weight = pool_weights(stream_in, edits, config)[:, pooled_rows(config)]
    if config.layer_scale:
        u = u * params[f"LayerScale_{index}"]["gamma"][None]
    if config.norm == "residual_post":
        row_weight = row_weight * (1 / deviation(update, config.epsilon))
        u = center(u * params[f"LayerNorm_{index}"]["scale"][None])
    return u, row_weight


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
