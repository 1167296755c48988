"""A job knows its arrays before it computes, and what of a batch counts."""

import dataclasses

import numpy as np
import pytest
from vitjax.runner.job import has_masks, make_job

from vitjax.data.datasets import open_source
from vitjax.data.images import ImageError
from vitjax.data.records import Record


def make(tiny, photos, limit=None):
    return make_job(
        "identifiability",
        tiny,
        f"folder:{photos}",
        batch_size=8,
        dtype="float32",
        limit=limit,
    )


def test_shapes_are_known_before_anything_is_computed(tiny, photos):
    job = make(tiny, photos)
    assert job.specs["rank_residual"].shape == (29, 2, 17)
    assert job.specs["top_logits"].shape == (29, 2, 5)
    assert job.specs["prediction"].shape == (29,)
    assert job.specs["picture"].shape == (8, 32, 32, 3)
    assert "patch_label" not in job.specs
    assert job.specs["label"].dtype == "int32" and job.specs["valid"].dtype == "bool"
    sizes = {"image": 29, "layer": 2, "token": 17, "top": 5}
    assert {name: len(values) for name, values in job.coordinates.items()} == sizes


def test_padding_broken_and_unlabelled_images_leave_no_rows(tiny, photos):
    job = make(tiny, photos)
    ones = {name: np.ones((8, *spec.shape[1:])) for name, spec in job.specs.items()}
    batch = dataclasses.replace(
        job.blank(),
        index=np.arange(24, 32, dtype=np.int32),
        label=np.array([3, 3, -1, 3, 3, -1, -1, -1], np.int32),
        valid=np.array([True, False, True, True, True, False, False, False]),
    )
    rows = job.rows(batch, ones)
    assert {len(values) for values in rows.values()} == {5}  # 29 images, from 24 on
    assert rows["label"].tolist() == [3, -1, -1, 3, 3]
    assert rows["valid"].tolist() == [True, False, True, True, True]
    assert rows["prediction"].tolist() == [1, -1, 1, 1, 1]
    assert rows["rank_residual"][:, 0, 0].tolist() == [1, -1, -1, 1, 1]
    assert np.isnan(rows["logit_residual"][:, 0, 0]).tolist() == [0, 1, 1, 0, 0]
    assert rows["top_classes"].dtype == np.int32


def test_batches_end_at_the_limit(tiny, photos):
    job = make(tiny, photos, limit=11)
    batches = [batch for batch, _ in job.batches(0, job.images, on_error="stop")]
    assert [int(batch.valid.sum()) for batch in batches] == [8, 3]


class Pictures:
    id = "pictures/1"

    def __init__(self, *masks):
        self.shown = masks

    def __len__(self):
        return len(self.shown)

    def __getitem__(self, index):
        if isinstance(self.shown[index], str):
            raise ImageError(str(index), "broken")
        pixels = np.zeros((32, 32, 3), np.uint8)
        return Record(image=pixels, label=0, name="", mask=self.shown[index])


@pytest.mark.parametrize(
    ("masks", "expected"),
    [
        ((None, None), False),
        ((np.ones((32, 32), bool), None), True),
        (("broken", np.ones((32, 32), bool)), True),
        (("broken", "broken"), False),
    ],
)
def test_masks_are_found_without_reading_the_data_set(masks, expected):
    assert has_masks(open_source(Pictures(*masks), classes=["a"])) is expected


def test_a_table_says_by_itself_that_it_has_masks(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("path,label,mask\na.png,a,\nb.png,a,b_mask.png\n")
    assert has_masks(open_source(f"csv:{table}", classes=["a"]))
    table.write_text("path,label\na.png,a\n")
    assert not has_masks(open_source(f"csv:{table}", classes=["a"]))
