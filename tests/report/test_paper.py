"""Metrics of section 6 with loops, and the figures and tables made of them."""

import numpy as np
import pytest
from fake_runs import fake_run

import vitjax
from vitjax.report import paper, per_image
from vitjax.report.paper_metrics import composition_chance
from vitjax.report.per_image import Run, as_runs
from vitjax.statistics import sign_flip_test


def test_change_is_the_share_of_tokens_whose_logit_rises(paper_run):
    arrays = {name: array.values for name, array in paper_run.results.items()}
    embedding, residual = arrays["logit_embedding"], arrays["logit_residual"]
    mlp, middle = arrays["logit_mlp_update"], arrays["logit_middle"]
    before = np.stack([embedding, residual[:, 0]], axis=1)
    for compared, rises in (
        ("residual", residual > before),
        ("attention_update", arrays["logit_attention_update"] > before),
        ("mlp_update", mlp > middle),
        ("mlp_update_vilas2023", mlp > before),
    ):
        on_object = arrays["patch_label"][0] == 1
        for kind, hits in (
            ("cls", rises[0, :, :1]),
            ("image", rises[0, :, 1:]),
            ("object", rises[0, :, 1:][:, on_object]),
        ):
            value = paper_run.metric("change", compared=compared, tokens=kind)
            np.testing.assert_allclose(value[0], hits.mean(-1), atol=1e-6)


def test_gain_is_the_mean_difference_of_logits(paper_run):
    gain = paper_run.metric("gain", update="mlp_update", tokens="image")
    arrays = paper_run.results
    expected = (arrays["logit_mlp_update"] - arrays["logit_middle"]).values
    np.testing.assert_allclose(gain, expected[..., 1:].mean(-1), atol=1e-6)


def test_composition_is_that_of_the_public_function(paper_run):
    tops = {s: paper_run.results[f"first_{s}"].values for s in paper_run.streams}
    embedding = paper_run.results["first_embedding"].values[:, None]
    before = np.concatenate([embedding, tops["residual"][:, :-1]], axis=1)
    for key, convention in (("paper", "paper"), ("vilas2023", "vilas2023_code")):
        expected = vitjax.residual_composition(
            tops["residual"],
            before=before,
            attention=tops["attention_update"],
            mlp=tops["mlp_update"],
            convention=convention,
        )
        for category, hits in expected.items():
            share = paper_run.metric("composition", convention=key, category=category)
            np.testing.assert_allclose(share, np.asarray(hits).mean(-1), atol=1e-6)


def random_tops(images=3, depth=2, tokens=5, classes=4):
    """after, before, attention, mlp: every category occurs."""
    shape = (4, images, depth, tokens)
    return np.random.default_rng(0).integers(classes, size=shape, dtype=np.int32)


def split(tops):
    """What `composition_chance` takes."""
    return tops[0], dict(zip(("before", "attention", "mlp"), tops[1:]))


def test_chance_of_compositions_is_the_mean_over_pairs_of_tokens():
    tops = random_tops()
    expected = np.zeros((2, 5, 3, 2))
    for one, other in np.argwhere(~np.eye(5, dtype=bool)):
        after, before, attention, mlp = (tops[0][..., one], *tops[1:][..., other])
        sources = {"before": before, "attention": attention, "mlp": mlp}
        for place, convention in enumerate(("paper", "vilas2023_code")):
            hits = vitjax.residual_composition(after, **sources, convention=convention)
            expected[place] += np.stack([np.asarray(hit) / 20 for hit in hits.values()])
    chance = composition_chance(*split(tops))
    np.testing.assert_allclose(chance, expected.transpose(2, 0, 1, 3), atol=1e-6)
    np.testing.assert_allclose(chance[:, 0].sum(1), 1)


def test_chance_where_tokens_always_agree_never_do_and_where_there_is_one():
    one = np.ones((3, 2, 5), np.int32)
    assert (composition_chance(*split([one] * 4))[:, 0, 3] == 1).all()
    own = np.broadcast_to(np.arange(5, dtype=np.int32), one.shape)
    chance = composition_chance(*split([own] * 4))
    assert (chance[:, 0, 4] == 1).all() and (chance[:, 1, 0] == 0).all()
    assert np.isnan(composition_chance(*split(random_tops(tokens=1)))).all()


def test_interventions_compare_the_same_tokens(paper_run):
    results = paper_run.results
    before = results["rank_residual"].values[:, -1]
    after = results["rank_without_context"].values
    metrics = paper_run.paper.sel(intervention="without_context")
    for image in range(len(before)):
        tokens = [t for t in range(1, before.shape[1]) if after[image, t] >= 0]
        for ranks, name in ((before, "before"), (after, "after")):
            expected = np.mean([ranks[image, t] == 0 for t in tokens])
            assert metrics[name].values[image] == pytest.approx(expected)
    answers = results["prediction_without_context"].values
    correct = metrics["correct"].values
    np.testing.assert_array_equal(correct, answers == paper_run.label)


def test_agreement_of_all_tokens_and_of_the_pooled_one(paper_run):
    hits = paper_run.results["agreement_attention"].values
    pooled = paper_run.metric("agreement_pooled", system="attention")
    np.testing.assert_array_equal(pooled, hits[:, :, 0])
    mean = paper_run.metric("agreement", system="attention", convention="paper")
    np.testing.assert_allclose(mean, hits.mean(-1), atol=1e-6)
    gap = Run(fake_run("one_pass", class_token=False))
    hits = gap.results["agreement_mlp"].values.mean(-1)
    pooled = gap.metric("agreement_pooled", system="mlp")
    np.testing.assert_allclose(pooled, hits, atol=1e-6)


def test_windows_are_joined(paper_results, paper_run, monkeypatch):
    monkeypatch.setattr(per_image, "WINDOW_BYTES", 4 * 2 * 17 * 7)
    for name, array in Run(paper_results).paper.items():
        np.testing.assert_array_equal(array, paper_run.paper[name], name)


PAPER = tuple(paper.FIGURES)


@pytest.fixture(scope="module")
def made(report, paper_results):
    return report(paper_results)


def test_which_runs_have_which_figures(report, made):
    figures, tables, _ = made
    assert [key for key in figures if key in PAPER] == list(PAPER)
    assert set(tables) == {"summary", "edits", "tests"}
    figures, tables, _ = report(fake_run("one_pass"))
    assert set(PAPER) - set(figures) == {"heads"} and "edits" not in tables
    assert not set(report(fake_run())[0]) & set(PAPER)
    assert report(fake_run("paper", change={"valid": np.zeros(9, bool)}))[0] == {}


def test_means_are_those_of_the_rows(made, paper_results):
    figures, _, _ = made

    def means(key, panel, series, column="mean"):
        rows = figures[key].data.set_index(["panel", "series"]).sort_index()
        return rows.loc[(panel, series)][column].to_numpy()

    permuted = "attention, classes permuted"
    for key, panel, series, name in (
        ("agreement", "MLP", "published code", "agreement_vilas2023_mlp"),
        ("agreement", "attention", "paper, classes permuted", "chance_attention"),
        ("simple", "all tokens", "MLP", "simple_mlp"),
        ("simple", "all tokens", permuted, "chance_simple_attention"),
    ):
        array = paper_results[name].values
        expected = array.mean((0, 2) if array.ndim == 3 else 0)
        assert means(key, panel, series) == pytest.approx(expected, abs=1e-6)
    values = paper_results["class_value_attention_shuffled"].values
    line = means("class_value", "attention", "value vectors shuffled")
    assert line == pytest.approx(values.mean(-1), abs=1e-6)
    for panel, name, chance in (
        ("key-value agreement, each head", "agreement_head", "chance_head"),
        ("answer of one memory, each head", "simple_head", "chance_simple_head"),
    ):
        level = paper_results[chance].values.mean((0, 2))
        for head in range(2):
            expected = paper_results[name].values[..., head].mean(0)
            series = f"head {head}"
            assert means("heads", panel, series) == pytest.approx(expected, abs=1e-6)
            assert means("heads", panel, series, "chance") == pytest.approx(level)


def test_exclusive_bars_and_their_chance_add_to_one(made):
    rows = made[0]["composition"].data.groupby("layer")[["mean", "chance"]].sum()
    np.testing.assert_allclose(rows, 1, atol=1e-6)
    rows = made[0]["composition_published"].data.groupby("layer")["mean"].sum()
    assert (rows >= 1 - 1e-6).all()


def test_interventions_in_rows(made, paper_run):
    _, tables, _ = made
    rows = tables["edits"].data.set_index("intervention")
    for name, row in rows.iterrows():
        one = {n: paper_run.metric(n, intervention=name) for n in ("before", "after")}
        exists = np.isfinite(one["after"])
        change = one["after"] - one["before"]
        correct = paper_run.metric("correct", intervention=name)[exists]
        assert row["images"] == exists.sum()
        assert row["before"] == pytest.approx(one["before"][exists].mean())
        assert row["change"] == pytest.approx(change[exists].mean())
        assert row["low"] <= row["change"] <= row["high"]
        assert row["accuracy_after"] == pytest.approx(correct.mean())
        p = sign_flip_test(change[:, None], alternative="two-sided")
        assert row["p"] == pytest.approx(p[0])
    order = [
        name for name in rows.index if name in ("without_context", "without_class")
    ]
    assert list(rows.index[[-4, -2]]) == order
    assert list(rows.index[[-3, -1]]) == ["random_as_class", "random_as_context"]


VILAS = "imagenet_s919/validation:4550 files,5 per class by seed 0,abc"
PREPARED = "tfds/imagenet_s/paper/1.0.0:validation,4550 records"


@pytest.mark.parametrize(
    "name, data, other, numbers",
    [
        ("vit_test", VILAS, {}, 0),
        ("vit_b32", "folder", {}, 0),
        ("vit_b32", VILAS, {}, 9),
        ("vit_b32", PREPARED, {}, 9),
        ("vit_b32", VILAS, {"limit": 10}, 0),
        ("vit_b32", VILAS, {"random": True}, 2),
    ],
)
def test_published_numbers_only_where_model_and_data_are_the_papers(
    name, data, other, numbers
):
    sha = None if other.pop("random", False) else "abc"
    manifest = {"model": {"name": name, "sha256": sha}, "data": {"id": data}, **other}

    def made(**options):
        runs = as_runs(fake_run("paper", masks=True, manifest=manifest, **options))
        edits = {run.name: paper.edit_rows(run) for run in runs}
        return {table.key: table for table in paper.published_tables(runs, edits)}

    tables = made()
    assert ("published" in tables) == bool(numbers)
    if numbers:
        rows = tables["published"].data.set_index("quantity")
        assert len(rows) == numbers
        rate = rows.loc["image tokens that are identifiable, last block"]
        (run,) = as_runs(fake_run("paper", masks=True))
        assert rate["here"] == run.curve("image", "rate")[:, -1].mean()
        assert rate["published"] == (0.60726 if sha else 0.000664)
    assert not made(change={"done": np.arange(9) < 3})


def test_several_runs_stand_side_by_side(report, paper_results):
    figures, tables, _ = report(paper_results, fake_run("paper", depth=2))
    titles = list(figures["change"].panels())
    assert len(titles) == 8 and titles[0].endswith(" (vit_test (1))")
    assert tables["edits"].data["run"].nunique() == 2
