"""Maps of tokens and the explorer's data."""

import base64
import io
import json
import zlib

import numpy as np
import pandas as pd
import pytest
from fake_runs import fake_run
from matplotlib import colormaps
from PIL import Image

from vitjax.report import explorer, pictures
from vitjax.report.per_image import Run, as_runs


def figure_of(*results):
    (figure,) = pictures.token_maps(as_runs(results)).figures
    return figure


def read_csv(figure):
    return pd.read_csv(io.StringIO(figure.csv()))


@pytest.mark.parametrize("depth", (1, 2, 3, 6, 7, 12, 24, 39))
def test_shown_layers_are_even_and_end_at_the_last(depth):
    layers = np.asarray(pictures.shown_layers(depth))
    assert layers[-1] == depth - 1 and len(layers) == min(6, depth)
    assert np.ptp(np.diff(layers)) <= 1 if depth > 1 else layers[0] == 0


def test_maps_hold_the_rows(tmp_path):
    rows = "".join(f"{n},photos/file {n}.jpg\n" for n in range(9))
    (tmp_path / "images.csv").write_text("index,name\n" + rows)
    fields = {"image_size": (8, 16), "registers": 1, "depth": 12}
    run = fake_run(masks=True, previews=3, path=tmp_path, **fields)
    table = read_csv(figure_of(run))
    assert len(table) == 3 * 6 * 8
    assert set(table["layer"]) == {1, 3, 5, 7, 9, 11}
    for row in table.itertuples():
        patch = 4 * row.row + row.column
        assert row.rank == run["rank_residual"][row.image, row.layer, 2 + patch]
        assert row.identifiability == pytest.approx(1 - row.rank / 5)
        assert row.on_object == (run["patch_label"][row.image, patch] == 1)
        assert row.name == f"photos/file {row.image}.jpg"
        assert row.label == f"kind {int(run['label'][row.image])}"
        assert row.prediction == f"kind {int(run['prediction'][row.image])}"


def test_previews_are_done_valid_and_shown_once():
    done, valid = np.ones((2, 9), bool)
    done[1] = valid[2] = False
    index = np.array([0, 1, 0, 2, -1, 3], np.int32)
    change = {"done": done, "valid": valid, "preview_index": index}
    run = Run(fake_run(previews=6, change=change))
    previews = pictures.previews(run, limit=9)
    assert [preview.index for preview in previews] == [0, 3]
    for preview, place in zip(previews, (0, 5)):
        pixels = run.results["preview_image"][place]
        np.testing.assert_array_equal(preview.pixels, pixels)
    assert [one.index for one in pictures.previews(run, limit=1)] == [0]
    assert not pictures.token_maps([Run(fake_run(previews=0))]).figures


def test_absent_tokens_have_no_identifiability():
    ranks = np.full((9, 3, 17), 2, np.int32)
    ranks[:, :, 1:5] = -1
    figure = figure_of(fake_run(change={"rank_residual": ranks}))
    table = read_csv(figure)
    assert (table["identifiability"].isna() == (table["row"] == 0)).all()
    assert table["on_object"].isna().all()


def test_without_labels_there_is_no_map():
    unlabeled = Run(fake_run(change={"label": np.full(9, -1, np.int32)}))
    assert not pictures.token_maps([unlabeled]).figures


def test_the_border_does_not_hide_a_small_image():
    (image, _) = pictures.previews(Run(fake_run(masks=True)), limit=2)
    hidden = (image.image != image.photo).any(-1).mean()
    assert image.image.shape == (384, 384, 3) and 0 < hidden < 0.1
    (image, _) = pictures.previews(Run(fake_run()), limit=2)
    np.testing.assert_array_equal(image.image[::24, ::24], image.pixels)


def test_an_image_of_several_runs_stands_together():
    figure = figure_of(fake_run(), fake_run(seed=1, depth=5))
    assert [len(row) for row in figure.rows] == [4, 6] * 2
    names = [row[0].words.split("\n")[0] for row in figure.rows]
    assert names == ["vit_test (1)", "vit_test (2)"] * 2
    text = figure.html()
    assert text.count("data:image/png") == 1 + sum(map(len, figure.rows))


def test_a_map_has_colors_dots_and_absences():
    ranks = np.array([[0, 5, 9], [-1, 1, 3]])
    image = pictures.draw_map(ranks, classes=10, side=60)
    assert image.shape == (40, 60, 3)
    for (row, column), rank in np.ndenumerate(ranks):
        corner = image[20 * row + 1, 20 * column + 1]
        color = colormaps["viridis"](1 - rank / 10, bytes=True)[:3]
        np.testing.assert_array_equal(corner, color if rank >= 0 else (128, 128, 128))
        middle = image[20 * row + 10, 20 * column + 10]
        np.testing.assert_array_equal(middle, pictures.DOT if rank == 0 else corner)


def test_the_border_is_where_the_mask_ends():
    mask = np.zeros((3, 3), bool)
    mask[1, 1] = True
    ranks = np.full((3, 3), 5)
    plain = pictures.draw_map(ranks, classes=10, side=60)
    image = pictures.draw_map(ranks, classes=10, side=60, mask=mask)
    rows, columns = np.nonzero((image == 255).all(-1))
    assert {rows.min(), columns.min()} == {19} and {rows.max(), columns.max()} == {40}
    changed = (image != plain).any(-1)
    assert changed[18:42, 18:42].any() and not changed[:18].any()
    assert not changed[22:38, 22:38].any()
    whole = pictures.draw_map(ranks, classes=10, side=60, mask=mask | True)
    np.testing.assert_array_equal(whole, plain)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tench, Tinca tinca", "tench"),
        ("kind 3", "kind 3"),
        ("a" * 30, "a" * 23 + "…"),
        (", odd", ", odd"),
    ],
)
def test_short_name(name, expected):
    assert pictures.short_name(name) == expected


def read(*results, **options):
    """(data, key -> arrays) of an explorer."""
    runs = [Run(each, name) for each, name in zip(results, "abc")]
    made = explorer.explorer_data(runs, **options)
    return made["data"], {key: unpack(pack) for key, pack in made["packs"].items()}


def unpack(arrays):
    return {
        name: np.frombuffer(
            zlib.decompress(base64.b64decode(entry["bytes"])),
            np.dtype(entry["type"].removesuffix("Array").lower()).newbyteorder("<"),
        ).reshape(entry["shape"])
        for name, entry in arrays.items()
    }


def tokens_run(**options):
    return fake_run("tokens", classes=7, previews=4, masks=True, **options)


def test_the_page_gets_what_the_run_holds():
    run = tokens_run()
    data, packs = read(run)
    assert sorted(packs) == [f"explorer-0-{n}" for n in range(4)]
    (entry,) = data["runs"]
    assert entry["prefix"] == ["[CLS]"] and entry["grid"] == (4, 4)
    assert (entry["depth"], entry["heads"]) == (3, 2)
    for place in range(4):
        arrays = packs[f"explorer-0-{place}"]
        about = entry["images"][place]
        assert about["index"] == place
        assert about["label"] == run["label"][place]
        assert about["prediction"] == run["prediction"][place]
        for key, name in (
            ("rank", "rank_residual"),
            ("classes", "token_classes"),
            ("on_object", "patch_label"),
            ("chosen", "chosen_classes"),
            ("ranks", "chosen_ranks"),
            ("normalizer", "token_normalizer"),
            ("between_largest", "token_attention_largest"),
        ):
            np.testing.assert_array_equal(arrays[key], run[name][place])
        error = arrays["probabilities"] / 255 - run["token_probabilities"][place]
        assert np.abs(error).max() < 0.002
        for key, name in (("attention", "attended"), ("relevancy", "helpful")):
            scale = arrays[f"{key}_scale"][..., None]
            error = np.abs(scale * arrays[key] - run[name][place].values)
            assert (error <= 0.51 * scale).all()
        logits = arrays["logits_scale"][:, None, None] * arrays["logits"]
        np.testing.assert_allclose(logits, run["chosen_logits"][place], atol=0.0101)
        error = arrays["between"] / 63 - run["token_attention"][place].values / 255
        assert np.abs(error).max() <= 0.51 / 63
        content = base64.b64decode(about["url"].partition("base64,")[2])
        pixels = np.asarray(Image.open(io.BytesIO(content)))
        np.testing.assert_array_equal(pixels, run["preview_image"][place])


def test_what_a_run_lacks_is_left_out():
    data, packs = read(fake_run(masks=True))
    assert all(set(arrays) == {"rank", "on_object"} for arrays in packs.values())
    ranks = np.full((9, 3, 17), -1, np.int32)
    unlabeled = {"label": np.full(9, -1, np.int32), "rank_residual": ranks}
    data, packs = read(fake_run(change=unlabeled, class_token=False, registers=1))
    assert all(arrays == {} for arrays in packs.values())
    assert data["runs"][0]["images"][0]["label"] == -1
    assert data["runs"][0]["prefix"] == ["register 0"]
    assert data["runs"][0]["pool"] == "mean"
    assert data["opening"]["layer"] == 2 and data["opening"]["token"] == 0
    assert explorer.explorer_data([Run(fake_run(previews=0))]) == {}


def test_arrays_of_every_token_and_class_go_to_as_many_images_as_fit(monkeypatch):
    run = Run(tokens_run(), "a")
    made = explorer.explorer_data([run])
    opening = f"explorer-0-{made['data']['opening']['image']}"
    size = max(len(json.dumps(pack)) for pack in made["packs"].values())
    monkeypatch.setattr(explorer, "PAGE_BYTES", 2.5 * size)
    made = explorer.explorer_data([run])
    large = {key for key, pack in made["packs"].items() if "chosen" in pack}
    assert 0 < made["whole"] == len(large) < 4 and opening in large
    assert all("rank" in pack for pack in made["packs"].values())


@pytest.mark.parametrize("masks", (True, False))
def test_it_opens_where_there_is_something_to_see(masks):
    """Image 2 is right and has a mask; image 0 is wrong, image 1 has no object."""
    ranks = np.full((9, 3, 17), 4, np.int32)
    ranks[:, 0] = np.arange(17) % 5  # the first block varies most
    ranks[0, 2, 9] = ranks[1, 2, 5] = ranks[2, 2, 6] = 0
    patch_label = np.zeros((9, 16), np.int8)
    patch_label[[0, 2], 4:6] = 1
    label = np.zeros(9, np.int32)
    prediction = np.array([1, *8 * [0]], np.int32)
    change = {"rank_residual": ranks, "label": label, "prediction": prediction}
    change |= {"patch_label": patch_label} if masks else {}
    data, _ = read(fake_run(previews=9, masks=masks, change=change))
    image = 2 if masks else 1
    expected = {"run": 0, "image": image, "layer": 2, "token": 6 if masks else 5}
    assert data["opening"] == expected


def test_no_more_images_than_the_limit():
    data, packs = read(tokens_run(), fake_run(classes=7, previews=0), limit=3)
    assert [image["index"] for image in data["runs"][0]["images"]] == [0, 1, 2]
    assert len(data["runs"]) == 1 and len(packs) == 3


def test_shares_of_a_peaked_head_survive():
    """195 patches share what one leaves: each is 1/450 of it."""
    attention = np.full((1, 1, 196), 0.3 / 195, np.float32)
    attention[..., 7] = 0.7
    scale, steps = explorer.quantize(attention)
    restored = scale[..., None] * steps
    np.testing.assert_allclose(restored / restored.sum(), attention, rtol=0.01)


def test_large_images_are_jpeg():
    data, _ = read(fake_run(image_size=(160, 320), patch_size=80))
    urls = [image["url"] for image in data["runs"][0]["images"]]
    assert urls and all(url.startswith("data:image/jpeg;base64,") for url in urls)
