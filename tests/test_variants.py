"""The table of models, load, init, save."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

import vitjax
from vitjax import variants
from vitjax.models.files import CheckpointError
from vitjax.models.tree import flatten, parameter_shapes

PARAMETERS = {
    "textured_digits": None,
    "vit_ti16": 5_717_416,
    "vit_s16": 22_050_664,
    "vit_s32": 22_878_952,
    "vit_b16": 86_567_656,
    "vit_b32": 88_224_232,
    "vit_l16": 304_326_632,
}
"""The published counts."""


def test_every_row_has_the_known_number_of_parameters():
    assert set(vitjax.list_models()) == set(PARAMETERS)
    for name, expected in PARAMETERS.items():
        row = variants.VARIANTS[name]
        shapes = parameter_shapes(row.config, len(row.labels()[0]))
        total = sum(int(np.prod(shape)) for shape in shapes.values())
        if expected is not None:
            assert total == expected


def test_imagenet_classes_are_in_the_order_of_their_ids():
    names, ids = variants.imagenet1k()
    assert len(names) == len(set(ids)) == 1000
    assert list(ids) == sorted(ids)
    assert (ids[0], names[0]) == ("n01440764", "tench, Tinca tinca")
    assert names[-1].startswith("toilet tissue")


def same(left, right):
    return jax.tree.all(jax.tree.map(np.array_equal, left.params, right.params))


@pytest.mark.parametrize("name", ("plain", "gap", "registers", "tanh", "wide"))
def test_save_and_load_are_inverse(tmp_path, name):
    model = tiny.make(tiny.CONFIGS[name]).replace(
        preprocess=vitjax.Preprocess(*tiny.CONFIGS[name].shape)
    )
    vitjax.save(model, tmp_path / "m")
    for again in (
        vitjax.load(str(tmp_path / "m")),
        vitjax.load(model.config, checkpoint=tmp_path / "m"),
    ):
        assert same(model, again)
        assert again.config == model.config
        assert again.classes == model.classes
        assert again.preprocess == model.preprocess


def test_half_precision_on_disk_loads_as_float32(tmp_path):
    model = tiny.make(tiny.CONFIGS["plain"])
    vitjax.save(model, tmp_path / "m", dtype="float16")
    again = vitjax.load(str(tmp_path / "m"))
    assert again.dtype == np.float32
    for path, leaf in flatten(again.params).items():
        half = np.asarray(flatten(model.params)[path]).astype(np.float16)
        np.testing.assert_array_equal(leaf, half.astype(np.float32))


def test_load_an_architecture_with_a_file(tmp_path):
    model = tiny.make(tiny.CONFIGS["plain"])
    tiny.write_google(tmp_path / "m.npz", model, linen=False)
    counted = vitjax.load(model.config, checkpoint=tmp_path / "m.npz")
    assert counted.classes == tuple("0123456")
    named = vitjax.load(
        model.config, checkpoint=tmp_path / "m.npz", classes=list("abcdefg")
    )
    assert named.class_ids == tuple("abcdefg")
    assert named.preprocess == vitjax.Preprocess(32, 32)
    with pytest.raises(CheckpointError, match="classes="):
        vitjax.load(model.config, checkpoint=tmp_path / "m.npz", classes=3)
    with pytest.raises(ValueError, match="distinct"):
        vitjax.load(model.config, checkpoint=tmp_path / "m.npz", classes=["a"] * 7)
    images = tiny.images(model.config)
    np.testing.assert_allclose(
        vitjax.forward(named, images)[0], vitjax.forward(model, images)[0], atol=1e-5
    )


def test_another_image_size_resizes_positions(tmp_path):
    model = tiny.make(tiny.CONFIGS["plain"])
    tiny.write_google(tmp_path / "m.npz", model, linen=False)
    large = vitjax.load(model.config, checkpoint=tmp_path / "m.npz", image_size=64)
    assert large.config.patches == 64
    assert large.preprocess.height == 64
    logits, _ = vitjax.forward(large, np.zeros((1, 64, 64, 3), np.float32))
    assert np.isfinite(logits).all()
    vitjax.save(large, tmp_path / "m")
    again = vitjax.load(large.config, checkpoint=tmp_path / "m")
    assert same(large, again)


def test_a_folder_of_another_architecture_is_refused(tmp_path):
    vitjax.save(tiny.make(tiny.CONFIGS["plain"]), tmp_path / "m")
    with pytest.raises(CheckpointError, match="vit_ti16"):
        vitjax.load("vit_ti16", checkpoint=tmp_path / "m")


def test_names_that_do_not_exist():
    with pytest.raises(ValueError, match="Did you mean vit_b16"):
        vitjax.load("vit_b61")
    with pytest.raises(ValueError, match="vitjax.init"):
        vitjax.load(tiny.CONFIGS["plain"])


def test_without_network_the_message_says_where_to_put_the_file(tmp_path, monkeypatch):
    import pooch

    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setenv("VITJAX_CACHE", str(tmp_path))
    monkeypatch.setattr(pooch, "retrieve", refuse)
    with pytest.raises(FileNotFoundError, match="put it at") as error:
        vitjax.load("vit_b16")
    assert str(tmp_path) in str(error.value)
    assert "--checkpoint" in str(error.value)


def test_a_cached_file_is_used_without_asking(tmp_path, monkeypatch):
    row = variants.find("vit_ti16")
    monkeypatch.setenv("VITJAX_CACHE", str(tmp_path))
    target = variants.cached(row)
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="truncated"):
        vitjax.load("vit_ti16")


def test_init_is_the_papers_control():
    config = dataclasses.replace(tiny.CONFIGS["plain"], dim=64, mlp_dim=256)
    model, again = (
        vitjax.init(config, seed=3, classes=5),
        vitjax.init(config, seed=3, classes=5),
    )
    assert same(model, again)
    assert not same(model, vitjax.init(config, seed=4, classes=5))
    flat = flatten(model.params)
    for path, leaf in flat.items():
        leaf = np.asarray(leaf)
        if path.endswith("scale"):
            assert (leaf == 1).all()
        elif path.endswith("bias") and not path.startswith("embedding"):
            assert (leaf == 0).all()
        elif path.startswith("embedding"):
            limit = 1 / np.sqrt(3 * 8 * 8)
            assert np.abs(leaf).max() <= limit
            assert leaf.std() == pytest.approx(limit / np.sqrt(3), rel=0.15)
        elif path == "cls":
            assert 0 < np.abs(leaf).max() < 1e-5
        elif leaf.size > 1000:
            assert leaf.std() == pytest.approx(0.02, rel=0.1)


def test_the_gap_control_hardly_changes_over_depth():
    config = dataclasses.replace(tiny.CONFIGS["gap"], depth=4)
    model = vitjax.init(config, classes=5)
    _, trace = vitjax.forward(
        model, tiny.images(config), capture=("embedding", "residual")
    )
    assert np.abs(trace.residual[-1] - trace.embedding).max() < 2e-4


def test_published_rows_load_their_own_file(shared):
    (path,) = (shared / "assets/vit_ti16").glob("*.npz")
    model = vitjax.load("vit_ti16", checkpoint=path)
    assert model.classes[1] == "goldfish, Carassius auratus"
    assert len(model.provenance.sha256) == 64
    assert model.preprocess == vitjax.Preprocess(224, 224)
