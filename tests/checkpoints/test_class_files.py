"""Class files: read in every form, and refused where they do not fit."""

import dataclasses
import json
import math

import numpy as np
import pytest
import safetensors.numpy
import tiny

import vitjax
from vitjax.checkpoints.classes import read_class_file
from vitjax.checkpoints.files import CheckpointError
from vitjax.data.labels import match_label
from vitjax.data.records import SourceError

NAMES = ("tench", "Goldfish", "great white shark")
ROWS = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
COSINE = vitjax.Config(**tiny.SHAPE, projection=8, head="cosine")
ENCODER = dataclasses.replace(tiny.make(COSINE), classes=(), class_ids=())


def write(folder, kind: str, **arrays):
    arrays = {"embeddings": ROWS, "classes": NAMES} | arrays
    arrays = {key: value for key, value in arrays.items() if value is not None}
    if kind == "npz":
        np.savez(folder / "c.npz", **arrays)
        return folder / "c.npz"
    strings = {k: json.dumps(v) for k, v in arrays.items() if k.startswith("class")}
    others = {k: np.asarray(v) for k, v in arrays.items() if k not in strings}
    if kind == "bytes":
        for key, text in strings.items():
            others[key] = np.frombuffer(text.encode(), np.uint8)
        strings = None
    safetensors.numpy.save_file(others, folder / "c.safetensors", metadata=strings)
    return folder / "c.safetensors"


@pytest.mark.parametrize("kind", ("npz", "metadata", "bytes"))
def test_files_are_read_in_every_form(kind, tmp_path):
    ids = ("n1", "n2", "n3")
    scale = dict(logit_scale=np.float32(2.5), logit_bias=np.full(1, -3.0))
    read = read_class_file(write(tmp_path, kind, class_ids=ids, **scale))
    np.testing.assert_array_equal(read.embeddings, ROWS)
    assert (read.classes, read.class_ids) == (NAMES, ids)
    assert (read.temperature, read.bias) == (pytest.approx(math.exp(2.5)), -3.0)
    read = read_class_file(write(tmp_path, kind, embeddings=ROWS.astype(np.float16)))
    assert read.embeddings.dtype == np.float32
    assert (read.class_ids, read.temperature, read.bias) == (None, None, None)


def test_a_model_gets_the_classes_of_a_file(tmp_path):
    vitjax.save(tiny.make(COSINE, classes=("a", "b")), tmp_path / "model")
    path = write(tmp_path, "npz", class_ids=("n1", "n2", "n3"), logit_scale=1.5)
    model = vitjax.load(tmp_path / "model", classes=path)
    assert (model.classes, model.class_ids) == (NAMES, ("n1", "n2", "n3"))
    unit = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)
    np.testing.assert_allclose(model.params["head"]["kernel"], unit.T, atol=1e-6)
    np.testing.assert_allclose(model.params["head"]["temperature"], math.exp(1.5))
    control = vitjax.init(COSINE, classes=str(path))
    assert control.classes == NAMES
    matched = [match_label(x, NAMES, NAMES) for x in ("great_white_SHARK", "goldfish")]
    assert matched == [2, 1]
    assert match_label("n2", model.classes, model.class_ids) == 1
    with pytest.raises(SourceError, match="crane"):
        match_label("crane", model.classes, model.class_ids)


@pytest.mark.parametrize(
    ("change", "named"),
    (
        ({"embeddings": None}, "embeddings"),
        ({"classes": None}, "classes"),
        ({"embeddings": ROWS[0]}, r"\(8,\)"),
        ({"embeddings": ROWS.astype(int)}, "int64"),
        ({"embeddings": ROWS * [[1], [0], [1]]}, "row 1"),
        ({"embeddings": ROWS * [[1], [1], [np.nan]]}, "row 2"),
        ({"class_ids": ("a", "a", "b")}, "class_ids"),
        ({"classes": np.ones((3, 2))}, "class name"),
        ({"logit_scale": 100.0}, "logit_scale=100.0"),
    ),
    ids=str,
)
def test_files_that_are_none_are_refused(change, named, tmp_path):
    with pytest.raises(CheckpointError, match=named):
        read_class_file(write(tmp_path, "npz", **change))


@pytest.mark.parametrize(
    ("change", "named"),
    (
        ({"embeddings": np.ones((3, 9), np.float32)}, r"\(3, 9\)"),
        ({"classes": NAMES[:2]}, "2"),
        ({"classes": ("a", "a", "b")}, "distinct"),
    ),
    ids=str,
)
def test_files_that_do_not_fit_the_model_are_refused(change, named, tmp_path):
    read = read_class_file(write(tmp_path, "npz", **change))
    with pytest.raises(CheckpointError, match=named):
        read.apply(ENCODER)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        vitjax.load(COSINE, checkpoint="x.npz", classes=tmp_path / "nowhere.npz")
