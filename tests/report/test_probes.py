"""Figures of probes, checked with loops over rows made by hand."""

import csv

import numpy as np
import pytest

from vitjax.report import probes

IMAGES, LAYERS, PATCHES = 9, 3, 16
COUNTS = [1, 8, 15]
TOLD = {
    "probes": 153,
    "groups": 4,
    "memory": 1000,
    "train": {"id": "x", "images": 50, "skipped": []},
    "shared_images": 0,
    "bytes": {"states": 1, "sums": 2, "weights": 2**21, "class_embedding": 2**20},
    "seconds": {"fit": 8.0, "solve": 2.0, "test": 4.0, "projection": 1.0},
    "projected": True,
}


@pytest.fixture
def make_probes(make_run):
    """make_probes(...) -> a run with probes of two streams."""

    def make(*, tokens=17, seed=3, told=None, **options):
        draw = np.random.default_rng(seed)
        shape = (IMAGES, LAYERS, tokens)
        more = {
            f"rank_probe_{name}": (
                ("image", "layer", "token"),
                draw.integers(3, size=shape).astype(np.int32),
            )
            for name in ("residual", "mlp_update")
        }
        names = [f"{o}_{i}" for o in probes.ORDERS for i in probes.IMPORTANCES]
        for name in (*names, "random"):
            right = draw.random((IMAGES, len(COUNTS))) < 0.5
            more[f"correct_{name}"] = (("image", "step"), right)
        manifest = {
            "recipe": "probes",
            "recipe_options": {"keep_counts": COUNTS},
            "probes": TOLD | (told or {}),
        }
        return make_run(images=IMAGES, more=more, manifest=manifest, **options)

    return make


def test_which_runs_have_probes(make_probes, make_run):
    assert probes.is_probes(make_probes())
    plain = make_run()
    assert not probes.is_probes(plain)
    assert probes.draw(None, ["plain"], [plain]) is None


def test_top1_is_the_share_of_first_ranks(make_probes):
    valid = np.arange(IMAGES) != 4
    run = make_probes(change={"valid": valid})
    image, cls, _ = probes.figures([("a", run)])
    assert (image.key, cls.key) == ("probes_image", "probes_cls")
    assert [panel.title for panel in image.panels] == ["block output", "MLP update"]
    for figure, tokens in ((image, slice(1, None)), (cls, slice(0, 1))):
        for panel, stream in zip(figure.panels, ("residual", "mlp_update")):
            for series, start in zip(panel.series, ("rank_probe_", "rank_")):
                ranks = run[f"{start}{stream}"][:]
                for row in series.rows:
                    here = ranks[:, row["layer"], tokens]
                    shares = [(one == 0).mean() for i, one in enumerate(here) if i != 4]
                    assert row["mean"] == pytest.approx(np.mean(shares))
                    assert row["low"] <= row["mean"] <= row["high"]
                    assert (row["images"], row["chance"]) == (8, 0.2)


def test_removal_starts_with_all_tokens_and_ends_with_few(make_probes):
    run = make_probes()
    *_, figure = probes.figures([("a", run)])
    negative, positive = figure.panels
    whole = (run["prediction"][:] == run["label"][:]).mean()
    assert [series.name for series in negative.series][-1] == probes.RANDOM
    for panel, order in ((negative, "negative"), (positive, "positive")):
        for series, name in zip(panel.series, ("probe", "gradient", None)):
            array = f"correct_{order}_{name}" if name else "correct_random"
            expected = [whole, *run[array][:].mean(0)[::-1]]
            assert series.column("mean") == pytest.approx(expected)
            assert panel.x(series) == pytest.approx([0, 1 / 16, 0.5, 15 / 16])
            assert panel.chance == ()
            assert [panel.tick(i) for i in (0, 3)] == ["16 kept", "1 kept"]


def test_costs_stand_side_by_side(make_probes):
    rows = probes.cost_table(make_probes(), name="a")
    table = {row["quantity"]: (row["probes"], row["projection"]) for row in rows}
    assert table["seconds in all"] == (14.0, 1.0)
    assert table["classifiers fitted"] == (153, 0)
    assert table["MiB of weights"] == (2.0, 1.0)
    unfinished = make_probes(told={"projected": False})
    rows = probes.cost_table(unfinished, name="a")
    assert np.isnan(rows[-2]["projection"])


def test_no_cls_and_no_labels(make_probes):
    gap = make_probes(tokens=16, fields={"class_token": False})
    assert [f.key for f in probes.figures([("a", gap)])] == [
        *("probes_image", "probes_removal")
    ]
    blind = make_probes(change={"label": np.full(IMAGES, -1, np.int32)})
    assert probes.figures([("a", blind)]) == []


def test_two_runs_stand_side_by_side(make_probes):
    runs = [("a", make_probes()), ("b", make_probes(seed=4))]
    image, _, removal = probes.figures(runs)
    names = {panel.title for panel in image.panels}
    assert {"block output (a)", "block output (b)"} < names
    assert {panel.stream for panel in removal.panels} == {"a", "b"}
    for figure in (image, removal):
        assert len(figure.panels) == 4
        assert {row["run"] for row in figure.rows} == {"a", "b"}


def test_files(make_probes, make_run, tmp_path):
    drawn = probes.draw(tmp_path, ["a", "plain"], [make_probes(), make_run()])
    keys = ["probes_image", "probes_cls", "probes_removal"]
    assert [figure["key"] for figure in drawn["figures"]] == keys
    for key in keys:
        assert (tmp_path / f"{key}.png").read_bytes().startswith(b"\x89PNG")
        with (tmp_path / f"{key}.csv").open(newline="") as file:
            assert {row["run"] for row in csv.DictReader(file)} == {"a"}
    assert "share of image tokens removed" in drawn["figures"][2]["drawings"][0]
    with (tmp_path / "probe_costs.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(drawn["costs"]["rows"])
    assert {row["run"] for row in table} == {"a"}
