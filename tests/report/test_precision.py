"""The tables of what a precision changes, against numbers from hand-made rows."""

import csv

import numpy as np
import pytest

from vitjax.report import boxes, document, precision
from vitjax.report.per_image import STREAMS

IMAGES, LAYERS, CLASSES = 9, 3, 5
METHODS = ("chefer", "lrp")
SPEEDS = {"forward": {"fine": 100.0, "coarse": 212.0}}


def rows_of(images, kinds, draw):  # noqa: C901 (a list of arrays)
    """What a run of the recipe leaves, of agreements by chance."""
    layer, kind = ("image", "layer", "kind"), (images, LAYERS, kinds)

    def share(*shape):
        return draw.random(shape).astype(np.float32)

    def signed(*shape):
        return (0.1 * draw.standard_normal(shape)).astype(np.float32)

    rows = {}
    for name in (*STREAMS, *precision.EDITS):
        edit = name in precision.EDITS
        axes, shape = (("image", "kind"), kind[::2]) if edit else (layer, kind)
        for key in ("same_rank", "near_rank", "distance"):
            rows[f"{key}_{name}"] = (axes, share(*shape))
        rows[f"shift_{name}"] = (axes, signed(*shape))
    for stream in STREAMS:
        rows[f"same_first_{stream}"] = (layer, share(*kind))
    for name in precision.CHANGES:
        rows[f"same_change_{name}"] = (layer, share(*kind))
        rows[f"shift_change_{name}"] = (layer, signed(*kind))
    plain = layer[:2]
    rows["same_composition"] = (plain, share(images, LAYERS))
    axes = (*plain, "category")
    rows["shift_composition"] = (axes, signed(images, LAYERS, 5))
    for name in precision.MEMORIES:
        for system in precision.SYSTEMS:
            rows[f"same_{name}_{system}"] = (plain, share(images, LAYERS))
            rows[f"shift_{name}_{system}"] = (plain, signed(images, LAYERS))
    for order in precision.ORDERS:
        rows[f"same_removal_{order}"] = (("image", "step"), share(images, 2) < 0.9)
        rows[f"shift_removal_{order}"] = (("image",), signed(images))
    for name in ("same_prediction", *(f"same_prediction_{e}" for e in precision.EDITS)):
        rows[name] = (("image",), share(images) < 0.8)
    rows["distance_logits"] = (("image",), share(images))
    for method in METHODS:
        for key in precision.MAPS:
            rows[f"{key}_{method}"] = (("image",), share(images))
    for system in precision.SYSTEMS:
        values = signed(LAYERS, CLASSES)
        rows[f"shift_class_value_{system}"] = (("layer", "class"), values)
    return rows


@pytest.fixture
def make_compared(make_run):
    """make_compared(...) -> a run of the recipe `precision`."""

    def make(*, images=IMAGES, kinds=2, seed=0, told=None, more=None, **other):
        rows = rows_of(images, kinds, np.random.default_rng(seed)) | (more or {})
        manifest = {
            "recipe": "precision",
            "recipe_options": {"methods": list(METHODS), "against": "bfloat16"},
            "measured": {"images_per_second": SPEEDS},
        }
        return make_run(
            images=images, more=rows, manifest=manifest | (told or {}), **other
        )

    return make


def find(run, analysis, tokens="", what=None):
    """The line of the table."""
    lines = [
        line
        for line in precision.table(run, name="a")
        if (line["analysis"], line["tokens"]) == (analysis, tokens)
        and (what is None or (line["agreement"] or {}).get("what") == what)
    ]
    assert len(lines) == 1
    return lines[0]


def test_ranks_by_kind_of_tokens(make_compared):
    run = make_compared()
    for place, tokens in enumerate(("[CLS]", "image tokens")):
        line = find(run, "projection: MLP update", tokens, "equal rank")
        shares = run["same_rank_mlp_update"][:][..., place]
        assert line["agreement"]["value"] == pytest.approx(shares.mean())
        means = shares.mean(0)
        assert line["agreement"]["least"] == pytest.approx(means.min())
        assert line["agreement"]["block"] == means.argmin() + 1
        moved = run["shift_mlp_update"][:][..., place]
        cell = line["difference"]
        assert cell["value"] == pytest.approx(moved.mean(), abs=1e-7)
        assert cell["low"] < cell["value"] < cell["high"]
        near = find(run, "projection: MLP update", tokens, "within 1 % of the classes")
        apart = run["distance_mlp_update"][:][..., place].mean()
        assert near["difference"]["value"] == pytest.approx(apart)


def test_every_analysis_has_lines(make_compared):
    table = precision.table(make_compared(), name="a")
    found = {line["analysis"].split(":")[0] for line in table}
    assert found == {
        *("class logits", "projection", "class similarity change"),
        *("residual composition", "key-value agreement"),
        *("key-value agreement, published", "compositionality", "intervention"),
        *("removal", "class-value agreement"),
    }


def test_other_lines_by_hand(make_compared):
    run = make_compared()
    line = find(run, "residual composition")
    moved = run["shift_composition"][:][..., precision.NEW]
    assert line["difference"]["value"] == pytest.approx(moved.mean(), abs=1e-7)
    line = find(run, "class-value agreement: MLP")
    moved = np.abs(run["shift_class_value_mlp"][:]).mean()
    assert line["difference"]["value"] == pytest.approx(moved)
    removal = f"removal: {precision.ORDERS['negative']}"
    line = find(run, removal, what="equal answers")
    shares = run["same_removal_negative"][:]
    assert line["agreement"]["value"] == pytest.approx(shares.mean())
    assert line["agreement"]["block"] is None  # steps are no blocks


def test_only_images_that_have_an_answer_count(make_compared):
    label = np.arange(IMAGES, dtype=np.int32) % CLASSES
    label[6] = -1
    valid = np.arange(IMAGES) != 3
    run = make_compared(change={"valid": valid, "label": label})
    ranks = np.delete(run["same_rank_residual"][:][..., 1], [3, 6], axis=0)
    line = find(run, "projection: block output", "image tokens", "equal rank")
    assert line["agreement"]["value"] == pytest.approx(ranks.mean())
    answers = np.delete(run["same_prediction"][:], 3)  # needs no label
    line = find(run, "class logits")
    assert line["agreement"]["value"] == pytest.approx(answers.mean())


def test_maps_that_have_no_correlation(make_compared):
    undefined = np.full(IMAGES, np.nan, np.float32)
    some = np.linspace(0, 1, IMAGES, dtype=np.float32)
    some[2] = np.nan
    more = {
        "spearman_lrp": (("image",), undefined),
        "pearson_lrp": (("image",), some),
    }
    chefer, lrp = precision.map_table(make_compared(more=more), name="a")
    assert lrp["spearman"] is None
    assert lrp["pearson"]["value"] == pytest.approx(np.nanmean(some))
    rows = precision.map_rows([chefer, lrp])
    assert [r["tick"] for r in rows if r["measure"] == "spearman"] == ["chefer"]


def test_panels_of_kinds_and_of_maps(make_compared):
    run = make_compared()
    drawn = precision.panels(precision.rank_rows(run, name="a"))
    assert len(drawn) == 4  # two kinds, equal and near
    assert all(len(panel.series) == 3 and panel.depth == LAYERS for panel in drawn)
    maps = precision.panels(precision.map_rows(precision.map_table(run, name="a")))
    assert [panel.title for panel in maps] == list(precision.MAPS.values())
    assert [maps[0].tick(place) for place in range(2)] == list(METHODS)


def test_bars_reach_from_the_lowest_value_to_room_for_numbers(make_compared):
    from matplotlib.figure import Figure

    more = {"spearman_lrp": (("image",), np.full(IMAGES, -0.5, np.float32))}
    table = precision.map_table(make_compared(more=more), name="a")
    panel = precision.panels(precision.map_rows(table))[0]
    axes = Figure().add_subplot()
    boxes.named(axes, panel, panel.series[0], [])
    boxes.name_axes(axes, panel, "agreement")
    low, high = axes.get_xlim()
    assert low < -0.5 and high > 1.1
    texts = [text.get_text() for text in axes.texts]
    assert texts[0] == "chefer" and texts[3] == "-0.5000"


def test_files(make_compared, make_run, tmp_path):
    drawn = precision.draw(tmp_path, ["a", "b"], [make_compared(), make_run()])
    for figure in drawn["figures"]:
        assert (tmp_path / f"{figure['key']}.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "precision.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["analysis"] for row in rows} >= {"maps: lrp", "class logits"}
    assert all(0 <= float(r["value"]) <= 1 for r in rows if r["measure"] == "agreement")
    assert drawn["speeds"] == [{"run": "a", "program": "forward", **SPEEDS["forward"]}]
    assert precision.draw(tmp_path, ["b"], [make_run()]) is None


@pytest.mark.parametrize("case", ("whole", "no labels"))
def test_pages(make_compared, tmp_path, case):
    change = {"label": np.full(IMAGES, -1, np.int32)} if case == "no labels" else None
    told = {"finished": None, "measured": None} if case == "no labels" else None
    run = make_compared(change=change, told=told, pictures=0)
    page = document.write_report([run], tmp_path / "out").read_text("utf-8")
    assert "What bfloat16 changes" in page and "Precision: explanation maps" in page
    assert ("Precision: ranks of the true class" in page) == (case == "whole")
    assert ('<td class="n">212</td>' in page) == (case == "whole")


@pytest.mark.slow
def test_one_image_of_a_model_without_cls(make_compared, tmp_path):
    run = make_compared(images=1, kinds=1, fields={"class_token": False}, pictures=0)
    page = document.write_report([run], tmp_path / "out").read_text("utf-8")
    assert "What bfloat16 changes" in page
    assert "[CLS]</td><td>equal rank" not in page
