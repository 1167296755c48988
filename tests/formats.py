"""Encoders in every format of torch, written from the formats' own names.

Each table maps our modules to the beginnings of keys, and our single arrays to whole
keys; it is independent of the tables under test.
"""

import numpy as np
import tiny
from jax import tree

from vitjax.models.model import flatten
from vitjax.types import Config

ATTENTION, MLP = "MultiHeadDotProductAttention_0/", "MlpBlock_0/"
ORDER = {"query": 0, "key": 1, "value": 2}


def names_of_clip(block: str, *, attention: str, norms: str, mlp: tuple[str, str]):
    """What towers of CLIP and SigLIP have in every block."""
    first, second = mlp
    return {
        "LayerNorm_0/": f"{block}{norms}1.",
        "LayerNorm_1/": f"{block}{norms}2.",
        MLP + "Dense_0/": f"{block}mlp.{first}.",
        MLP + "Dense_1/": f"{block}mlp.{second}.",
        ATTENTION + "out/": f"{block}{attention}.out_proj.",
    }


def of_qkv(module: str, key: str) -> dict[str, str]:
    return {f"{module}{part}/": key.format(part[0], part) for part in ORDER}


TOWER = "vision_model."
HF_BLOCK = TOWER + "encoder.layers.{}."
HUGGING_FACE_CLIP = {
    **names_of_clip(
        HF_BLOCK, attention="self_attn", norms="layer_norm", mlp=("fc1", "fc2")
    ),
    **of_qkv(ATTENTION, HF_BLOCK.replace("{}", "{{}}") + "self_attn.{0}_proj."),
    "embedding/": TOWER + "embeddings.patch_embedding.",
    "pos_embedding": TOWER + "embeddings.position_embedding.weight",
    "cls": TOWER + "embeddings.class_embedding",
    "embed_norm/": TOWER + "pre_layrnorm.",
    "Transformer/encoder_norm/": TOWER + "post_layernorm.",
    "projection/": "visual_projection.",
    "head/temperature": "logit_scale",
    "head/logit_bias": "logit_bias",
    "MAPHead_0/probe": TOWER + "head.probe",
    **of_qkv("MAPHead_0/", TOWER + "head.attention.in_proj_"),
    "MAPHead_0/out/": TOWER + "head.attention.out_proj.",
    "MAPHead_0/LayerNorm_0/": TOWER + "head.layernorm.",
    "MAPHead_0/Dense_0/": TOWER + "head.mlp.fc1.",
    "MAPHead_0/Dense_1/": TOWER + "head.mlp.fc2.",
}
CLIP_BLOCK = "visual.transformer.resblocks.{}."
OPEN_CLIP = {
    **names_of_clip(CLIP_BLOCK, attention="attn", norms="ln_", mlp=("c_fc", "c_proj")),
    **of_qkv(ATTENTION, CLIP_BLOCK.replace("{}", "{{}}") + "attn.in_proj_"),
    "embedding/": "visual.conv1.",
    "pos_embedding": "visual.positional_embedding",
    "cls": "visual.class_embedding",
    "embed_norm/": "visual.ln_pre.",
    "Transformer/encoder_norm/": "visual.ln_post.",
    "projection/": "visual.proj",
    "head/temperature": "logit_scale",
    "head/logit_bias": "logit_bias",
}
TIMM_BLOCK = "blocks.{}."
TIMM = {
    "LayerNorm_0/": TIMM_BLOCK + "norm1.",
    "LayerNorm_1/": TIMM_BLOCK + "norm2.",
    "LayerScale_0/gamma": TIMM_BLOCK + "ls1.gamma",
    "LayerScale_1/gamma": TIMM_BLOCK + "ls2.gamma",
    MLP + "Dense_0/": TIMM_BLOCK + "mlp.fc1.",
    MLP + "Dense_1/": TIMM_BLOCK + "mlp.fc2.",
    **of_qkv(ATTENTION, "blocks.{{}}.attn.qkv."),
    ATTENTION + "out/": TIMM_BLOCK + "attn.proj.",
    "embedding/": "patch_embed.proj.",
    "pos_embedding": "pos_embed",
    "cls": "cls_token",
    "registers": "reg_token",
    "embed_norm/": "norm_pre.",
    "Transformer/encoder_norm/": "norm.",
    "head/": "head.",
    "MAPHead_0/probe": "attn_pool.latent",
    "MAPHead_0/query/": "attn_pool.q.",
    "MAPHead_0/key/": "attn_pool.kv.",
    "MAPHead_0/value/": "attn_pool.kv.",
    "MAPHead_0/out/": "attn_pool.proj.",
    "MAPHead_0/LayerNorm_0/": "attn_pool.norm.",
    "MAPHead_0/Dense_0/": "attn_pool.mlp.fc1.",
    "MAPHead_0/Dense_1/": "attn_pool.mlp.fc2.",
}
TRUNK = {ours: f"visual.trunk.{theirs}" for ours, theirs in TIMM.items()}
TRUNK |= {f"head/{name}": key for name, key in (("temperature", "logit_scale"),)}
TRUNK["head/logit_bias"] = "logit_bias"
MEAN = TIMM | {"Transformer/encoder_norm/": "fc_norm."}
PROJECTION = {k: v for k, v in TIMM.items() if k != "head/"} | {"projection/": "head."}
DINO_BLOCK = "dinov2.encoder.layer.{}."
HUGGING_FACE_DINO = {
    "LayerNorm_0/": DINO_BLOCK + "norm1.",
    "LayerNorm_1/": DINO_BLOCK + "norm2.",
    "LayerScale_0/gamma": DINO_BLOCK + "layer_scale1.lambda1",
    "LayerScale_1/gamma": DINO_BLOCK + "layer_scale2.lambda1",
    MLP + "Dense_0/": DINO_BLOCK + "mlp.fc1.",
    MLP + "Dense_1/": DINO_BLOCK + "mlp.fc2.",
    **of_qkv(ATTENTION, DINO_BLOCK.replace("{}", "{{}}") + "attention.attention.{1}."),
    ATTENTION + "out/": DINO_BLOCK + "attention.output.dense.",
    "embedding/": "dinov2.embeddings.patch_embeddings.projection.",
    "pos_embedding": "dinov2.embeddings.position_embeddings",
    "cls": "dinov2.embeddings.cls_token",
    "registers": "dinov2.embeddings.register_tokens",
    "Transformer/encoder_norm/": "dinov2.layernorm.",
    "head/": "classifier.",
    "head_patches/": "classifier.",
}

SIZES = tiny.SHAPE
CLIP: dict = dict(embed_norm=True, patch_bias=False, epsilon=1e-5, gelu="quick")
CONFIGS = {
    "clip": Config(**SIZES, **CLIP, projection=10, head="cosine"),
    "clip alone": Config(**SIZES, **CLIP),
    "siglip": Config(
        **SIZES,
        **dict(class_token=False, pool="map", gelu="tanh"),
        **dict(head="cosine", sigmoid=True),
    ),
    "siglip trunk": Config(
        **SIZES | dict(dim=192, heads=3, depth=1),
        **dict(class_token=False, pool="map", gelu="tanh"),
        **dict(head="cosine", sigmoid=True),
    ),
    "dinov2": Config(**SIZES, layer_scale=True),
    "dinov2_reg": Config(**SIZES, layer_scale=True, registers=3),
    "dinov2_head": Config(**SIZES, layer_scale=True, registers=3, pool="cls_mean"),
    "mae": Config(**SIZES, pool="mean"),
    "gap": Config(**SIZES, registers=2, pool="mean", pool_norm="before"),
}


def write(model, names: dict[str, str]) -> dict[str, np.ndarray]:
    """A model's arrays as torch has them, by a table of names."""
    out: dict[str, list] = {}
    flat = flatten(tree.map(np.asarray, model.params))
    order = lambda path: ORDER.get(path.split("/")[-2] if "/" in path else "", -1)  # noqa: E731
    for path in sorted(flat, key=order):
        if 0 in flat[path].shape:
            continue
        short = path.removeprefix("Transformer/encoderblock/")
        module, _, leaf = short.rpartition("/")
        key = names.get(short) or names.get(module + "/", "")
        if short not in names:
            assert key, f"{path} has no name in this format"
            leaf = {"scale": "weight", "kernel": "weight"}.get(leaf, leaf)
            key += leaf if key[-1] in "._" else ""
        blocks = flat[path] if short != path else [flat[path]]
        for number, value in enumerate(blocks):
            out.setdefault(key.format(number), []).append(to_torch(path, value))
    arrays = {}
    for key, parts in out.items():
        wide = key.startswith("classifier") and parts[0].ndim == 2
        arrays[key] = np.concatenate(parts, axis=1 if wide else 0)
    if "visual.proj" in arrays:
        arrays["visual.proj"] = arrays["visual.proj"].T
    for key in ("pos_embed", "dinov2.embeddings.position_embeddings"):
        if key in arrays:  # registers have none
            without = np.s_[1 : 1 + model.config.registers]
            arrays[key] = np.delete(arrays[key], without, axis=1)
    return {key: np.ascontiguousarray(value) for key, value in arrays.items()}


def to_torch(path: str, value: np.ndarray) -> np.ndarray:
    """One parameter in torch's shape."""
    name, leaf = [*path.split("/"), ""][-3:-1] if "/" in path else ("", path)
    if leaf == "temperature":
        return np.log(value).reshape(1)
    if leaf == "logit_bias":
        return value.reshape(1)
    if name in ORDER:
        return value.reshape(-1) if leaf == "bias" else value.reshape(len(value), -1).T
    if leaf != "kernel":
        return value
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    return value.reshape(-1, value.shape[-1]).T
