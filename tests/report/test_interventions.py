"""Sections of ablation, activation patching and edited memories, from made-up rows."""

import numpy as np
import pytest
from fake_runs import fake_run
from matplotlib.figure import Figure as Canvas

from vitjax.recipes import schema
from vitjax.report import page
from vitjax.report.per_image import as_runs
from vitjax.statistics import bootstrap_mean

EFFECTS = np.random.default_rng(1).normal(size=(9, 3, 2)).astype(np.float32)
EFFECTS[:, 0, 0] += 3
CHANGE = {schema.EFFECT(kind, "head"): EFFECTS for kind in schema.ABLATIONS}


@pytest.fixture(scope="module")
def ablated(report):
    run = fake_run("ablation", change=CHANGE)
    return run, *report(run)[:2]


def test_a_grid_has_a_cell_for_every_head_by_size_and_sign(ablated):
    run, figures, _ = ablated
    figure = figures["ablation_heads"]
    rows = next(iter(figure.panels().values()))
    effect = run["effect_zero_head"].values
    expected = bootstrap_mean(effect)
    for _, row in rows.iterrows():
        place = int(row["layer"]), int(row["head"])
        assert row["mean"] == pytest.approx(expected.mean[place])
        assert row["low"] == pytest.approx(expected.low[place])
        assert (row["style"] == 1) == (row["mean"] < 0)
    axes = Canvas().subplots()
    handles = figure._draw(axes, rows)
    assert set(handles) == {"the logit falls", "the logit rises"}
    (cells,) = axes.collections
    colors = cells.to_rgba(cells.get_array()).reshape(*expected.mean.shape, 4)
    sizes = np.abs(expected.mean) / np.abs(expected.mean).max()
    np.testing.assert_allclose(colors[..., 3], sizes, atol=0.05)  # in 24 steps
    falls = colors[..., 2] > colors[..., 0]  # blue
    np.testing.assert_array_equal(falls, expected.mean >= 0)
    sure = ((expected.low > 0) | (expected.high < 0)).sum()
    assert sum(len(line.get_xdata()) for line in axes.lines) == sure > 0
    (bar,) = axes.child_axes
    ticks = [float(text.get_text().replace("−", "-")) for text in bar.get_yticklabels()]
    largest = np.abs(expected.mean).max()
    assert ticks == pytest.approx([-largest, 0, largest], rel=0.05)
    assert axes.get_ylim() == (2.5, -0.5) and axes.get_xlim() == (-0.5, 1.5)
    assert "var(--series-" in figure.svg() and figure.png(dpi=20)[1:4] == b"PNG"


def test_parts_are_compared_with_the_whole_model(ablated):
    run, _, tables = ablated
    rows = tables["ablation"].data
    assert len(rows) == 2 * (6 + 2 * 3) and len(tables["ablation"].shown) == 2 * 12
    one = rows.query("ablation == 'mean' and part == 'mlp' and layer == 2").iloc[0]
    label, before = run["label"].values, run["prediction"].values
    after = run["prediction_mean_mlp"].values[:, 2]
    change = (after == label).mean() - (before == label).mean()
    assert one["accuracy"] == pytest.approx(change)
    assert one["effect_low"] <= one["effect"] <= one["effect_high"]
    assert np.isnan(one["head"]) and one["images"] == 9


def test_random_heads_are_the_control(ablated):
    run, figures, tables = ablated
    top, random = run["correct_top_zero"].values, run["correct_random_zero"].values
    rows = tables["ablation_sets"].data.set_index(["ablation", "heads"])
    row = rows.loc["zero", 2]
    assert row["top"] == pytest.approx(top[:, 1].mean())
    assert row["random"] == pytest.approx(random[:, :, 1].mean())
    assert row["difference"] == pytest.approx(row["random"] - row["top"])
    assert row["lowest_draw"] == pytest.approx(random[:, :, 1].mean(0).min())
    curves = figures["ablation_sets"].data
    assert curves["heads"].unique().tolist() == [0, 1, 2]
    assert curves["x"].max() == pytest.approx(2 / 6)


def test_patching_is_a_share_of_the_mean_gap(report):
    clean = np.array([2.0, 4.0, 1.0, np.nan, 5, 5, 5, 5, 5], np.float32)
    corrupted = np.array([1.0, 1.0, 1.0, np.nan, 2, 2, 2, 2, 2], np.float32)
    head = np.full((9, 3, 2), 0.5, np.float32)
    head[2:4] = np.nan  # no gap, no partner
    head[0] = 1.0
    change = {"metric_clean": clean, "metric_corrupted": corrupted}
    run = fake_run("patching", change={**change, "restored_head": head})
    figures, tables, _ = report(run)
    rows = figures["patching_heads"].data
    gaps = np.array([1, 3, 3, 3, 3, 3, 3])
    expected = (np.array([1, *[0.5] * 6]) * gaps).sum() / gaps.sum()
    np.testing.assert_allclose(rows["mean"], expected)
    assert (rows["images"] == 7).all() and not tables
    assert figures["patching_residual"].data["group"].max() == 4


def test_every_image_has_its_own_pictures(report, ablated):
    run, figures, _ = ablated
    figure = figures["ablation_images"]
    assert [len(row) for row in figure.rows] == [3, 3]  # photo, two kinds of ablation
    assert not [name for name in figures if name == "maps"]
    rows = figure.data.query("image == 1 and ablation == 'mean' and layer == 2")
    np.testing.assert_array_equal(rows["effect"], EFFECTS[1, 2])
    patched = fake_run("patching", change={"token_group": np.arange(17.0) // 4})
    figure = report(patched)[0]["patching_images"]
    values = patched["restored_residual"][0, 1].values
    rows = figure.data.query("image == 0 and layer == 1")
    np.testing.assert_array_equal(rows["restored"], values[np.arange(1, 17) // 4])
    unknown = fake_run("patching", change={"token_group": np.full(17, -1.0)})
    assert [len(row) for row in report(unknown)[0]["patching_images"].rows] == [2]


def test_images_count_alike_and_random_memories_are_the_control(report):
    run = fake_run("editing", images=40)
    figures, tables, sentences = report(run)
    role, correct = run["edited_role"].values, run["edited_correct_random_zero"].values
    mine = [i for i in range(40) if (role[i] == 1).any()]
    values = [correct[i, role[i] == 1, 1].mean() for i in mine]
    rows = tables["editing"].data.set_index(["edit", "images_of", "memories"])
    row = rows.loc["zero", "its confusions", 5]
    assert row["images"] == len(mine) > 20
    assert row["random_accuracy"] == pytest.approx(np.mean(values))
    difference = row["accuracy"] - row["random_accuracy"]
    assert row["accuracy_difference"] == pytest.approx(difference)
    before = (run["prediction"].values == run["label"].values)[mine].mean()
    assert row["before"] == pytest.approx(before)
    lines = figures["editing"].data
    assert len(figures["editing"].panels()) == 4 * 3
    assert lines["memories"].unique().tolist() == [0, 1, 5]
    own = lines.query("panel == 'its confusions, set to zero' and style == 1")
    assert own["mean"].tolist()[::2] == pytest.approx([before, np.mean(values)])
    assert len(sentences) == 4 and f"n = {len(mine)}" in sentences[0]


def test_a_page_asks_what_its_runs_are_about():
    runs = as_runs([fake_run("ablation"), fake_run("patching"), fake_run()], "abc")
    alone, beside = (page.render_page(each, (), {}) for each in (runs[:2], runs[::-1]))
    assert "<h1>Ablation and Activation patching" in alone
    assert "class identifiability = " not in alone
    assert "<h1>Class identifiability" in beside
    assert "class identifiability = " in beside
