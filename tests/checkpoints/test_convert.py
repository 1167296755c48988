"""Foreign checkpoints: every dialect, strictly."""

import dataclasses
import re

import jax
import numpy as np
import published
import pytest
import safetensors.numpy
import tiny

from vitjax.api import forward
from vitjax.checkpoints.convert import adapt, convert
from vitjax.checkpoints.files import CheckpointError, open_arrays
from vitjax.checkpoints.positions import resize_bicubic, resize_corners
from vitjax.models.model import flatten, unflatten
from vitjax.types import Config


def assert_same_parameters(left, right, tolerance=0.0):
    left, right = flatten(left), flatten(right)
    assert left.keys() == right.keys()
    for path in left:
        np.testing.assert_allclose(left[path], right[path], rtol=0, atol=tolerance)


def read(path, config, **options):
    with open_arrays(path) as arrays:
        return convert(arrays, config, classes=len(tiny.CLASSES), **options)[0]


@pytest.mark.parametrize("linen", (True, False))
@pytest.mark.parametrize("prefix", ("", "opt/target/"))
@pytest.mark.parametrize("name", ("plain", "no_qkv_bias", "gap", "wide"))
def test_original_npz(tmp_path, name, prefix, linen):
    model = tiny.make(tiny.CONFIGS[name])
    tiny.write_google(tmp_path / "m.npz", model, linen=linen, prefix=prefix)
    assert_same_parameters(read(tmp_path / "m.npz", model.config), model.params, 1e-7)


@pytest.mark.parametrize("prefix", ("", "model.", "module."))
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_timm_state_dict(tmp_path, name, prefix):
    model = tiny.make(tiny.CONFIGS[name])
    tiny.write_timm(tmp_path / "m.safetensors", model, prefix=prefix)
    assert_same_parameters(
        read(tmp_path / "m.safetensors", model.config), model.params, 1e-7
    )


@pytest.mark.parametrize("stacked", (True, False))
@pytest.mark.parametrize("name", ("plain", "no_qkv_bias", "one_block"))
def test_big_vision_npz(tmp_path, name, stacked):
    model = tiny.make(tiny.CONFIGS[name])
    tiny.write_big_vision(tmp_path / "m.npz", model, stacked=stacked)
    params = read(tmp_path / "m.npz", model.config)
    # big_vision has no position for [CLS]; it stands in the token itself.
    position = np.asarray(model.params["pos_embedding"])
    np.testing.assert_array_equal(params["pos_embedding"][:, :1], 0)
    np.testing.assert_array_equal(params["pos_embedding"][:, 1:], position[:, 1:])
    np.testing.assert_array_equal(params["cls"], model.params["cls"] + position[:, :1])
    same = {k: model.params[k] for k in ("Transformer", "head", "embedding")}
    assert_same_parameters({k: params[k] for k in same}, same)
    again = model.replace(params=params)
    images = tiny.images(model.config)
    np.testing.assert_allclose(
        forward(again, images)[0], forward(model, images)[0], atol=1e-5
    )


@pytest.mark.parametrize("name", ("plain", "no_qkv_bias", "tanh"))
def test_hugging_face_vit(tmp_path, name):
    model = tiny.make(tiny.CONFIGS[name])
    tiny.write_hugging_face(tmp_path / "m.safetensors", model)
    assert_same_parameters(read(tmp_path / "m.safetensors", model.config), model.params)


def test_hugging_face_deit_keeps_its_distillation_token(tmp_path):
    model = tiny.make(Config(**tiny.SHAPE, registers=1))
    tiny.write_hugging_face(tmp_path / "m.safetensors", model, prefix="deit.")
    assert_same_parameters(read(tmp_path / "m.safetensors", model.config), model.params)
    plain = tiny.CONFIGS["plain"]
    with open_arrays(tmp_path / "m.safetensors") as arrays:
        adapted = adapt(arrays, plain, beside=lambda: {"layer_norm_eps": 1e-5})
        assert adapted == Config(**tiny.SHAPE, registers=1, epsilon=1e-5)
        assert adapt(arrays, plain, beside=dict).epsilon == 1e-12
        with pytest.raises(CheckpointError, match="distillation_token"):
            convert(arrays, plain, classes=7)


def test_refinement_modules_are_kept_or_named_as_ignored(tmp_path):
    model = tiny.make(tiny.CONFIGS["refinement"])
    tiny.write_timm(tmp_path / "m.safetensors", model)
    assert_same_parameters(
        read(tmp_path / "m.safetensors", model.config), model.params, 1e-7
    )
    without = Config(**tiny.SHAPE | {"depth": 3})
    kept = {k: v for k, v in model.params.items() if k != "refinement"}
    assert_same_parameters(read(tmp_path / "m.safetensors", without), kept, 1e-7)
    tiny.write_timm(tmp_path / "m.safetensors", tiny.make(without))
    with pytest.raises(CheckpointError, match="transformerheads.*for blocks 0, 1"):
        read(tmp_path / "m.safetensors", model.config)


@pytest.mark.parametrize("linen", (True, False))
def test_files_of_models_that_average_normalised_tokens_are_refused(tmp_path, linen):
    model = tiny.make(Config(**tiny.SHAPE, class_token=False))
    tiny.write_google(tmp_path / "m.npz", model, linen=linen)
    with pytest.raises(CheckpointError, match="normalises every token before"):
        read(tmp_path / "m.npz", model.config)


def test_both_formats_of_the_real_weights_are_the_same_model(shared, published_model):
    model = published_model("setA")
    (npz,) = (shared / "assets/vit_ti16").glob("*.npz")
    with open_arrays(npz) as arrays:
        params, _ = convert(arrays, model.config, classes=1000)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, model.params))


def test_small_npz_equals_its_safetensors(shared, published_model):
    model = published_model("plain")
    path = published.folder(shared, "plain") / "weights_augreg.npz"
    with open_arrays(path) as arrays:
        params, _ = convert(arrays, model.config, classes=20)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, model.params))


def broken(tmp_path, change):
    model = tiny.make(tiny.CONFIGS["plain"])
    arrays = tiny.write_timm(tmp_path / "m.safetensors", model)
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
    for part in (
        "timm state dict",
        "norm.bias",
        "neck.weight",
        "mlp.fc1.bias",
        "blocks 1",
    ):
        assert part in message


def test_shapes_that_do_not_fit_are_listed(tmp_path):
    message = broken(
        tmp_path, lambda a: a.update({"norm.bias": np.zeros(5, np.float32)})
    )
    assert "norm.bias gives (5,)" in message
    message = broken(
        tmp_path, lambda a: a.update({"pos_embed": np.zeros((1, 14, 16), np.float32)})
    )
    assert "14 position embeddings" in message


def test_of_many_shapes_that_do_not_fit_a_few_are_said(tmp_path):
    model = tiny.make(tiny.CONFIGS["plain"])
    tiny.write_timm(tmp_path / "m.safetensors", model)
    other = dataclasses.replace(model.config, mlp_dim=24, dim=24)
    with pytest.raises(CheckpointError, match=r"; and \d+ more\. Is the") as caught:
        read(tmp_path / "m.safetensors", other)
    assert len(str(caught.value)) < 1000


def test_a_wrong_class_count_says_what_to_pass(tmp_path):
    model = tiny.make(tiny.CONFIGS["plain"])
    tiny.write_timm(tmp_path / "m.safetensors", model)
    with (
        open_arrays(tmp_path / "m.safetensors") as arrays,
        pytest.raises(CheckpointError, match="Only the head differs.*classes="),
    ):
        convert(arrays, model.config, classes=9)


def test_no_vision_transformer_is_recognised_as_such(tmp_path):
    np.savez(tmp_path / "m.npz", weights=np.zeros(3))
    with pytest.raises(CheckpointError, match="no known dialect"):
        read(tmp_path / "m.npz", tiny.CONFIGS["plain"])


def test_a_qkv_bias_that_the_config_denies_is_an_error(tmp_path):
    model = tiny.make(tiny.CONFIGS["plain"])
    tiny.write_google(tmp_path / "m.npz", model, linen=True)
    with pytest.raises(CheckpointError, match="Extra.*query/bias.*qkv_bias"):
        read(tmp_path / "m.npz", tiny.CONFIGS["no_qkv_bias"])


def test_pre_logits_is_named_as_ignored(tmp_path):
    model = tiny.make(tiny.CONFIGS["plain"])
    arrays = tiny.write_google(tmp_path / "m.npz", model, linen=False)
    extra = {"pre_logits/kernel": np.ones((2, 2)), "pre_logits/bias": np.ones(2)}
    np.savez(tmp_path / "m.npz", **arrays, **extra)
    assert_same_parameters(read(tmp_path / "m.npz", model.config), model.params, 1e-7)


def test_position_embeddings_resize_by_dialect(tmp_path):
    model = tiny.make(tiny.CONFIGS["plain"])
    larger = Config(**tiny.SHAPE | {"image_size": 64})
    tiny.write_google(tmp_path / "m.npz", model, linen=True)
    tiny.write_timm(tmp_path / "m.safetensors", model)
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
    arrays = tiny.write_timm(tmp_path / "m.safetensors", model)
    for start in (3, 4):  # registers without positions; neither registers nor [CLS]
        full = np.asarray(model.params["pos_embedding"])
        there = (
            full[:, 4:] if start == 4 else np.concatenate([full[:, :1], full[:, 4:]], 1)
        )
        arrays["pos_embed"] = np.ascontiguousarray(there)
        safetensors.numpy.save_file(arrays, tmp_path / "m.safetensors")
        params = read(tmp_path / "m.safetensors", model.config)
        expected = full.copy()
        expected[:, 4 - start : 4] = 0
        np.testing.assert_array_equal(params["pos_embedding"], expected)


def test_flatten_and_unflatten_are_inverse():
    params = tiny.make(tiny.CONFIGS["plain"]).params
    flat = flatten(params)
    assert all(re.fullmatch(r"[\w/]+", path) for path in flat)
    assert_same_parameters(unflatten(flat), params)
