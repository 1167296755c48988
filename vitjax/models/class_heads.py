"""Heads put onto encoders: classes by their embeddings, or by a probe of images'."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vitjax.checks import checked
from vitjax.models.forward import read_nothing, scan_forward
from vitjax.models.model import Model
from vitjax.types import ArrayLike, Edits, to_float32, unit


@checked
def zero_shot(
    model: Model,
    embeddings: Float[ArrayLike, "class embed"],
    *,
    classes: Sequence[str],
    temperature: Float[ArrayLike, ""] | float | None = None,
    bias: Float[ArrayLike, ""] | float | None = None,
) -> Model:
    """Give a model that compares embeddings its classes, such as those of their texts.

    logit = temperature cos(image, class) + bias.

    Args:
        model: a CLIP or SigLIP, with classes or without.
        embeddings: one row per class, of any length: rows are normalized. Those of
            `vitjax.class_embeddings`, or what another library makes of the class names.
        classes: their names, distinct.
        temperature: factor of the cosine, not its logarithm; by default the model's.
        bias: of all logits; by default the model's.

    Returns:
        A model like any other.

    Raises:
        ValueError: the model does not compare embeddings, or names or widths do not
            fit.

    Example:
        >>> model = vitjax.zero_shot(model, embeddings, classes=("cat", "dog"))
    """
    config = model.config
    if config.head != "cosine":
        raise ValueError(
            "zero_shot needs a model that compares the embeddings of images and texts, "
            f"Config(head='cosine'); this one has head={config.head!r}: give it a "
            "linear head by vitjax.with_head."
        )
    rows = jnp.asarray(embeddings)
    names = check_classes(classes, rows.shape, config.embed_dim, "embeddings")
    head = dict(model.params["head"])
    zeros = jnp.zeros(len(names))
    head |= {"kernel": unit(to_float32(rows)).T, "bias": zeros}
    if temperature is not None:
        head["temperature"] = jnp.asarray(temperature)
    if bias is not None:
        name = "logit_bias" if config.sigmoid else "bias"
        head[name] = jnp.broadcast_to(jnp.asarray(bias), jnp.shape(head[name]))
    return replace_head(model, names, {"head": head})


@checked
def with_head(
    model: Model, head: Any, *, classes: Sequence[str] | None = None
) -> Model:
    """Give a model a linear head: its logits are the scores of a probe.

    logits = W.(f - centre) + b, f = `encode_image` of the image.

    Args:
        model: the model; its own head, if it has one, is replaced.
        head: a `Probe` that was fitted on `encode_image(model, images)`, or a pair of
            arrays (weights [class embed], bias [class]). A probe of residual streams
            cannot be a head, since the final norm stands before that: use its scores.
        classes: names of the classes; by default their numbers.

    Returns:
        A model like any other. Probabilities are the softmax of its logits.

    Raises:
        ValueError: the head is not one probe, or names or widths do not fit.

    Example:
        >>> features = vitjax.encode_image(model, images)
        >>> probe = vitjax.fit_softmax_probe(features, labels, classes=2)
        >>> model = vitjax.with_head(model, probe, classes=("cat", "dog"))
    """
    config = model.config
    if isinstance(head, tuple | list):
        weights, bias = (np.asarray(each) for each in head)
    else:
        exact = (head.weights, head.bias, head.centre)
        weights, bias, centre = (np.asarray(each, np.float64) for each in exact)
        bias = bias - np.einsum("...cd,...d->...c", weights, centre)
    blocks = config.head_blocks
    width = config.embed_dim * (blocks + 1 if config.pooling == "cls_mean" else 1)
    count = weights.shape[0] if weights.ndim else 0
    names = tuple(map(str, range(count))) if classes is None else classes
    names = check_classes(names, weights.shape, width, "head")
    if bias.shape != (len(names),):
        raise ValueError(f"A bias of shape {bias.shape}; expected {(len(names),)}.")
    kernel = jnp.asarray(weights, np.float32).T
    parts: dict[str, Any] = {}
    if config.pooling == "cls_mean":
        *earlier, kernel, patches = jnp.split(kernel, blocks + 1)
        parts["head_patches"] = {"kernel": patches}
        if earlier:
            parts["head_earlier"] = {"kernel": jnp.stack(earlier)}
    parts["head"] = {"kernel": kernel, "bias": jnp.asarray(bias, np.float32)}
    if config.head == "cosine":
        parts["head"]["temperature"] = jnp.ones(())
    config = dataclasses.replace(config, sigmoid=False, distilled=False)
    return replace_head(model.replace(config=config), names, parts)


def check_classes(
    names: Sequence[str], shape: tuple[int, ...], width: int, what: str
) -> tuple[str, ...]:
    """The names of a head's rows; ValueError where names or the shape do not fit."""
    names = tuple(names)
    if len(shape) != 2 or shape[1] != width or not shape[0]:
        raise ValueError(
            f"{what} of shape {shape} do not fit the model; expected [class {width}]."
        )
    if len(names) != shape[0] or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"classes must be {shape[0]} names, one for each row of {what}; got "
            f"{len(names)}: {names[:5]}."
        )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"classes must be distinct; {twice!r} is there twice.")
    return names


def replace_head(model: Model, names: tuple[str, ...], parts: dict[str, Any]) -> Model:
    """The model with these classes and parameters, in its dtype."""
    parts = {
        part: {name: jnp.asarray(each, model.dtype) for name, each in params.items()}
        for part, params in parts.items()
    }
    params = {**model.params, **parts}
    if not model.config.distilled:
        params.pop("head_dist", None)
    sources = {**model.provenance.sources, "classes": "you"}
    provenance = dataclasses.replace(model.provenance, sources=sources)
    return model.replace(
        params=params, classes=names, class_ids=names, provenance=provenance
    )


def encode_image(
    model: Model,
    images: Float[ArrayLike, "batch height width channel"],
    *,
    edits: Edits | None = None,
) -> Float[Array, "batch embed"]:
    """What the model's last linear map, its head, reads of every image.

    Of a CLIP or SigLIP, the embedding to be compared with those of texts: rows of
    length one. Of others the pooled state after the final norm; where [CLS] and patches
    have class embeddings of their own (DINOv2), [CLS] of each block that the head
    reads, first block first, and then the mean of the patches, side by side.

    Args:
        model: the model, with classes or without.
        images: preprocessed pixels.
        edits: interventions.

    Returns:
        In float32 at least.

    Example:
        >>> cosine = vitjax.encode_image(model, images) @ embeddings.T
    """
    edits = edits or Edits()
    embedding = model.apply(model.check_images(images), edits, method="embed")
    x, tokens, _ = scan_forward(model, embedding, read_nothing, edits=edits)
    return model.apply(x, edits, tokens, method="features")
