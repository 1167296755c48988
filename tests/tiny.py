"""Miniature models of every architecture, and their files in every layout.

The writers are the inverse of the tables under test, written from the formats'
descriptions and not from those tables.
"""

import dataclasses
import functools
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

import vitjax
from vitjax.models.model import Model, flatten, parameter_shapes, unflatten
from vitjax.types import TRACE_FIELDS, Batch, Config, Edits

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
    "refinement": Config(**SHAPE | {"depth": 3}, refinement=True),
    "swiglu": Config(**SHAPE, mlp="swiglu", qk_norm=True, layer_scale=True),
    "distilled": Config(**SHAPE, registers=1, distilled=True),
}
ENCODERS = {
    "clip": Config(
        **SHAPE,
        embed_norm=True,
        patch_bias=False,
        gelu="quick",
        epsilon=1e-5,
        projection=12,
        head="cosine",
    ),
    "siglip": Config(
        **SHAPE, class_token=False, pool="map", gelu="tanh", head="cosine", sigmoid=True
    ),
    "dinov2": Config(
        **SHAPE | {"depth": 5},
        registers=2,
        layer_scale=True,
        pool="cls_mean",
        head_blocks=4,
    ),
    "cls_mean": Config(**SHAPE, pool="cls_mean", mlp="swiglu"),
    "mean_with_cls": Config(**SHAPE, registers=1, pool="mean"),
    "mean_of_norms": Config(
        **SHAPE, registers=1, pool="mean", pool_norm="before", head="cosine"
    ),
    "map_linear": Config(**SHAPE, registers=1, pool="map"),
    "clip_linear": Config(**SHAPE, embed_norm=True, projection=12, truncate=True),
}
"""Kinds whose head is not a linear one that reads [CLS] or all there is."""
QUICK = "clip", "siglip", "dinov2"
POOLED = dataclasses.replace(CONFIGS["gap"], registers=2, layer_scale=True)
"""All that differs from a model with [CLS], at once."""
KINDS = CONFIGS | ENCODERS | {"pooled": POOLED}
CLASSES = tuple("abcdefg")


def slow_but(names, *quick):
    """Parameters of a test, all but some of them slow."""
    slow = pytest.mark.slow
    return [n if n in quick else pytest.param(n, marks=slow) for n in names]


def make(config: Config, *, classes=CLASSES, seed: int = 0) -> Model:
    """A model whose every parameter, norms and biases too, is random."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        one = path.endswith(("scale", "gamma", "var", "temperature"))
        values = rng.normal(1.0 if one else 0.0, 0.2, shape).astype(np.float32)
        return np.abs(values) if path.endswith("var") else values

    shapes = parameter_shapes(config, len(classes))
    params = unflatten({path: draw(path, shape) for path, shape in shapes.items()})
    return Model(
        params=jax.device_put(params), config=config, classes=classes, class_ids=classes
    )


def images(config: Config, count: int = 3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, *config.shape, config.channels)).astype(np.float32)


def keep(config: Config) -> np.ndarray:
    """Patches of three images: all of the first, and some of the others."""
    patches = np.arange(config.patches)
    return np.stack([patches >= 0, patches % 3 > 0, patches % 3 == 1])


@functools.cache
def traced(kind: str, *, kept: bool = False):
    """(model, images, class logits, every field of the trace), once for all tests."""
    config = KINDS[kind]
    model, pixels = make(config), images(config)
    edits = Edits(keep=keep(config)) if kept else None
    results = vitjax.forward(model, pixels, capture=TRACE_FIELDS, edits=edits)
    return model, pixels, *jax.device_get(results)


@jax.jit
def attention_slopes(model: Model, pixels, weights):
    """Gradients, with respect to attention, of class logits times `weights`."""
    total = lambda logits: (logits * weights).sum()  # noqa: E731
    return vitjax.attention_gradients(model, pixels, total)


def total(parts: dict) -> np.ndarray:
    """Contributions to the logits of three images, added up."""
    images_first = (
        np.asarray(x if x.ndim == 1 else x.swapaxes(0, 1)) for x in parts.values()
    )
    return sum(x.reshape(3, -1).sum(1) for x in images_first)


def batch_of(images, label, patch_label=None) -> Batch:
    """A batch of nothing but valid images."""
    count = len(images)
    return Batch(
        images=images,
        label=np.asarray(label, np.int32),
        valid=np.ones(count, bool),
        index=np.arange(count, dtype=np.int32),
        patch_label=patch_label,
    )


PRE_LINEN = {
    "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
    "LayerNorm_1": "LayerNorm_2",
    "MlpBlock_0": "MlpBlock_3",
}


def flax_arrays(model: Model, *, stacked: bool, rename=()) -> dict:
    """The tree's leaves by path, blocks together or apart."""
    out = {}
    for key, value in flatten(jax.tree.map(np.asarray, model.params)).items():
        parts = key.split("/")
        if stacked or parts[:2] != ["Transformer", "encoderblock"]:
            out[key] = value
            continue
        tail = "/".join(dict(rename).get(part, part) for part in parts[2:])
        for block in range(len(value)):
            out[f"Transformer/encoderblock_{block}/{tail}"] = value[block]
    return out


def write_google(path, model: Model, *, linen: bool, prefix: str = "") -> dict:
    """The original npz: blocks apart, positions with [CLS]'s own at the front."""
    out = flax_arrays(model, stacked=False, rename=() if linen else PRE_LINEN)
    position = out.pop("pos_embedding")
    out["Transformer/posembed_input/pos_embedding"] = position
    np.savez(path, **{prefix + key: value for key, value in out.items()})
    return out


KEYED = ("query", "key")


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
        if cfg.mlp == "swiglu":  # one matrix, the gate first
            both = at["MlpBlock_0"]["Dense_0"], at["MlpBlock_0"]["up"]
            packed = np.concatenate([dense["kernel"].T for dense in both])
            out[f"{name}mlp.fc1.weight"] = packed
            out[f"{name}mlp.fc1.bias"] = np.concatenate([d["bias"] for d in both])
        if cfg.qk_norm:
            norms |= {f"{name}attn.{w[0]}_norm": mha[f"{w}_norm"] for w in KEYED}
    for name, norm in norms.items():
        out |= {name + ".weight": norm["scale"], name + ".bias": norm["bias"]}
    if cfg.registers:
        out["dist_token" if cfg.distilled else "reg_token"] = params["registers"]
    if cfg.distilled:
        out["head_dist.weight"] = params["head_dist"]["kernel"].T
        out["head_dist.bias"] = params["head_dist"]["bias"]
    if cfg.class_token:
        out["cls_token"] = params["cls"]
    out["pos_embed"] = params["pos_embedding"]
    out |= refinement_heads(params) if cfg.refinement else {}
    out = {prefix + k: np.ascontiguousarray(v) for k, v in out.items()}
    safetensors.numpy.save_file(out, path)
    return out


def refinement_heads(params: dict) -> dict:
    """Naseer et al.'s modules beside timm's keys, each with a batch-norm counter."""
    tree, out = params["refinement"], {}
    for i in range(len(tree["token"]["bias"])):
        name, bn = f"transformerheads.{i}.", tree["norm"]
        out |= {
            name + "conv.weight": tree["conv"]["kernel"][i].transpose(3, 2, 0, 1),
            name + "bn.weight": bn["scale"][i],
            name + "bn.bias": bn["bias"][i],
            name + "bn.running_mean": bn["mean"][i],
            name + "bn.running_var": bn["var"][i],
            name + "bn.num_batches_tracked": np.array(7),
            name + "token_fc.weight": tree["token"]["kernel"][i].T,
            name + "token_fc.bias": tree["token"]["bias"][i],
        }
    return out


def write_big_vision(path, model: Model, *, stacked: bool) -> dict:
    """big_vision's npz: `params/`, positions of the patches alone, [CLS] apart.

    The position of [CLS] is added to it, as big_vision does when it reads old files.
    """
    out = flax_arrays(model, stacked=stacked)
    out["cls"] = out["cls"] + out["pos_embedding"][:, :1]
    out["pos_embedding"] = out["pos_embedding"][:, 1:]
    out = {"params/" + key: value for key, value in out.items()}
    np.savez(path, **out, **{"opt/0/count": np.array(3)})
    return out


def write_hugging_face(path, model: Model, *, prefix: str = "vit.") -> dict:
    """transformers' state dict; a register is DeiT's distillation token."""
    cfg, params = model.config, jax.tree.map(np.asarray, model.params)
    block, out = params["Transformer"]["encoderblock"], {}
    kernel = params["embedding"]["kernel"]
    bare = {
        "embeddings.cls_token": params["cls"],
        "embeddings.position_embeddings": params["pos_embedding"],
        "embeddings.patch_embeddings.projection.weight": kernel.transpose(3, 2, 0, 1),
        "embeddings.patch_embeddings.projection.bias": params["embedding"]["bias"],
    }
    if cfg.registers:
        bare["embeddings.distillation_token"] = params["registers"]
    norms = {"layernorm.": params["Transformer"]["encoder_norm"]}
    for i in range(cfg.depth):
        at = jax.tree.map(lambda leaf, i=i: leaf[i], block)
        name, mha = f"encoder.layer.{i}.", at["MultiHeadDotProductAttention_0"]
        norms[name + "layernorm_before."] = at["LayerNorm_0"]
        norms[name + "layernorm_after."] = at["LayerNorm_1"]
        for part in ("query", "key", "value"):
            there = f"{name}attention.attention.{part}."
            bare[there + "weight"] = mha[part]["kernel"].reshape(cfg.dim, -1).T
            if cfg.qkv_bias:
                bare[there + "bias"] = mha[part]["bias"].reshape(-1)
        dense, out_kernel = at["MlpBlock_0"], mha["out"]["kernel"].reshape(-1, cfg.dim)
        bare |= {
            f"{name}attention.output.dense.weight": out_kernel.T,
            f"{name}attention.output.dense.bias": mha["out"]["bias"],
            f"{name}intermediate.dense.weight": dense["Dense_0"]["kernel"].T,
            f"{name}intermediate.dense.bias": dense["Dense_0"]["bias"],
            f"{name}output.dense.weight": dense["Dense_1"]["kernel"].T,
            f"{name}output.dense.bias": dense["Dense_1"]["bias"],
        }
    for name, norm in norms.items():
        bare |= {name + "weight": norm["scale"], name + "bias": norm["bias"]}
    out = {prefix + key: value for key, value in bare.items()}
    out |= {
        "classifier.weight": params["head"]["kernel"].T,
        "classifier.bias": params["head"]["bias"],
    }
    out = {key: np.ascontiguousarray(value) for key, value in out.items()}
    safetensors.numpy.save_file(out, path)
    return out


def write_torch(path, arrays: dict, *, nest: str | None) -> None:
    """The same arrays as PyTorch saves them, by themselves or nested."""
    torch = pytest.importorskip("torch")
    state = {key: torch.tensor(value) for key, value in arrays.items()}
    torch.save({nest: state, "epoch": 3} if nest else state, path)


def shrunk(config: Config) -> Config:
    """The same kind of architecture, small."""
    depth = 3  # so that a refinement module stands in more than one block
    return dataclasses.replace(config, **SHAPE | {"depth": depth})


PUBLISHED = {
    "vit_b16": lambda path, model: write_google(path, model, linen=False),
    "vit_b16_cifar100": lambda path, model: write_timm(path, model, prefix="model."),
    "vit_b16_miil": write_timm,
    "vit_b16_refinement": write_timm,
    "vit_b16_refinement_heads": write_timm,
    "vit_b16_gap": write_timm,
    "deit_b16": write_timm,
}
"""Rows of every kind -> how their files are written; B/32 and L/16 are as B/16."""


def write_row(folder, name: str, config: Config) -> tuple[Model, pathlib.Path]:
    """A miniature of a row, and its file in the row's own layout."""
    model = make(config)
    suffix = "npz" if name == "vit_b16" else "safetensors"
    path = folder / f"{name}.{suffix}"
    if name == "vit_b16_refinement":  # its file holds the heads that the row leaves out
        with_heads = make(dataclasses.replace(config, refinement=True))
        PUBLISHED[name](path, with_heads)
        kept = {k: v for k, v in with_heads.params.items() if k != "refinement"}
        return model.replace(params=kept), path
    PUBLISHED[name](path, model)
    return model, path
