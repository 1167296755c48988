"""Text towers of transformers and open_clip, saved by them, read by us."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy
import text_towers

import vitjax

pytestmark = pytest.mark.filterwarnings("ignore")

CONFIGS = text_towers.CONFIGS
IDS = text_towers.draw_ids(CONFIGS["clip"])
SHAPE = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
SHAPE |= dict(intermediate_size=24)
TEXT = SHAPE | dict(vocab_size=40, max_position_embeddings=6)
VISION = SHAPE | dict(image_size=16, patch_size=8)


def randomize(torch, model):
    torch.manual_seed(0)
    for leaf in model.parameters():
        leaf.data = leaf.data + 0.3 * torch.randn(leaf.shape)
    return model.eval()


def assert_same(torch, embed, folder, ids=IDS, **options):
    """Both libraries give the same rows; theirs are not normalized."""
    with torch.no_grad():
        expected = embed(torch.tensor(ids.astype(np.int64))).numpy()
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    text = vitjax.load_text(folder, **options)
    rows = vitjax.encode_text(text, ids)
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    return text


@pytest.mark.parametrize("kind", ("CLIPModel", "CLIPTextModelWithProjection"))
@pytest.mark.parametrize("end", (2, 39))
def test_clip_of_transformers(kind, end, transformers, torch, tmp_path):
    fields = TEXT | dict(eos_token_id=end, projection_dim=8)
    if kind == "CLIPModel":
        config = transformers.CLIPConfig(
            text_config=fields, vision_config=VISION, projection_dim=8
        )
    else:
        config = transformers.CLIPTextConfig(**fields)
    model = randomize(torch, getattr(transformers, kind)(config))
    model.save_pretrained(tmp_path)

    def embed(ids):
        if kind == "CLIPModel":
            return model.get_text_features(ids).pooler_output
        return model(ids).text_embeds

    assert_same(torch, embed, tmp_path)


@pytest.mark.parametrize("kind", ("SiglipModel", "SiglipTextModel"))
def test_siglip_of_transformers(kind, transformers, torch, tmp_path):
    fields = TEXT | dict(projection_size=8 if kind == "SiglipTextModel" else 16)
    if kind == "SiglipModel":
        config = transformers.SiglipConfig(text_config=fields, vision_config=VISION)
    else:
        config = transformers.SiglipTextConfig(**fields)
    model = randomize(torch, getattr(transformers, kind)(config))
    model.save_pretrained(tmp_path)

    def embed(ids):
        if kind == "SiglipModel":
            return model.get_text_features(ids).pooler_output
        return model(ids).pooler_output

    assert_same(torch, embed, tmp_path)


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
    arrays = {k: v.contiguous().numpy() for k, v in model.state_dict().items()}
    safetensors.numpy.save_file(arrays, tmp_path / "open_clip_model.safetensors")
    assert_same(torch, model.encode_text, tmp_path)


PROMPTS = (
    "a photo of a dog.",
    "A dog's  cat",
    "",
    "the 3 dogs, and the cat! of the house of the dog",
)


def test_clip_tokens_are_those_of_transformers(transformers, tmp_path):
    letters = [chr(number) for number in range(33, 127)]
    merges = [("o", "g</w>"), ("d", "og</w>"), ("p", "h"), ("ph", "o"), ("t", "h")]
    words = [*letters, *(x + "</w>" for x in letters), *map("".join, merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    theirs = transformers.CLIPTokenizerFast(vocab=vocabulary, merges=merges)
    theirs.save_pretrained(tmp_path / "json")
    (tmp_path / "apart").mkdir()
    (tmp_path / "apart" / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *map(" ".join, merges)]
    (tmp_path / "apart" / "merges.txt").write_text("\n".join(lines))
    config = dataclasses.replace(CONFIGS["clip"], vocab=len(words), length=9)
    arrays = text_towers.open_clip(text_towers.make(config))
    text_towers.write_safetensors(tmp_path / "m.safetensors", arrays)
    expected = theirs(
        list(PROMPTS), max_length=9, padding="max_length", truncation=True
    )["input_ids"]
    for folder in ("json", "apart"):
        text = vitjax.load_text(
            config, checkpoint=tmp_path / "m.safetensors", tokenizer=tmp_path / folder
        )
        np.testing.assert_array_equal(text.tokenize(PROMPTS), expected)


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
    config = dataclasses.replace(CONFIGS["siglip"], vocab=60, length=16)
    np.savez(
        tmp_path / "s.npz",
        **text_towers.big_vision(text_towers.make(config), stacked=False),
    )
    expected = theirs(
        list(PROMPTS), max_length=16, padding="max_length", truncation=True
    )["input_ids"]
    text = vitjax.load_text(tmp_path / "s.npz")
    np.testing.assert_array_equal(text.tokenize(PROMPTS), expected)
