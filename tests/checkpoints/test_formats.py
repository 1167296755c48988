"""Files of CLIP, SigLIP, DINOv2 and pooled variants: whole, and strictly."""

import dataclasses
import json
from typing import NamedTuple

import formats
import numpy as np
import pytest
import tiny
from libraries import TRANSFORMERS as HF

import vitjax
from vitjax.checkpoints import registry
from vitjax.checkpoints.files import CheckpointError
from vitjax.checkpoints.positions import resize_plain_bicubic
from vitjax.cli.main import main
from vitjax.types import Config

CONFIGS = formats.CONFIGS
TEXT = {"text_model.final_layer_norm.bias", "text_projection.weight"}
OPEN_TEXT = {
    "positional_embedding",
    "text_projection",
    "token_embedding.weight",
    "transformer.resblocks.0.ln_1.weight",
    "ln_final.bias",
}
VISION = dict(image_size=32, layers=2, width=16, head_width=8, patch_size=8)
TRUNK = dict(timm_model_name="vit_tiny_patch8_siglip_32", timm_pool="map")


class Format(NamedTuple):
    """A kind of model, the names of its arrays, its description, what is ignored."""

    kind: str
    names: dict[str, str]
    description: dict
    ignored: set[str] = frozenset()
    resize: str = "bicubic"


def timm(kind, names, architecture, **fields):
    arguments = {"num_heads": 2, "img_size": 32}
    description = {"architecture": architecture, "model_args": arguments} | fields
    return Format(kind, names, description)


def open_clip(kind, names, ignored, vision, **fields):
    return Format(kind, names, {"model_cfg": fields | {"vision_cfg": vision}}, ignored)


def transformers(kind, names, ignored, resize="plain_bicubic", **fields):
    return Format(kind, names, fields, ignored, resize)


CLIP, DINO = formats.HUGGING_FACE_CLIP, formats.HUGGING_FACE_DINO
REGISTERS = HF | dict(model_type="dinov2_with_registers", num_register_tokens=3)
MASK = {"dinov2.embeddings.mask_token"}
FORMATS = {
    "transformers CLIP": transformers(
        "clip", CLIP, TEXT, model_type="clip", vision_config=HF
    ),
    "transformers CLIP, vision tower": transformers(
        "clip alone",
        CLIP,
        {"vision_model.embeddings.position_ids"},
        **HF,
        model_type="clip_vision_model",
    ),
    "transformers SigLIP": transformers(
        "siglip", CLIP, TEXT, model_type="siglip", vision_config=HF
    ),
    "open_clip": open_clip(
        "clip",
        formats.OPEN_CLIP,
        OPEN_TEXT,
        VISION | dict(mlp_ratio=1.5),
        embed_dim=10,
        quick_gelu=True,
    ),
    "open_clip, image tower of timm": open_clip(
        "siglip trunk",
        formats.TRUNK,
        {"text.positional_embedding", "text.text_projection.bias"},
        TRUNK | dict(image_size=32),
    ),
    "timm CLIP": timm(
        "clip", formats.PROJECTION, "vit_base_patch16_clip_quickgelu_224"
    ),
    "timm SigLIP": timm("siglip", formats.TIMM, "vit_base_patch16_siglip_224"),
    "timm MAE": timm("mae", formats.MEAN, "vit_base_patch16_224", global_pool="avg"),
    "timm mean of normalized tokens": timm(
        "gap", formats.TIMM, "vit_base_patch16_224", global_pool="avg"
    ),
    "timm DINOv2": timm("dinov2_reg", formats.TIMM, "vit_base_patch14_reg4_dinov2"),
    "transformers DINOv2": transformers(
        "dinov2_reg", DINO, MASK, "bicubic", **REGISTERS, mlp_ratio=1.5
    ),
    "transformers DINOv2, classifier": transformers(
        "dinov2_head", DINO, MASK, "bicubic", **REGISTERS
    ),
}


def write_folder(folder, name, change=lambda arrays: None):
    """The model that a format holds, in a folder that describes it."""
    kind, names, description, ignored, _ = FORMATS[name]
    scaled = "logit_scale" in names.values()
    classes = tiny.CLASSES if kind in ("dinov2_head", "mae", "gap") else ()
    model = formats.make(CONFIGS[kind], scaled=scaled, classes=classes)
    if not scaled:
        names = names | {"head/temperature": "drop", "head/logit_bias": "drop"}
    arrays = formats.torch_arrays(model, names)
    arrays.pop("drop", None)
    if names.get("projection/") == "head.":
        arrays["head.bias"] = np.zeros(10, np.float32)
    arrays |= {key: np.ones(3, np.float32) for key in ignored}
    change(arrays)
    file, weights = "config.json", "model.safetensors"
    if "model_cfg" in description:
        file, weights = "open_clip_config.json", "open_clip_model.safetensors"
    formats.save(folder / weights, arrays)
    (folder / file).write_text(json.dumps(description))
    return model, arrays


@pytest.mark.parametrize("name", FORMATS)
def test_folders_describe_themselves(tmp_path, name):
    model, arrays = write_folder(tmp_path, name)
    loaded = vitjax.load(tmp_path)
    assert loaded.config == model.config and loaded.num_classes == model.num_classes
    assert formats.same(loaded, model, 1e-6)
    form, provenance = FORMATS[name], loaded.provenance
    assert bool(provenance.ignored) == bool(form.ignored or name == "timm CLIP")
    assert provenance.position_resize == form.resize
    if model.config.head == "cosine":
        temperature = provenance.sources["temperature"]
        assert ("assumed" in temperature) == ("logit_scale" not in arrays)
    vitjax.save(loaded, tmp_path / "own")
    again = vitjax.load(tmp_path / "own")
    assert again.config == loaded.config and again.classes == loaded.classes
    assert formats.same(again, loaded, 1e-6)


@pytest.mark.parametrize("name", FORMATS)
def test_every_key_is_read_named_or_an_error(tmp_path, name):
    _, arrays = write_folder(tmp_path, name)
    unread = {*FORMATS[name].ignored, "head.bias", "logit_scale", "logit_bias"}
    # A timm model without these biases is another one.
    keys = sorted(k for k in arrays.keys() - unread if not k.endswith("qkv.bias"))
    key = keys[len(keys) // 2]
    for change in (
        lambda arrays: arrays.pop(key),
        lambda arrays: arrays.update(neck=np.ones(3, np.float32)),
        lambda arrays: arrays.update({key: np.ones((5, 3), np.float32)}),
    ):
        _, changed = write_folder(tmp_path, name, change)
        with pytest.raises(CheckpointError, match="neck" if "neck" in changed else "."):
            vitjax.load(tmp_path)


@pytest.mark.parametrize("prefix", ("", "params/"))
@pytest.mark.parametrize("old", (True, False))
@pytest.mark.parametrize("stacked", (True, False))
def test_siglip_of_big_vision(tmp_path, stacked, old, prefix):
    model = formats.make(CONFIGS["siglip"])
    out = formats.flax_arrays(model, stacked=stacked)
    arrays = {
        f"{prefix}t": np.log(out.pop("head/temperature")).reshape(1),
        f"{prefix}b": out.pop("head/logit_bias").reshape(1),
        f"{prefix}txt/Encoder_0/encoderblock_0/MlpBlock_0/Dense_0/bias": np.ones(3),
        f"{prefix}txt/head/bias": np.ones(3),
    }
    del out["head/kernel"], out["head/bias"]
    for key, value in out.items():
        parts = key.split("/")
        if parts[0] == "MAPHead_0" and parts[1] not in ("probe", "LayerNorm_0"):
            kind = "MlpBlock_0" if "Dense" in key else "MultiHeadDotProductAttention_0"
            parts.insert(1, kind)
        if old and parts[0] == "MAPHead_0":  # in line with the tower
            del parts[0]
        arrays[f"{prefix}img/{'/'.join(parts)}"] = value
    bare = Config(**tiny.SHAPE, class_token=False, gelu="tanh")
    for config in (model.config, bare):
        loaded = formats.load(tmp_path, arrays, config)
        assert loaded.config == model.config and loaded.classes == ()
        assert formats.same(loaded, model, 1e-6)
    (line,) = loaded.provenance.ignored
    assert line.startswith("the text tower")


@pytest.mark.parametrize("blocks", (1, 2))
def test_a_head_in_a_file_of_its_own(tmp_path, monkeypatch, blocks):
    config = CONFIGS["dinov2"]
    arrays = formats.LAYOUTS["dinov2"](formats.make(config))
    path, file = tmp_path / "m.safetensors", tmp_path / "head.safetensors"
    rng = np.random.default_rng(0)
    head = {
        "weight": rng.normal(size=(7, 16 * (blocks + 1))).astype(np.float32),
        "bias": rng.normal(size=7).astype(np.float32),
    }
    formats.save(path, arrays)
    formats.save(file, head)
    loaded = vitjax.load(config, checkpoint=path, head=file)
    expected = dataclasses.replace(config, pool="cls_mean", head_blocks=blocks)
    assert loaded.config == expected and loaded.num_classes == 7
    columns = np.split(head["weight"].T, blocks + 1)
    params = loaded.params
    np.testing.assert_array_equal(params["head_patches"]["kernel"], columns[-1])
    np.testing.assert_array_equal(params["head"]["kernel"], columns[-2])
    np.testing.assert_array_equal(params["head"]["bias"], head["bias"])
    if blocks == 2:
        np.testing.assert_array_equal(params["head_earlier"]["kernel"][0], columns[0])
    assert vitjax.load(config, checkpoint=path).classes == ()
    row = dataclasses.replace(registry.anonymous(config), name="tiny")
    monkeypatch.setitem(registry.VARIANTS, "tiny", row)
    own = str(tmp_path / "own")
    flags = ["--model", "tiny", "--head", str(file), "--out", own]
    assert main(["convert", str(path), *flags]) == 0
    assert vitjax.load(own).config == expected
    with pytest.raises(CheckpointError, match=r"head\.weight"):
        vitjax.load(config, checkpoint=path, classes=7)
    for wrong in ({"weight": head["weight"]}, head | {"scale": head["bias"]}):
        formats.save(file, wrong)
        with pytest.raises(CheckpointError, match="head="):
            vitjax.load(config, checkpoint=path, head=file)
    plain = tiny.CONFIGS["plain"]
    formats.save(file, head)
    with pytest.raises(CheckpointError, match="without head="):
        formats.load(tmp_path, formats.timm(tiny.make(plain)), plain, head=file)


REFUSED = {
    "siglip2": "NaFlex",
    "beit": "relative positions",
    "dinov3_vit": "rotations",
    "bert": "neither vitjax nor a Hugging Face",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_read_says_why(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(CheckpointError, match=REFUSED[kind]):
        vitjax.load(tmp_path)


def test_a_classifier_that_skips_the_final_norm_is_refused(tmp_path):
    def change(arrays):
        arrays["classifier.weight"] = np.ones((7, 16), np.float32)
        arrays["classifier.bias"] = np.ones(7, np.float32)

    write_folder(tmp_path, "transformers CLIP, vision tower", change)
    with pytest.raises(CheckpointError, match="before the final norm"):
        vitjax.load(tmp_path)


@pytest.mark.parametrize("size", (32, 38))
def test_pixels_that_fill_no_patch_are_dropped(tmp_path, size):
    """Of a row of another size, positions are resized from those of whole patches."""
    model = formats.make(CONFIGS["siglip"])
    arrays = formats.torch_arrays(model, formats.HUGGING_FACE_CLIP)
    path = formats.save(tmp_path, arrays)
    description = {"model_type": "siglip", "vision_config": HF | {"image_size": size}}
    (tmp_path / "config.json").write_text(json.dumps(description))
    loaded = vitjax.load(tmp_path)
    assert loaded.config.truncate == (size == 38) and loaded.config.grid == (4, 4)
    image = tiny.images(loaded.config)
    whole = vitjax.forward(loaded, image, capture=("residual",))[1].residual
    kept = vitjax.forward(model, image[:, :32, :32], capture=("residual",))[1].residual
    np.testing.assert_allclose(whole, kept, atol=1e-6)
    same = vitjax.load(model.config, checkpoint=path)
    assert same.config == model.config
    assert formats.same(same, model, 1e-6)
    wide = dataclasses.replace(model.config, image_size=(16, 64))  # as many patches
    resized = vitjax.load(wide, checkpoint=path).params["pos_embedding"]
    grid = np.asarray(model.params["pos_embedding"]).reshape(4, 4, 16)
    expected = resize_plain_bicubic(grid, (2, 8)).reshape(1, 16, 16)
    np.testing.assert_allclose(resized, expected, atol=1e-6)


ROWS = {
    "vit_b16": "google pre-linen",
    "vit_b16_cifar100": "timm",
    "vit_b16_miil": "timm",
    "vit_b16_gap": "timm",
    "vit_b16_refinement_heads": "timm",
    "deit_b16": "timm",
    "clip_b32_openai": formats.OPEN_CLIP,
    "siglip_b16": formats.HUGGING_FACE_CLIP,
    "dinov2_s14_reg": formats.TIMM,
    "mae_b16_in1k": formats.MEAN,
    "clip_b16_openai_in1k": formats.TIMM,
}
"""Rows of every kind, and how their files are written."""


@pytest.mark.parametrize("name", ROWS)
def test_miniatures_of_rows(tmp_path, name):
    config, layout = registry.VARIANTS[name].config, ROWS[name]
    changes = dict(tiny.SHAPE, registers=min(config.registers, 3))
    if config.projection:
        changes["projection"] = 10
    config = dataclasses.replace(config, **changes)
    classes = () if config.head == "cosine" or "dino" in name else tiny.CLASSES
    model = formats.make(config, classes=classes)
    if isinstance(layout, dict):
        arrays = formats.torch_arrays(model, layout)
    else:
        arrays = formats.LAYOUTS[layout](model)
    loaded = formats.load(tmp_path, arrays, config)
    assert loaded.config == config
    assert formats.same(loaded, model, 1e-6)
