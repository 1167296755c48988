"""Tokenizers of CLIP and SigLIP, by the files that lie beside their weights.

The vocabulary itself tells the family, by its end token: what starts a text, what pads
it, and how it is cleaned before.
"""

import dataclasses
import functools
import os
import string
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from vitjax.checkpoints import files
from vitjax.checkpoints.files import CheckpointError

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
    """Texts as ids [n length]: start, text, end, padding. A text that is too long loses
    its last tokens, not its end. Two of one file are equal.
    """

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
    library = "sentencepiece" if path.suffix == ".model" else "tokenizers"
    try:
        if library == "sentencepiece":
            return read_sentencepiece(path)
        return read_vocabulary(path) if path.name == VOCABULARY else read_json(path)
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


def read_json(path: Any) -> Encoder:
    """A tokenizer.json."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(path.read_text())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return encoder_of(tokenizer)


def read_vocabulary(path: Any) -> Encoder:
    """OpenAI's byte pair encoding, by a vocab.json and the merges.txt beside it.

    Without its repairs of mojibake and of HTML: as transformers does.
    """
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers

    lines = (path.parent / MERGES).read_text().splitlines()
    pairs = [line.split() for line in lines if line.strip() and line[:1] != "#"]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            vocab=files.read_json(path),
            merges=[(left, right) for left, right in pairs],
            end_of_word_suffix="</w>",
            continuing_subword_prefix="",
            unk_token=FAMILIES[0].end,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    words = pre_tokenizers.Split(tokenizers.Regex(WORDS), "removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return encoder_of(tokenizer)


def encoder_of(tokenizer: Any) -> Encoder:
    """The encoding of a tokenizer of the library `tokenizers`."""

    def encode(texts):
        encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    return Encoder(encode, tokenizer.token_to_id)
