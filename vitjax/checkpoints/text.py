"""Text towers of CLIP and SigLIP files, and the tokenizers that lie beside them.

The vocabulary itself tells a tokenizer's family, by its end token: what starts a text,
what pads it, and how it is cleaned before.
"""

import dataclasses
import functools
import itertools
import os
import string
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from vitjax.checkpoints import configs, files, layouts, loading
from vitjax.checkpoints import json_fields as read
from vitjax.checkpoints.convert import Checkpoint, detect_layout
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
    identity,
    torch_table,
)
from vitjax.checkpoints.registry import Variant
from vitjax.models.model import flatten
from vitjax.models.text import TextConfig, TextModel, TextTransformer

HEADS = {512: 8, 768: 12, 1024: 16, 1152: 16, 1280: 20}
"""Width -> attention heads of published text towers, which no array of torch tells."""

QUERY = ATTENTION + "query/kernel"
SECOND_POSITIONS = "Encoder_0/pos_embedding"
"""Position embeddings of old files of big_vision, to be added to the others."""


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

    Example:
        >>> text = vitjax.load_text("clip_b16_openai", tokenizer="tokenizer.json")
    """
    exists = lambda path: epath.Path(path).exists()  # noqa: E731
    row, path = loading.resolve(model, checkpoint, exists)
    path, folder = loading.locate(path)
    with files.open_arrays(files.find_weights(path)) as arrays:
        found = detect_layout(
            arrays,
            layouts=LAYOUTS,
            advice="It holds no text tower of CLIP or SigLIP: give the file or the "
            "folder of both towers as checkpoint=, or make class embeddings elsewhere.",
            allow_nonfinite=allow_nonfinite,
        )
        found = add_second_positions(found)
        config: Any = model
        if not isinstance(model, TextConfig):
            config = architecture(found, folder, row)
        target = Target(config.blocks, None, "", ())
        params = found.convert(config, parameter_shapes(config), target)
    tokens = find_tokenizer(tokenizer or folder, config.length)
    if tokenizer is not None and tokens is None:
        raise FileNotFoundError(f"tokenizer={os.fspath(tokenizer)!r} has no tokenizer.")
    return TextModel(params=params, config=config, tokenizer=tokens)


def architecture(found: Checkpoint, folder: Any, row: Variant | None) -> TextConfig:
    """The architecture by the description beside the weights, or by the arrays."""
    library = found.layout.library
    if library != "google":
        name, describe = files.CONFIG, hugging_face_config
        if library == "open_clip":
            name, describe = configs.OpenClip.file, open_clip_config
        if description := loading.read_beside(folder, name):
            return describe(read.Fields(description))
        if row is None:
            raise CheckpointError(
                f"These arrays (read as {found.layout.name}) do not tell their "
                f"attention heads and their GELU: give their folder with its {name}, "
                "or a vitjax.TextConfig and the file as checkpoint=."
            )
    return inferred_config(found, row)


CLIP: dict[str, Any] = configs.CLIP | dict(
    vocab_size=49408,
    max_position_embeddings=77,
    hidden_size=512,
    num_attention_heads=8,
    intermediate_size=2048,
)
SIGLIP: dict[str, Any] = configs.SIGLIP | dict(
    vocab_size=32000, max_position_embeddings=64
)
"""transformers' defaults."""

MODEL_TYPES = {
    **dict.fromkeys(("clip", "clip_text_model"), CLIP),
    **dict.fromkeys(("siglip", "siglip_text_model"), SIGLIP),
    **dict.fromkeys(("siglip2", "siglip2_text_model"), SIGLIP),
}
LAST: dict[str, Any] = dict(causal=False, pool="last", projection_bias=True)
"""How SigLIP differs from CLIP."""

count: Any = functools.partial(read.integer, high=2**24)


def hugging_face_config(fields: read.Fields) -> TextConfig:
    """The text tower of transformers' config.json."""
    defaults = fields.one_of("model_type", MODEL_TYPES, "")
    tower = fields.section("text_config") if "text_config" in fields.values else fields

    def size(field: str) -> int:
        return tower.get(field, defaults[field], count)

    family = configs.hugging_face_blocks(tower, defaults)
    if defaults is CLIP:
        end = tower.get("eos_token_id", 49407, functools.partial(count, low=0))
        family["end"] = None if end == 2 else end  # 2 is an error of old files
        projection = fields.get("projection_dim", 512, read.integer)
    else:
        projection = tower.get("projection_size", family["dim"], read.integer)
        family |= LAST
    return TextConfig(
        vocab=size("vocab_size"),
        length=size("max_position_embeddings"),
        mlp_dim=size("intermediate_size"),
        projection=projection,
        **family,
    )


KNOWN = """
context_length vocab_size width heads layers mlp_ratio no_causal_mask pool_type
eos_id proj_bias norm_kwargs act_kwargs proj_type pad_id output_tokens
hf_tokenizer_name tokenizer_kwargs tokenizer_mode hf_model_pretrained hf_proj_type
hf_pooler_type
"""
"""Fields of open_clip's text towers that are read or that change nothing."""


def open_clip_config(fields: read.Fields) -> TextConfig:
    """The text tower of an open_clip_config.json."""
    model = fields.section("model_cfg")
    tower = model.section("text_cfg")
    values = tower.values.items()
    odd = {k: value for k, value in values if value and k not in KNOWN.split()}
    if odd:
        raise CheckpointError(f"text_cfg with {odd} is not supported.")
    pools = {"argmax": "first_end", "eos": "first_end", "last": "last"}
    pool = tower.one_of("pool_type", pools, "argmax")
    tower.one_of("proj_type", {"linear": None}, "linear")
    width = tower.get("width", 512, count)
    end = None
    if tower.get("pool_type") == "eos":
        end = tower.get("eos_id", 2, functools.partial(count, low=0))
    return TextConfig(
        vocab=tower.get("vocab_size", 49408, count),
        length=tower.get("context_length", 77, count),
        dim=width,
        depth=tower.get("layers", 12, count),
        heads=tower.get("heads", 8, count),
        mlp_dim=int(width * tower.get("mlp_ratio", 4.0, read.number)),
        projection=read.integer("embed_dim", model.get("embed_dim")),
        projection_bias=tower.get("proj_bias", False, read.boolean),
        **configs.open_clip_numerics(model, tower),
        causal=not tower.get("no_causal_mask", False, read.boolean),
        pool=pool,
        end=end,
    )


def inferred_config(found: Checkpoint, row: Variant | None) -> TextConfig:
    """The architecture by the shapes of arrays; its numerics are the image model's."""
    arrays, one = found.arrays, TextConfig(1, 1, 1, 1, 1, 1, 1)
    # A projection with a bias is SigLIP's.
    biased = {"head.bias", "text_projection.bias", "head/bias"} & arrays.keys()
    one = dataclasses.replace(one, projection_bias=bool(biased))
    table: Any = found.table(one, parameter_shapes(one))

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
    depth, (source, _) = query[0], table[QUERY]
    if "{block}" in source:
        blocks = (source.replace("{block}", str(block)) for block in itertools.count())
        depth = len(list(itertools.takewhile(arrays.__contains__, blocks)))
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
        depth=depth,
        heads=heads,
        mlp_dim=shape(MLP + "Dense_0/kernel")[-1],
        projection=shape("projection/kernel")[-1],
        **(LAST if biased else {}),
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


@functools.lru_cache(maxsize=8)
def parameter_shapes(config: TextConfig) -> dict[str, tuple[int, ...]]:
    """Path to shape of every parameter of a text tower."""
    ids = np.zeros((1, config.length), np.int32)
    tree = jax.eval_shape(TextTransformer(config).init, jax.random.key(0), ids)
    return {path: leaf.shape for path, leaf in flatten(tree["params"]).items()}


def hugging_face_table(config: Any, keys: Keys) -> Table:
    """transformers' CLIP and SigLIP."""
    names = {
        NORM: "final_layer_norm.",
        "token_embedding": "embeddings.token_embedding.weight",
        "projection/": "head." if config.projection_bias else "text_projection.",
    }
    positions = "embeddings.position_embedding.weight", identity
    blocks = of_blocks(layouts.hugging_face_clip_table(config.blocks, keys))
    return {**blocks, **torch_table(names), "pos_embedding": positions}


def open_clip_table(config: Any, keys: Keys) -> Table:
    """open_clip's and OpenAI's own text tower."""
    names = {NORM: "ln_final.", "token_embedding": "token_embedding.weight"}
    if config.projection_bias:
        names["projection/"] = "text_projection."
    else:
        names["projection/kernel"] = "text_projection"
    positions = "positional_embedding", identity
    blocks = of_blocks(layouts.open_clip_table(config.blocks, keys), "visual.")
    return {**blocks, **torch_table(names), "pos_embedding": positions}


def of_blocks(table: Any, prefix: str = "") -> Table:
    """The blocks of an image tower's table, without the prefix of their keys."""
    return {
        path: (entry[0].removeprefix(prefix), entry[1])
        for path, entry in table.items()
        if path.startswith(BLOCK)
    }


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


TOWER = CheckpointLayout(
    name="Hugging Face text tower",
    library="huggingface",
    mark=r"embeddings\.token_embedding\.weight",
    table=hugging_face_table,
    prefix=r"(?:.*\.)?text_model\.|",
    ignored={
        r"vision_model\..*|visual_projection\..*|visual\..*|img/.*": "the image tower",
        r"logit_scale|logit_bias|[tb]": "the temperature and the bias",
        r"embeddings\.position_ids": "numbers of the positions",
        r"input_resolution|context_length|vocab_size|attn_mask": "sizes",
    },
)
LAYOUTS = (
    TOWER,
    dataclasses.replace(
        TOWER,
        name="open_clip text tower",
        library="open_clip",
        mark=r"token_embedding\.weight",
        table=open_clip_table,
        prefix=r"(?:.*\.)?",
    ),
    dataclasses.replace(
        TOWER,
        name="big_vision text tower",
        library="google",
        mark="Embed_0/embedding",
        table=big_vision_table,
        prefix=r"(?:.*/)?txt/",
    ),
)

VOCABULARY, MERGES = "vocab.json", "merges.txt"
"""OpenAI's two files of one tokenizer."""

NAMES = (
    "tokenizer.json",
    VOCABULARY,
    "spiece.model",
    "sentencepiece.model",
    "tokenizer.model",
)
"""The names that libraries give to the file of a tokenizer, by preference."""

WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]"
    r"|[^\s\p{L}\p{N}]+"
)
"""OpenAI's pattern of the words that byte pair encoding then splits."""


def canonicalize(text: str) -> str:
    """SigLIP's form of a text: lower case, without punctuation."""
    text = text.replace("_", " ").translate(str.maketrans("", "", string.punctuation))
    return " ".join(text.lower().split())


class Family(NamedTuple):
    """Special tokens of a vocabulary, and how a text is cleaned."""

    end: str
    start: str | None
    pad: str
    clean: Callable[[str], str]


FAMILIES = (
    Family("<|endoftext|>", "<|startoftext|>", "<|endoftext|>", str),  # CLIP
    Family("<eos>", None, "<pad>", str.lower),  # SigLIP 2: Gemma's, which has </s>, too
    Family("</s>", None, "</s>", canonicalize),  # SigLIP
)


class Encoder(NamedTuple):
    """A vocabulary's encoding: texts -> ids without special tokens, token -> id."""

    encode: Callable[[Sequence[str]], list[list[int]]]
    find: Callable[[str], int | None]


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Texts as ids [n length]: start, text, end, padding; a long text keeps its end."""

    file: str
    length: int

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        encoder = open_encoder(self.file)
        families = [f for f in FAMILIES if encoder.find(f.end) is not None]
        if not families:
            raise CheckpointError(
                f"{self.file} has none of the end tokens of CLIP and SigLIP, "
                f"{', '.join(family.end for family in FAMILIES)}: tokenize with the "
                "library that it is for, and pass the ids to vitjax.encode_text."
            )
        family = families[0]
        specials = {token: encoder.find(token) for token in family[:3] if token}
        if missing := [token for token, number in specials.items() if number is None]:
            raise CheckpointError(f"{self.file} has no token {missing[0]}.")
        start = [specials[family.start]] if family.start else []
        rows = np.full((len(texts), self.length), specials[family.pad], np.int32)
        for row, ids in zip(rows, encoder.encode([family.clean(t) for t in texts])):
            ids = [*start, *ids][: self.length - 1] + [specials[family.end]]
            row[: len(ids)] = ids
        return rows


def find_tokenizer(path: str | os.PathLike, length: int) -> Tokenizer | None:
    """The tokenizer of a folder, or of a file; None where a folder has none."""
    path = epath.Path(os.path.expanduser(path))
    if path.exists() and not path.is_dir():
        return Tokenizer(os.fspath(path), length)
    for name in NAMES:
        if (path / name).exists():
            return Tokenizer(os.fspath(path / name), length)
    return None


@functools.lru_cache(maxsize=4)
def open_encoder(file: str) -> Encoder:
    """The encoding of a file, by the library that its name asks for."""
    path = epath.Path(file)
    sentencepiece = path.suffix == ".model"
    library = "sentencepiece" if sentencepiece else "tokenizers"
    try:
        return read_sentencepiece(path) if sentencepiece else read_tokenizer(path)
    except ImportError as error:
        raise CheckpointError(
            f"Tokenizing by {file} needs the package {library}: pip install "
            "'vitjax[text]', or pass ids made elsewhere to vitjax.encode_text."
        ) from error
    except Exception as error:  # tokenizers raises no other
        raise CheckpointError(f"{file} is not read by {library}: {error}") from error


def read_sentencepiece(path: Any) -> Encoder:
    """A SentencePiece model."""
    import sentencepiece

    content = path.read_bytes()
    model: Any = sentencepiece.SentencePieceProcessor(model_proto=content)

    def find(token):
        number = model.piece_to_id(token)
        return number if model.id_to_piece(number) == token else None

    return Encoder(lambda texts: model.encode(list(texts)), find)


def read_tokenizer(path: Any) -> Encoder:
    """A tokenizer.json, or a vocab.json with the merges.txt beside it."""
    import tokenizers

    if path.name == VOCABULARY:
        tokenizer = read_byte_pairs(path)
    else:
        tokenizer = tokenizers.Tokenizer.from_str(path.read_text())
        tokenizer.no_padding()
        tokenizer.no_truncation()

    def encode(texts):
        encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    return Encoder(encode, tokenizer.token_to_id)


def read_byte_pairs(path: Any) -> Any:
    """OpenAI's, without its repairs of mojibake and of HTML: as transformers does."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    lines = (path.parent / MERGES).read_text().splitlines()
    pairs = [line.split() for line in lines if line.strip() and line[:1] != "#"]
    model = models.BPE(
        vocab=files.read_json(path),
        merges=[(left, right) for left, right in pairs],
        end_of_word_suffix="</w>",
        continuing_subword_prefix="",
        unk_token=FAMILIES[0].end,
    )
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    words = pre_tokenizers.Split(Regex(WORDS), "removed", invert=True)
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), spaces, normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    return tokenizer
