"""Run directories small enough to compute every number of a report by hand."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from vitjax.report.reduction import curve_table

from vitjax.report.per_image import digest
from vitjax.runner import results, storage
from vitjax.types import Config

STREAMS = ("residual", "attention_update", "mlp_update")


def write(path, config, classes, arrays, **manifest):
    """A run directory that holds these arrays, by name: (dims, values)."""
    dims = {name: list(axes) for name, (axes, _) in arrays.items()}
    total = len(arrays["label"][1])
    entries = {
        "format": results.FORMAT,
        "format_version": results.FORMAT_VERSION,
        "recipe": "identifiability",
        "recipe_options": {},
        "model": {
            "name": "vit_test",
            "config": dataclasses.asdict(config),
            "classes": list(classes),
            "class_ids": list(classes),
            "checkpoint": "/somewhere/weights.npz",
            "sha256": "0123456789abcdef" * 4,
            "preprocess": None,
        },
        "data": {"spec": "folder:photos", "id": "sha256:feed", "images": total},
        "batch_size": 4,
        "dtype": "float32",
        "matmul_precision": "highest",
        "seed": 0,
        "limit": None,
        "versions": {"vitjax": "0.1.0", "jax": "0.10.2", "python": "3.11.2"},
        "devices": {"platform": "cpu", "count": 2},
        "arrays": dims,
        "created": "2025-01-01T10:00:00+00:00",
        "finished": "2025-01-01T10:01:00+00:00",
        "images_per_second": 31.5,
        "skipped": [],
    }
    for key, value in manifest.items():
        nested = isinstance(value, dict) and isinstance(entries.get(key), dict)
        entries[key] = {**entries[key], **value} if nested else value
    path.mkdir(parents=True, exist_ok=True)
    (path / "manifest.json").write_text(json.dumps(entries))
    rows = [f"{n},photos/file {n}.jpg,," for n in range(total)]
    if entries["finished"]:
        table = "\n".join(["index,name,label_name,label", *rows])
        (path / "images.csv").write_text(table)
    for name, (axes, values) in arrays.items():
        spec = results.ArraySpec(tuple(axes), values.shape, values.dtype.name)
        chunk = max(1, min(4, len(values)))
        metadata = spec.metadata(images_per_chunk=chunk)
        store = storage.open_store(str(path), name, metadata=metadata)
        store.write(values).result()
    return results.open_results(path)


def random_arrays(config, classes, *, images=9, pictures=2, masks=False, seed=0):
    """Rows such as a run leaves, with ranks that improve over the blocks."""
    draw = np.random.default_rng(seed)
    shape = (images, config.depth, config.tokens)
    scale = np.linspace(1, 0.1, config.depth)[:, None]
    arrays = {}
    for stream in STREAMS:
        ranks = (draw.random(shape) * scale * classes).astype(np.int32)
        arrays[f"rank_{stream}"] = (("image", "layer", "token"), ranks)
    label = draw.integers(classes, size=images).astype(np.int32)
    wrong = draw.random(images) < 0.3
    prediction = np.where(wrong, (label + 1) % classes, label).astype(np.int32)
    top = np.repeat(prediction[:, None, None], config.depth, axis=1)
    arrays |= {
        "label": (("image",), label),
        "prediction": (("image",), prediction),
        "top_classes": (("image", "layer", "top"), top),
        "valid": (("image",), np.ones(images, bool)),
        "done": (("image",), np.ones(images, bool)),
    }
    pictures = min(pictures, images)
    if pictures:
        pixels = draw.integers(256, size=(pictures, *config.shape, 3))
        axes = ("picture", "height", "width", "channel")
        arrays["picture"] = (axes, pixels.astype(np.uint8))
        arrays["picture_image"] = (("picture",), np.arange(pictures, dtype=np.int32))
    if masks:
        kinds = draw.integers(-1, 2, size=(images, config.patches)).astype(np.int8)
        arrays["patch_label"] = (("image", "patch"), kinds)
    return arrays


def config(**fields):
    """A small architecture; only its token layout and depth matter to a report."""
    sizes = {"image_size": 16, "patch_size": 4, "dim": 8, "depth": 3}
    return Config(**{**sizes, "heads": 2, "mlp_dim": 16, **fields})


def _by_hand(run, stream, kind, measure):
    """[image, layer] of one quantity, with loops."""
    ranks, label = run[f"rank_{stream}"][:], run["label"][:]
    use = np.flatnonzero(run["done"][:] & run["valid"][:] & (label >= 0))
    settings = run.manifest["model"]["config"]
    cls, count = int(settings["class_token"]), len(run.manifest["model"]["classes"])
    prefix = cls + settings["registers"]
    expected = np.full((len(use), ranks.shape[1]), np.nan)
    for row, image in enumerate(use):
        for layer in range(ranks.shape[1]):
            tokens = {
                "cls": range(cls),
                "register": range(cls, prefix),
                "image": range(prefix, ranks.shape[2]),
            }.get(kind)
            if tokens is None:
                wanted = 1 if kind == "class" else 0
                mask = run["patch_label"][image]
                tokens = [prefix + p for p in range(len(mask)) if mask[p] == wanted]
            found = [
                ranks[image, layer, t] for t in tokens if ranks[image, layer, t] >= 0
            ]
            if found and measure == "rate":
                expected[row, layer] = sum(r == 0 for r in found) / len(found)
            elif found:
                expected[row, layer] = sum(1 - r / count for r in found) / len(found)
    return expected


def maker(folder):
    """make_run(fields of Config, classes=, ..., change=, more=) -> Results.

    `change` replaces values of arrays; `more` adds arrays, name -> (axes, values).
    """
    made = []

    def make(*, classes=5, change=None, more=None, manifest=None, fields=None, **rows):
        shape = config(**(fields or {}))
        arrays = random_arrays(shape, classes, **rows) | (more or {})
        for name, values in (change or {}).items():
            arrays[name] = (arrays[name][0], values)
        arrays |= more or {}
        made.append(folder / f"run{len(made)}")
        names = [f"kind {number}" for number in range(classes)]
        return write(made[-1], shape, names, arrays, **(manifest or {}))

    return make


@pytest.fixture(scope="session")
def by_hand():
    """by_hand(run, stream, kind, measure) -> [image, layer], with loops."""
    return _by_hand


@pytest.fixture(scope="session")
def curves():
    """curves(*runs) -> curve_table of several runs, named a, b, ..."""

    def tabulate(*runs):
        return [
            row
            for name, run in zip("abcdefghijkl", runs)
            for row in curve_table(digest(run), run=name)
        ]

    return tabulate


@pytest.fixture
def make_run(tmp_path):
    """Writes small runs."""
    return maker(tmp_path)


@pytest.fixture(scope="module")
def masked_run(tmp_path_factory):
    """One such run with masks, for tests that only read."""
    return maker(tmp_path_factory.mktemp("masked"))(images=20, masks=True)


@pytest.fixture(scope="session")
def paper_run(tmp_path_factory):
    """A real run of the recipe `paper`: a tiny model over the embedded pictures."""
    from vitjax.runner.stream import run

    import vitjax
    from vitjax.data.textured_digits import CLASSES, TexturedDigits

    shape = vitjax.Config(64, 16, dim=16, depth=2, heads=2, mlp_dim=24)
    model = vitjax.init(shape, classes=CLASSES, seed=1)
    # Larger weights, for answers that differ between images.
    model = model.replace(params=jax.tree.map(lambda leaf: 8 * leaf, model.params))
    return run(
        *("paper", model, TexturedDigits(length=30), tmp_path_factory.mktemp("paper")),
        batch_size=10,
        show_progress=False,
    )


@pytest.fixture
def real_run(tmp_path, shared):
    """Ranks of the published code for 24 photos, as a run of ViT-Ti/16."""
    folder = shared / "oracle/setA"
    base, found = np.load(folder / "base.npz"), np.load(folder / "projections.npz")
    pixels = np.load(folder / "resized_uint8.npz")["uint8"][:2]
    names = [f"class {number}" for number in range(1000)]
    shape = config(image_size=224, patch_size=16, dim=192, depth=12, heads=3)
    arrays = random_arrays(shape, 1000, images=len(base["index"]))
    for stream, key in zip(STREAMS, ("hs", "attn", "mlp")):
        ranks = found[f"rank_{key}"].astype(np.int32)
        arrays[f"rank_{stream}"] = (("image", "layer", "token"), ranks)
    top = found["top5_hs"][:, :, 0].astype(np.int32)
    prediction = base["logits"].argmax(1).astype(np.int32)
    arrays |= {
        "label": (("image",), base["index"].astype(np.int32)),
        "prediction": (("image",), prediction),
        "top_classes": (("image", "layer", "top"), top),
        "picture": (("picture", "height", "width", "channel"), pixels),
    }
    return write(tmp_path / "real", shape, names, arrays)
