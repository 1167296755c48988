"""Text towers of CLIP and SigLIP files: Hugging Face, open_clip and big_vision."""

import dataclasses
import functools
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from vitjax import messages
from vitjax.checkpoints import download, files, huggingface, loading
from vitjax.checkpoints import json_fields as read
from vitjax.checkpoints.convert import (
    Checkpoint,
    block_keys,
    detect_layout,
    first_keys,
    group_blocks,
)
from vitjax.checkpoints.files import CheckpointError
from vitjax.checkpoints.layouts import (
    ATTENTION,
    BLOCK,
    MLP,
    NORM,
    CheckpointLayout,
    Keys,
    Table,
    Target,
    attention_out,
    identity,
    split_heads,
    split_qkv,
    torch_table,
    transpose,
)
from vitjax.checkpoints.registry import VARIANTS, Variant, find
from vitjax.checkpoints.tokenizer import find_tokenizer
from vitjax.models.model import flatten, unflatten
from vitjax.models.text import TextConfig, TextModel, TextTransformer

OPEN_CLIP = "open_clip_config.json"

HEADS = {512: 8, 768: 12, 1024: 16, 1152: 16, 1280: 20}
"""Width -> attention heads of published text towers, which no array of torch tells."""

QUERY, VALUES = ATTENTION + "query/kernel", ("query", "key", "value")
LEAVES = (("kernel", "weight"), ("bias", "bias"))
SECOND_POSITIONS = "Encoder_0/pos_embedding"
"""Position embeddings of old files of big_vision, to be added to the others."""

SIGLIP: dict[str, Any] = dict(causal=False, pool="last", projection_bias=True)


def load_text(
    model: str | os.PathLike | TextConfig,
    *,
    checkpoint: str | os.PathLike | None = None,
    tokenizer: str | os.PathLike | None = None,
    allow_nonfinite: bool = False,
) -> TextModel:
    """The text tower of a CLIP or SigLIP model, and its tokenizer.

    Args:
        model: a folder of transformers (`CLIPModel`, `CLIPTextModelWithProjection`,
            `SiglipModel`, `SiglipTextModel`) or open_clip, a big_vision `.npz`, a name
            out of `list_models()` whose file holds both towers, or an architecture.
        checkpoint: the file or folder of the weights of a name or an architecture.
        tokenizer: the folder or the file of the tokenizer, where it does not lie beside
            the weights: tokenizer.json, vocab.json with merges.txt, or a SentencePiece
            model. Reading it needs the extra `text`.
        allow_nonfinite: load arrays with NaN or infinite values.

    Returns:
        The text tower, float32, on the default device.

    Raises:
        ValueError: no such name, or an architecture without checkpoint.
        FileNotFoundError: there is no such file, or it cannot be downloaded.
        CheckpointError: the file holds no text tower, or does not fit; what is missing
            and what is extra is listed.
    """
    row = config = None
    path: Any = checkpoint
    if isinstance(model, TextConfig):
        config = model
        if path is None:
            raise ValueError("A TextConfig has no weights: pass checkpoint= as well.")
    elif os.fspath(model) in VARIANTS or not epath.Path(model).exists():
        row = find(os.fspath(model))
        path = download.weights(row) if path is None else path
    elif path is None:
        path = model
    else:
        raise ValueError(
            f"model={os.fspath(model)!r} has its weights: drop checkpoint=."
        )
    path, _ = loading.locate(path)
    folder = epath.Path(path) if loading.is_folder(path) else epath.Path(path).parent
    file = files.find_weights(path) if loading.is_folder(path) else path
    with files.open_arrays(file) as arrays:
        if not any(x.pattern.fullmatch(key) for x in LAYOUTS for key in arrays):
            raise CheckpointError(
                f"{file} holds no text tower of CLIP or SigLIP; its keys are "
                f"{first_keys(sorted(arrays))}."
            )
        found = add_second_positions(detect_layout(arrays, layouts=LAYOUTS))
        config = config or architecture(found, folder, row)
        params = read_params(found, config, allow_nonfinite=allow_nonfinite)
    tokens = find_tokenizer(tokenizer or folder, config.length)
    if tokenizer is not None and tokens is None:
        raise FileNotFoundError(f"tokenizer={os.fspath(tokenizer)!r} has no tokenizer.")
    return TextModel(params=params, config=config, tokenizer=tokens)


def architecture(found: Checkpoint, folder: Any, row: Variant | None) -> TextConfig:
    """The architecture by the description beside the weights, or by the arrays."""
    library = found.layout.library
    if library == "huggingface" and (description := files.read_config_json(folder)):
        return hugging_face_config(description)
    if library == "open_clip" and (folder / OPEN_CLIP).exists():
        return open_clip_config(files.read_json(folder / OPEN_CLIP))
    if library != "google" and row is None:
        raise CheckpointError(
            f"These arrays (read as {found.layout.name}) do not say how many heads "
            "they have and which GELU: give their folder with its config.json or "
            f"{OPEN_CLIP}, or a vitjax.TextConfig and the file as checkpoint=."
        )
    return inferred_config(found, row)


def hugging_face_config(description: Mapping[str, Any]) -> TextConfig:
    """The text tower of a config.json; absent fields have transformers' default."""
    kind = str(description.get("model_type"))
    clip = kind.startswith("clip")
    fields = description
    if kind in ("clip", "siglip", "siglip2"):
        fields = description.get("text_config") or {}
    elif kind not in ("clip_text_model", "siglip_text_model", "siglip2_text_model"):
        raise CheckpointError(f"model_type={kind!r} is not CLIP's or SigLIP's.")

    def get(field, default, fields=fields):
        return default if fields.get(field) is None else fields[field]

    def integer(field, default, fields=fields):
        value = get(field, default, fields)
        return read.integer(field, value, low=0, high=2**24)

    dim = integer("hidden_size", 512 if clip else 768)
    act = get("hidden_act", "quick_gelu" if clip else "gelu_pytorch_tanh")
    gelus = {**huggingface.GELUS, "quick_gelu": "quick"}
    if not isinstance(act, str) or act not in gelus:
        raise CheckpointError(messages.unknown("hidden_act", act, gelus))
    family = SIGLIP | {"projection": integer("projection_size", dim)}
    if clip:
        end = integer("eos_token_id", 49407)  # 2 is the error of old files
        width = integer("projection_dim", 512, description)
        family = dict(projection=width, end=None if end == 2 else end)
    epsilon = get("layer_norm_eps", 1e-5 if clip else 1e-6)
    numerics: dict[str, Any] = dict(gelu=gelus[act])
    return TextConfig(
        vocab=integer("vocab_size", 49408 if clip else 32000),
        length=integer("max_position_embeddings", 77 if clip else 64),
        dim=dim,
        depth=integer("num_hidden_layers", 12),
        heads=integer("num_attention_heads", 8 if clip else 12),
        mlp_dim=integer("intermediate_size", 2048 if clip else 3072),
        epsilon=read.number("layer_norm_eps", epsilon, low=0.0),
        **family,
        **numerics,
    )


OPEN_CLIP_DEFAULTS: dict[str, Any] = dict(
    context_length=77,
    vocab_size=49408,
    width=512,
    heads=8,
    layers=12,
    mlp_ratio=4.0,
    no_causal_mask=False,
    pool_type="argmax",
    eos_id=2,
    proj_bias=False,
    proj_type="linear",
    norm_kwargs=None,
    act_kwargs=None,
)
WITHOUT_EFFECT = {"pad_id", "output_tokens", "hf_tokenizer_name", "tokenizer_kwargs"}
WITHOUT_EFFECT |= {"tokenizer_mode", "hf_model_pretrained", "hf_proj_type"}
WITHOUT_EFFECT |= {"hf_pooler_type"}
POOLS: dict[str, dict[str, Any]] = {
    "argmax": dict(pool="first_end"),
    "eos": dict(pool="first_end"),
    "last": dict(pool="last"),
}
"""open_clip's name of a pooling -> fields of `TextConfig`."""


def open_clip_config(description: Mapping[str, Any]) -> TextConfig:
    """The text tower of an open_clip_config.json; absent fields have its default."""
    model = description.get("model_cfg") or description
    given = model.get("text_cfg") or {}
    odd = {key for key, value in given.items() if value not in (None, False, [], {})}
    if odd := sorted(odd - set(OPEN_CLIP_DEFAULTS) - WITHOUT_EFFECT):
        raise CheckpointError(
            f"text_cfg has {odd[0]}={given[odd[0]]!r}, which is not supported."
        )
    fields = OPEN_CLIP_DEFAULTS | {k: v for k, v in given.items() if v is not None}
    messages.check_one_of("pool_type", fields["pool_type"], POOLS)
    messages.check_one_of("proj_type", fields["proj_type"], ("linear",))
    pool = POOLS[fields["pool_type"]]
    if fields["pool_type"] == "eos":
        pool = pool | {"end": read.integer("eos_id", fields["eos_id"], low=0)}
    tanh = (fields["act_kwargs"] or {}).get("approximate") == "tanh"
    gelu = "quick" if model.get("quick_gelu") else "tanh" if tanh else "erf"
    numerics: dict[str, Any] = dict(gelu=gelu, **pool)

    def integer(field):
        return read.integer(field, fields[field], high=2**24)

    width = integer("width")
    ratio = read.number("mlp_ratio", fields["mlp_ratio"], low=0.0)
    epsilon = (fields["norm_kwargs"] or {}).get("eps", 1e-5)
    return TextConfig(
        vocab=integer("vocab_size"),
        length=integer("context_length"),
        dim=width,
        depth=integer("layers"),
        heads=integer("heads"),
        mlp_dim=int(width * ratio),
        projection=read.integer("embed_dim", model.get("embed_dim")),
        projection_bias=read.boolean("proj_bias", fields["proj_bias"]),
        epsilon=read.number("eps", epsilon, low=0.0),
        causal=not read.boolean("no_causal_mask", fields["no_causal_mask"]),
        **numerics,
    )


def inferred_config(found: Checkpoint, row: Variant | None) -> TextConfig:
    """The architecture by the shapes of the arrays, and by the image model's row.

    Both towers of a model share their GELU and epsilon. A projection with a bias is
    SigLIP's. Of a row, the end token is the largest id.
    """
    arrays, one = found.arrays, TextConfig(1, 1, 1, 1, 1, 1, 1)
    biased = {"head.bias", "text_projection.bias", "head/bias"} & arrays.keys()
    one = dataclasses.replace(one, projection_bias=bool(biased))
    make_table: Any = found.layout.table
    table = make_table(one, arrays)

    def shape(path: str) -> tuple[int, ...]:
        source, convert = table[path]
        source = source.replace("{block}", "0")
        if source not in arrays:
            raise CheckpointError(
                f"The text tower, read as {found.layout.name}, lacks {source}."
            )
        return convert(arrays[source](), Target(one.blocks, None, "", ())).shape

    vocab, dim = shape("token_embedding")
    query = shape(QUERY)
    source, _ = table[QUERY]
    block = re.compile(re.escape(source).replace(re.escape("{block}"), r"(\d+)"))
    matches = map(block.fullmatch, arrays) if "{block}" in source else ()
    numbers = [int(match[1]) for match in matches if match]
    heads = query[-2] if found.layout.library == "google" else HEADS.get(dim)
    if heads is None:
        raise CheckpointError(
            f"How many attention heads a text tower of width {dim} has is not known: "
            "give a vitjax.TextConfig, and the file as checkpoint=."
        )
    numerics: dict[str, Any] = dict(gelu="tanh", epsilon=1e-6)
    if row is not None:
        numerics = dict(gelu=row.config.gelu, epsilon=row.config.epsilon)
    return TextConfig(
        vocab=vocab,
        length=shape("pos_embedding")[-2],
        dim=dim,
        depth=max(numbers) + 1 if numbers else query[0],
        heads=heads,
        mlp_dim=shape(MLP + "Dense_0/kernel")[-1],
        projection=shape("projection/kernel")[-1],
        **(SIGLIP if biased else {}),
        **numerics,
    )


def add_second_positions(found: Checkpoint) -> Checkpoint:
    """The arrays with one set of position embeddings."""
    arrays = dict(found.arrays)
    if found.layout.library != "google" or SECOND_POSITIONS not in arrays:
        return found
    first, second = arrays["pos_embedding"], arrays.pop(SECOND_POSITIONS)
    arrays["pos_embedding"] = lambda: first() + second()
    return dataclasses.replace(found, arrays=arrays)


def read_params(found: Checkpoint, config: TextConfig, *, allow_nonfinite: bool) -> Any:
    """Parameters, float32; keys that are missing, extra or misshapen are errors."""
    layout, blocks = found.layout, config.blocks
    make_table: Any = layout.table
    table = make_table(config, found.arrays)
    expected = {key for key, _ in table.values() for key in block_keys(key, blocks)}
    ignored = re.compile("|".join(layout.ignored))
    extra = [key for key in set(found.arrays) - expected if not ignored.fullmatch(key)]
    missing = sorted(expected - set(found.arrays))
    if missing or extra:
        raise CheckpointError(
            f"The text tower, read as {layout.name}, does not fit {config}. Missing: "
            f"{group_blocks(missing)}. Extra: {group_blocks(sorted(extra))}."
        )
    target = Target(blocks, None, "", ())
    shapes, flat, problems = parameter_shapes(config), {}, []
    for path, (source, convert) in table.items():
        try:
            array = found.stack(
                source,
                lambda x, f=convert: f(x, target),
                blocks,
                allow_nonfinite=allow_nonfinite,
            )
        except CheckpointError:
            raise
        except ValueError as error:
            problems.append(f"{source}: {error}")
            continue
        flat[path] = jnp.asarray(array)
        if array.shape != shapes[path]:
            problems.append(f"{source} gives {array.shape}, not {shapes[path]}")
    if problems:
        raise CheckpointError(
            f"The text tower, read as {layout.name}, has arrays of other shapes than "
            f"{config}: {first_keys(problems)}."
        )
    return unflatten(flat)


@functools.lru_cache(maxsize=8)
def parameter_shapes(config: TextConfig) -> dict[str, tuple[int, ...]]:
    """Path to shape of every parameter of a text tower."""
    ids = np.zeros((1, config.length), np.int32)
    tree = jax.eval_shape(TextTransformer(config).init, jax.random.key(0), ids)
    return {path: leaf.shape for path, leaf in flatten(tree["params"]).items()}


def hugging_face_table(config: Any, keys: Keys) -> Table:
    """transformers' CLIP and SigLIP."""
    block = "encoder.layers.{block}."
    dense = {
        MLP + "Dense_0/": (block + "mlp.fc1.", transpose),
        MLP + "Dense_1/": (block + "mlp.fc2.", transpose),
        ATTENTION + "out/": (block + "self_attn.out_proj.", attention_out),
    }
    norms = {
        BLOCK + "LayerNorm_0/": block + "layer_norm1.",
        BLOCK + "LayerNorm_1/": block + "layer_norm2.",
        NORM: "final_layer_norm.",
    }
    table: Table = {
        "token_embedding": ("embeddings.token_embedding.weight", identity),
        "pos_embedding": ("embeddings.position_embedding.weight", identity),
    }
    for part in VALUES:
        for leaf, key in LEAVES:
            source = f"{block}self_attn.{part[0]}_proj.{key}"
            table[f"{ATTENTION}{part}/{leaf}"] = (source, split_heads)
    if config.projection_bias:
        dense["projection/"] = ("head.", transpose)
    else:
        table["projection/kernel"] = ("text_projection.weight", transpose)
    return table | torch_table(dense, norms)


def open_clip_table(config: Any, keys: Keys) -> Table:
    """open_clip's and OpenAI's own text tower."""
    block, joint = "transformer.resblocks.{block}.", "attn.in_proj_"
    dense = {
        MLP + "Dense_0/": (block + "mlp.c_fc.", transpose),
        MLP + "Dense_1/": (block + "mlp.c_proj.", transpose),
        ATTENTION + "out/": (block + "attn.out_proj.", attention_out),
    }
    norms = {
        BLOCK + "LayerNorm_0/": block + "ln_1.",
        BLOCK + "LayerNorm_1/": block + "ln_2.",
        NORM: "ln_final.",
    }
    table: Table = {
        "token_embedding": ("token_embedding.weight", identity),
        "pos_embedding": ("positional_embedding", identity),
    }
    for index, part in enumerate(VALUES):
        for leaf, key in LEAVES:
            source = block + joint + key
            table[f"{ATTENTION}{part}/{leaf}"] = (source, split_qkv(index))
    if config.projection_bias:
        dense["projection/"] = ("text_projection.", transpose)
    else:
        table["projection/kernel"] = ("text_projection", identity)
    return table | torch_table(dense, norms)


def big_vision_table(config: Any, keys: Keys) -> Table:
    """big_vision's text tower, its blocks stacked or apart: our own tree, renamed."""
    stacked = any(key.startswith("Encoder_0/encoderblock/") for key in keys)
    table: Table = {}
    for path in parameter_shapes(dataclasses.replace(config, projection_bias=True)):
        key = path.replace("Transformer/", "Encoder_0/").replace("projection", "head")
        if not stacked:
            key = key.replace("/encoderblock/", "/encoderblock_{block}/")
        table[path] = (key, identity)
    return table | {
        "token_embedding": ("Embed_0/embedding", identity),
        "pos_embedding": ("pos_embedding", lambda array, target: array[0]),
    }


LAYOUTS = (
    CheckpointLayout(
        name="Hugging Face text tower",
        library="huggingface",
        mark=r"embeddings\.token_embedding\.weight",
        table=hugging_face_table,
        resize="",
        prefix=r"(?:.*\.)?text_model\.|",
        ignored={
            r"vision_model\..*|visual_projection\..*": "the image tower",
            r"logit_scale|logit_bias": "the temperature and the bias",
            r"embeddings\.position_ids": "numbers of the positions",
        },
    ),
    CheckpointLayout(
        name="open_clip text tower",
        library="open_clip",
        mark=r"token_embedding\.weight",
        table=open_clip_table,
        resize="",
        prefix=r"(?:.*\.)?",
        ignored={
            r"visual\..*": "the image tower",
            r"logit_scale|logit_bias": "the temperature and the bias",
            r"input_resolution|context_length|vocab_size|attn_mask": "sizes",
        },
    ),
    CheckpointLayout(
        name="big_vision text tower",
        library="google",
        mark="Embed_0/embedding",
        table=big_vision_table,
        resize="",
        prefix=r"(?:.*/)?txt/",
        ignored={r"img/.*": "the image tower", "[tb]": "the temperature and the bias"},
    ),
)
