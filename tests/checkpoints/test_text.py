"""Text towers in the files of every library, and their tokenizers."""

import dataclasses
import sys

import formats
import jax
import numpy as np
import pytest
import text_towers
import tiny

import vitjax
from vitjax.checkpoints import registry
from vitjax.checkpoints.files import CheckpointError
from vitjax.checkpoints.json_fields import Fields
from vitjax.checkpoints.text import (
    hugging_face_config,
    open_clip_config,
    open_encoder,
    read_byte_pairs,
)

CONFIGS = text_towers.CONFIGS
TOWERS = {name: text_towers.make(config) for name, config in CONFIGS.items()}


def write(folder, kind: str, tower):
    """A folder or file of a kind, and what is to be loaded."""
    config = tower.config
    if kind.startswith("npz"):
        arrays = text_towers.big_vision(tower, stacked=kind == "npz stacked")
        if kind == "npz two positions":
            second = np.full((1, config.length, config.dim), 0.5, np.float32)
            key = "params/txt/pos_embedding"
            arrays[key] = arrays[key] - second
            arrays["params/txt/Encoder_0/pos_embedding"] = second
        return formats.save(folder, arrays)
    if kind.startswith("open_clip"):
        arrays = text_towers.open_clip(tower, prefix=kind.removeprefix("open_clip"))
        name, description = "open_clip_config.json", text_towers.open_clip_json(config)
    else:
        prefix = "" if kind == "bare" else "text_model."
        arrays = text_towers.hugging_face(tower, prefix=prefix)
        name, description = "config.json", text_towers.hugging_face_json(config)
        if not prefix:
            description |= description.pop("text_config")
            description["model_type"] += "_text_model"
    text_towers.write_folder(folder, arrays, name, description)
    return folder


FILES = [
    *(("clip", kind) for kind in ("hugging face", "bare", "open_clip")),
    *(("open_clip", kind) for kind in ("hugging face", "open_cliptext.")),
    *(("siglip", kind) for kind in ("hugging face", "bare", "open_cliptext.")),
    *(("siglip", f"npz {kind}") for kind in ("apart", "stacked", "two positions")),
]


@pytest.mark.parametrize(("name", "kind"), FILES)
def test_files_load(name, kind, tmp_path):
    tower = TOWERS[name]
    loaded = vitjax.load_text(write(tmp_path, kind, tower))
    assert loaded.config == tower.config and loaded.tokenizer is None
    assert formats.same(loaded, tower, 1e-6 if "two" in kind else 0)


@pytest.mark.parametrize(("name", "kind"), (("clip", "open_clip"), ("siglip", "bare")))
def test_a_row_knows_what_its_file_does_not_say(name, kind, tmp_path, monkeypatch):
    """GELU and epsilon are the image tower's, heads those of published widths."""
    config = dataclasses.replace(CONFIGS[name], dim=512, heads=8, depth=3)
    numerics = dict(gelu=config.gelu, epsilon=config.epsilon)
    row = registry.anonymous(vitjax.Config(**tiny.SHAPE, **numerics))
    monkeypatch.setitem(registry.VARIANTS, "tiny", row)
    file = write(tmp_path, kind, text_towers.make(config)) / "model.safetensors"
    for json_file in tmp_path.glob("*.json"):
        json_file.unlink()
    assert vitjax.load_text("tiny", checkpoint=file).config == config
    assert vitjax.load_text(config, checkpoint=file).config == config
    with pytest.raises(CheckpointError, match=r"config\.json"):
        vitjax.load_text(file)
    with pytest.raises(ValueError, match="checkpoint="):
        vitjax.load_text(config)


WIDTH = np.ones(3, np.float32)
MISFITS = (
    ("hugging face", "text_projection.weight", None, "text_projection.weight"),
    ("hugging face", "text_model.final_layer_norm.bias", None, "final_layer_norm"),
    ("hugging face", "text_model.surplus", WIDTH, "surplus"),
    ("open_clip", "ln_final.bias", WIDTH, "ln_final.bias"),
    ("open_clip", "positional_embedding", np.ones((9, 16)), "positional_embedding"),
    ("open_clip", "transformer.resblocks.1.attn.in_proj_bias", WIDTH, "in_proj_bias"),
    ("open_clip", "ln_final.bias", np.full(16, np.nan, np.float32), "ln_final"),
    ("open_clip", "token_embedding.weight", None, "no text tower"),
)


@pytest.mark.parametrize(("kind", "key", "change", "named"), MISFITS)
def test_files_that_do_not_fit_are_refused(kind, key, change, named, tmp_path):
    tower = TOWERS["clip"]
    arrays = getattr(text_towers, kind.replace(" ", "_"))(tower) | {key: change}
    arrays = {key: value for key, value in arrays.items() if value is not None}
    path = formats.save(tmp_path, arrays)
    with pytest.raises(CheckpointError, match=named):
        vitjax.load_text(tower.config, checkpoint=path)


NOT_READ = (
    (hugging_face_config, {"model_type": "bert"}),
    (hugging_face_config, {"model_type": "clip", "hidden_act": "relu"}),
    (open_clip_config, {"embed_cls": True}),
    (open_clip_config, {"pool_type": "first"}),
    (open_clip_config, {"hf_model_name": "roberta-base"}),
)


@pytest.mark.parametrize(("read", "fields"), NOT_READ)
def test_architectures_that_are_not_read_are_named(read, fields):
    name, value = list(fields.items())[-1]
    if read is open_clip_config:
        fields = {"model_cfg": {"text_cfg": fields, "embed_dim": 8}}
    with pytest.raises(CheckpointError, match=f"{name}.*{value}"):
        read(Fields(fields))


def test_absent_fields_have_the_defaults_of_transformers():
    config = hugging_face_config(Fields({"model_type": "clip"}))
    assert config == vitjax.TextConfig(*(49408, 77, 512, 12, 8, 2048, 512), end=49407)
    config = hugging_face_config(Fields({"model_type": "siglip"}))
    siglip = dict(text_towers.SIGLIP, gelu="tanh", epsilon=1e-6)
    assert config == vitjax.TextConfig(*(32000, 64, 768, 12, 12, 3072, 768), **siglip)


def write_bpe(folder, *, apart: bool) -> None:
    """OpenAI's kind of vocabulary, with a few merges."""
    letters = "abcdefghijklmnopqrstuvwxyz'!,_3"
    merges = [("o", "g</w>"), ("d", "og</w>"), ("p", "h"), ("a", "t</w>")]
    text_towers.write_vocabulary(folder, letters, merges)
    if not apart:
        tokenizer = read_byte_pairs(folder / "vocab.json")
        tokenizer.enable_truncation(3)  # of the file; the tower's length counts
        tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("apart", (False, True))
def test_clip_texts_start_end_and_are_padded(apart, tmp_path):
    pytest.importorskip("tokenizers")
    write_bpe(tmp_path, apart=apart)
    config = dataclasses.replace(CONFIGS["clip"], vocab=68, length=7)
    tower = write(tmp_path, "hugging face", text_towers.make(config))
    text = vitjax.load_text(tower)
    ids = text.tokenize(["A dog", "dog cat dog's hat", ""])
    assert ids.dtype == np.int32
    find = open_encoder(text.tokenizer.file).find
    names = {find(name): name for name in ("a</w>", "dog</w>", "at</w>", "c")}
    assert [names[number] for number in ids[0, 1:3]] == ["a</w>", "dog</w>"]
    start, end = 66, 67
    assert ids[0, [0, 3, 4, 5, 6]].tolist() == [start, end, end, end, end]
    assert ids[1, 0] == start and ids[1, -1] == end and (ids[1, 1:-1] < start).all()
    assert ids[2].tolist() == [start] + [end] * 6
    assert vitjax.encode_text(text, text.tokenize("dog")).shape == (1, 8)
    again = vitjax.load_text(tower)
    assert jax.tree.structure(again) == jax.tree.structure(text)


def write_sentencepiece(path, *, gemma: bool) -> None:
    import io

    import sentencepiece

    content = io.BytesIO()
    texts = ["a photo of a dog", "the cat", "dogs and cats", "</s> photo"] * 9
    special = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=3, user_defined_symbols="x")
    if gemma:
        special |= dict(unk_id=3, bos_id=2, user_defined_symbols="</s>")
        special |= dict(eos_piece="<eos>", bos_piece="<bos>")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=content,
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
        **special,
    )
    path.write_bytes(content.getvalue())


@pytest.mark.parametrize(("gemma", "pad"), ((False, 1), (True, 0)))
def test_siglip_texts_are_cleaned_and_end_in_one(gemma, pad, tmp_path):
    pytest.importorskip("sentencepiece")
    write_sentencepiece(tmp_path / "spiece.model", gemma=gemma)
    config = dataclasses.replace(CONFIGS["siglip"], length=16)
    write(tmp_path / "weights", "hugging face", text_towers.make(config))
    text = vitjax.load_text(tmp_path / "weights", tokenizer=tmp_path)
    ids = text.tokenize(["A DOG", "a dog", "a, dog!", "a_dog", "the cat " * 30])
    np.testing.assert_array_equal(ids[0], ids[1])
    assert (ids[2] == ids[1]).all() == (ids[3] == ids[1]).all() == (not gemma)
    first = ids[0].tolist()
    end = first.index(1)
    assert end >= 2 and set(first[end + 1 :]) == {pad}
    assert ids[4, -1] == 1 and (ids[4, :-1] != 1).all()


def test_without_the_extra_ids_still_work(tmp_path, monkeypatch):
    write_bpe(tmp_path, apart=True)
    (tmp_path / "spiece.model").write_bytes(b"")
    text = vitjax.load_text(write(tmp_path, "hugging face", TOWERS["clip"]))
    for name in ("tokenizers", "sentencepiece"):
        monkeypatch.setitem(sys.modules, name, None)
    open_encoder.cache_clear()
    with pytest.raises(CheckpointError, match=r"tokenizers.*vitjax\[text\]"):
        text.tokenize("dog")
    assert vitjax.encode_text(text, text_towers.draw_ids(text.config)).shape == (3, 8)
    other = vitjax.load_text(tmp_path, tokenizer=tmp_path / "spiece.model")
    with pytest.raises(CheckpointError, match=r"sentencepiece.*vitjax\[text\]"):
        other.tokenize("dog")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        vitjax.load_text(tmp_path, tokenizer=tmp_path / "nowhere")


def test_other_vocabularies_are_refused(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    file = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, [])).save(str(file))
    folder = write(tmp_path, "hugging face", TOWERS["clip"])
    with pytest.raises(CheckpointError, match=r"<\|endoftext\|>"):
        vitjax.load_text(folder).tokenize("a")
    file.write_text("{}")
    open_encoder.cache_clear()
    with pytest.raises(CheckpointError, match="tokenizers"):
        vitjax.load_text(folder).tokenize("a")
