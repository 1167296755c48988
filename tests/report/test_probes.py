"""Probes against projection, and what both cost."""

import numpy as np
import pytest
from fake_runs import KEPT, MEASURED, STUDY, fake_run


def probes_run(*, measured=True, **options):
    manifest = {"study": STUDY, "measured": MEASURED if measured else {}}
    return fake_run("probes", manifest=manifest, **options)


def test_accuracy_is_the_share_of_tokens_of_rank_0(report):
    results = probes_run(change={"valid": np.arange(9) != 4})
    figures, _, _ = report(results)
    for kind, tokens in (("image", slice(1, None)), ("cls", slice(0, 1))):
        rows = figures[f"probes_{kind}"].data.set_index(["panel", "series"])
        rows = rows.sort_index()
        assert len(rows) == 3 * 2 * 3
        for panel, stream in (
            ("block output", "residual"),
            ("MLP update", "mlp_update"),
        ):
            for reader, start in (
                ("linear probe", "rank_probe_"),
                ("class projection", "rank_"),
            ):
                ranks = np.delete(results[start + stream].values, 4, 0)[..., tokens]
                own = rows.loc[(panel, reader)]
                expected = (ranks == 0).mean((0, 2))
                np.testing.assert_allclose(own["mean"], expected)
                assert (own["images"] == 8).all() and (own["chance"] == 0.2).all()


def test_removal_starts_with_all_tokens_and_ends_with_few(report):
    results = probes_run()
    right = (results["prediction"] == results["label"]).values.mean()
    figure = report(results)[0]["probes_removal"]
    for (_, rows), order in zip(figure.panels().items(), ("negative", "positive")):
        lines = figure.series(rows)
        names = (
            f"correct_{order}_probe",
            f"correct_{order}_gradient",
            "correct_random",
        )
        for line, name in zip(lines.values(), names, strict=True):
            expected = [right, *results[name].values.mean(0)[::-1]]
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
    assert figures == {} and set(tables) == {"probe_costs"}
    figures, tables, _ = report(probes_run(), probes_run(seed=4), fake_run())
    for key in ("probes_image", "probes_removal"):
        assert figures[key].data["run"].nunique() == 2
        assert "(vit_test (2))" in " ".join(figures[key].panels())
    assert len(tables["probe_costs"].data) == 2 * 9
    assert pytest.approx(0.2) == figures["probes_cls"].data["chance"].max()
