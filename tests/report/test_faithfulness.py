"""Methods by protocols, against numbers from hand-made rows."""

import numpy as np
import pytest
from fake_runs import KEPT, MEASURED, METHODS, STUDY, fake_run

from vitjax.report.faithfulness import COLUMNS, Curve, read_curve
from vitjax.report.per_image import Run

IMAGES = 9


@pytest.fixture(scope="module")
def cells(report):
    """cells(results) -> rows of the table by method and column."""

    def make(results):
        data = report(results)[1]["faithfulness"].data
        return data.set_index(["method", "column"]).to_dict("index")

    return make


@pytest.fixture(scope="module")
def run():
    return Run(fake_run("faithfulness"))


@pytest.fixture(scope="module")
def rows(cells, run):
    return cells(run.results)


def curve(*correct):
    """Right or wrong at equal steps from nothing removed to everything."""
    values = np.array(correct, float)
    return Curve(np.arange(values.shape[1])[::-1], values)


def without(*beginnings, **options):
    """A run without arrays whose names begin so."""
    results = fake_run("faithfulness", **options)
    names = [n for n in results if n.startswith(beginnings)]
    return results.drop_vars(names)


def test_both_ends_are_there(run):
    arrays = {name: array.values for name, array in run.results.items()}
    empty = arrays["prediction_empty"] == run.label
    ends = arrays["probability_whole"], arrays["probability_empty"]
    removed, tenths, backward = np.linspace(0, 1, 5), np.arange(10) / 10, np.s_[::-1]
    for column, whole, order, rest, shares in (
        ("removal_negative", run.correct, backward, [empty], removed),
        ("probability_negative", ends[0], backward, [ends[1]], removed),
        ("pixels_positive", run.correct, np.s_[:], [], tenths),
    ):
        one, steps = read_curve(run, column, "chefer"), arrays[f"{column}_chefer"]
        expected = np.column_stack([whole, steps[:, order], *rest])
        np.testing.assert_array_equal(one.correct, expected)
        np.testing.assert_allclose(one.removed, shares)


def test_areas_are_those_of_trapezoids(run, rows):
    for column in ("removal_negative", "pixels_positive", "probability_positive"):
        one, row = read_curve(run, column, "chefer"), rows["chefer", column]
        area = np.trapezoid(1.0 * one.correct, one.removed) / one.removed[-1]
        np.testing.assert_allclose(one.areas(), area, rtol=1e-6)
        assert row["value"] == pytest.approx(area.mean())
        assert row["low"] <= row["value"] <= row["high"]
        assert row["images"] == IMAGES
    assert curve([1, 0, 0], [1, 1, 0]).areas() == pytest.approx([0.25, 0.75])


def test_published_area_on_a_full_curve():
    """Sum over counts 1 to n - 1, over the largest of them and n."""
    correct = np.random.default_rng(0).random((7, 17)) < 0.5
    mean = correct.mean(0)[::-1][1:16]  # by counts kept
    area = curve(*correct).vilas2023_area()
    assert area == pytest.approx(mean.sum() / (mean.max() * 16))
    assert curve([0] * 17).vilas2023_area() == 0
    assert curve([1] * 17).vilas2023_area() == pytest.approx(15 / 16)


@pytest.mark.parametrize(
    "correct, expected",
    [
        ([[1, 1, 1, 1, 1]] * 4, 1.0),  # never drops
        ([[1, 0, 0, 0, 0]] * 4, 0.0),  # drops at once
        ([[1, 1, 1, 0, 0]] * 4, 0.5),
        ([[1, 1, 0, 1, 1]] * 4, 0.25),  # recovers, too late
        ([[0, 1, 1, 1, 0], [1, 1, 1, 0, 0]], 0.75),  # gains count
    ],
)
def test_removable_share(correct, expected):
    value, low, high = curve(*correct).removable()
    assert value == expected and low <= value <= high


def test_removable_has_no_test(run, rows):
    row = rows["random", "removable"]
    expected = read_curve(run, "removal_negative", "random").removable()
    assert (row["value"], row["low"], row["high"]) == expected
    assert np.isnan([row["p"], row["p_chefer"], row["published"]]).all()


def test_tests_are_paired_with_random_and_chefer(cells):
    better = np.linspace(0.6, 0.9, IMAGES).astype(np.float32)
    change = {
        "mean_iou_chefer": better,
        "mean_iou_random": better - np.float32(0.3),
        "mean_iou_class_projection": better,
    }
    rows = cells(fake_run("faithfulness", change=change))
    # All differences of one sign: 2 of 2**9 flips are as large.
    assert 0.001 < rows["chefer", "mean_iou"]["p"] < 0.01
    assert rows["class_projection", "mean_iou"]["p_chefer"] == 1
    assert np.isnan(rows["random", "mean_iou"]["p"])
    assert np.isnan(rows["chefer", "mean_iou"]["p_chefer"])
    alone = {"recipe_options": {"methods": ["class_projection"]}}
    rows = cells(fake_run("faithfulness", manifest=alone))
    row = rows["class_projection", "removal_negative"]
    assert np.isnan([row["p"], row["p_chefer"]]).all() and 0 <= row["published"] <= 1


def test_columns_are_those_of_which_there_are_rows(report):
    others = "probability", "saco", "pixel", "mean", "average"
    figures, tables, _ = report(without(*others))
    headings = list(COLUMNS.values())
    shown = tables["faithfulness"].shown
    assert list(shown)[2:] == headings[:3]
    assert "faithfulness_removal" in figures and "faithfulness_pixels" not in figures
    nothing = np.full(IMAGES, np.nan, np.float32)
    change = {f"mean_iou_{method}": nothing for method in METHODS}
    others = "removal", "probability", "saco", "pixels"
    figures, tables, _ = report(without(*others, change=change))
    shown = tables["faithfulness"].shown
    names = "pixel_accuracy", "average_precision"
    assert list(shown)[2:] == [COLUMNS[name] for name in names]
    passes = {"forward": 1.0} | dict.fromkeys(METHODS, 2.7)
    tables = report(fake_run("faithfulness", manifest={"measured": {"passes": passes}}))
    assert set(tables[1]["faithfulness"].shown["passes"]) == {"2.7"}
    assert not any(key.startswith("faithfulness") for key in figures)


def test_table_and_curves_of_several_runs(report):
    one = fake_run("faithfulness")
    two = fake_run("faithfulness", seed=1)
    figures, tables, _ = report(one, two, fake_run())
    table = tables["faithfulness"]
    assert len(table.data) == 2 * len(COLUMNS) * len(METHODS)
    starred = table.shown[COLUMNS["mean_iou"]].str.endswith("*")
    p = table.data[table.data["column"] == "mean_iou"]["p_chefer"]
    assert starred.tolist() == (p < 0.05).tolist()
    for key in ("faithfulness_removal", "faithfulness_pixels"):
        panels = figures[key].panels()
        assert len(panels) == 4 and list(panels)[0].endswith("first (faithfulness (1))")
        assert list(figures[key].series(figures[key].data)) == list(METHODS)
    assert "faithfulness" not in report(fake_run())[1]


def probes_run(*, measured=True, **options):
    manifest = {"study": STUDY, "measured": MEASURED if measured else {}}
    return fake_run("probes", manifest=manifest, **options)


def test_accuracy_is_the_share_of_tokens_of_rank_0(report):
    results = probes_run(change={"valid": np.arange(9) != 4})
    used, figures = results.isel(image=np.delete(np.arange(9), 4)), report(results)[0]
    for kind, tokens in (("image", slice(1, None)), ("cls", slice(0, 1))):
        rows = figures[f"probes_{kind}"].data
        assert len(rows) == 3 * 2 * 3
        assert (rows["images"] == 8).all() and (rows["chance"] == 0.2).all()
        lines = rows.set_index(["panel", "series"]).sort_index()["mean"]
        for panel, reader, name in (
            ("block output", "linear probe", "rank_probe_residual"),
            ("MLP update", "linear probe", "rank_probe_mlp_update"),
            ("MLP update", "class projection", "rank_mlp_update"),
        ):
            hits = used[name].values[..., tokens] == 0
            np.testing.assert_allclose(lines.loc[(panel, reader)], hits.mean((0, 2)))


def test_removal_starts_with_all_tokens_and_ends_with_few(report):
    results = probes_run()
    right = (results["prediction"] == results["label"]).values.mean()
    figure = report(results)[0]["probes_removal"]
    for (_, rows), order in zip(figure.panels().items(), ("negative", "positive")):
        lines = figure.series(rows)
        ends = f"{order}_probe", f"{order}_gradient", "random"
        for line, end in zip(lines.values(), ends, strict=True):
            expected = [right, *results[f"correct_{end}"].values.mean(0)[::-1]]
            np.testing.assert_allclose(line["mean"], expected)
            assert line["kept"].tolist() == [16, *KEPT[::-1]]
            np.testing.assert_allclose(line["x"], 1 - line["kept"] / 16)


def test_costs_stand_side_by_side(report):
    rows = report(probes_run())[1]["probe_costs"].data.set_index("quantity")
    assert rows.loc["seconds in all"].tolist()[1:] == [14.0, 9.0]
    assert rows.loc["classifiers fitted"].tolist()[1:] == [153, 0]
    assert rows.loc["MiB of weights"].tolist()[1:] == [2.0, 1.0]
    resumed = report(probes_run(measured=False))[1]["probe_costs"].data
    assert np.isnan(resumed[["probes", "projection"]].iloc[-2]).all()


def test_no_cls_no_labels_and_several_runs(report):
    figures, _, _ = report(probes_run(class_token=False))
    assert "probes_cls" not in figures and "probes_image" in figures
    blind = probes_run(change={"label": np.full(9, -1, np.int32)})
    figures, tables, _ = report(blind)
    assert set(figures) == {"photos", "settling"}  # which need no label
    assert set(tables) == {"probe_costs", "predictions"}
    figures, tables, _ = report(probes_run(), probes_run(seed=4), fake_run())
    for key in ("probes_image", "probes_removal"):
        assert figures[key].data["run"].nunique() == 2
        assert "(probes (2))" in " ".join(figures[key].panels())
    assert len(tables["probe_costs"].data) == 2 * 9
    assert pytest.approx(0.2) == figures["probes_cls"].data["chance"].max()
