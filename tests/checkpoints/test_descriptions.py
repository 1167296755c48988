"""Files of other people: nested, sharded, described beside, damaged, misspelt."""

import json
import logging

import formats
import ml_dtypes
import numpy as np
import pytest
import tiny
from libraries import TRANSFORMERS

import vitjax
from vitjax.checkpoints import download
from vitjax.checkpoints.classes import labels
from vitjax.checkpoints.configs import HuggingFace, hugging_face_pipeline
from vitjax.checkpoints.files import CheckpointError, open_arrays
from vitjax.checkpoints.json_fields import class_names
from vitjax.checkpoints.loading import describe_preprocessing
from vitjax.data.labels import match_label
from vitjax.data.records import SourceError

PLAIN = tiny.CONFIGS["plain"]
MODEL = tiny.make(PLAIN)
ARRAYS, HF_ARRAYS = formats.timm(MODEL), formats.hugging_face(MODEL)
HF = TRANSFORMERS | {"model_type": "vit"}
TIMM = {
    "architecture": "vit_tiny_patch8_32",
    "model_args": {"num_heads": 2, "img_size": 32},
    "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.1] * 3, "std": [0.2] * 3},
}


def write(folder, arrays, **descriptions):
    """The path of weights beside JSON files."""
    for name, content in descriptions.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return formats.save(folder, arrays)


def load(folder, arrays, **options):
    return formats.load(folder, arrays, PLAIN, **options)


PREFIXES = (
    "_orig_mod.",
    "module.",
    "backbone.",
    "net.",
    "encoder.",
    "model.vit.",
    "module._orig_mod.model.",
    "state_dict.model.",
    "anything.at.all.",
)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("head", ("inside", "beside"))
def test_prefixes_in_any_nesting(tmp_path, prefix, head):
    outside = "" if prefix.count(".") == 1 else prefix.split(".")[0] + "."
    nested = {
        (outside if head == "beside" and key.startswith("head") else prefix) + key: x
        for key, x in ARRAYS.items()
    }
    nested["optimizer.state.0.exp_avg"] = np.ones(3, np.float32)
    nested["epoch"] = np.array(3)
    loaded = load(tmp_path, nested)
    assert formats.same(loaded, MODEL)
    assert any("optimizer" in line for line in loaded.provenance.ignored)


SETS = (
    ("state_dict.", "state_dict_ema."),
    ("model.", "model_ema."),
    ("", "ema."),
    ("student.backbone.", "teacher.backbone."),
    ("model.module.", "model_ema.module."),
)


@pytest.mark.parametrize(("trained", "averaged"), SETS)
def test_of_two_sets_of_weights_the_average_is_taken_and_said(
    tmp_path, trained, averaged, caplog
):
    ema = tiny.make(PLAIN, seed=1)
    both = {trained + key: value for key, value in ARRAYS.items()}
    both |= {averaged + key: value for key, value in formats.timm(ema).items()}
    with caplog.at_level(logging.WARNING):
        assert formats.same(load(tmp_path, both), ema)
    assert averaged.split(".")[0] in caplog.text
    assert formats.same(load(tmp_path, both, weights="ema"), ema)
    assert formats.same(load(tmp_path, both, weights="plain"), MODEL)


def test_sets_of_weights_that_cannot_be_chosen(tmp_path):
    with pytest.raises(CheckpointError, match="weights='ema'"):
        load(tmp_path, ARRAYS, weights="ema")
    with pytest.raises(CheckpointError, match="several sets"):
        load(tmp_path, {f"{p}.{k}": v for k, v in ARRAYS.items() for p in "ab"})
    with pytest.raises(ValueError, match="weights='average'"):
        load(tmp_path, ARRAYS, weights="average")


@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf, 1e300))
def test_values_that_are_not_finite_are_an_error_that_names_them(tmp_path, value):
    key = "blocks.1.norm2.bias"
    bias = ARRAYS[key].astype(np.float64)
    bias[3] = value
    arrays = ARRAYS | {key: bias}
    with pytest.raises(CheckpointError, match=rf"{key} has 1 val"):
        load(tmp_path, arrays)
    assert not formats.same(load(tmp_path, arrays, allow_nonfinite=True), MODEL)


@pytest.mark.parametrize("dtype", (np.int8, np.uint8, np.int64, bool))
def test_integers_are_no_weights(tmp_path, dtype):
    key = "blocks.0.mlp.fc1.weight"
    with pytest.raises(CheckpointError, match=f"{key} is .*not floating"):
        load(tmp_path, ARRAYS | {key: (ARRAYS[key] * 100).astype(dtype)})


def test_float8_is_not_read(tmp_path):
    """numpy has none: its header is written by hand."""
    header = {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}
    text = json.dumps({"key": header}).encode()
    path = tmp_path / "f.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with open_arrays(path) as opened, pytest.raises(CheckpointError, match="key"):
        opened["key"]()


@pytest.mark.parametrize("dtype", (np.float16, np.float64, ml_dtypes.bfloat16))
def test_other_floating_point_is_read(tmp_path, dtype):
    loaded = load(tmp_path, {k: v.astype(dtype) for k, v in ARRAYS.items()})
    assert loaded.dtype == np.float32 and formats.same(loaded, MODEL, 0.01)


@pytest.mark.parametrize("damage", (None, "missing", "extra", "outside", "no map"))
def test_shards(tmp_path, damage):
    names = sorted(ARRAYS)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    weight_map = {key: file for file, keys in parts.items() for key in keys}
    for file, keys in parts.items():
        formats.save(tmp_path / file, {key: ARRAYS[key] for key in keys})
    if damage == "missing":
        (tmp_path / "two.safetensors").unlink()
    changes = {"extra": {"more": "one.safetensors"}}
    changes["outside"] = {"norm.bias": "../one.safetensors"}
    weight_map |= changes.get(damage, {})
    index = {"weight_map": {} if damage == "no map" else weight_map}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(json.dumps(TIMM))
    if damage:
        with pytest.raises(CheckpointError, match="safetensors"):
            vitjax.load(PLAIN, checkpoint=path)
        return
    for loaded in (vitjax.load(tmp_path), vitjax.load(PLAIN, checkpoint=path)):
        assert formats.same(loaded, MODEL) and len(loaded.provenance.sha256) == 64


BESIDE = {
    "timm": (ARRAYS, {"config": TIMM | {"label_names": list("tuvwxyz")}}),
    "transformers": (
        HF_ARRAYS,
        {
            "config": HF | {"id2label": dict(enumerate("tuvwxyz"))},
            "preprocessor_config": {"image_mean": [0.1] * 3, "image_std": [0.2] * 3},
        },
    ),
}


@pytest.mark.parametrize("as_file", (True, False))
@pytest.mark.parametrize("kind", BESIDE)
def test_what_lies_beside_the_weights_wins_over_the_row(tmp_path, kind, as_file):
    arrays, descriptions = BESIDE[kind]
    file = write(tmp_path, arrays, **descriptions)
    path = file if as_file else tmp_path
    loaded = vitjax.load(PLAIN, checkpoint=path)
    assert loaded.classes == tuple("tuvwxyz")
    assert (loaded.preprocess.mean, loaded.preprocess.std) == ((0.1,) * 3, (0.2,) * 3)
    assert "file" in loaded.provenance.sources["preprocess"]
    facts = {fact.setting: fact for fact in describe_preprocessing(loaded)}
    assert facts["mean"].value == (0.1, 0.1, 0.1) and "file" in facts["mean"].source
    assert formats.same(vitjax.load(tmp_path), MODEL)
    mine = vitjax.load(
        PLAIN, checkpoint=path, preprocess={"mean": 0.3}, classes=list("abcdefg")
    )
    assert mine.preprocess.mean == (0.3,) * 3 and mine.preprocess.std == (0.2,) * 3
    assert mine.classes == tuple("abcdefg")
    assert mine.provenance.sources["preprocess"] == "you"
    whole = vitjax.Preprocess(32, 32, interpolation="nearest")
    assert vitjax.load(tmp_path, preprocess=whole).preprocess == whole
    for wrong in (vitjax.Preprocess(64, 64), {"mena": 1}, {"height": "a"}):
        with pytest.raises(ValueError, match="preprocess|mena|height"):
            vitjax.load(tmp_path, preprocess=wrong)


UNSUPPORTED = (
    ({"sharpen": 2}, "sharpen"),
    ({"image_processor_type": "SwinImageProcessor"}, "SwinImageProcessor"),
    ({"image_processor_type": "ViTImageProcessor", "crop_pct": 0.9}, "crop_pct"),
    ({"size": 32, "default_to_square": False}, "size=32"),
    ({"size": {"longest_edge": 32}}, "longest_edge"),
    ({"size": {"shortest_edge": 32, "longest_edge": 64}}, "longest_edge"),
    ({"size": [1, 2, 3]}, "size"),
    ({"size": "big"}, "size='big'"),
    ({"do_resize": False}, "do_resize"),
    ({"do_pad": True}, "do_pad"),
    ({"do_center_crop": True, "size": 32, "crop_size": 64}, "crop of 64"),
    ({"resample": 4}, "resample=4"),
    ({"image_mean": [0.5, 0.5]}, "image_mean"),
    ({"image_std": 0}, "image_std"),
    ({"image_mean": float("nan")}, "image_mean"),
    ({"rescale_factor": -1}, "rescale_factor"),
    ({"do_rescale": "yes"}, "do_rescale"),
    ({"do_resize": None}, "do_resize"),
    *(({key: None}, key) for key in ("size", "image_mean", "image_std", "resample")),
)


@pytest.mark.parametrize(("fields", "named"), UNSUPPORTED, ids=str)
def test_preprocessing_that_is_not_understood_is_an_error_that_names_it(fields, named):
    with pytest.raises(CheckpointError) as error:
        hugging_face_pipeline(fields)
    assert named in str(error.value)


@pytest.mark.parametrize(
    "size", (32, "32", [32], [32, 32], 32.0, {"height": 32, "width": 32})
)
def test_sizes_are_written_in_many_ways(size):
    description = HuggingFace(HF | {"image_size": size})
    assert description.architecture().image_size == description.image_size == 32
    assert hugging_face_pipeline({"size": size}) == vitjax.Preprocess(32, 32)


MEANINGLESS = (
    *({"image_size": value} for value in ("big", [1, 2, 3], {"h": 1}, True, -8, 64)),
    *({key: 10**30} for key in ("hidden_size", "num_hidden_layers", "patch_size")),
    *({"layer_norm_eps": value} for value in ("x", float("nan"), -1)),
    *({"id2label": v} for v in ({"0": "a", "2": "b"}, {"x": "a"}, 5, {"0": None})),
    {"id2label": {"0": {"name": "a"}}},
    {"hidden_act": ["gelu"]},
)


@pytest.mark.parametrize("field", MEANINGLESS, ids=str)
def test_a_description_that_means_nothing_is_an_error(tmp_path, field):
    write(tmp_path, HF_ARRAYS, config=HF | field)
    with pytest.raises(ValueError, match="."):
        vitjax.load(tmp_path)


NAMES = (
    ({str(n): n for n in range(7)}, "0123456"),
    (list("abcdefg"), "abcdefg"),
    ({n: n + 0.5 for n in range(7)}, [f"{n}.5" for n in range(7)]),
)


@pytest.mark.parametrize(("names", "expected"), NAMES)
def test_class_names_need_not_be_strings(names, expected):
    assert class_names("id2label", names) == tuple(expected)


@pytest.mark.parametrize(
    "classes", (range(7), np.arange(7), [*range(7)], (str(n) for n in range(7)))
)
def test_given_classes_need_not_be_strings(classes):
    assert labels(classes, ((), ())) == (tuple("0123456"),) * 2


@pytest.mark.parametrize(
    "classes",
    ([["a"], ["b"]], [None] * 7, ["a"] * 7, b"abcdefg", True, 2.5, [], {"1": "a"}),
    ids=str,
)
def test_classes_that_mean_nothing(classes):
    with pytest.raises(ValueError, match="class"):
        labels(classes, ((), ()))


def test_duplicate_names_match_by_id_and_number_only(tmp_path):
    names = ["crane", "dog", "crane", "d", "e", "f", "g"]
    write(tmp_path, HF_ARRAYS, config=HF | {"id2label": dict(enumerate(names))})
    loaded = vitjax.load(tmp_path)
    assert loaded.classes == tuple(names)
    known = loaded.classes, loaded.class_ids
    given = "dog", "2", 0, loaded.class_ids[2]
    assert [match_label(value, *known) for value in given] == [1, 2, 0, 2]
    with pytest.raises(SourceError, match="2 classes"):
        match_label("crane", *known)


ELSEWHERE = {
    "vit_base_patch16_224": "'vit_b16'",
    "timm/vit_base_patch16_224.augreg_in21k_ft_in1k": "'vit_b16'",
    "google/vit-base-patch16-224": "'vit_b16'",
    "google/vit-base-patch16-224-in21k": "'vit_b16_in21k'",
    "facebook/deit-small-patch16-224": "'deit_s16'",
    "vit_large_patch16_384": "'vit_l16_384'",
    "ViT-B/16": "'vit_b16'",
    "openai/clip-vit-base-patch32": "'clip_b32_openai'",
    "timm/vit_base_patch16_clip_224.laion2b": "'clip_b16_laion2b'",
    "ViT-L-14/datacomp_xl_s13b_b90k": "'clip_l14_datacomp'",
    "vit_base_patch32_clip_224": "'clip_b32_openai' or 'clip_b32_laion2b'",
    "google/siglip2-base-patch16-256": "'siglip2_b16_256'",
    "hf-hub:timm/ViT-SO400M-14-SigLIP-384": "'siglip_so400m14_384'",
    "facebook/dinov2-with-registers-base": "'dinov2_b14_reg'",
    "dinov2_vits14": "'dinov2_s14'",
    "vit_b61": "Did you mean 'vit_b16'",
    "facebook/ijepa_vith14_1k": "pass its folder",
    "https://example.org/m.npz": "checkpoint=",
    "weights.pth": "checkpoint=",
}
"""Names of other libraries, or of nothing -> what the error advises."""


@pytest.mark.parametrize("name", ELSEWHERE)
def test_names_that_are_none_of_ours(name):
    with pytest.raises(ValueError, match=ELSEWHERE[name]):
        vitjax.load(name)


def test_addresses_are_fetched_once_or_refused(tmp_path, monkeypatch):
    import pooch

    requested = []

    def give(url, known_hash, name, folder, progressbar):
        requested.append(url)
        folder.mkdir(parents=True)
        formats.save(folder / name, ARRAYS)

    monkeypatch.setenv("VITJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pooch, "retrieve", give)
    for _ in range(2):
        url = "https://example.org/a/m.safetensors?download=true"
        assert formats.same(vitjax.load(PLAIN, checkpoint=url), MODEL)
    assert requested == [url]
    for wrong in ("file:///models/m.npz", "ftp://x/m.npz", "hf://google/vit"):
        with pytest.raises(ValueError, match="gs://"):
            vitjax.load(PLAIN, checkpoint=wrong)
    assert download.cache_folder() == tmp_path / "cache"


TORCH_FILES = (
    ("pth", None),
    ("pt", "model"),
    ("ckpt", "state_dict"),
    ("pth.tar", "net"),
    ("pkl", "model_state_dict"),
    ("bin", "weights"),
    ("x", "teacher"),
)


@pytest.mark.parametrize(("ending", "nest"), TORCH_FILES)
def test_endings_and_nests_of_torch_files(tmp_path, ending, nest):
    torch = pytest.importorskip("torch")
    path = tmp_path / f"m.{ending}"
    state = {f"module.{key}": torch.tensor(value) for key, value in ARRAYS.items()}
    torch.save({nest: state, "epoch": 3} if nest else state, path)
    assert formats.same(vitjax.load(PLAIN, checkpoint=path), MODEL)


def test_objects_in_torch_files_are_named(tmp_path):
    torch = pytest.importorskip("torch")
    import argparse

    path = tmp_path / "m.pth"
    torch.save({"model": {}, "args": argparse.Namespace(a=1)}, path)
    with pytest.raises(CheckpointError, match=r"argparse\.Namespace"):
        vitjax.load(PLAIN, checkpoint=path)
    torch.save({"weight": {"blocks": torch.ones(3)}}, path)
    with pytest.raises(CheckpointError, match=r"weight\.blocks"):
        vitjax.load(PLAIN, checkpoint=path)
