"""Refinement modules' answers over blocks."""

import numpy as np
import pytest

from vitjax.report import sections
from vitjax.report.document import write_report
from vitjax.report.figures import png
from vitjax.report.per_image import digest
from vitjax.report.refinement import refinement


def refined_run(make_run, *, depth=3, valid=True):
    """A run with the rows of refinement modules, and those ranks."""
    draw = np.random.default_rng(3)
    ranks = draw.integers(5, size=(9, depth - 1), dtype=np.int32)
    run = make_run(
        fields={"depth": depth, "refinement": True},
        more={"rank_refined": (("image", "refined"), ranks)},
        change={"valid": np.broadcast_to(valid, 9).copy()},
    )
    return run, ranks


def test_curves_are_means_over_the_used_images(make_run):
    valid = np.arange(9) != 4
    run, ranks = refined_run(make_run, valid=valid)
    data = digest(run)
    score, rate = refinement(run, data)
    assert (score.key, rate.key) == ("refined", "refined_rate")
    for figure, expected, chance in (
        (score, 1 - ranks[valid] / 5, 0.6),
        (rate, ranks[valid] == 0, 0.2),
    ):
        rows = sections.curve_rows(figure, run="a")
        found = [row["mean"] for row in rows if row["series"] == "refinement module"]
        np.testing.assert_allclose(found, expected.mean(0), atol=1e-6)
        projected = [row["mean"] for row in rows if "projected" in row["series"]]
        theirs = data.of("residual", figure.measure, "cls").mean(0)
        np.testing.assert_allclose(projected, theirs, rtol=1e-6)
        (panel,) = sections.panels(figure, rows)
        assert panel.chance == (pytest.approx(chance),) and panel.depth == 3
        assert png([panel], dpi=30)[1:4] == b"PNG"


def test_the_page_holds_them(make_run, tmp_path):
    run, _ = refined_run(make_run)
    page = write_report([run], tmp_path / "out").read_text()
    assert "What the refinement modules answer" in page
    assert (tmp_path / "out/figures/refined_rate.csv").exists()


def test_other_runs_have_none(masked_run, make_run):
    assert refinement(masked_run, digest(masked_run)) == []
    one, _ = refined_run(make_run, depth=2, valid=False)
    assert refinement(one, digest(one)) == []
