"""Files of other people: nested, sharded, described beside, damaged, misspelt."""

import json
import logging

import formats
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tiny
from libraries import TRANSFORMERS

import vitjax
from vitjax.checkpoints import download
from vitjax.checkpoints.configs import hugging_face_pipeline
from vitjax.checkpoints.files import CheckpointError, open_arrays
from vitjax.checkpoints.loading import describe_preprocessing
from vitjax.data.labels import match_label
from vitjax.data.records import SourceError
from vitjax.types import Config

PLAIN = tiny.CONFIGS["plain"]
HF = TRANSFORMERS | {"model_type": "vit"}
TIMM = {
    "architecture": "vit_tiny_patch8_32",
    "model_args": {"num_heads": 2, "img_size": 32},
    "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.1] * 3, "std": [0.2] * 3},
}


def save(folder, arrays, **descriptions):
    """A folder of weights and JSON files."""
    arrays = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")
    for name, content in descriptions.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def plain(tmp_path):
    """A model, and its arrays as timm names them."""
    model = tiny.make(PLAIN)
    return model, formats.write_timm(tmp_path / "m.safetensors", model)


@pytest.fixture
def hugging_face(plain, tmp_path):
    """The same model, and its arrays as transformers names them."""
    return plain[0], formats.write_hugging_face(tmp_path / "m.safetensors", plain[0])


def load_arrays(folder, arrays, config=PLAIN, **options):
    save(folder, arrays)
    return vitjax.load(config, checkpoint=folder / "model.safetensors", **options)


PREFIXES = (
    *("_orig_mod.", "module.", "backbone.", "net.", "encoder.", "model.vit."),
    *("module._orig_mod.model.", "state_dict.model.", "anything.at.all."),
)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("head", ("inside", "beside"))
def test_prefixes_in_any_nesting(tmp_path, plain, prefix, head):
    model, arrays = plain
    outside = "" if prefix.count(".") == 1 else prefix.split(".")[0] + "."
    nested = {
        (outside if head == "beside" and key.startswith("head") else prefix) + key: x
        for key, x in arrays.items()
    }
    nested["optimizer.state.0.exp_avg"] = np.ones(3, np.float32)
    nested["epoch"] = np.array(3)
    loaded = load_arrays(tmp_path, nested)
    assert formats.same(loaded, model)
    assert any("optimizer" in line for line in loaded.provenance.ignored)


def test_transformers_5_names(tmp_path, hugging_face):
    model, arrays = hugging_face
    words = {
        "encoder.layer": "layers",
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    renamed = {}
    for key, array in arrays.items():
        for old, new in words.items():
            key = key.replace(old, new)
        renamed["model." + key] = array
    assert formats.same(load_arrays(tmp_path, renamed), model)


SETS = (
    ("state_dict.", "state_dict_ema."),
    ("model.", "model_ema."),
    ("", "ema."),
    ("student.backbone.", "teacher.backbone."),
    ("model.module.", "model_ema.module."),
)


@pytest.mark.parametrize(("trained", "averaged"), SETS)
def test_of_two_sets_of_weights_the_average_is_taken_and_said(
    tmp_path, plain, trained, averaged, caplog
):
    model, arrays = plain
    ema = tiny.make(PLAIN, seed=1)
    other = formats.write_timm(tmp_path / "e.safetensors", ema)
    both = {trained + k: v for k, v in arrays.items()}
    both |= {averaged + k: v for k, v in other.items()}
    with caplog.at_level(logging.WARNING):
        assert formats.same(load_arrays(tmp_path, both), ema)
    assert averaged.split(".")[0] in caplog.text
    assert formats.same(load_arrays(tmp_path, both, weights="ema"), ema)
    assert formats.same(load_arrays(tmp_path, both, weights="plain"), model)
    with pytest.raises(CheckpointError, match="weights='ema'"):
        load_arrays(tmp_path, arrays, weights="ema")
    with pytest.raises(CheckpointError, match="several sets"):
        load_arrays(tmp_path, {f"{p}.{k}": v for k, v in arrays.items() for p in "ab"})
    with pytest.raises(ValueError, match="weights='average'"):
        load_arrays(tmp_path, both, weights="average")


@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf, 1e300))
def test_values_that_are_not_finite_are_an_error_that_names_them(
    tmp_path, plain, value
):
    model, arrays = plain
    arrays["blocks.1.norm2.bias"] = arrays["blocks.1.norm2.bias"].astype(np.float64)
    arrays["blocks.1.norm2.bias"][3] = value
    with pytest.raises(CheckpointError, match=r"blocks\.1\.norm2\.bias has 1 val"):
        load_arrays(tmp_path, arrays)
    assert not formats.same(load_arrays(tmp_path, arrays, allow_nonfinite=True), model)


@pytest.mark.parametrize("dtype", (np.int8, np.uint8, np.int64, bool, "float8"))
def test_integers_are_no_weights(tmp_path, plain, dtype):
    _, arrays = plain
    key = "blocks.0.mlp.fc1.weight"
    if dtype == "float8":  # numpy has none: write its header by hand
        header = {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}
        text = json.dumps({key: header}).encode()
        path = tmp_path / "f.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
        with open_arrays(path) as opened, pytest.raises(CheckpointError, match=key):
            opened[key]()
        return
    arrays[key] = (arrays[key] * 100).astype(dtype)
    with pytest.raises(CheckpointError, match=f"{key} is .*not floating"):
        load_arrays(tmp_path, arrays)


@pytest.mark.parametrize("dtype", (np.float16, np.float64, ml_dtypes.bfloat16))
def test_other_floating_point_is_read(tmp_path, plain, dtype):
    _, arrays = plain
    loaded = load_arrays(tmp_path, {k: v.astype(dtype) for k, v in arrays.items()})
    assert loaded.dtype == np.float32


@pytest.mark.parametrize("name", ("swiglu", "distilled", "layer_scale"))
def test_the_file_decides_what_it_has_beyond_the_config(tmp_path, name):
    model = tiny.make(tiny.CONFIGS[name])
    arrays = formats.write_timm(tmp_path / "m.safetensors", model)
    if name == "layer_scale":  # DeiT III
        words = {".ls1.gamma": ".gamma_1", ".ls2.gamma": ".gamma_2"}
        for old, new in words.items():
            arrays = {k.replace(old, new): v for k, v in arrays.items()}
    loaded = load_arrays(tmp_path, arrays)
    assert loaded.config == model.config and formats.same(loaded, model)
    images = tiny.images(model.config)
    logits = vitjax.forward(loaded, images)[0]
    np.testing.assert_allclose(logits, vitjax.forward(model, images)[0], atol=1e-5)
    if name == "distilled":
        with pytest.raises(ValueError, match="distilled"):
            vitjax.explain(loaded, images, 0, method="attnlrp")


@pytest.mark.parametrize("channels", (1, 4))
@pytest.mark.parametrize("write", ("timm", "google"))
def test_other_numbers_of_channels(tmp_path, channels, write):
    model = tiny.make(Config(**tiny.SHAPE, channels=channels))
    path = tmp_path / ("m.safetensors" if write == "timm" else "m.npz")
    options = {} if write == "timm" else {"linen": True}
    getattr(formats, f"write_{write}")(path, model, **options)
    loaded = vitjax.load(PLAIN, checkpoint=path)
    assert formats.same(loaded, model) and loaded.preprocess is None
    logits, _ = vitjax.forward(loaded, tiny.images(model.config))
    assert logits.shape == (3, 7)
    with pytest.raises(ValueError, match=f"32 32 {channels}"):
        vitjax.forward(loaded, tiny.images(PLAIN))


@pytest.mark.parametrize("damage", (None, "missing", "extra", "outside", "no map"))
def test_shards(tmp_path, plain, damage):
    model, arrays = plain
    names = sorted(arrays)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    weight_map = {key: file for file, keys in parts.items() for key in keys}
    for file, keys in parts.items():
        shard = {key: arrays[key] for key in keys}
        safetensors.numpy.save_file(shard, tmp_path / file)
    (tmp_path / "m.safetensors").unlink()
    if damage == "missing":
        (tmp_path / "two.safetensors").unlink()
    if damage == "extra":
        weight_map["more"] = "one.safetensors"
    if damage == "outside":
        weight_map["norm.bias"] = "../one.safetensors"
    index = {"weight_map": {} if damage == "no map" else weight_map}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(json.dumps(TIMM))
    if damage:
        with pytest.raises(CheckpointError, match="safetensors"):
            vitjax.load(PLAIN, checkpoint=path)
        return
    for loaded in (vitjax.load(tmp_path), vitjax.load(PLAIN, checkpoint=path)):
        assert formats.same(loaded, model) and len(loaded.provenance.sha256) == 64


@pytest.mark.parametrize("as_file", (True, False))
@pytest.mark.parametrize("kind", ("huggingface", "timm"))
def test_what_lies_beside_the_weights_wins_over_the_row(
    tmp_path, plain, hugging_face, kind, as_file
):
    if kind == "timm":
        files = {"config": TIMM | {"label_names": list("tuvwxyz")}}
    else:
        files = {
            "config": HF | {"id2label": dict(enumerate("tuvwxyz"))},
            "preprocessor_config": {"image_mean": [0.1] * 3, "image_std": [0.2] * 3},
        }
    model, arrays = plain if kind == "timm" else hugging_face
    save(tmp_path, arrays, **files)
    path = tmp_path / "model.safetensors" if as_file else tmp_path
    loaded = vitjax.load(PLAIN, checkpoint=path)
    assert loaded.classes == tuple("tuvwxyz")
    assert (loaded.preprocess.mean, loaded.preprocess.std) == ((0.1,) * 3, (0.2,) * 3)
    assert "file" in loaded.provenance.sources["preprocess"]
    facts = {fact.setting: fact for fact in describe_preprocessing(loaded)}
    assert facts["mean"].value == (0.1, 0.1, 0.1) and "file" in facts["mean"].source
    assert formats.same(vitjax.load(tmp_path), model)
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
def test_sizes_are_written_in_many_ways(tmp_path, hugging_face, size):
    save(tmp_path, hugging_face[1], preprocessor_config={"size": size})
    text = json.dumps(HF | {"image_size": size})
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert vitjax.load(tmp_path).config.image_size == 32


@pytest.mark.parametrize(
    "field",
    (
        *(
            {"image_size": value}
            for value in ("big", [1, 2, 3], {"h": 1}, True, -8, 64)
        ),
        *({key: 10**30} for key in ("hidden_size", "num_hidden_layers", "patch_size")),
        *({"layer_norm_eps": value} for value in ("x", float("nan"), -1)),
        *({"id2label": v} for v in ({"0": "a", "2": "b"}, {"x": "a"}, 5, {"0": None})),
        *({"id2label": {"0": {"name": "a"}}}, {"hidden_act": ["gelu"]}),
    ),
    ids=str,
)
def test_a_description_that_means_nothing_is_an_error(tmp_path, hugging_face, field):
    save(tmp_path, hugging_face[1], config=HF | field)
    with pytest.raises(ValueError, match="."):
        vitjax.load(tmp_path)


@pytest.mark.parametrize(
    ("names", "expected"),
    (
        ({str(n): n for n in range(7)}, "0123456"),
        (list("abcdefg"), "abcdefg"),
        ({n: n + 0.5 for n in range(7)}, [f"{n}.5" for n in range(7)]),
    ),
)
def test_class_names_need_not_be_strings(tmp_path, hugging_face, names, expected):
    save(tmp_path, hugging_face[1], config=HF | {"id2label": names})
    assert vitjax.load(tmp_path).classes == tuple(expected)


@pytest.mark.parametrize(
    "classes", (range(7), np.arange(7), [*range(7)], (str(n) for n in range(7)))
)
def test_given_classes_need_not_be_strings(tmp_path, plain, classes):
    assert load_arrays(tmp_path, plain[1], classes=classes).classes == tuple("0123456")


@pytest.mark.parametrize(
    "classes",
    ([["a"], ["b"]], [None] * 7, ["a"] * 7, b"abcdefg", True, 2.5, [], {"1": "a"}),
    ids=str,
)
def test_classes_that_mean_nothing(tmp_path, plain, classes):
    with pytest.raises(ValueError, match="class"):
        load_arrays(tmp_path, plain[1], classes=classes)


def test_duplicate_names_match_by_id_and_number_only(tmp_path, hugging_face):
    names = ["crane", "dog", "crane", "d", "e", "f", "g"]
    save(tmp_path, hugging_face[1], config=HF | {"id2label": dict(enumerate(names))})
    loaded = vitjax.load(tmp_path)
    assert loaded.classes == tuple(names)
    match = [match_label(x, loaded.classes, loaded.class_ids) for x in ("dog", "2", 0)]
    assert match == [1, 2, 0]
    assert match_label(loaded.class_ids[2], loaded.classes, loaded.class_ids) == 2
    with pytest.raises(SourceError, match="2 classes"):
        match_label("crane", loaded.classes, loaded.class_ids)


@pytest.mark.parametrize(
    ("name", "ours"),
    (
        ("vit_base_patch16_224", "vit_b16"),
        ("timm/vit_base_patch16_224.augreg_in21k_ft_in1k", "vit_b16"),
        ("google/vit-base-patch16-224", "vit_b16"),
        ("google/vit-base-patch16-224-in21k", "vit_b16_in21k"),
        ("facebook/deit-small-patch16-224", "deit_s16"),
        ("vit_large_patch16_384", "vit_l16_384"),
        ("ViT-B/16", "vit_b16"),
        ("openai/clip-vit-base-patch32", "clip_b32_openai"),
        ("timm/vit_base_patch16_clip_224.laion2b", "clip_b16_laion2b"),
        ("ViT-L-14/datacomp_xl_s13b_b90k", "clip_l14_datacomp"),
        ("vit_base_patch32_clip_224", "clip_b32_openai' or 'clip_b32_laion2b"),
        ("google/siglip2-base-patch16-256", "siglip2_b16_256"),
        ("hf-hub:timm/ViT-SO400M-14-SigLIP-384", "siglip_so400m14_384"),
        ("facebook/dinov2-with-registers-base", "dinov2_b14_reg"),
        ("dinov2_vits14", "dinov2_s14"),
    ),
)
def test_names_of_other_libraries_are_answered_with_ours(name, ours):
    with pytest.raises(ValueError, match=f"'{ours}'"):
        vitjax.load(name)


@pytest.mark.parametrize(
    ("name", "advice"),
    (
        ("facebook/ijepa_vith14_1k", "pass its folder"),
        ("https://example.org/m.npz", "checkpoint="),
        ("weights.pth", "checkpoint="),
    ),
)
def test_what_is_no_name_says_what_to_do(name, advice):
    with pytest.raises(ValueError, match=advice):
        vitjax.load(name)


def test_addresses_are_fetched_once_or_refused(tmp_path, plain, monkeypatch):
    import pooch

    requested = []

    def give(url, known_hash, name, folder, progressbar):
        requested.append(url)
        folder.mkdir(parents=True)
        (folder / name).write_bytes((tmp_path / "m.safetensors").read_bytes())

    monkeypatch.setenv("VITJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pooch, "retrieve", give)
    for _ in range(2):
        url = "https://example.org/a/m.safetensors?download=true"
        assert formats.same(vitjax.load(PLAIN, checkpoint=url), plain[0])
    assert requested == [url]
    for wrong in ("file:///models/m.npz", "ftp://x/m.npz", "hf://google/vit"):
        with pytest.raises(ValueError, match="gs://"):
            vitjax.load(PLAIN, checkpoint=wrong)
    assert download.cache_folder() == tmp_path / "cache"


@pytest.mark.parametrize("ending", ("pth", "pt", "ckpt", "pth.tar", "pkl", "bin", "x"))
@pytest.mark.parametrize("nest", ("net", "model_state_dict", "weights", "teacher"))
def test_endings_and_nests_of_torch_files(tmp_path, plain, ending, nest):
    model, arrays = plain
    formats.write_torch(tmp_path / f"m.{ending}", arrays, nest=nest)
    assert formats.same(vitjax.load(PLAIN, checkpoint=tmp_path / f"m.{ending}"), model)


def test_objects_in_torch_files_are_named(tmp_path):
    torch = pytest.importorskip("torch")
    import argparse

    torch.save({"model": {}, "args": argparse.Namespace(a=1)}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"argparse\.Namespace"):
        vitjax.load(PLAIN, checkpoint=tmp_path / "m.pth")
    torch.save({"weight": {"blocks": torch.ones(3)}}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"weight\.blocks"):
        vitjax.load(PLAIN, checkpoint=tmp_path / "m.pth")


def test_every_key_is_consumed_or_an_error(tmp_path, plain):
    _, arrays = plain
    for key in ("neck.weight", "blocks.0.attn.relative_position", "norm_pre.bias"):
        with pytest.raises(CheckpointError, match=f"Extra: .*{key.split('.')[-1]}"):
            load_arrays(tmp_path, arrays | {key: np.ones(2, np.float32)})
