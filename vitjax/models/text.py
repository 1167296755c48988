"""Text towers of CLIP and SigLIP: class names as embeddings to compare images with.

Parameters are named as the image model's: `token_embedding`, `pos_embedding`,
`Transformer/{encoderblock,encoder_norm}`, `projection/{kernel,bias}`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vitjax import messages
from vitjax.models.edits import BlockEdits
from vitjax.models.heads import Affine
from vitjax.models.layers import NORMAL
from vitjax.models.vit import Encoder
from vitjax.types import ArrayLike, Config, affine, pytree, static, unit

BATCH = 256
"""Texts that `class_embeddings` encodes at a time."""


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The architecture of a text tower; two equal configs are one program.

    Args:
        vocab: number of token ids.
        length: number of ids in every text, padded.
        dim: width of the residual stream.
        depth: number of blocks.
        heads: attention heads per block; divides `dim`.
        mlp_dim: neurons of each block's MLP.
        projection: width of the embeddings.
        projection_bias: whether the projection has a bias (SigLIP).
        gelu: as in `Config`.
        epsilon: added to the variance in every LayerNorm.
        causal: whether tokens see only those before them (CLIP); otherwise padding is
            seen as well (SigLIP).
        pool: which token becomes the embedding: the "first_end" (CLIP), or the "last"
            of the padded text (SigLIP).
        end: the id of the end token; None for the largest id of each text, which is the
            end token of OpenAI's vocabulary.

    Raises:
        ValueError: a size does not divide, is not positive, or an option is unknown.
    """

    vocab: int
    length: int
    dim: int
    depth: int
    heads: int
    mlp_dim: int
    projection: int
    projection_bias: bool = False
    gelu: Literal["erf", "tanh", "quick"] = "quick"
    epsilon: float = 1e-5
    causal: bool = True
    pool: Literal["first_end", "last"] = "first_end"
    end: int | None = None

    def __post_init__(self):
        for name in ("vocab", "length", "projection"):
            messages.check_range(f"TextConfig.{name}", getattr(self, name), 1)
        messages.check_one_of("TextConfig.pool", self.pool, ("first_end", "last"))
        if self.end is not None:
            messages.check_range("TextConfig.end", self.end, 0, self.vocab - 1)
        _ = self.blocks  # which checks the rest

    @property
    def blocks(self) -> Config:
        """The architecture of the blocks, which are those of an image model."""
        return Config(
            image_size=1,
            patch_size=1,
            dim=self.dim,
            depth=self.depth,
            heads=self.heads,
            mlp_dim=self.mlp_dim,
            class_token=False,
            gelu=self.gelu,
            epsilon=self.epsilon,
        )


class TextTransformer(nn.Module):
    """Token ids to embeddings."""

    config: TextConfig

    def setup(self):
        cfg = self.config
        self.token_embedding = self.param(
            "token_embedding", NORMAL, (cfg.vocab, cfg.dim)
        )
        self.pos_embedding = self.param("pos_embedding", NORMAL, (cfg.length, cfg.dim))
        self.Transformer = Encoder(cfg.blocks)
        bias = (cfg.projection,) if cfg.projection_bias else None
        self.projection = Affine((cfg.dim, cfg.projection), bias)

    def __call__(self, ids: Int[ArrayLike, "n length"]) -> Float[Array, "n embed"]:
        cfg = self.config
        ids = jnp.asarray(ids)
        known = jnp.where(ids < 0, cfg.vocab, ids)  # NaN, not the last one
        x = jnp.take(self.token_embedding, known, axis=0, mode="fill")
        x = x + self.pos_embedding[None]
        causal = BlockEdits()
        if cfg.causal:
            causal = BlockEdits(attend=jnp.tri(cfg.length)[None, None])
        x, _ = self.Transformer(x, causal, BlockEdits(), False)
        if cfg.pool == "last":
            x = x[:, -1]
        else:
            ends = ids if cfg.end is None else ids == cfg.end
            first = jnp.argmax(ends, axis=1)
            x = jnp.take_along_axis(x, first[:, None, None], axis=1)[:, 0]
        z = self.Transformer.encoder_norm(x)
        bias = self.projection.bias if cfg.projection_bias else None
        return unit(affine(z, self.projection.kernel.T, bias))


@pytree
class TextModel:
    """A text tower with its weights; a pytree of its parameters.

    Args:
        params: parameters, in the layout of `vitjax.models.text.TextTransformer`.
        config: the architecture.
        tokenizer: texts -> ids int32 [n length], or None where there is none.
    """

    params: Any
    config: TextConfig = static()
    tokenizer: Callable[[Sequence[str]], np.ndarray] | None = static(default=None)

    def tokenize(self, texts: str | Sequence[str]) -> Int[np.ndarray, "n length"]:
        """Token ids of texts, padded, and cut where they are too long.

        Raises:
            ValueError: there is no tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError(
                "This text tower has no tokenizer: no such file lies beside its "
                "weights. Pass tokenizer= with the folder or the file of one (such as "
                "tokenizer.json) to vitjax.load_text."
            )
        return self.tokenizer([texts] if isinstance(texts, str) else list(texts))


def encode_text(
    text: TextModel, ids: Int[ArrayLike, "n length"]
) -> Float[Array, "n embed"]:
    """Embeddings of texts, of unit length.

    Args:
        text: the text tower.
        ids: token ids, as `text.tokenize` gives them.

    Returns:
        One row for each text; NaN of a text with an id that is not in the vocabulary,
        where that is not an error since ids are not known (inside a `jit` of yours).

    Example:
        >>> text = vitjax.load_text("clip_b16_openai", tokenizer="tokenizer.json")
        >>> vitjax.encode_text(text, text.tokenize(["a cat", "a dog"]))
    """
    if ids.shape[-1] != text.config.length:
        raise ValueError(
            f"ids of shape {ids.shape} do not fit the text tower, which takes [n "
            f"{text.config.length}]; use text.tokenize, which pads."
        )
    embeddings: Any = TextTransformer(text.config).apply({"params": text.params}, ids)
    return embeddings


encode: Any = jax.jit(encode_text)


def class_embeddings(
    text: TextModel,
    names: Sequence[str],
    *,
    templates: Sequence[str | Callable[[str], str]] = ("a photo of a {}.",),
) -> Float[Array, "class embed"]:
    """Embeddings of classes, for `vitjax.zero_shot`: means over templates.

    Every name is put into every template; their embeddings of unit length are averaged,
    and the mean is given unit length again.

    Args:
        text: the text tower of the image model that is to classify.
        names: of the classes.
        templates: texts with `{}` for the name, or functions from the name to a text.

    Returns:
        One row of unit length for each class.

    Raises:
        ValueError: there is no name, no template, or a template without `{}`.

    Example:
        >>> text = vitjax.load_text("clip_b16_openai", tokenizer="tokenizer.json")
        >>> embeddings = vitjax.class_embeddings(text, ["cat", "dog"])
    """
    for what, value in {"names": names, "templates": templates}.items():
        if isinstance(value, str) or not len(value):
            raise ValueError(f"{what}={value!r} must be a list of at least one text.")
    for template in templates:
        if isinstance(template, str) and "{}" not in template:
            raise ValueError(f"The template {template!r} has no {{}} for the name.")
    prompts = [
        template.format(name) if isinstance(template, str) else template(name)
        for name in names
        for template in templates
    ]
    size, rows = min(BATCH, len(prompts)), []
    for start in range(0, len(prompts), size):
        ids = text.tokenize(prompts[start : start + size])
        missing = size - len(ids)  # one program for all batches
        rows.append(encode(text, np.pad(ids, ((0, missing), (0, 0)), "edge")))
    rows = jnp.concatenate(rows)[: len(prompts)]
    return unit(rows.reshape(len(names), len(templates), -1).mean(1))
