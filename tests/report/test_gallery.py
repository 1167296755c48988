"""One list of figures for the page and for notebooks."""

import numpy as np
import pytest

from vitjax.report import document, gallery


def keys(*runs):
    names = [f"run {number}" for number in range(len(runs))]
    return [one.key for one in gallery.drawings(gallery.reduced(names, runs))]


def test_figures_of_the_plain_recipe(masked_run):
    found = keys(masked_run)
    assert found[:3] == ["identifiability", "updates", "rate"]
    assert {"identifiability_boxes", "context_boxes"} <= set(found)
    assert "change" not in found
    assert len(found) == len(set(found))


def test_figures_are_those_of_the_page(masked_run, tmp_path):
    document.write_report([masked_run], tmp_path)
    written = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert set(keys(masked_run)) == written - {"maps"}


def test_every_drawing_has_axes_numbers_and_words(paper_run):
    found = gallery.drawings(gallery.reduced(["a"], [paper_run]))
    shown = {one.key for one in found}
    assert {"change", "composition", "class_value", "agreement"} <= shown
    for one in found:
        assert one.panels and one.rows and one.title and one.caption
        assert len({tuple(row) for row in one.rows}) == 1, one.key
        assert {row["run"] for row in one.rows} == {"a"}


def test_several_runs_share_their_figures(make_run):
    both = [make_run(seed=1), make_run(seed=2)]
    read = gallery.reduced(["a", "b"], both)
    first = next(gallery.of_curves(rows_of(read)))
    assert {row["run"] for row in first.rows} == {"a", "b"}
    assert keys(*both).count("identifiability_boxes") == 1


def rows_of(read):
    pairs = zip(read.names, read.digests)
    return [row for n, d in pairs for row in gallery.curve_table(d, run=n)]


def test_a_run_without_ranks_is_an_error(make_run):
    run = make_run()
    del run.manifest["arrays"]["rank_residual"]
    with pytest.raises(ValueError, match="identifiability"):
        gallery.reduced(["a"], [run])


def test_nothing_usable_is_no_error(make_run):
    run = make_run(change={"valid": np.zeros(9, bool)})
    assert not {"maps", "identifiability_boxes", "change"} & set(keys(run))
