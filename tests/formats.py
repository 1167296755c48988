"""Models in every format, written from the formats' own names.

Each table maps our modules to the beginnings of keys, and our single arrays to whole
keys; it is independent of the tables under test.
"""

import functools
import pathlib

import numpy as np
import safetensors.numpy
import tiny
from jax import tree

import vitjax
from vitjax.models.model import Model, flatten
from vitjax.types import Config

ATTENTION, MLP = "MultiHeadDotProductAttention_0/", "MlpBlock_0/"
ORDER = {"query": 0, "key": 1, "value": 2}


def names_of_block(
    block: str, *, norms: str, mlp: tuple[str, str], qkv: str, out: str, scale: str = ""
) -> dict[str, str]:
    """The modules of every block, whose number stands in braces."""
    names = of_qkv(ATTENTION, block + qkv) | {ATTENTION + "out/": f"{block}{out}."}
    for number in (0, 1):
        names[f"LayerNorm_{number}/"] = f"{block}{norms}{number + 1}."
        names[f"{MLP}Dense_{number}/"] = f"{block}mlp.{mlp[number]}."
        key = scale.format(number + 1)
        names |= {f"LayerScale_{number}/gamma": block + key} if scale else {}
    return names


def of_qkv(module: str, key: str) -> dict[str, str]:
    """Names of queries, keys and values, from a pattern of one letter or a word."""
    return {
        f"{module}{part}/": key.replace("<q>", part[0]).replace("<query>", part)
        for part in ORDER
    }


def hugging_face_clip(tower: str) -> dict[str, str]:
    """The blocks of both towers of transformers' CLIP and SigLIP."""
    return names_of_block(
        tower + "encoder.layers.{}.",
        norms="layer_norm",
        mlp=("fc1", "fc2"),
        qkv="self_attn.<q>_proj.",
        out="self_attn.out_proj",
    )


def open_clip(tower: str) -> dict[str, str]:
    """The blocks of both towers of open_clip."""
    return names_of_block(
        tower + "transformer.resblocks.{}.",
        norms="ln_",
        mlp=("c_fc", "c_proj"),
        qkv="attn.in_proj_",
        out="attn.out_proj",
    )


TOWER = "vision_model."
HUGGING_FACE_CLIP = {
    **hugging_face_clip(TOWER),
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
OPEN_CLIP = {
    **open_clip("visual."),
    "embedding/": "visual.conv1.",
    "pos_embedding": "visual.positional_embedding",
    "cls": "visual.class_embedding",
    "embed_norm/": "visual.ln_pre.",
    "Transformer/encoder_norm/": "visual.ln_post.",
    "projection/": "visual.proj",
    "head/temperature": "logit_scale",
    "head/logit_bias": "logit_bias",
}
TIMM = {
    **names_of_block(
        "blocks.{}.",
        norms="norm",
        mlp=("fc1", "fc2"),
        qkv="attn.qkv.",
        out="attn.proj",
        scale="ls{}.gamma",
    ),
    MLP + "up/": "blocks.{}.mlp.fc1.",  # one matrix, the gate first
    ATTENTION + "query_norm/": "blocks.{}.attn.q_norm.",
    ATTENTION + "key_norm/": "blocks.{}.attn.k_norm.",
    "embedding/": "patch_embed.proj.",
    "pos_embedding": "pos_embed",
    "cls": "cls_token",
    "registers": "reg_token",
    "embed_norm/": "norm_pre.",
    "Transformer/encoder_norm/": "norm.",
    "head/": "head.",
    "head_dist/": "head_dist.",
    "MAPHead_0/probe": "attn_pool.latent",
    **of_qkv("MAPHead_0/", "attn_pool.kv."),
    "MAPHead_0/query/": "attn_pool.q.",
    "MAPHead_0/out/": "attn_pool.proj.",
    "MAPHead_0/LayerNorm_0/": "attn_pool.norm.",
    "MAPHead_0/Dense_0/": "attn_pool.mlp.fc1.",
    "MAPHead_0/Dense_1/": "attn_pool.mlp.fc2.",
    "refinement/conv/": "transformerheads.{}.conv.",
    "refinement/norm/": "transformerheads.{}.bn.",
    "refinement/norm/mean": "transformerheads.{}.bn.running_mean",
    "refinement/norm/var": "transformerheads.{}.bn.running_var",
    "refinement/token/": "transformerheads.{}.token_fc.",
}
TRUNK = {ours: f"visual.trunk.{theirs}" for ours, theirs in TIMM.items()}
TRUNK |= {"head/temperature": "logit_scale", "head/logit_bias": "logit_bias"}
MEAN = TIMM | {"Transformer/encoder_norm/": "fc_norm."}
PROJECTION = {k: v for k, v in TIMM.items() if k != "head/"} | {"projection/": "head."}
LAYER = "encoder.layer.{}."
HUGGING_FACE = {
    "LayerNorm_0/": LAYER + "layernorm_before.",
    "LayerNorm_1/": LAYER + "layernorm_after.",
    MLP + "Dense_0/": LAYER + "intermediate.dense.",
    MLP + "Dense_1/": LAYER + "output.dense.",
    **of_qkv(ATTENTION, LAYER + "attention.attention.<query>."),
    ATTENTION + "out/": LAYER + "attention.output.dense.",
    "embedding/": "embeddings.patch_embeddings.projection.",
    "pos_embedding": "embeddings.position_embeddings",
    "cls": "embeddings.cls_token",
    "registers": "embeddings.distillation_token",
    "Transformer/encoder_norm/": "layernorm.",
    "head/": "classifier.",
}
HUGGING_FACE_DINO = {
    **names_of_block(
        "dinov2.encoder.layer.{}.",
        norms="norm",
        mlp=("fc1", "fc2"),
        qkv="attention.attention.<query>.",
        out="attention.output.dense",
        scale="layer_scale{}.lambda1",
    ),
    "embedding/": "dinov2.embeddings.patch_embeddings.projection.",
    "pos_embedding": "dinov2.embeddings.position_embeddings",
    "cls": "dinov2.embeddings.cls_token",
    "registers": "dinov2.embeddings.register_tokens",
    "Transformer/encoder_norm/": "dinov2.layernorm.",
    "head/": "classifier.",
    "head_patches/": "classifier.",
}
HUGGING_FACE_TEXT = {
    **hugging_face_clip("text_model."),
    "token_embedding": "text_model.embeddings.token_embedding.weight",
    "pos_embedding": "text_model.embeddings.position_embedding.weight",
    "Transformer/encoder_norm/": "text_model.final_layer_norm.",
    "projection/": "text_projection.",
}
OPEN_CLIP_TEXT = {
    **open_clip(""),
    "token_embedding": "token_embedding.weight",
    "pos_embedding": "positional_embedding",
    "Transformer/encoder_norm/": "ln_final.",
    "projection/": "text_projection",
}

SIZES = tiny.SHAPE
SIGLIP: dict = dict(class_token=False, pool="map", gelu="tanh")
SIGLIP |= dict(head="cosine", sigmoid=True)
CLIP: dict = dict(embed_norm=True, patch_bias=False, epsilon=1e-5, gelu="quick")
CONFIGS = {
    "clip": Config(**SIZES, **CLIP, projection=10, head="cosine"),
    "clip alone": Config(**SIZES, **CLIP),
    "siglip": Config(**SIZES, **SIGLIP),
    "siglip trunk": Config(**SIZES | dict(dim=192, heads=3, depth=1), **SIGLIP),
    "deit": Config(**SIZES, registers=1),
    "dinov2": Config(**SIZES, layer_scale=True),
    "dinov2_reg": Config(**SIZES, layer_scale=True, registers=3),
    "dinov2_head": Config(**SIZES, layer_scale=True, registers=3, pool="cls_mean"),
    "mae": Config(**SIZES, pool="mean"),
    "gap": Config(**SIZES, registers=2, pool="mean", pool_norm="before"),
}


def same(left, right, tolerance: float = 0.0) -> bool:
    """Whether two models, or two trees of parameters, are equal."""
    left, right = (flatten(getattr(each, "params", each)) for each in (left, right))
    return left.keys() == right.keys() and all(
        left[path].shape == right[path].shape
        and np.allclose(left[path], right[path], tolerance, tolerance)
        for path in left
    )


def make(config: Config, *, scaled: bool = True, classes=()) -> Model:
    """A random model with the scales and the positions that its files have."""
    model = tiny.make(config, classes=classes)
    if config.head == "cosine":
        head = dict(model.params["head"], temperature=np.float32(14 if scaled else 1))
        if config.sigmoid:
            head["logit_bias"] = np.float32(-3 if scaled else 0)
        model = model.replace(params=dict(model.params, head=head))
    start = int(config.class_token)
    return without_positions(model, np.s_[start : start + config.registers])


def without_positions(model: Model, tokens: slice) -> Model:
    """The model with position 0 of some tokens."""
    position = np.array(model.params["pos_embedding"])
    position[:, tokens] = 0
    return model.replace(params=dict(model.params, pos_embedding=position))


def torch_arrays(
    model, names: dict[str, str], *, register_positions: bool = False
) -> dict[str, np.ndarray]:
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
        stacked = short != path or path.startswith("refinement/")
        blocks = flat[path] if stacked else [flat[path]]
        for number, value in enumerate(blocks):
            out.setdefault(key.format(number), []).append(to_torch(path, value))
    arrays = {}
    for key, parts in out.items():
        wide = key.startswith("classifier") and parts[0].ndim == 2
        arrays[key] = np.concatenate(parts, axis=1 if wide else 0)
    for key in {"visual.proj", "text_projection"} & arrays.keys():
        arrays[key] = arrays[key].T
    for key in ("pos_embed", "dinov2.embeddings.position_embeddings"):
        if key in arrays and not register_positions:
            without = np.s_[1 : 1 + model.config.registers]
            arrays[key] = np.delete(arrays[key], without, axis=1)
    return arrays


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


def timm(model: Model) -> dict:
    """timm's state dict, with positions of all tokens."""
    names = TIMM if model.config.class_token else MEAN
    if model.config.distilled:
        names = names | {"registers": "dist_token"}
    out = torch_arrays(model, names, register_positions=True)
    means = [key for key in out if key.endswith("running_mean")]
    counters = [key.replace("running_mean", "num_batches_tracked") for key in means]
    return out | dict.fromkeys(counters, np.array(7))


def hugging_face(model: Model, prefix: str = "vit.") -> dict:
    """transformers' state dict; a register is DeiT's distillation token."""
    return {
        key if key.startswith("classifier") else prefix + key: value
        for key, value in torch_arrays(model, HUGGING_FACE).items()
    }


PRE_LINEN = {
    "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
    "LayerNorm_1": "LayerNorm_2",
    "MlpBlock_0": "MlpBlock_3",
}


def flax_arrays(model: Model, *, stacked: bool, rename=()) -> dict:
    """The tree's leaves by path, blocks together or apart."""
    out = {}
    for key, value in flatten(tree.map(np.asarray, model.params)).items():
        parts = key.split("/")
        if stacked or parts[:2] != ["Transformer", "encoderblock"]:
            out[key] = value
            continue
        tail = "/".join(dict(rename).get(part, part) for part in parts[2:])
        for block in range(len(value)):
            out[f"Transformer/encoderblock_{block}/{tail}"] = value[block]
    return out


def google(model: Model, *, linen: bool = True) -> dict:
    """The original npz: blocks apart, positions with [CLS]'s own at the front."""
    out = flax_arrays(model, stacked=False, rename=() if linen else PRE_LINEN)
    out["Transformer/posembed_input/pos_embedding"] = out.pop("pos_embedding")
    return out


def big_vision(model: Model, *, stacked: bool = False) -> dict:
    """big_vision's npz: `params/`, positions of the patches alone."""
    out = flax_arrays(model, stacked=stacked)
    out["pos_embedding"] = out["pos_embedding"][:, 1:]
    out = {"params/" + key: value for key, value in out.items()}
    return out | {"opt/0/count": np.array(3)}


def rename(arrays: dict, words: dict[str, str]) -> dict:
    """Arrays with other words in their keys."""
    out = arrays
    for old, new in words.items():
        out = {key.replace(old, new): value for key, value in out.items()}
    return out


DEIT_3 = {".ls1.gamma": ".gamma_1", ".ls2.gamma": ".gamma_2"}
TRANSFORMERS_5 = {
    "encoder.layer": "layers",
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
LAYOUTS = {
    "timm": timm,
    "deit 3": lambda model: rename(timm(model), DEIT_3),
    "dinov2": lambda model: (
        rename(timm(model), {"blocks.": "blocks.0."})
        | {"mask_token": np.ones((1, 16), np.float32)}
    ),
    "transformers": hugging_face,
    "transformers 5": lambda model: rename(
        hugging_face(model, "model."), TRANSFORMERS_5
    ),
    "google": google,
    "google pre-linen": lambda model: {
        f"opt/target/{key}": value for key, value in google(model, linen=False).items()
    },
    "big_vision": big_vision,
    "big_vision stacked": functools.partial(big_vision, stacked=True),
}


def save(path: pathlib.Path, arrays: dict) -> pathlib.Path:
    """Write arrays as safetensors, or as an npz, to a file or into a folder."""
    if path.is_dir():
        path /= "m.npz" if any("/" in key for key in arrays) else "model.safetensors"
    arrays = {key: np.array(value, order="C") for key, value in arrays.items()}
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        safetensors.numpy.save_file(arrays, path)
    return path


def load(folder: pathlib.Path, arrays: dict, config, **options) -> Model:
    """An architecture with these arrays, by way of a file."""
    return vitjax.load(config, checkpoint=save(folder, arrays), **options)
