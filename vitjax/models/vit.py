"""The Vision Transformer: one Flax Linen module for every architecture.

Parameter names follow big_vision's scanned ViT: blocks are stacked on a leading
`layer` axis. `pos_embedding` has one entry per token, prefix tokens first, as in the
original ViT.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitjax.models.edits import (
    BlockEdits,
    check_edits,
    patch_mask,
    split_edits,
    tap_arguments,
)
from vitjax.models.heads import (
    Affine,
    AttentionPool,
    Head,
    Refinement,
    mean_of_patches,
    mean_weights,
    pool,
    presence_of,
)
from vitjax.models.layers import NEAR_ZERO, NORMAL, Block, LayerNorm, PatchEmbedding
from vitjax.types import ArrayLike, ClassSpace, Config, Edits, TapEdit


class Encoder(nn.Module):
    """The scanned blocks and the final norm."""

    config: Config
    dropout: float = 0.0
    drop_path: float = 0.0

    def setup(self):
        blocks = nn.scan(
            Block,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, 0, 0, nn.broadcast),  # pyright: ignore
            length=self.config.depth,
        )
        self.encoderblock = blocks(self.config, self.dropout)
        self.encoder_norm = LayerNorm(self.config.dim, self.config.epsilon)

    def __call__(self, x, shared: BlockEdits, layered: BlockEdits, train: bool):
        rates = jnp.linspace(0, self.drop_path, self.config.depth)
        return self.encoderblock(x, shared, layered, rates, train)


class VisionTransformer(nn.Module):
    """Images to class logits: `embed`, the encoder, `unembed`.

    Plain Flax use works: `apply` with `capture_intermediates` yields arrays stacked
    over blocks. In training, `dropout` is the rate after the embedding and in each
    sub-layer, `drop_path` that of stochastic depth at the last block, rising linearly
    from 0.
    """

    config: Config
    classes: int
    dropout: float = 0.0
    drop_path: float = 0.0

    def setup(self):
        cfg = self.config
        self.embedding = PatchEmbedding(cfg.patch_size, cfg.dim, cfg.patch_bias)
        self.pos_embedding = self.param(
            "pos_embedding", NORMAL, (1, cfg.tokens, cfg.dim)
        )
        if cfg.class_token:
            self.cls = self.param("cls", NEAR_ZERO, (1, 1, cfg.dim))
        if cfg.registers:
            self.registers = self.param(
                "registers", NEAR_ZERO, (1, cfg.registers, cfg.dim)
            )
        if cfg.embed_norm:
            self.embed_norm = LayerNorm(cfg.dim, cfg.epsilon)
        self.embedding_dropout = nn.Dropout(self.dropout)
        self.Transformer = Encoder(cfg, self.dropout, self.drop_path)
        if cfg.pooling == "map":
            self.MAPHead_0 = AttentionPool(cfg)
        if cfg.projection is not None:
            self.projection = Affine((cfg.dim, cfg.projection))
        cosine = cfg.head == "cosine"
        self.head = Head(cfg.embed_dim, self.classes, cosine, cfg.sigmoid)
        if cfg.pooling == "cls_mean":
            self.head_patches = Affine((cfg.dim, self.classes))
        if cfg.head_blocks > 1:
            earlier = (cfg.head_blocks - 1, cfg.dim, self.classes)
            self.head_earlier = Affine(earlier)
        if cfg.distilled:
            self.head_dist = Head(cfg.dim, self.classes)
        if cfg.refinement:
            stacked = nn.vmap(
                Refinement,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                axis_size=cfg.depth - 1,
            )
            self.refinement = stacked(cfg)

    def embed(
        self, images: Float[ArrayLike, "batch height width channel"], edits: Edits
    ) -> Float[Array, "batch token dim"]:
        """The residual stream entering block 0."""
        check_edits(edits, self.config, images.shape[0])
        x = self.embedding(images)
        prefix = self.config.prefix
        x = x + self.pos_embedding[:, prefix:]
        if edits.select is not None:
            select = jnp.asarray(edits.select)[:, :, None]
            select = jnp.where(select < 0, x.shape[1], select)  # NaN, not the last one
            x = jnp.take_along_axis(x, select, axis=1)
        if prefix:
            tokens = [self.cls] if self.config.class_token else []
            tokens += [self.registers] if self.config.registers else []
            first = jnp.concatenate(tokens, axis=1) + self.pos_embedding[:, :prefix]
            x = jnp.concatenate([jnp.tile(first, (x.shape[0], 1, 1)), x], axis=1)
        if self.config.embed_norm:
            x = self.embed_norm(x)
        if "embedding" not in (edits.taps or {}):
            return x
        return TapEdit(**tap_arguments("embedding", edits, self.config))(x)

    def class_space(self, head: Head | None = None) -> ClassSpace:
        """The parameters that turn a state into class logits."""
        cfg, head = self.config, head or self.head
        norm = self.Transformer.encoder_norm
        fields: dict[str, Any] = dict(
            norm_scale=norm.scale,
            norm_shift=norm.bias,
            epsilon=cfg.epsilon,
            bias=head.bias + head.logit_bias if cfg.sigmoid else head.bias,
            embedding=head.kernel.T,
            sigmoid=cfg.sigmoid,
        )
        if cfg.pooling == "cls_mean":
            fields["patch_embedding"] = self.head_patches.kernel.T
        if cfg.pooling == "map":
            fields |= self.MAPHead_0.of_one_token()
        elif cfg.projection is not None:
            fields["projection"] = self.projection.kernel
        if cfg.head == "cosine":
            fields["temperature"] = head.temperature
        if cfg.head == "cosine" or "projection" in fields:
            fields["class_embedding"] = head.kernel.T
        if "projection" in fields:
            fields["embedding"] = head.kernel.T @ fields["projection"].T
        return ClassSpace(**fields)

    def embed_image(
        self,
        x: Float[Array, "batch token dim"],
        edits: Edits,
        presence: Float[Array, "batch token"] | None = None,
    ) -> Float[Array, "batch embed"]:
        """What is compared with classes, before the MLP of attention pooling."""
        cfg, space = self.config, self.class_space()
        x = space.normalize(x) if cfg.normalizes_first else x
        if cfg.pooling == "map":
            return self.attend(x, self.head_attention(x, edits, presence))
        pooled = pool(x, edits, cfg, presence)
        return space.embed(pooled if cfg.normalizes_first else space.normalize(pooled))

    def head_attention(
        self, z: Float[Array, "batch token dim"], edits: Edits, presence: Any = None
    ) -> Float[Array, "batch head token"]:
        """Attention weights of attention pooling, of normalized tokens."""
        return self.MAPHead_0.weights(z, presence_of(edits, self.config, presence))

    def attend(
        self,
        z: Float[Array, "batch token dim"],
        weights: Float[Array, "batch head token"],
    ) -> Float[Array, "batch embed"]:
        """Embeddings of normalized tokens by these attention weights."""
        return self.MAPHead_0(z, weights)

    def unembed(
        self,
        x: Float[Array, "batch token dim"],
        edits: Edits,
        class_tokens: Float[Array, "layer batch dim"] | None = None,
        presence: Float[Array, "batch token"] | None = None,
    ) -> Float[Array, "batch class"]:
        """Class logits of the final residual stream, where the head reads it.

        A head of several blocks also reads `class_tokens`, [CLS] after the last of
        them. `presence` in [0, 1] is how far each token takes part in pooling.
        """
        cfg, space = self.config, self.class_space()
        if cfg.pooling == "cls_mean":
            z = space.normalize(x)
            patches = mean_of_patches(z, edits, cfg, presence)
            logits = space.read(z[:, 0]) + space.of_patches.read(patches)
            if cfg.head_blocks > 1:
                kernels = self.head_earlier.kernel
                earlier = self.earlier_blocks(class_tokens).astype(kernels.dtype)
                logits = logits + jnp.einsum(
                    "lbd,ldc->bc",
                    earlier,
                    kernels,
                    preferred_element_type=logits.dtype,
                )
            return logits
        logits = space.compare(self.embed_image(x, edits, presence))
        if cfg.distilled:
            other = self.class_space(self.head_dist).logits(x[..., 1, :])
            logits = (logits + other) / 2
        return logits

    def earlier_blocks(self, class_tokens: Any) -> Float[Array, "earlier batch dim"]:
        """[CLS] of the blocks before the last that the head reads, normalized."""
        return self.class_space().normalize(class_tokens[-self.config.head_blocks : -1])

    def features(
        self, x: Float[Array, "batch token dim"], edits: Edits, class_tokens: Any
    ) -> Float[Array, "batch embed"]:
        """What is multiplied by the head's kernel; see `vitjax.encode_image`."""
        cfg, space = self.config, self.class_space()
        if cfg.pooling != "cls_mean":
            return space.finish(self.embed_image(x, edits))
        z = space.normalize(x)
        parts = [z[:, 0], mean_of_patches(z, edits, cfg)]
        if cfg.head_blocks > 1:
            parts = [*self.earlier_blocks(class_tokens), *parts]
        return jnp.concatenate(parts, axis=-1)

    def token_weights(
        self, x: Float[Array, "batch token dim"], edits: Edits
    ) -> Float[Array, "batch token"]:
        """The weight of every token in what the head reads from a state, of x's dtype.

        Attention pooling: the head's own attention weights, averaged over its heads.
        Where [CLS] and the patches have class embeddings of their own: a half for
        [CLS], the other for the patches together.
        """
        cfg = self.config
        if cfg.pooling == "map":
            z = self.class_space().normalize(x)
            return self.head_attention(z, edits).mean(1).astype(x.dtype)
        first = jnp.tile((jnp.arange(x.shape[1]) == 0)[None], (len(x), 1))
        first = first.astype(x.dtype)
        if cfg.pooling == "cls":
            return first
        patches = mean_weights(x[:, cfg.prefix :], patch_mask(edits))
        patches = jnp.pad(patches, ((0, 0), (cfg.prefix, 0)))
        return patches if cfg.pooling == "mean" else (first + patches) / 2

    def refine(
        self, params: Any, x: Float[Array, "batch token dim"]
    ) -> Float[Array, "batch class"]:
        """Class logits of the refinement module with these parameters."""
        module = Refinement(self.config, parent=None)
        refined: Any = module.apply(
            {"params": params}, self.Transformer.encoder_norm(x)
        )
        return self.class_space().read(refined)

    def __call__(
        self,
        images: Float[ArrayLike, "batch height width channel"],
        edits: Edits | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "batch class"]:
        edits = Edits() if edits is None else edits
        x = self.embed(images, edits)
        x = self.embedding_dropout(x, deterministic=not train)
        if self.config.refinement and self.is_initializing():
            self.refinement(jnp.tile(x[None], (self.config.depth - 1, 1, 1, 1)))
        x, tokens = self.Transformer(x, *split_edits(edits, self.config), train)
        return self.unembed(x, edits, tokens)
