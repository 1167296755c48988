"""Miniature models of every architecture, and their files in foreign dialects.

The writers are the inverse of the tables under test, written from the formats'
descriptions and not from those tables.
"""

import jax
import numpy as np
import safetensors.numpy

from vitjax.models.model import Model
from vitjax.models.tree import flatten, parameter_shapes, unflatten
from vitjax.types import Config

SHAPE = dict(image_size=32, patch_size=8, dim=16, depth=2, heads=2, mlp_dim=24)

CONFIGS = {
    "plain": Config(**SHAPE),
    "no_qkv_bias": Config(**SHAPE, qkv_bias=False),
    "gap": Config(**SHAPE, class_token=False, norm="residual_post", qkv_bias=False),
    "layer_scale": Config(**SHAPE, layer_scale=True),
    "registers": Config(**SHAPE, registers=3),
    "registers_gap": Config(**SHAPE, registers=2, class_token=False),
    "tanh": Config(**SHAPE, gelu="tanh", epsilon=1e-12),
    "post_cls": Config(**SHAPE, norm="residual_post", layer_scale=True),
    "one_block": Config(**SHAPE | {"depth": 1}),
    "wide": Config(**SHAPE | {"image_size": (16, 40)}),
}
CLASSES = tuple("abcdefg")


def make(config: Config, *, classes=CLASSES, seed: int = 0) -> Model:
    """A model whose every parameter, norms and biases too, is random."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        one = path.endswith(("scale", "gamma"))
        return rng.normal(1.0 if one else 0.0, 0.2, shape).astype(np.float32)

    shapes = parameter_shapes(config, len(classes))
    params = unflatten({path: draw(path, shape) for path, shape in shapes.items()})
    return Model(
        params=jax.device_put(params), config=config, classes=classes, class_ids=classes
    )


def images(config: Config, count: int = 3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, *config.shape, 3)).astype(np.float32)


def write_google(path, model: Model, *, linen: bool, prefix: str = "") -> dict:
    """The original npz: blocks apart, positions with [CLS]'s own at the front."""
    flat = {k: np.asarray(v) for k, v in flatten(model.params).items()}
    rename = (
        {}
        if linen
        else {
            "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
            "LayerNorm_1": "LayerNorm_2",
            "MlpBlock_0": "MlpBlock_3",
        }
    )
    out = {}
    for key, value in flat.items():
        if key.startswith("Transformer/encoderblock/"):
            tail = key.removeprefix("Transformer/encoderblock/").split("/")
            tail = "/".join(rename.get(part, part) for part in tail)
            for block in range(len(value)):
                out[f"Transformer/encoderblock_{block}/{tail}"] = value[block]
        else:
            out[key] = value
    position = out.pop("pos_embedding")
    out["Transformer/posembed_input/pos_embedding"] = position
    np.savez(path, **{prefix + key: value for key, value in out.items()})
    return out


def write_timm(path, model: Model, *, prefix: str = "") -> dict:
    """A torch state dict: [out in] matrices, joint qkv, positions of all tokens."""
    cfg, params = model.config, jax.tree.map(np.asarray, model.params)
    block = params["Transformer"]["encoderblock"]
    out = {
        "patch_embed.proj.weight": params["embedding"]["kernel"].transpose(3, 2, 0, 1),
        "patch_embed.proj.bias": params["embedding"]["bias"],
        "head.weight": params["head"]["kernel"].T,
        "head.bias": params["head"]["bias"],
    }
    final = "norm" if cfg.class_token else "fc_norm"
    norms = {final: params["Transformer"]["encoder_norm"]}
    for i in range(cfg.depth):
        at = jax.tree.map(lambda leaf, i=i: leaf[i], block)
        name, mha = f"blocks.{i}.", at["MultiHeadDotProductAttention_0"]
        norms |= {f"{name}norm{j + 1}": at[f"LayerNorm_{j}"] for j in (0, 1)}
        parts = [mha[part] for part in ("query", "key", "value")]
        joint = [part["kernel"].reshape(cfg.dim, cfg.dim).T for part in parts]
        out[name + "attn.qkv.weight"] = np.concatenate(joint)
        if cfg.qkv_bias:
            joint = [part["bias"].reshape(-1) for part in parts]
            out[name + "attn.qkv.bias"] = np.concatenate(joint)
        out[name + "attn.proj.weight"] = mha["out"]["kernel"].reshape(-1, cfg.dim).T
        out[name + "attn.proj.bias"] = mha["out"]["bias"]
        for j in (0, 1):
            dense = at["MlpBlock_0"][f"Dense_{j}"]
            out[f"{name}mlp.fc{j + 1}.weight"] = dense["kernel"].T
            out[f"{name}mlp.fc{j + 1}.bias"] = dense["bias"]
            if cfg.layer_scale:
                out[f"{name}ls{j + 1}.gamma"] = at[f"LayerScale_{j}"]["gamma"]
    for name, norm in norms.items():
        out |= {name + ".weight": norm["scale"], name + ".bias": norm["bias"]}
    if cfg.registers:
        out["reg_token"] = params["registers"]
    if cfg.class_token:
        out["cls_token"] = params["cls"]
    out["pos_embed"] = params["pos_embedding"]
    out = {prefix + k: np.ascontiguousarray(v) for k, v in out.items()}
    safetensors.numpy.save_file(out, path)
    return out
