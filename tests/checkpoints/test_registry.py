"""The table of models: counts, labels, addresses, preprocessing."""

import numpy as np
import pytest

import vitjax
from vitjax.checkpoints import download, registry
from vitjax.models.model import parameter_shapes

PARAMETERS = {
    "vit_ti16": 5_717_416,
    "vit_s16": 22_050_664,
    "vit_s32": 22_878_952,
    "vit_b16": 86_567_656,
    "vit_b32": 88_224_232,
    "vit_b8": 86_576_872,
    "vit_l16": 304_326_632,
    "vit_b16_384": 86_859_496,
    "vit_b16_in21k": 102_595_923,
    "deit_ti16": 5_717_416,
    "deit_s16": 22_050_664,
    "deit_b16": 86_567_656,
    "vit_b16_miil": 86_540_008,
    "vit_b16_gap": 86_538_472,
    "vit_b16_refinement": 86_567_656,
}
"""The published counts."""

PAPER = "b32 b16 l16 b16_cifar100 b16_miil b16_refinement b16_gap"


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_row_has_the_known_number_of_parameters(name):
    row = registry.VARIANTS[name]
    shapes = parameter_shapes(row.config, len(row.labels()[0]))
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == PARAMETERS[name]


def test_all_models_of_the_paper_are_there():
    names = vitjax.list_models()
    paper = {f"vit_{name}" for name in PAPER.split()}
    assert set(names) >= paper | {"textured_digits", "vit_ti16"}
    assert len(names) == len(set(names))
    families = [row.family for row in registry.ROWS]
    assert sorted(families, key=families.index) == families  # as `vitjax list` shows


def test_files_have_names_of_their_own_in_the_cache():
    """All but the two rows of one file."""
    paths = [file.cached for row in registry.ROWS for file in download.published(row)]
    assert len(paths) - len(set(paths)) == 1


@pytest.mark.parametrize("name", registry.VARIANTS)
def test_every_row_is_whole(name):
    row = registry.VARIANTS[name]
    names, ids = row.labels()
    assert len(names) == len(ids) == len(set(ids))
    assert len(names) > 0 or row.family in ("CLIP", "SigLIP", "DINOv2", "MAE")
    assert (row.config.head == "cosine") == (row.family in ("CLIP", "SigLIP"))
    assert (row.preprocess.height, row.preprocess.width) == row.config.shape
    assert row.license and row.source and row.family
    assert bool(row.url) + bool(row.packaged) + bool(row.obtain) == 1
    if row.sha256:
        assert row.sha256 in row.url


def test_addresses_and_tags_name_the_same_weights():
    for row in registry.ROWS:
        if "augreg" not in row.tag:
            continue
        size = {"tiny": "Ti", "small": "S", "base": "B", "large": "L"}
        _, timm, patch, rest = row.tag.split("_", 3)
        resolution = rest.split(".")[0]
        file = row.url.removeprefix(registry.AUGREG)
        assert file.startswith(f"{size[timm]}_{patch.removeprefix('patch')}-i21k")
        fine_tuned = row.tag.endswith("_ft_in1k")
        assert file.endswith(f"-res_{resolution}.npz") == fine_tuned
        assert ("imagenet2012" in file) == fine_tuned


def test_the_papers_preprocessing():
    rows = registry.VARIANTS
    plain = vitjax.Preprocess(224, 224)
    for name in ("vit_b32", "vit_b16", "vit_l16", "vit_b16_cifar100", "vit_b16_gap"):
        assert rows[name].preprocess == plain
    miil, refined = (rows[f"vit_b16_{n}"].preprocess for n in ("miil", "refinement"))
    assert (miil.resize, miil.resize_size) == ("shorter", 256)
    assert (miil.mean, miil.std, miil.interpolation) == ((0,) * 3, (1,) * 3, "bilinear")
    assert (refined.resize, refined.resize_size) == ("square", 256)
    assert (refined.interpolation, refined.mean[0]) == ("bicubic", 0.485)
