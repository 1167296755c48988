"""The same forward pass as others build it, to be measured beside ours."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vitjax.models.model import Model
from vitjax.types import Batch, Config

GELU = {"erf": False, "tanh": True}


class LinenBlock(nn.Module):
    """A pre-norm encoder block of flax.linen's own layers."""

    config: Config

    @nn.compact
    def __call__(self, x: Float[Array, "batch token dim"]):
        cfg = self.config
        attention = nn.MultiHeadDotProductAttention(cfg.heads, deterministic=True)
        x = x + attention(nn.LayerNorm(cfg.epsilon)(x))
        hidden = nn.Dense(cfg.mlp_dim)(nn.LayerNorm(cfg.epsilon)(x))
        hidden = nn.gelu(hidden, approximate=GELU[cfg.gelu])
        return x + nn.Dense(cfg.dim)(hidden)


class LinenTransformer(nn.Module):
    """The plain ViT of flax.linen's own layers: nothing to look at, nothing to edit."""

    config: Config
    classes: int

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"]):
        cfg = self.config
        patch = (cfg.patch_size, cfg.patch_size)
        x = nn.Conv(cfg.dim, patch, patch, "VALID", name="embedding")(images)
        x = x.reshape(len(x), -1, cfg.dim)
        first = self.param("cls", nn.initializers.zeros, (1, 1, cfg.dim))
        x = jnp.concatenate([jnp.tile(first, (len(x), 1, 1)), x], axis=1)
        shape = (1, cfg.tokens, cfg.dim)
        x = x + self.param("pos_embedding", nn.initializers.zeros, shape)
        for layer in range(cfg.depth):
            x = LinenBlock(cfg, name=f"block_{layer}")(x)
        x = nn.LayerNorm(cfg.epsilon, name="encoder_norm")(x)[:, 0]
        return nn.Dense(self.classes, name="head")(x)


def is_plain(config: Config) -> bool:
    """Whether a model is the plain ViT, which the others have as well."""
    special = config.registers or config.layer_scale or config.refinement
    usual = config.class_token and config.norm == "pre" and config.qkv_bias
    return bool(usual and not special)


def linen_forward(model: Model) -> tuple[Callable[[Any, Batch], Array], Any]:
    """A plain forward pass of flax.linen's layers with a model's weights.

    Args:
        model: a plain ViT.

    Returns:
        (params, batch) to class logits, and the params.
    """
    module = LinenTransformer(model.config, model.num_classes)

    def forward(params: Any, batch: Batch) -> Array:
        return module.apply({"params": params}, jnp.asarray(batch.images))  # pyright: ignore

    return forward, linen_params(model)


def linen_params(model: Model) -> dict[str, Any]:
    """A model's weights under the names of `LinenTransformer`."""
    params: Any = model.params
    encoder = params["Transformer"]
    found = {
        name: params[name] for name in ("embedding", "cls", "pos_embedding", "head")
    }
    found["encoder_norm"] = encoder["encoder_norm"]
    for layer in range(model.config.depth):
        block = jax.tree.map(lambda x, i=layer: x[i], encoder["encoderblock"])
        found[f"block_{layer}"] = block | block.pop("MlpBlock_0")
    return found


def timm_forward(
    config: Config, *, classes: int, batch_size: int
) -> Callable[[], None]:
    """A plain forward pass of timm's ViT in PyTorch on the CPU.

    Weights and pictures are random: they do not change how long it takes.

    Args:
        config: a plain architecture.
        classes: of the head.
        batch_size: images per call.

    Returns:
        What to call and to time.

    Raises:
        ImportError: PyTorch, torchvision or timm is not installed.
    """
    import torch
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        img_size=config.shape,
        patch_size=config.patch_size,
        embed_dim=config.dim,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=config.mlp_dim / config.dim,
        num_classes=classes,
        qkv_bias=config.qkv_bias,
    ).eval()
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((batch_size, 3, *config.shape), np.float32)
    images = torch.from_numpy(pixels)

    def forward() -> None:
        with torch.inference_mode():
            model(images)

    return forward
