import base64
import io

import numpy as np
import pytest
from PIL import Image

from vitjax.report import overlays
from vitjax.report.per_image import digest


def all_maps(run, **options):
    return overlays.picture_maps(run, digest(run), **options)


@pytest.mark.parametrize(
    "depth, expected",
    [
        (1, (0,)),
        (3, (0, 1, 2)),
        (6, (0, 1, 2, 3, 4, 5)),
        (12, (1, 3, 5, 7, 9, 11)),
        (24, (3, 7, 11, 15, 19, 23)),
    ],
)
def test_shown_layers(depth, expected):
    assert overlays.shown_layers(depth) == expected


@pytest.mark.parametrize("depth", range(1, 40))
def test_shown_layers_are_even_and_end_at_the_last(depth):
    layers = np.asarray(overlays.shown_layers(depth))
    assert layers[-1] == depth - 1 and len(layers) == min(6, depth)
    assert np.ptp(np.diff(layers)) <= 1 if depth > 1 else layers[0] == 0


def test_maps_hold_the_rows(make_run):
    fields = {"image_size": (8, 16), "registers": 1, "depth": 12}
    run = make_run(fields=fields, masks=True, pictures=3)
    for image, maps in enumerate(all_maps(run)):
        assert maps.name == f"photos/file {image}.jpg"
        assert maps.image == image and maps.layers == (1, 3, 5, 7, 9, 11)
        expected = run["rank_residual"][image, 1::2, 2:].reshape(6, 2, 4)
        np.testing.assert_array_equal(maps.ranks, expected)
        mask = run["patch_label"][image].reshape(2, 4) == 1
        np.testing.assert_array_equal(maps.mask, mask)
        np.testing.assert_array_equal(maps.picture, run["picture"][image])
        label, prediction = run["label"][image], run["prediction"][image]
        assert (maps.label, maps.prediction) == (f"kind {label}", f"kind {prediction}")
        assert maps.correct == (label == prediction)
        assert maps.readout == (f"kind {prediction}",) * 6
    assert len(all_maps(run, most=2)) == 2


def test_pictures_that_are_not_there(make_run):
    assert all_maps(make_run(pictures=0)) == []
    done = np.ones(9, bool)
    done[1] = False
    images = np.array([0, 1, -1], np.int32)
    run = make_run(pictures=3, change={"done": done, "picture_image": images})
    assert [maps.image for maps in all_maps(run)] == [0]


def test_names_come_at_the_end(make_run):
    assert all_maps(make_run(manifest={"finished": None}))[0].name == ""


def test_without_a_label_there_is_no_map(make_run):
    run = make_run(change={"label": np.full(9, -1, np.int32)})
    maps = all_maps(run)[0]
    assert maps.ranks is None and maps.label is None and maps.correct is None
    assert overlays.maps_table(maps, run="a") == []


def test_map_image_colours_dots_and_absences():
    from matplotlib import colormaps

    ranks = np.array([[0, 5, 9], [-1, 1, 3]])
    image = overlays.map_image(ranks, classes=10, side=60)
    assert image.shape == (40, 60, 3)
    for row in range(2):
        for column in range(3):
            corner = image[20 * row + 1, 20 * column + 1]
            centre = image[20 * row + 10, 20 * column + 10]
            rank = ranks[row, column]
            colour = colormaps["viridis"](1 - rank / 10, bytes=True)[:3]
            np.testing.assert_array_equal(
                corner, overlays.ABSENT if rank < 0 else colour
            )
            expected = overlays.DOT if rank == 0 else corner
            np.testing.assert_array_equal(centre, expected)


def test_the_border_is_where_mask_and_rest_meet():
    mask = np.zeros((3, 3), bool)
    mask[1, 1] = True
    ranks = np.full((3, 3), 5)
    plain = overlays.map_image(ranks, classes=10, side=60)
    image = overlays.map_image(ranks, classes=10, side=60, mask=mask)
    white = (image == 255).all(-1)
    rows, columns = np.nonzero(white)
    assert {rows.min(), columns.min()} == {19} and {rows.max(), columns.max()} == {40}
    assert not white[21:39, 21:39].any()
    changed = (image != plain).any(-1)
    assert changed[18:42, 18:42].any() and not changed[:18].any()
    whole = overlays.map_image(ranks, classes=10, side=60, mask=np.ones((3, 3), bool))
    np.testing.assert_array_equal(whole, plain)


def test_small_pictures_are_enlarged_under_the_border(make_run):
    maps = all_maps(make_run(masks=True))[0]
    image = overlays.picture_image(maps)
    assert image.shape == (48, 48, 3)  # 16 pixels, 4 patches: cells of at least 12
    plain = all_maps(make_run())[0]
    assert overlays.picture_image(plain) is plain.picture


def test_maps_table(make_run):
    change = {"rank_residual": np.full((9, 3, 17), -1, np.int32)}
    change["rank_residual"][:, :, 5:] = 2
    maps = all_maps(make_run(change=change, masks=True))[0]
    rows = overlays.maps_table(maps, run="a")
    assert len(rows) == 3 * 16
    for row in rows:
        place = 4 * row["row"] + row["column"]
        assert row["block"] == row["layer"] + 1
        assert row["rank"] == (-1 if place < 4 else 2)
        assert np.isnan(row["identifiability"]) == (place < 4)
        assert place < 4 or row["identifiability"] == 1 - 2 / 5
        assert row["class_token"] == int(maps.mask[row["row"], row["column"]])


def test_data_url_is_the_same_picture():
    image = np.random.default_rng(0).integers(256, size=(5, 7, 3)).astype(np.uint8)
    kind, _, content = overlays.data_url(image).partition(",")
    assert kind == "data:image/png;base64"
    back = Image.open(io.BytesIO(base64.b64decode(content)))
    np.testing.assert_array_equal(np.asarray(back), image)


def test_png_of_all_maps(make_run):
    wide = make_run(fields={"image_size": (8, 16)}, masks=True)
    runs = [("a", all_maps(make_run())[0]), ("b", all_maps(wide)[0])]
    image = Image.open(io.BytesIO(overlays.png(runs, dpi=50)))
    assert image.width > 200 and image.height > 100


@pytest.mark.parametrize(
    "name, expected",
    [
        ("tench, Tinca tinca", "tench"),
        ("kind 3", "kind 3"),
        ("a" * 30, "a" * 21 + "…"),
        (", odd", ", odd"),
    ],
)
def test_short_name(name, expected):
    assert overlays.short_name(name) == expected


def test_colour_bar_runs_from_dark_to_light():
    assert overlays.colour_bar().startswith("linear-gradient(to right, #440154")
    assert overlays.colour_bar().endswith("#fde725)")
