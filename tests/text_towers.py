"""Miniature text towers, an independent one in numpy, and their files.

The writers are the inverse of the tables under test, written from the formats'
descriptions and not from those tables.
"""

import functools
import json
import math

import formats
import jax
import numpy as np
import numpy_vit

from vitjax.checkpoints.text import parameter_shapes
from vitjax.models.model import unflatten
from vitjax.models.text import TextConfig, TextModel

SHAPE = dict(vocab=40, length=6, dim=16, depth=2, heads=2, mlp_dim=24, projection=8)
SIGLIP = dict(causal=False, pool="last", projection_bias=True)
CONFIGS = {
    "clip": TextConfig(**SHAPE),
    "open_clip": TextConfig(**SHAPE, gelu="erf", end=39),
    "siglip": TextConfig(**SHAPE | SIGLIP, gelu="tanh", epsilon=1e-6),
}


def make(config: TextConfig, *, seed: int = 0, tokenizer=None) -> TextModel:
    """A text tower whose every parameter, norms and biases too, is random."""
    rng = np.random.default_rng(seed)
    flat = {
        path: rng.normal(path.endswith("scale"), 0.3, shape).astype(np.float32)
        for path, shape in parameter_shapes(config).items()
    }
    params = jax.device_put(unflatten(flat))
    return TextModel(params=params, config=config, tokenizer=tokenizer)


def draw_ids(config: TextConfig, count: int = 3, seed: int = 0) -> np.ndarray:
    """Start, text, end 39, padding: again the end token, as CLIP has it."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 38, (count, config.length)).astype(np.int32)
    for row, end in zip(ids, rng.integers(1, config.length, count)):
        row[end:] = 39
    return ids


def reference(text: TextModel, ids: np.ndarray) -> np.ndarray:
    """Embeddings in float64 numpy, one text at a time."""
    cfg = text.config
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), text.params)
    norm = functools.partial(numpy_vit.layer_norm, epsilon=cfg.epsilon)

    def attention(x, q):
        parts = ("query", "key", "value")
        query, key, value = (numpy_vit.by_head(x, q[part]) for part in parts)
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(key.shape[-1])
        if cfg.causal:
            later = np.arange(len(x)) > np.arange(len(x))[:, None]
            scores = np.where(later, -np.inf, scores)
        return numpy_vit.of_heads(numpy_vit.softmax(scores) @ value, q["out"])

    rows = []
    for row in ids:
        x = p["token_embedding"][row] + p["pos_embedding"]
        for i in range(cfg.depth):
            q = jax.tree.map(lambda a, i=i: a[i], p["Transformer"]["encoderblock"])
            x = x + attention(
                norm(x, q["LayerNorm_0"]), q["MultiHeadDotProductAttention_0"]
            )
            dense = [q["MlpBlock_0"][f"Dense_{j}"] for j in (0, 1)]
            hidden = norm(x, q["LayerNorm_1"]) @ dense[0]["kernel"] + dense[0]["bias"]
            hidden = numpy_vit.activation(hidden, cfg.gelu)
            x = x + hidden @ dense[1]["kernel"] + dense[1]["bias"]
        end = row.max() if cfg.end is None else cfg.end
        last = -1 if cfg.pool == "last" else row.tolist().index(end)
        f = norm(x[last], p["Transformer"]["encoder_norm"]) @ p["projection"]["kernel"]
        f = f + p["projection"].get("bias", 0)
        rows.append(f / np.linalg.norm(f))
    return np.stack(rows)


def hugging_face(text: TextModel, *, prefix: str = "text_model.") -> dict:
    """transformers' state dict, with an image tower beside."""
    names = formats.HUGGING_FACE_TEXT
    if text.config.projection_bias:
        names = names | {"projection/": "text_model.head."}
    out = formats.rename(formats.torch_arrays(text, names), {"text_model.": prefix})
    out[prefix + "embeddings.position_ids"] = np.arange(text.config.length)[None]
    if prefix:
        out["vision_model.encoder.layers.7.self_attn.q_proj.weight"] = np.ones((2, 2))
        out["visual_projection.weight"] = np.ones((2, 2))
    return out | {"logit_scale": np.array(2.5)}


def open_clip(text: TextModel, *, prefix: str = "") -> dict:
    """open_clip's state dict, with an image tower beside."""
    names = formats.OPEN_CLIP_TEXT
    if text.config.projection_bias:
        names = names | {"projection/": "text_projection."}
    arrays = formats.torch_arrays(text, names)
    out = {prefix + key: value for key, value in arrays.items()}
    out["visual.transformer.resblocks.7.attn.in_proj_weight"] = np.ones((2, 2))
    return out | {"logit_scale": np.array(2.5)}


BIG_VISION = {
    "Transformer/": "Encoder_0/",
    "projection/": "head/",
    "token_embedding": "Embed_0/embedding",
}


def big_vision(text: TextModel, *, stacked: bool) -> dict:
    """big_vision's npz, with an image tower beside."""
    arrays = formats.flax_arrays(text, stacked=stacked)
    arrays["pos_embedding"] = arrays["pos_embedding"][None]
    arrays = formats.rename(arrays, BIG_VISION)
    out = {f"params/txt/{key}": value for key, value in arrays.items()}
    image = {"img/cls": np.ones(3), "t": np.ones(1), "b": np.array(0.5)}
    return out | {f"params/{key}": value for key, value in image.items()}


def hugging_face_json(config: TextConfig) -> dict:
    """The config.json of a CLIPModel or SiglipModel."""
    siglip = config.projection_bias
    acts = {"quick": "quick_gelu", "erf": "gelu", "tanh": "gelu_pytorch_tanh"}
    fields = dict(
        vocab_size=config.vocab,
        max_position_embeddings=config.length,
        hidden_size=config.dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp_dim,
        hidden_act=acts[config.gelu],
    )
    if siglip:
        fields["projection_size"] = config.projection
    else:
        fields["eos_token_id"] = 2 if config.end is None else config.end
    top = dict(model_type="siglip" if siglip else "clip", text_config=fields)
    return top if siglip else top | dict(projection_dim=config.projection)


def open_clip_json(config: TextConfig) -> dict:
    """An open_clip_config.json."""
    fields = dict(
        context_length=config.length,
        vocab_size=config.vocab,
        width=config.dim,
        heads=config.heads,
        layers=config.depth,
        mlp_ratio=config.mlp_dim / config.dim,
        hf_tokenizer_name="x",
    )
    if config.projection_bias:
        fields |= dict(no_causal_mask=True, proj_bias=True, pool_type="last")
        fields |= dict(norm_kwargs={"eps": 1e-6}, act_kwargs={"approximate": "tanh"})
    elif config.end is not None:
        fields |= dict(pool_type="eos", eos_id=config.end)
    quick = config.gelu == "quick"
    model = dict(embed_dim=config.projection, quick_gelu=quick, text_cfg=fields)
    return {"model_cfg": model, "preprocess_cfg": {}}


def write_folder(folder, arrays: dict, name: str, description: dict) -> None:
    folder.mkdir(exist_ok=True)
    formats.save(folder, arrays)
    (folder / name).write_text(json.dumps(description))


def make_vocabulary(letters: str, merges: list[tuple[str, str]]) -> dict[str, int]:
    """OpenAI's kind: letters, those at the end of words, merges, start and end."""
    words = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return {word: number for number, word in enumerate(words)}


def write_vocabulary(folder, letters: str, merges: list[tuple[str, str]]) -> None:
    """OpenAI's two files of a tokenizer."""
    vocabulary = make_vocabulary(letters, merges)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *map(" ".join, merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
