"""Load, init, save; what is fetched and the errors."""

import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import formats
import jax
import numpy as np
import pytest
import tiny
from libraries import TRANSFORMERS

import vitjax
from vitjax.checkpoints import download, registry
from vitjax.checkpoints.configs import HuggingFace, hugging_face_pipeline
from vitjax.checkpoints.files import CheckpointError
from vitjax.models.model import flatten
from vitjax.recipes.identifiability import identifiability
from vitjax.types import Config

PLAIN = tiny.CONFIGS["plain"]


@pytest.mark.parametrize("name", ("plain", "gap", "registers", "tanh", "wide"))
def test_save_and_load_are_inverse(tmp_path, name):
    model = tiny.make(tiny.CONFIGS[name])
    model = model.replace(preprocess=vitjax.Preprocess(*model.config.shape))
    path = tmp_path / "m"
    vitjax.save(model, path)
    for again in (vitjax.load(path), vitjax.load(model.config, checkpoint=path)):
        assert formats.same(model, again) and again.preprocess == model.preprocess
        assert (again.config, again.classes) == (model.config, model.classes)


def test_half_precision_on_disk_loads_as_float32(tmp_path):
    model = tiny.make(PLAIN)
    vitjax.save(model, tmp_path / "m", dtype="float16")
    again = vitjax.load(str(tmp_path / "m"))
    half = model.astype(np.float16)
    assert again.dtype == np.float32 and formats.same(again, half)


def test_load_an_architecture_with_a_file(tmp_path):
    model = tiny.make(PLAIN)
    load = functools.partial(formats.load, tmp_path, formats.google(model), PLAIN)
    assert load().classes == load(classes=np.int64(7)).classes == tuple("0123456")
    named = load(classes=list("abcdefg"))
    assert named.class_ids == tuple("abcdefg") and formats.same(named, model)
    assert named.preprocess == vitjax.Preprocess(32, 32)
    large = load(image_size=(64, 64))
    assert large.config.image_size == (64, 64) and large.preprocess.height == 64
    vitjax.save(large, tmp_path / "m")
    again = vitjax.load(large.config, checkpoint=tmp_path / "m")
    assert formats.same(large, again)
    with pytest.raises(CheckpointError, match="7.*classes="):
        load(classes=3)
    with pytest.raises(ValueError, match="distinct"):
        load(classes=["a"] * 7)
    with pytest.raises(ValueError, match="classes=0"):
        vitjax.init(PLAIN, classes=0)
    with pytest.raises(ValueError, match="vitjax.init"):
        vitjax.load(PLAIN)


def test_a_folder_of_another_architecture_is_refused(tmp_path):
    vitjax.save(tiny.make(PLAIN), tmp_path / "m")
    with pytest.raises(CheckpointError, match="vit_ti16"):
        vitjax.load("vit_ti16", checkpoint=tmp_path / "m")


def test_ranks_in_refinement_modules_are_of_their_logits():
    model = tiny.make(tiny.CONFIGS["refinement"])
    images, label = tiny.images(model.config), np.array([3, 0, 6], np.int32)
    rows = jax.jit(identifiability)(model, tiny.batch_of(images, label))
    expected = vitjax.rank(vitjax.refinement_logits(model, images), label)
    np.testing.assert_array_equal(rows["rank_refined"], np.asarray(expected).T)


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No network, an empty cache; the requested addresses."""
    import pooch

    requested = []

    def refuse(url, *args, **kwargs):
        requested.append(url)
        raise OSError("no route to host")

    monkeypatch.setenv("VITJAX_CACHE", str(tmp_path))
    monkeypatch.setattr(pooch, "retrieve", refuse)
    return requested


def test_without_network_the_message_says_where_to_put_the_file(tmp_path, offline):
    with pytest.raises(FileNotFoundError, match="put it at") as error:
        vitjax.load("vit_b16")
    assert str(tmp_path) in str(error.value)
    assert "--checkpoint" in str(error.value)


def test_weights_that_have_no_address_say_who_has_them(offline):
    with pytest.raises(FileNotFoundError, match="Google Drive.*--checkpoint"):
        vitjax.load("vit_b16_cifar100")
    assert not offline


@pytest.mark.parametrize("torch", (True, False))
def test_without_torch_the_same_weights_come_as_safetensors(
    offline, monkeypatch, torch
):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: torch or None if name == "torch" else real(name, *rest),
    )
    with pytest.raises(FileNotFoundError):
        vitjax.load("vit_b16_miil")
    original = "vit_base_patch16_224_1k_miil_84_4-2deb18e3.pth"
    exact = "timm/vit_base_patch16_224_miil.in21k_ft_in1k/resolve/main/"
    assert original in offline[0] if torch else exact in offline[0]


def test_a_cached_file_is_used_without_asking(tmp_path, offline):
    row = registry.find("vit_ti16")
    assert download.cached(row) is None
    target = download.published(row)[0].cached
    target.write_bytes(b"not a checkpoint")
    assert download.cached(row) == target
    with pytest.raises(CheckpointError, match="truncated"):
        vitjax.load("vit_ti16")
    assert not offline


def test_what_was_downloaded_is_checked_and_thrown_away(tmp_path, monkeypatch):
    import pooch

    def give(url, known_hash, name, folder, progressbar):
        (folder / name).write_bytes(b"something else")

    monkeypatch.setenv("VITJAX_CACHE", str(tmp_path))
    monkeypatch.setattr(pooch, "retrieve", give)
    row = dataclasses.replace(registry.find("vit_ti16"), sha256="abc123")
    with pytest.raises(CheckpointError, match="abc123.*removed"):
        download.download(row)
    assert not list(tmp_path.iterdir())
    digest = hashlib.sha256(b"something else").hexdigest()
    row = dataclasses.replace(row, sha256=digest[:8])
    assert download.download(row).read_bytes() == b"something else"


@pytest.mark.parametrize("kind", ("vit", "deit"))
def test_a_hugging_face_folder_describes_itself(tmp_path, kind):
    registers = int(kind == "deit")
    config = Config(**tiny.SHAPE, registers=registers, epsilon=1e-5, gelu="tanh")
    model = tiny.make(config)
    path = formats.save(tmp_path, formats.hugging_face(model, f"{kind}."))
    written = TRANSFORMERS | {
        "model_type": kind,
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-5,
        "id2label": {str(n): name for n, name in enumerate("abcdefg")},
    }
    (tmp_path / "config.json").write_text(json.dumps(written))
    loaded = vitjax.load(tmp_path)
    assert formats.same(loaded, model)
    assert loaded.config == config and loaded.classes == tuple("abcdefg")
    assert loaded.preprocess == vitjax.Preprocess(32, 32)
    pipeline = {"size": {"height": 40, "width": 40}, "crop_size": 32, "resample": 3}
    pipeline |= {"do_center_crop": True, "image_mean": [0.1] * 3, "image_std": [2] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(pipeline))
    assert vitjax.load(tmp_path).preprocess == vitjax.Preprocess(
        *(32, 32),
        resize="square",
        resize_size=40,
        interpolation="bicubic",
        mean=(0.1, 0.1, 0.1),
        std=(2.0, 2.0, 2.0),
    )
    # By its file alone, the epsilon and the extra token travel with it as well.
    assert vitjax.load(PLAIN, checkpoint=path).config == config
    (tmp_path / "config.json").unlink()
    alone = vitjax.load(PLAIN, checkpoint=path)
    assert (alone.config.epsilon, alone.config.registers) == (1e-12, registers)


def test_init_is_the_papers_control():
    config = dataclasses.replace(PLAIN, dim=64, mlp_dim=256)
    model, again = (vitjax.init(config, seed=3, classes=5) for _ in range(2))
    assert formats.same(model, again)
    assert not formats.same(model, vitjax.init(config, seed=4, classes=5))
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


@pytest.mark.slow
def test_the_gap_control_hardly_changes_over_depth():
    config = dataclasses.replace(tiny.CONFIGS["gap"], depth=4)
    model = vitjax.init(config, classes=5)
    capture = ("embedding", "residual")
    _, trace = vitjax.forward(model, tiny.images(config), capture=capture)
    assert np.abs(trace.residual[-1] - trace.embedding).max() < 2e-4


def test_published_rows_load_their_own_file(shared):
    (path,) = (shared / "assets/vit_ti16").glob("*.npz")
    model = vitjax.load("vit_ti16", checkpoint=path)
    assert model.classes[1] == "goldfish, Carassius auratus"
    assert len(model.provenance.sha256) == 64
    assert model.preprocess == vitjax.Preprocess(224, 224)


def test_our_own_folder_damaged_or_of_another_version(tmp_path):
    vitjax.save(tiny.make(PLAIN), tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"config": written["config"] | {"rope": 1}}, r"unknown fields \['rope'\]"),
        ({"classes": None}, "lacks classes"),
    ):
        changed = {k: v for k, v in (written | change).items() if v is not None}
        changed |= {"preprocess": None}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=message):
            vitjax.load(tmp_path)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(CheckpointError, match="damaged"):
        vitjax.load(tmp_path)


LARGE = """
import pathlib, re, sys, formats, jax, numpy, vitjax
from vitjax.models.model import Model, parameter_shapes, unflatten
if sys.argv[1] == "write":
    config = vitjax.Config(224, 16, 768, 12, 12, 3072)
    classes = tuple(map(str, range(1000)))
    shapes = parameter_shapes(config, len(classes)).items()
    params = unflatten({k: numpy.full(v, 0.1, numpy.float32) for k, v in shapes})
    model = Model(params=params, config=config, classes=classes, class_ids=classes)
    numpy.savez(sys.argv[2], **formats.google(model, linen=False))
else:
    def peak():
        # Not getrusage: a child begins with the peak of the process that started it.
        status = pathlib.Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1])

    jax.devices()
    before = peak()
    vitjax.load("vit_b16", checkpoint=sys.argv[2])
    print(peak() - before)
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="no /proc")
@pytest.mark.slow
def test_loading_a_large_model_needs_about_twice_its_size(tmp_path):
    """What a process needs beside its libraries, against the file."""
    path = tmp_path / "B_16.npz"
    peak = ""
    for what in ("write", "read"):
        done = subprocess.run(
            [sys.executable, "-c", LARGE, what, str(path)],
            env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        peak = done.stdout
    assert int(peak) < 2.2 * path.stat().st_size


def test_what_is_absent_has_their_default():
    base = dict(dim=768, depth=12, heads=12, mlp_dim=3072, epsilon=1e-12)
    assert HuggingFace({"model_type": "vit"}).architecture() == Config(224, 16, **base)
    deit = HuggingFace({"model_type": "deit", "image_size": [64, 32]}).architecture()
    assert deit == Config((64, 32), 16, **base, registers=1)


def test_what_a_config_cannot_say_is_an_error():
    with pytest.raises(CheckpointError, match=r"\[8, 16\]"):
        HuggingFace({"model_type": "vit", "patch_size": [8, 16]}).architecture()
    with pytest.raises(CheckpointError, match="hidden_act='relu'"):
        HuggingFace({"model_type": "vit", "hidden_act": "relu"}).architecture()


def test_hugging_faces_pipelines():
    assert hugging_face_pipeline({"size": 32}) == vitjax.Preprocess(32, 32)
    shorter = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 24}}
    plain = dict(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), crop="floor")
    expected = vitjax.Preprocess(32, 24, resize="shorter", resize_size=40, **plain)
    options = {"do_center_crop": True, "do_normalize": False}
    assert hugging_face_pipeline(shorter | options) == expected
