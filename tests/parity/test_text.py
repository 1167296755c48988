"""Text towers of transformers and open_clip, saved by them, read by us."""

import dataclasses
import json

import numpy as np
import pytest
import text_towers
from libraries import TRANSFORMERS, difference, randomize, save, unit

import vitjax
from vitjax.checkpoints.text import find_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")

CONFIGS = text_towers.CONFIGS
IDS = text_towers.draw_ids(CONFIGS["clip"])
SHAPE = {k: v for k, v in TRANSFORMERS.items() if k not in ("image_size", "patch_size")}
TEXT = SHAPE | dict(vocab_size=40, max_position_embeddings=6)
VISION = TRANSFORMERS | dict(image_size=16)


def difference_of_rows(torch, embed, folder) -> float:
    """Of embeddings of unit length; theirs are not normalized."""
    with torch.no_grad():
        expected = embed(torch.tensor(IDS.astype(np.int64))).numpy()
    rows = vitjax.encode_text(vitjax.load_text(folder), IDS)
    return difference(rows, unit(expected))


TOWERS = {
    "CLIPModel": dict(eos_token_id=2, projection_dim=8),
    "CLIPTextModelWithProjection": dict(eos_token_id=39, projection_dim=8),
    "SiglipModel": dict(projection_size=16),
    "SiglipTextModel": dict(projection_size=8),
}


@pytest.mark.parametrize("kind", TOWERS)
def test_transformers(kind, transformers, torch, tmp_path):
    text, library = TEXT | TOWERS[kind], kind.partition("Text")[0].removesuffix("Model")
    if kind == f"{library}Model":
        config = getattr(transformers, f"{library}Config")
        shared = dict(projection_dim=8) if library == "CLIP" else {}
        config = config(text_config=text, vision_config=VISION, **shared)
    else:
        config = getattr(transformers, f"{library}TextConfig")(**text)
    model = randomize(torch, getattr(transformers, kind)(config))
    model.save_pretrained(tmp_path)

    def embed(ids):
        if kind == f"{library}Model":
            return model.get_text_features(ids).pooler_output
        output = model(ids)
        return output.text_embeds if library == "CLIP" else output.pooler_output

    assert difference_of_rows(torch, embed, tmp_path) < 1e-5


@pytest.mark.parametrize("name", ("clip", "open_clip", "siglip"))
def test_open_clip(name, open_clip, torch, tmp_path):
    config = dataclasses.replace(CONFIGS[name], mlp_dim=32)
    description = text_towers.open_clip_json(config)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(description))
    fields = description["model_cfg"]
    vision = dict(image_size=16, layers=1, width=64, patch_size=8)
    kind = open_clip.model.CLIP
    if name == "siglip":
        kind = open_clip.model.CustomTextCLIP
    model = kind(
        embed_dim=8,
        quick_gelu=fields["quick_gelu"],
        vision_cfg=vision,
        text_cfg=fields["text_cfg"],
        **({"init_logit_bias": -10.0} if name == "siglip" else {}),
    )
    model = randomize(torch, model)
    save(model, tmp_path / "open_clip_model.safetensors")
    assert difference_of_rows(torch, model.encode_text, tmp_path) < 1e-5


PROMPTS = (
    "a photo of a dog.",
    "A dog's  cat",
    "",
    "the 3 dogs, and the cat! of the house of the dog",
)


def test_clip_tokens_are_those_of_transformers(transformers, tmp_path):
    letters = "".join(map(chr, range(33, 127)))
    merges = [("o", "g</w>"), ("d", "og</w>"), ("p", "h"), ("ph", "o"), ("t", "h")]
    vocabulary = text_towers.make_vocabulary(letters, merges)
    theirs = transformers.CLIPTokenizerFast(vocab=vocabulary, merges=merges)
    theirs.save_pretrained(tmp_path / "json")
    (tmp_path / "apart").mkdir()
    text_towers.write_vocabulary(tmp_path / "apart", letters, merges)
    options = dict(max_length=9, padding="max_length", truncation=True)
    expected = theirs(list(PROMPTS), **options)["input_ids"]
    for folder in ("json", "apart"):
        tokenize = find_tokenizer(tmp_path / folder, 9)
        np.testing.assert_array_equal(tokenize(PROMPTS), expected)


def test_siglip_tokens_are_those_of_transformers(transformers, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*PROMPTS] * 9),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=45,
        hard_vocab_limit=False,
        minloglevel=2,
        **dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1),
    )
    theirs = transformers.SiglipTokenizer(str(tmp_path / "spiece.model"))
    options = dict(max_length=16, padding="max_length", truncation=True)
    expected = theirs(list(PROMPTS), **options)["input_ids"]
    tokenize = find_tokenizer(tmp_path, 16)
    np.testing.assert_array_equal(tokenize(PROMPTS), expected)
