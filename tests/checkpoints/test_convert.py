"""Checkpoints of other libraries: every layout, strictly."""

import dataclasses
import functools

import formats
import jax
import numpy as np
import published
import pytest
import safetensors.numpy
import tiny
from PIL import Image

import vitjax
from vitjax.api import forward
from vitjax.checkpoints.convert import detect_layout
from vitjax.checkpoints.files import CheckpointError, open_arrays
from vitjax.checkpoints.layouts import Target
from vitjax.checkpoints.positions import (
    position_grid,
    resize_bicubic,
    resize_corners,
    resize_positions,
)
from vitjax.types import Config


def read(path, config, classes=7):
    with open_arrays(path) as arrays:
        return detect_layout(arrays).params(config, classes=classes)[0]


@pytest.mark.parametrize("linen", (True, False))
@pytest.mark.parametrize("prefix", ("", "opt/target/"))
@pytest.mark.parametrize("name", ("plain", "no_qkv_bias", "gap", "wide"))
def test_original_npz(tmp_path, name, prefix, linen):
    model = tiny.make(tiny.CONFIGS[name])
    formats.write_google(tmp_path / "m.npz", model, linen=linen, prefix=prefix)
    assert formats.same(read(tmp_path / "m.npz", model.config), model.params, 1e-7)


@pytest.mark.parametrize("prefix", ("", "model.", "module."))
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_timm_state_dict(tmp_path, name, prefix):
    model = tiny.make(tiny.CONFIGS[name])
    formats.write_timm(tmp_path / "m.safetensors", model, prefix=prefix)
    assert formats.same(
        read(tmp_path / "m.safetensors", model.config), model.params, 1e-7
    )


@pytest.mark.parametrize("stacked", (True, False))
@pytest.mark.parametrize("name", ("plain", "no_qkv_bias", "one_block"))
def test_big_vision_npz(tmp_path, name, stacked):
    model = tiny.make(tiny.CONFIGS[name])
    formats.write_big_vision(tmp_path / "m.npz", model, stacked=stacked)
    params = read(tmp_path / "m.npz", model.config)
    # big_vision has no position for [CLS]; it stands in the token itself.
    position = np.asarray(model.params["pos_embedding"])
    np.testing.assert_array_equal(params["pos_embedding"][:, :1], 0)
    np.testing.assert_array_equal(params["pos_embedding"][:, 1:], position[:, 1:])
    np.testing.assert_array_equal(params["cls"], model.params["cls"] + position[:, :1])
    same = {k: model.params[k] for k in ("Transformer", "head", "embedding")}
    assert formats.same({k: params[k] for k in same}, same)
    again = model.replace(params=params)
    images = tiny.images(model.config)
    np.testing.assert_allclose(
        forward(again, images)[0], forward(model, images)[0], atol=1e-5
    )


@pytest.mark.parametrize("name", ("plain", "no_qkv_bias", "tanh"))
def test_hugging_face_vit(tmp_path, name):
    model = tiny.make(tiny.CONFIGS[name])
    formats.write_hugging_face(tmp_path / "m.safetensors", model)
    assert formats.same(read(tmp_path / "m.safetensors", model.config), model.params)


def test_hugging_face_deit_keeps_its_distillation_token(tmp_path):
    model = tiny.make(Config(**tiny.SHAPE, registers=1))
    formats.write_hugging_face(tmp_path / "m.safetensors", model, prefix="deit.")
    assert formats.same(read(tmp_path / "m.safetensors", model.config), model.params)
    plain = tiny.CONFIGS["plain"]
    with open_arrays(tmp_path / "m.safetensors") as arrays:
        assert detect_layout(arrays).adjust(plain) == model.config
    with pytest.raises(CheckpointError, match="distillation_token"):
        read(tmp_path / "m.safetensors", plain)


def test_refinement_modules_are_kept_or_named_as_ignored(tmp_path):
    model = tiny.make(tiny.CONFIGS["refinement"])
    formats.write_timm(tmp_path / "m.safetensors", model)
    assert formats.same(
        read(tmp_path / "m.safetensors", model.config), model.params, 1e-7
    )
    without = Config(**tiny.SHAPE | {"depth": 3})
    kept = {k: v for k, v in model.params.items() if k != "refinement"}
    assert formats.same(read(tmp_path / "m.safetensors", without), kept, 1e-7)
    formats.write_timm(tmp_path / "m.safetensors", tiny.make(without))
    with pytest.raises(CheckpointError, match="transformerheads.*for blocks 0, 1"):
        read(tmp_path / "m.safetensors", model.config)


@pytest.mark.parametrize(("name", "classes"), (("setA", 1000), ("plain", 20)))
def test_npz_and_safetensors_are_the_same_model(name, classes, shared, published_model):
    model, folder = published_model(name), published.folder(shared, name)
    folder = shared / "assets/vit_ti16" if name == "setA" else folder
    (npz,) = folder.glob("*.npz") if name == "setA" else [folder / "weights_augreg.npz"]
    params = read(npz, model.config, classes)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, model.params))


def broken(tmp_path, change):
    model = tiny.make(tiny.CONFIGS["plain"])
    arrays = formats.write_timm(tmp_path / "m.safetensors", model)
    change(arrays)
    safetensors.numpy.save_file(arrays, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError) as error:
        read(tmp_path / "m.safetensors", model.config)
    return str(error.value)


def test_missing_and_extra_keys_are_both_listed(tmp_path):
    def change(arrays):
        del arrays["blocks.1.mlp.fc1.bias"], arrays["norm.bias"]
        arrays["neck.weight"] = np.zeros(3, np.float32)

    message = broken(tmp_path, change)
    for part in ("timm", "norm.bias", "neck.weight", "mlp.fc1.bias", "blocks 1"):
        assert part in message


@pytest.mark.parametrize(
    ("key", "shape", "value"),
    (
        ("norm.bias", (5,), "norm.bias gives (5,)"),
        ("pos_embed", (1, 14, 16), "14 position embeddings"),
    ),
)
def test_shapes_that_do_not_fit_are_listed(tmp_path, key, shape, value):
    array = np.zeros(shape, np.float32)
    assert value in broken(tmp_path, lambda arrays: arrays.update({key: array}))


def test_of_many_shapes_that_do_not_fit_a_few_are_listed(tmp_path):
    model = tiny.make(tiny.CONFIGS["plain"])
    formats.write_timm(tmp_path / "m.safetensors", model)
    other = dataclasses.replace(model.config, mlp_dim=24, dim=24)
    with pytest.raises(CheckpointError, match=r"; and \d+ more") as caught:
        read(tmp_path / "m.safetensors", other)
    assert len(str(caught.value)) < 1000
    with pytest.raises(CheckpointError, match="9 classes.*classes="):
        read(tmp_path / "m.safetensors", model.config, classes=9)


def test_no_vision_transformer_is_recognized_as_such(tmp_path):
    np.savez(tmp_path / "m.npz", weights=np.zeros(3))
    with pytest.raises(CheckpointError, match="known layout.*weights"):
        read(tmp_path / "m.npz", tiny.CONFIGS["plain"])


@pytest.mark.parametrize("change", ({"layer_scale": True}, {"registers": 2}))
def test_parameters_that_a_layout_does_not_have_are_missing(tmp_path, change):
    formats.write_google(
        tmp_path / "m.npz", tiny.make(tiny.CONFIGS["plain"]), linen=True
    )
    with pytest.raises(CheckpointError, match="Missing: .*(LayerScale|registers)"):
        read(tmp_path / "m.npz", Config(**tiny.SHAPE, **change))


def test_a_qkv_bias_that_the_config_denies_is_an_error(tmp_path):
    model = tiny.make(tiny.CONFIGS["plain"])
    formats.write_google(tmp_path / "m.npz", model, linen=True)
    with pytest.raises(CheckpointError, match="Extra.*query/bias.*qkv_bias"):
        read(tmp_path / "m.npz", tiny.CONFIGS["no_qkv_bias"])


@pytest.mark.parametrize("key", ("pre_logits/kernel", "pre_logits.fc.weight"))
def test_a_layer_before_the_head_is_refused_by_name(tmp_path, key):
    model, torch = tiny.make(tiny.CONFIGS["plain"]), "." in key
    path = tmp_path / ("m.safetensors" if torch else "m.npz")
    write = (
        formats.write_timm
        if torch
        else functools.partial(formats.write_google, linen=False)
    )
    arrays = write(path, model) | {key: np.ones((2, 2), np.float32)}
    if torch:
        safetensors.numpy.save_file(arrays, path)
    else:
        np.savez(path, **arrays)
    with pytest.raises(CheckpointError, match=key):
        read(path, model.config)


def test_position_embeddings_resize_by_layout(tmp_path):
    model = tiny.make(tiny.CONFIGS["plain"])
    larger = Config(**tiny.SHAPE | {"image_size": 64})
    formats.write_google(tmp_path / "m.npz", model, linen=True)
    formats.write_timm(tmp_path / "m.safetensors", model)
    position = np.asarray(model.params["pos_embedding"])
    grid = position[:, 1:].reshape(4, 4, -1)
    for file, resize in (("m.npz", resize_corners), ("m.safetensors", resize_bicubic)):
        params = read(tmp_path / file, larger)
        expected = resize(grid, (8, 8)).reshape(1, 64, -1)
        ours = np.asarray(params["pos_embedding"])
        np.testing.assert_allclose(ours[:, 1:], expected, atol=1e-6)
        np.testing.assert_array_equal(ours[:, :1], position[:, :1])


def test_prefix_tokens_without_a_position_have_position_zero(tmp_path):
    model = tiny.make(tiny.CONFIGS["registers"])
    arrays = formats.write_timm(tmp_path / "m.safetensors", model)
    for start in (3, 4):  # registers without positions; neither registers nor [CLS]
        full = np.asarray(model.params["pos_embedding"])
        arrays["pos_embed"] = np.concatenate([full[:, : 4 - start], full[:, 4:]], 1)
        safetensors.numpy.save_file(arrays, tmp_path / "m.safetensors")
        params = read(tmp_path / "m.safetensors", model.config)
        expected = full.copy()
        expected[:, 4 - start : 4] = 0
        np.testing.assert_array_equal(params["pos_embedding"], expected)


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
        picture = Image.fromarray(grid[..., channel], mode="F")
        expected = picture.resize((size, size), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(ours[..., channel], expected, atol=2e-5)


def grid_of(count, config, source_config=None, *, prefixes):
    return position_grid(count, Target(config, source_config, "bicubic", prefixes))


def test_which_positions_belong_to_prefix_tokens():
    plain, registers = tiny.CONFIGS["plain"], tiny.CONFIGS["registers"]
    assert grid_of(17, plain, prefixes=(1, 0)) == (1, (4, 4))
    assert grid_of(16, plain, prefixes=(1, 0)) == (0, (4, 4))
    assert grid_of(50, plain, prefixes=(1, 0)) == (1, (7, 7))
    counts = [grid_of(n, registers, prefixes=(4, 1, 0))[0] for n in (20, 17, 16)]
    assert counts == [4, 1, 0]
    with pytest.raises(ValueError, match="15 position"):
        grid_of(15, plain, prefixes=(1, 0))


def test_a_grid_that_is_known_is_never_guessed():
    """Nine positions: [CLS] and 2 x 4, not 3 x 3 without it."""
    wide = dataclasses.replace(tiny.CONFIGS["plain"], image_size=(16, 32))
    square = dataclasses.replace(wide, image_size=24)
    assert grid_of(9, square, wide, prefixes=(1, 0)) == (1, (2, 4))
    assert grid_of(9, square, prefixes=(1, 0)) == (0, (3, 3))
    position = np.random.default_rng(0).normal(size=(1, 9, 4)).astype(np.float32)
    made = resize_positions(position, Target(square, wide, "bicubic", (1,)))
    np.testing.assert_array_equal(made[:, :1], position[:, :1])
    expected = resize_bicubic(position[0, 1:].reshape(2, 4, 4), (3, 3))
    np.testing.assert_array_equal(made[0, 1:], expected.reshape(9, 4))


@pytest.mark.parametrize("write", ("google", "timm", "hugging_face"))
def test_the_class_token_is_kept_apart_where_counts_fit_two_readings(tmp_path, write):
    """7 x 7 + 1 positions are no 5 x 10 without [CLS]."""
    square, wide = (
        Config(**tiny.SHAPE | {"image_size": size}) for size in (56, (40, 80))
    )
    model = tiny.make(square)
    if write == "google":
        path = tmp_path / "m.npz"
        formats.write_google(path, model, linen=True)
    else:
        path = tmp_path / "m.safetensors"
        getattr(formats, f"write_{write}")(path, model)
    position = np.asarray(model.params["pos_embedding"])
    made = read(path, wide)["pos_embedding"]
    np.testing.assert_array_equal(made[:, :1], position[:, :1])
    formats.write_big_vision(tmp_path / "b.npz", tiny.make(wide), stacked=False)
    kept = read(tmp_path / "b.npz", wide)["pos_embedding"]  # 50 patches, no [CLS]
    np.testing.assert_array_equal(
        kept[:, 1:], tiny.make(wide).params["pos_embedding"][:, 1:]
    )


def test_the_same_number_of_patches_in_another_grid_is_resized(tmp_path):
    wide = dataclasses.replace(tiny.CONFIGS["plain"], image_size=(16, 32))
    model = tiny.make(wide)
    vitjax.save(model, tmp_path / "m")
    tall = vitjax.load(tmp_path / "m", image_size=(32, 16))
    grid = np.asarray(model.params["pos_embedding"])[0, 1:].reshape(2, 4, -1)
    expected = resize_bicubic(grid, (4, 2)).reshape(8, -1)
    np.testing.assert_allclose(tall.params["pos_embedding"][0, 1:], expected, atol=1e-6)
