"""The table of methods and its curves, against numbers from hand-made rows."""

import csv

import numpy as np
import pytest

from vitjax.report import document, faithfulness

IMAGES, PATCHES = 9, 16
METHODS = ("chefer", "class_projection", "random")
KEPT = np.array([4, 8, 12], np.float32)
SPEEDS = {"forward": 900.0, "chefer": 123.4, "random": 850.0}


def rows_of(images, methods, draw):
    """What a run of the recipe leaves, right or wrong by chance."""
    rows = {
        "kept": (("step",), KEPT),
        "prediction_empty": (("image",), np.zeros(images, np.int32)),
    }
    for method in methods:
        for order in faithfulness.ORDERS:
            for kind, size, axis in (("removal", 3, "step"), ("pixels", 9, "level")):
                right = draw.random((images, size)) < 0.6
                rows[f"{kind}_{order}_{method}"] = (("image", axis), right)
        for measure in ("pixel_accuracy", "mean_iou", "average_precision"):
            values = draw.random(images).astype(np.float32)
            rows[f"{measure}_{method}"] = (("image",), values)
    return rows


@pytest.fixture
def make_faithful(make_run):
    """make_faithful(...) -> a run of the recipe `faithfulness`."""

    def make(*, images=IMAGES, methods=METHODS, seed=0, without=(), told=None, **more):
        rows = rows_of(images, methods, np.random.default_rng(seed))
        rows = {k: v for k, v in rows.items() if not k.startswith(tuple(without))}
        rows |= more.pop("more", {})
        manifest = {
            "recipe": "faithfulness",
            "recipe_options": {"methods": list(methods), "steps": 4},
            "measured": {"images_per_second": SPEEDS},
        }
        return make_run(
            images=images, more=rows, manifest=manifest | (told or {}), **more
        )

    return make


def curve(*correct):
    """Curves of some images over equal parts of the way."""
    values = np.array(correct, float)
    return faithfulness.Curves(np.linspace(0, 1, values.shape[1]), values)


def cells(run):
    table = faithfulness.table(run, name="a")
    return {(row["method"], row["column"]): row for row in table}


def test_both_ends_are_there(make_faithful):
    run = make_faithful()
    right = run["prediction"][:] == run["label"][:]
    removed = faithfulness.curves(run, "removal", "negative", "chefer")
    np.testing.assert_allclose(removed.x, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_array_equal(removed.correct[:, 0], right)
    np.testing.assert_array_equal(removed.correct[:, -1], run["label"][:] == 0)
    steps = run["removal_negative_chefer"][:]
    np.testing.assert_array_equal(removed.correct[:, 1:-1], steps[:, ::-1])
    black = faithfulness.curves(run, "pixels", "positive", "random")
    np.testing.assert_allclose(black.x, np.arange(10) / 10)
    np.testing.assert_array_equal(black.correct[:, 0], right)
    np.testing.assert_array_equal(black.correct[:, 1:], run["pixels_positive_random"])


def test_areas_are_those_of_trapezoids(make_faithful):
    run = make_faithful()
    found = cells(run)
    for kind, order in (("removal", "negative"), ("pixels", "positive")):
        one = faithfulness.curves(run, kind, order, "chefer")
        mean = one.correct.mean(0)
        area = sum(
            (mean[i] + mean[i + 1]) / 2 * (one.x[i + 1] - one.x[i])
            for i in range(len(mean) - 1)
        )
        cell = found["chefer", f"{kind}_{order}"]
        assert cell["value"] == pytest.approx(area / one.x[-1])
        assert cell["low"] <= cell["value"] <= cell["high"]
        assert cell["images"] == IMAGES
    assert curve([1, 1, 1]).areas == pytest.approx([1])
    assert curve([1, 0, 0], [1, 1, 0]).areas == pytest.approx([0.25, 0.75])


def test_only_usable_images_count(make_faithful):
    valid = np.arange(IMAGES) != 3
    label = np.arange(IMAGES, dtype=np.int32) % 5
    label[6] = -1
    run = make_faithful(change={"valid": valid, "label": label})
    assert cells(run)["random", "mean_iou"]["images"] == IMAGES - 2
    expected = np.delete(run["mean_iou_random"][:], [3, 6]).mean()
    assert cells(run)["random", "mean_iou"]["value"] == pytest.approx(expected)


def test_published_area_on_a_full_curve():
    """Sum over counts 1 to n - 1, over the largest of them and n."""
    draw = np.random.default_rng(0)
    correct = draw.random((7, PATCHES + 1)) < 0.5  # from nothing removed to all
    mean = correct.mean(0)[::-1][1:PATCHES]  # by counts kept
    full = curve(*correct)
    expected = mean.sum() / (mean.max() * PATCHES)
    assert faithfulness.published_area(full, PATCHES) == pytest.approx(expected)
    assert faithfulness.published_area(curve([0] * 17), PATCHES) == 0
    ones = faithfulness.published_area(curve([1] * 17), PATCHES)
    assert ones == pytest.approx((PATCHES - 1) / PATCHES)


@pytest.mark.parametrize(
    ("correct", "expected"),
    [
        ([[1, 1, 1, 1, 1]] * 4, 1.0),  # never drops
        ([[1, 0, 0, 0, 0]] * 4, 0.0),  # drops at once
        ([[1, 1, 1, 0, 0]] * 4, 0.5),
        ([[1, 1, 0, 1, 1]] * 4, 0.25),  # recovers, too late
        ([[0, 1, 1, 1, 0], [1, 1, 1, 0, 0]], 0.75),  # gains count
    ],
)
def test_removable_share(correct, expected):
    value, low, high = faithfulness.removable(curve(*correct))
    assert value == expected
    assert low <= value <= high


def test_removable_is_in_the_table(make_faithful):
    run = make_faithful()
    one = faithfulness.curves(run, "removal", "negative", "random")
    cell = cells(run)["random", "removable"]
    assert (cell["value"], cell["low"], cell["high"]) == faithfulness.removable(one)
    assert np.isnan([cell["p"], cell["p_chefer"], cell["published"]]).all()


def test_tests_are_paired_with_random_and_chefer(make_faithful):
    better = np.linspace(0.6, 0.9, IMAGES).astype(np.float32)
    more = {
        "mean_iou_chefer": (("image",), better),
        "mean_iou_random": (("image",), better - 0.3),
        "mean_iou_class_projection": (("image",), better),
    }
    found = cells(make_faithful(more=more))
    # All differences of one sign: 2 of 2**9 flips are as large.
    assert 0.001 < found["chefer", "mean_iou"]["p"] < 0.01
    assert found["class_projection", "mean_iou"]["p_chefer"] == 1
    for method, column in (("random", "p"), ("chefer", "p_chefer")):
        assert np.isnan(found[method, "mean_iou"][column])
    alone = cells(make_faithful(methods=("class_projection",)))
    cell = alone["class_projection", "removal_negative"]
    assert np.isnan([cell["p"], cell["p_chefer"]]).all()
    assert 0 <= cell["published"] <= 1


def test_columns_are_those_of_which_there_are_rows(make_faithful, tmp_path):
    without = ("pixel", "mean", "average")
    run = make_faithful(without=without)
    drawn = faithfulness.draw(tmp_path, ["a"], [run])
    assert list(drawn["columns"]) == [
        *("removal_negative", "removal_positive", "removable")
    ]
    assert [figure["key"] for figure in drawn["figures"]] == ["faithfulness_removal"]
    undefined = np.full(IMAGES, np.nan, np.float32)
    more = {f"mean_iou_{name}": (("image",), undefined) for name in METHODS}
    run = make_faithful(without=("removal", "pixels"), more=more)
    drawn = faithfulness.draw(tmp_path, ["a"], [run])
    assert list(drawn["columns"]) == ["pixel_accuracy", "average_precision"]
    assert drawn["figures"] == []


def test_files(make_faithful, make_run, tmp_path):
    drawn = faithfulness.draw(tmp_path, ["a", "b"], [make_faithful(), make_run()])
    for key in ("faithfulness_removal", "faithfulness_pixels"):
        assert (tmp_path / f"{key}.png").read_bytes().startswith(b"\x89PNG")
        with (tmp_path / f"{key}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["series"] for row in rows} == set(METHODS)
        assert {row["panel"] for row in rows} == set(faithfulness.ORDERS.values())
    with (tmp_path / "faithfulness.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 8 * len(METHODS)
    speeds = {line["method"]: line["speed"] for line in drawn["lines"]}
    assert speeds == {"chefer": 123.4, "class_projection": None, "random": 850.0}
    assert faithfulness.draw(tmp_path, ["b"], [make_run()]) is None


def test_runs_stand_side_by_side(make_faithful):
    runs = [("a", make_faithful()), ("b", make_faithful(seed=1))]
    rows = [
        r for n, run in runs for r in faithfulness.curve_rows(run, "removal", name=n)
    ]
    panels = faithfulness.panels(rows, "removal")
    assert len(panels) == 4 and {panel.stream for panel in panels} == {"a", "b"}
    assert all(panel.title.endswith(f"({panel.stream})") for panel in panels)


PAGES = {
    "partial": dict(
        told={"finished": None, "measured": None}, change={"done": np.arange(9) < 5}
    ),
    "one image": dict(images=1),
    "no [CLS]": dict(fields={"class_token": False}),
    "no labels": dict(change={"label": np.full(9, -1, np.int32)}),
}


@pytest.mark.parametrize("case", PAGES)
def test_pages(make_faithful, tmp_path, case):
    options = dict(PAGES[case])
    run = make_faithful(**options, pictures=0)
    page = document.write_report([run], tmp_path / "out").read_text("utf-8")
    there = case != "no labels"
    assert ("How faithful each method is" in page) == there
    assert ("Faithfulness: pixels blackened" in page) == there
    assert ('<td class="n">123</td>' in page) == (there and case != "partial")


@pytest.mark.slow
def test_names_are_escaped(make_faithful, tmp_path):
    runs = [
        make_faithful(told={"model": {"name": name}}, pictures=0)
        for name in ("<b>&x", "y")
    ]
    page = document.write_report(runs, tmp_path / "out").read_text("utf-8")
    assert "<td>&lt;b&gt;&amp;x</td><td>chefer</td>" in page
    assert "<b>&x" not in page
