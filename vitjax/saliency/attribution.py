"""Contributions of a model's parts to a logit: direct ones, and first-order effects."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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
from vitjax.types import FIELD_AXES, TRACE_FIELDS, Edits, along_last, to_float32


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
    readout = Readout(model, target, edits)
    x, tokens, held = jnp.zeros_like(embedding), None, Held()
    if config.normalizes_first:  # a token's direction depends on its final state
        x, streams = block_inputs(model, images, edits)
        tokens = class_tokens(config, streams, x)
        held = readout.hold(x, tokens)
    direction, earlier = readout.directions(x, tokens, held)
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
        held = readout.hold(x, None)
        factor = held.inverse_sigma[..., 0] * held.factor
        for name, each in parts.items():
            shape = [1] * each.ndim
            shape[min(1, each.ndim - 1)] = len(factor)
            parts[name] = each.astype(factor.dtype) * factor.reshape(shape)
    x, tokens = jax.tree.map(jnp.zeros_like, (x, tokens))
    parts["bias"] = readout(x, tokens, held)
    if held.head is not None:
        parts["head"] = held.head
    return {
        name: nan_without_class(
            each, target, model.num_classes, axis=min(1, each.ndim - 1)
        )
        for name, each in parts.items()
    }


class Held(NamedTuple):
    """What a read-out holds at its value.

    1 / sigma of the tokens, or of their mean, and of [CLS] in earlier blocks; the
    head's attention weights; temperature over length of the embedding; what the head's
    MLP adds to the logit.
    """

    inverse_sigma: Any = 1.0
    earlier: Float[Array, "earlier batch one"] | None = None
    attention: Float[Array, "batch head token"] | None = None
    factor: Any = 1.0
    head: Float[Array, " batch"] | None = None


class Readout:
    """The target's logit as an affine function of the final residual stream and of
    [CLS] after each block, with all that is not affine held.
    """

    def __init__(self, model: Model, target: Int[Array, " batch"], edits: Edits):
        self.model, self.config, self.edits = model, model.config, edits
        self.space, self.target = model.class_space, target

    def __call__(self, x, class_tokens, held: Held) -> Float[Array, " batch"]:
        """The logit, but for what the head's MLP adds."""
        space, config, edits = self.space, self.config, self.edits
        z = self.normalize(self.sites(x), held.inverse_sigma)
        bias = self.of_target(space.bias)
        if config.pooling == "cls_mean":
            patches = mean_of_patches(z, edits, config)
            logit = self.dot(z[:, 0], space.embedding) + bias
            logit = logit + self.dot(patches, space.patch_embedding)
            if held.earlier is not None:
                z = self.normalize(self.earlier_blocks(class_tokens), held.earlier)
                kernels = self.model.params["head_earlier"]["kernel"]
                rows = to_float32(kernels[..., self.target])
                logit = logit + jnp.einsum("lbd,ldb->b", z, rows)
            return logit
        f = self.embed(z, held)
        return self.dot(f, self.class_embedding) * held.factor + bias

    def embed(self, z, held: Held) -> Float[Array, "batch embed"]:
        """The embedding before the MLP."""
        if self.config.pooling == "map":
            return self.model.apply(z, held.attention, method="attend")
        first = self.config.normalizes_first
        return self.space.embed(pool(z, self.edits, self.config) if first else z)

    def hold(self, x, class_tokens) -> Held:
        """All that is not affine, at its value."""
        space, config = self.space, self.config
        y = self.sites(x)
        held = Held(inverse_sigma=1 / deviation(y, space.epsilon)[..., None])
        z = self.normalize(y, held.inverse_sigma)
        if config.head_blocks > 1:
            tokens = self.earlier_blocks(class_tokens)
            earlier = 1 / deviation(tokens, space.epsilon)[..., None]
            held = held._replace(earlier=earlier)
        one = jnp.ones(len(x), z.dtype)
        held = held._replace(factor=one)
        if config.pooling == "cls_mean":
            return held
        if config.pooling == "map":
            attention = self.model.apply(z, self.edits, method="head_attention")
            held = held._replace(attention=attention)
        f = self.embed(z, held)
        added = 0.0 * f if space.mlp is None else space.transform(f)
        if space.temperature is not None:
            square = jnp.square(f + added).sum(-1)
            exists = square > 0
            factor = jax.lax.rsqrt(jnp.where(exists, square, 1))
            factor = factor * along_last(space.temperature, factor)
            held = held._replace(factor=jnp.where(exists, factor, 0))
        if space.mlp is not None:
            head = self.dot(added, self.class_embedding) * held.factor
            held = held._replace(head=head)
        return held

    def directions(self, x, class_tokens, held: Held):
        """u of every token, [batch token dim]; and what a head of several blocks adds
        at [CLS] to u of what each block writes, [layer batch dim] or None.
        """

        def logit(x, class_tokens):
            return self(x, class_tokens, held).sum()

        of_x, of_tokens = jax.grad(logit, argnums=(0, 1))(x, class_tokens)
        if of_tokens is not None:  # what a block writes stays in all later ones
            of_tokens = jnp.cumsum(of_tokens[::-1], axis=0)[::-1]
        return of_x, of_tokens

    @property
    def class_embedding(self):
        """One row per class in the space of embeddings."""
        of_embeddings = self.space.class_embedding
        return self.space.embedding if of_embeddings is None else of_embeddings

    def sites(self, x) -> Float[Array, "batch *token dim"]:
        """What the final norm takes, in float32 at least."""
        x = to_float32(x)
        first = self.config.normalizes_first
        return x if first else pool(x, self.edits, self.config)

    def earlier_blocks(self, class_tokens) -> Float[Array, "earlier batch dim"]:
        return to_float32(class_tokens[-self.config.head_blocks : -1])

    def normalize(self, x, inverse_sigma):
        """The final norm with its deviation held."""
        z = center(x) * inverse_sigma
        return z * along_last(self.space.norm_scale, z) + along_last(
            self.space.norm_shift, z
        )

    def of_target(self, values):
        """The target's row of each image."""
        return to_float32(jnp.asarray(values)[self.target])

    def dot(self, x, embedding) -> Float[Array, " batch"]:
        """Products with the target's row."""
        return jnp.einsum("bd,bd->b", x, self.of_target(embedding))


def class_projection(
    model: Model, images: Images, target: Target, *, edits: Edits | None = None
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
    """u of each row in front of what follows a sub-layer's output projection:
    LayerScale, and the norm of a residual-post-norm block.
    """
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
