"""Checkpoints of other libraries: every layout, strictly."""

import dataclasses

import formats
import jax
import numpy as np
import published
import pytest
import tiny
from PIL import Image

import vitjax
from vitjax.checkpoints.files import CheckpointError
from vitjax.checkpoints.layouts import Target
from vitjax.checkpoints.positions import (
    RESIZE,
    position_grid,
    resize_bicubic,
    resize_corners,
    resize_positions,
)
from vitjax.types import Config

PLAIN = tiny.CONFIGS["plain"]
CONFIGS = tiny.CONFIGS | formats.CONFIGS
CONFIGS |= {f"channels {n}": Config(**tiny.SHAPE, channels=n) for n in (1, 4)}
BEYOND = dict(layer_scale=False, qk_norm=False, mlp="gelu", distilled=False, channels=3)
"""What a file has beyond the architecture that is given."""

GOOGLE = "plain", "no_qkv_bias", "gap", "wide", "channels 1"
BIG_VISION = "plain", "no_qkv_bias", "one_block"
LAYOUTS = {
    "timm": (*tiny.CONFIGS, "channels 4"),
    "deit 3": ("layer_scale",),
    "dinov2": ("dinov2",),
    "transformers": ("plain", "no_qkv_bias", "tanh", "deit"),
    "transformers 5": ("plain",),
    "google": GOOGLE,
    "google pre-linen": GOOGLE,
    "big_vision": BIG_VISION,
    "big_vision stacked": BIG_VISION,
}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in LAYOUTS for name in LAYOUTS[kind]]
)
def test_every_layout(tmp_path, kind, name):
    model = tiny.make(CONFIGS[name])
    if "big_vision" in kind:
        model = formats.without_positions(model, np.s_[:1])
    given = dataclasses.replace(model.config, **BEYOND)
    if name in ("deit", "distilled"):
        given = dataclasses.replace(given, registers=0)
    loaded = formats.load(tmp_path, formats.LAYOUTS[kind](model), given)
    assert formats.same(loaded, model, 1e-7)
    numerics = dict(epsilon=given.epsilon, gelu=given.gelu)
    assert dataclasses.replace(loaded.config, **numerics) == model.config
    assert (loaded.preprocess is None) == (loaded.config.channels != 3)
    if name == "distilled":
        with pytest.raises(ValueError, match="distilled"):
            vitjax.explain(loaded, tiny.images(given), 0, method="attnlrp")


def test_refinement_modules_that_the_config_has_not_are_named_as_ignored(tmp_path):
    model = tiny.make(tiny.CONFIGS["refinement"])
    without = dataclasses.replace(model.config, refinement=False)
    loaded = formats.load(tmp_path, formats.timm(model), without)
    kept = {k: v for k, v in model.params.items() if k != "refinement"}
    assert formats.same(loaded.params, kept, 1e-7)
    (line,) = loaded.provenance.ignored
    assert line.startswith("refinement")


def test_means_of_google_are_of_normalized_tokens(tmp_path):
    model = tiny.make(Config(**tiny.SHAPE, class_token=False))
    loaded = formats.load(tmp_path, formats.google(model), model.config)
    assert loaded.config == dataclasses.replace(model.config, pool_norm="before")


def test_queries_and_values_alone_may_have_a_bias(tmp_path):
    model = tiny.make(PLAIN)
    arrays = formats.timm(model)
    for name in ("blocks.0.attn.", "blocks.1.attn."):
        query, _, value = np.split(arrays.pop(name + "qkv.bias"), 3)
        arrays |= {name + "q_bias": query, name + "v_bias": value}
    loaded = formats.load(tmp_path, arrays, PLAIN)
    attention, before = (
        each.block_params["MultiHeadDotProductAttention_0"] for each in (loaded, model)
    )
    assert not attention["key"]["bias"].any()
    for part in ("query", "value"):
        np.testing.assert_array_equal(attention[part]["bias"], before[part]["bias"])


@pytest.mark.parametrize(("name", "classes"), (("setA", 1000), ("plain", 20)))
def test_npz_and_safetensors_are_the_same_model(name, classes, shared, published_model):
    model, folder = published_model(name), published.folder(shared, name)
    folder = shared / "assets/vit_ti16" if name == "setA" else folder
    (npz,) = folder.glob("*.npz") if name == "setA" else [folder / "weights_augreg.npz"]
    loaded = vitjax.load(model.config, checkpoint=npz, classes=classes)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.params, model.params))


ONES = np.ones(2, np.float32)
GONE = {"blocks.1.mlp.fc1.bias": None, "norm.bias": None, "neck.weight": ONES}
ERRORS = (
    ("timm", GONE, {}, "timm norm.bias neck.weight mlp.fc1.bias blocks"),
    ("timm", {"norm_pre.bias": ONES}, {}, "Extra: norm_pre.bias"),
    ("timm", {"norm.bias": ONES}, {}, "norm.bias gives (2,)"),
    ("timm", {"pos_embed": np.zeros((1, 14, 16))}, {}, "14 position"),
    ("timm", {}, dict(dim=24, mlp_dim=32), "; and more"),
    ("timm", {}, dict(refinement=True), "Missing: transformerheads {block}"),
    ("timm", {"blocks.0.attn.relative_position": ONES}, {}, "Extra: blocks.{block}"),
    ("timm", {"blocks.0.attn.relative_position_bias_table": ONES}, {}, "relative"),
    ("timm", {"rope_embed.periods": ONES}, {}, "rope_embed.periods rotations"),
    ("timm", {"pre_logits.fc.weight": ONES}, {}, "pre_logits.fc.weight [CLS]"),
    ("google", {"pre_logits/kernel": ONES}, {}, "pre_logits/kernel [CLS]"),
    ("google", {}, dict(layer_scale=True), "Missing: LayerScale"),
    ("google", {}, dict(registers=2), "Missing: registers"),
    ("google", {}, dict(qkv_bias=False), "Extra: query/bias qkv_bias"),
)


@pytest.mark.parametrize(("kind", "change", "config", "words"), ERRORS, ids=str)
def test_every_key_is_consumed_or_an_error_that_names_it(
    tmp_path, kind, change, config, words
):
    arrays = formats.LAYOUTS[kind](tiny.make(PLAIN)) | change
    arrays = {key: value for key, value in arrays.items() if value is not None}
    with pytest.raises(CheckpointError) as error:
        formats.load(tmp_path, arrays, dataclasses.replace(PLAIN, **config))
    message = str(error.value)
    assert all(word in message for word in words.split()) and len(message) < 1000


def test_no_vision_transformer_is_recognized_as_such(tmp_path):
    with pytest.raises(CheckpointError, match="known layout.*weights"):
        formats.load(tmp_path, {"weights": ONES}, PLAIN)


RESIZED = {
    "google": "corners",
    "timm": "bicubic",
    "dinov2": "offset_bicubic",
    "transformers": "plain_bicubic",
}


@pytest.mark.parametrize("kind", RESIZED)
def test_position_embeddings_resize_by_layout(tmp_path, kind):
    model = tiny.make(PLAIN)
    arrays = formats.LAYOUTS[kind](model)
    loaded = formats.load(tmp_path, arrays, PLAIN, image_size=64)
    assert loaded.provenance.position_resize == RESIZED[kind]
    position = np.asarray(model.params["pos_embedding"])
    expected = RESIZE[RESIZED[kind]](position[:, 1:].reshape(4, 4, -1), (8, 8))
    ours = np.asarray(loaded.params["pos_embedding"])
    np.testing.assert_allclose(ours[:, 1:], expected.reshape(1, 64, -1), atol=1e-6)
    np.testing.assert_array_equal(ours[:, :1], position[:, :1])


def test_prefix_tokens_without_a_position_have_position_zero(tmp_path):
    model = tiny.make(tiny.CONFIGS["registers"])
    arrays = formats.timm(model)
    full = arrays["pos_embed"]
    for start in (1, 0):  # registers without positions; neither registers nor [CLS]
        arrays["pos_embed"] = np.concatenate([full[:, :start], full[:, 4:]], 1)
        loaded = formats.load(tmp_path, arrays, model.config)
        expected = formats.without_positions(model, np.s_[start:4])
        assert formats.same(loaded, expected)


@pytest.mark.parametrize("size", (7, 24, 14))
def test_corner_aligned_resize_is_linear_between_corners(size):
    grid = np.random.default_rng(0).normal(size=(14, 14, 3)).astype(np.float32)
    ours = resize_corners(grid, (size, size))
    at = np.linspace(0, 13, size)
    low = np.minimum(at.astype(int), 12)
    share = (at - low)[:, None, None]
    rows = grid[low] * (1 - share) + grid[low + 1] * share
    expected = rows[:, low] * (1 - share[:, 0]) + rows[:, low + 1] * share[:, 0]
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("size", (7, 24))
def test_bicubic_resize_equals_pillows(size):
    grid = np.random.default_rng(0).normal(size=(14, 14, 2)).astype(np.float32)
    ours = resize_bicubic(grid, (size, size))
    for channel in range(2):
        image = Image.fromarray(grid[..., channel], mode="F")
        expected = image.resize((size, size), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(ours[..., channel], expected, atol=2e-5)


def grid_of(count, config, source_config=None, *, prefixes):
    return position_grid(count, Target(config, source_config, "bicubic", prefixes))


def test_which_positions_belong_to_prefix_tokens():
    registers = tiny.CONFIGS["registers"]
    assert grid_of(17, PLAIN, prefixes=(1, 0)) == (1, (4, 4))
    assert grid_of(16, PLAIN, prefixes=(1, 0)) == (0, (4, 4))
    assert grid_of(50, PLAIN, prefixes=(1, 0)) == (1, (7, 7))
    counts = [grid_of(n, registers, prefixes=(4, 1, 0))[0] for n in (20, 17, 16)]
    assert counts == [4, 1, 0]
    with pytest.raises(ValueError, match="15 position"):
        grid_of(15, PLAIN, prefixes=(1, 0))


def test_a_grid_that_is_known_is_never_guessed():
    """Nine positions: [CLS] and 2 x 4, not 3 x 3 without it."""
    wide = dataclasses.replace(PLAIN, image_size=(16, 32))
    square = dataclasses.replace(wide, image_size=24)
    assert grid_of(9, square, wide, prefixes=(1, 0)) == (1, (2, 4))
    assert grid_of(9, square, prefixes=(1, 0)) == (0, (3, 3))
    position = np.random.default_rng(0).normal(size=(1, 9, 4)).astype(np.float32)
    made = resize_positions(position, Target(square, wide, "bicubic", (1,)))
    np.testing.assert_array_equal(made[:, :1], position[:, :1])
    expected = resize_bicubic(position[0, 1:].reshape(2, 4, 4), (3, 3))
    np.testing.assert_array_equal(made[0, 1:], expected.reshape(9, 4))


@pytest.mark.parametrize("kind", ("google", "timm", "transformers", "big_vision"))
def test_the_class_token_is_kept_apart_where_counts_fit_two_readings(tmp_path, kind):
    """7 x 7 + 1 positions are no 5 x 10 without [CLS], which big_vision has."""
    square, wide = (Config(**tiny.SHAPE | {"image_size": s}) for s in (56, (40, 80)))
    kept = np.s_[:1]
    if kind == "big_vision":
        square, kept = wide, np.s_[1:]
    model = tiny.make(square)
    loaded = formats.load(tmp_path, formats.LAYOUTS[kind](model), wide)
    position, made = (each.params["pos_embedding"] for each in (model, loaded))
    np.testing.assert_array_equal(made[:, kept], position[:, kept])


def test_the_same_number_of_patches_in_another_grid_is_resized(tmp_path):
    model = tiny.make(dataclasses.replace(PLAIN, image_size=(16, 32)))
    vitjax.save(model, tmp_path / "m")
    tall = vitjax.load(tmp_path / "m", image_size=(32, 16))
    grid = np.asarray(model.params["pos_embedding"])[0, 1:].reshape(2, 4, -1)
    expected = resize_bicubic(grid, (4, 2)).reshape(8, -1)
    np.testing.assert_allclose(tall.params["pos_embedding"][0, 1:], expected, atol=1e-6)
