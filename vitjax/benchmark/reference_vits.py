"""The reference ViT for benchmarks: flax.linen's own layers."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitjax.models.model import Model
from vitjax.types import Batch, Config


class LinenBlock(nn.Module):
    """A pre-norm encoder block of flax.linen's own layers."""

    config: Config

    @nn.compact
    def __call__(self, x: Float[Array, "batch token dim"]):
        cfg = self.config
        attention = nn.MultiHeadDotProductAttention(cfg.heads, deterministic=True)
        x = x + attention(nn.LayerNorm(cfg.epsilon)(x))
        hidden = nn.Dense(cfg.mlp_dim)(nn.LayerNorm(cfg.epsilon)(x))
        hidden = nn.gelu(hidden, approximate=cfg.gelu == "tanh")
        return x + nn.Dense(cfg.dim)(hidden)


class LinenTransformer(nn.Module):
    """The plain ViT of flax.linen's own layers, without taps and edits."""

    config: Config
    classes: int

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"]):
        cfg = self.config
        patch = (cfg.patch_size, cfg.patch_size)
        x = nn.Conv(cfg.dim, patch, patch, "VALID", name="embedding")(images)
        x = x.reshape(len(x), -1, cfg.dim)
        cls = self.param("cls", nn.initializers.zeros, (1, 1, cfg.dim))
        x = jnp.concatenate([jnp.tile(cls, (len(x), 1, 1)), x], axis=1)
        shape = (1, cfg.tokens, cfg.dim)
        x = x + self.param("pos_embedding", nn.initializers.zeros, shape)
        for layer in range(cfg.depth):
            x = LinenBlock(cfg, name=f"block_{layer}")(x)
        x = nn.LayerNorm(cfg.epsilon, name="encoder_norm")(x)[:, 0]
        return nn.Dense(self.classes, name="head")(x)


def is_plain(config: Config) -> bool:
    """Whether a model is the plain ViT, which flax.linen's own layers can build."""
    free = "image_size", "patch_size", "dim", "depth", "heads", "mlp_dim"
    free += "channels", "epsilon", "gelu"
    plain = Config(**{name: getattr(config, name) for name in free})
    return config == plain and config.gelu != "quick"


def linen_forward(model: Model) -> tuple[Callable[[Any, Batch], Array], Any]:
    """`(params, batch) -> class logits` of a plain ViT, and its params."""
    module = LinenTransformer(model.config, model.num_classes)
    weights: Any = model.params
    encoder = weights["Transformer"]
    names = "embedding", "cls", "pos_embedding", "head"
    params = {name: weights[name] for name in names}
    params["encoder_norm"] = encoder["encoder_norm"]
    for layer in range(model.config.depth):
        block = jax.tree.map(lambda x, i=layer: x[i], encoder["encoderblock"])
        params[f"block_{layer}"] = block | block.pop("MlpBlock_0")

    def forward(params: Any, batch: Batch) -> Array:
        return module.apply({"params": params}, jnp.asarray(batch.images))  # pyright: ignore

    return forward, params
