"""Metrics of section 6 with loops; figures, tables, distributions and tests of them."""

import numpy as np
import pytest
from fake_runs import fake_run

import vitjax
from vitjax.report import appendix, paper, per_image
from vitjax.report.figure import rows_of_all
from vitjax.report.per_image import Run, as_runs, composition
from vitjax.statistics import (
    benjamini_hochberg,
    holm,
    sign_flip_test,
    vilas2023_accuracy_test,
    wilcoxon_test,
)


def test_change_and_gain_are_those_of_logits(paper_run):
    arrays = {name: array.values for name, array in paper_run.results.items()}
    embedding, residual = arrays["logit_embedding"], arrays["logit_residual"]
    mlp, middle = arrays["logit_mlp_update"], arrays["logit_middle"]
    before = np.stack([embedding, residual[:, 0]], axis=1)
    on_object = arrays["patch_label"][0] == 1
    for compared, change in (
        ("residual", residual - before),
        ("attention_update", arrays["logit_attention_update"] - before),
        ("mlp_update", mlp - middle),
        ("mlp_update_vilas2023", mlp - before),
    ):
        for kind, own in (
            ("cls", change[0, :, :1]),
            ("image", change[0, :, 1:]),
            ("object", change[0, :, 1:][:, on_object]),
        ):
            rises = paper_run.paper["change", kind, compared][0]
            np.testing.assert_allclose(rises, (own > 0).mean(-1), atol=1e-6)
            gain = paper_run.paper["gain", kind, compared][0]
            np.testing.assert_allclose(gain, own.mean(-1), atol=1e-6)


def test_compositions_and_their_chance_are_those_of_the_public_function(paper_run):
    tops = {s: paper_run.results[f"first_{s}"].values for s in paper_run.streams}
    embedding, after = paper_run.results["first_embedding"].values, tops["residual"]
    before = np.concatenate([embedding[:, None], after[:, :-1]], axis=1)
    sources = {"before": before, "attention": tops["attention_update"]}
    sources |= {"mlp": tops["mlp_update"]}
    one, other = np.argwhere(~np.eye(17, dtype=bool)).T  # all pairs of tokens
    shuffled = {name: own[..., other] for name, own in sources.items()}
    for metric, tokens, of in (
        ("composition", after, sources),
        ("composition_chance", after[..., one], shuffled),
    ):
        for key, convention in (("paper", "paper"), ("vilas2023", "vilas2023_code")):
            hits = vitjax.residual_composition(tokens, **of, convention=convention)
            for category, own in hits.items():
                shares = paper_run.paper[metric, key, category]
                np.testing.assert_allclose(shares, np.mean(own, axis=-1), atol=1e-6)


def test_chance_where_tokens_always_agree_never_do_and_where_there_is_one():
    def chance(tops):
        return composition(tops, dict.fromkeys(("before", "attention", "mlp"), tops))

    name, one = "composition_chance", np.ones((3, 2, 5), np.int32)
    assert (chance(one)[name, "paper", "several"] == 1).all()
    never = chance(np.broadcast_to(np.arange(5, dtype=np.int32), one.shape))
    assert (never[name, "paper", "composed"] == 1).all()
    assert (never[name, "vilas2023", "previous"] == 0).all()
    assert np.isnan(chance(one[..., :1])[name, "paper", "several"]).all()


def test_interventions_compare_the_same_tokens(paper_run):
    results = paper_run.results
    before = results["rank_residual"].values[:, -1, 1:]
    after = results["rank_without_context"].values[:, 1:]
    for ranks, name in ((before, "before"), (after, "after")):
        rates = np.ma.array(ranks == 0, mask=after < 0).mean(-1).filled(np.nan)
        np.testing.assert_allclose(paper_run.paper[name, "without_context"], rates)
    answers = results["prediction_without_context"].values
    correct = paper_run.paper["correct", "without_context"]
    np.testing.assert_array_equal(correct, answers == paper_run.label)


def test_agreement_of_all_tokens_and_of_the_pooled_one(paper_run):
    hits = paper_run.results["agreement_attention"].values
    pooled = paper_run.paper["agreement_pooled", "attention"]
    np.testing.assert_array_equal(pooled, hits[:, :, 0])
    mean = paper_run.paper["agreement", "paper", "attention"]
    np.testing.assert_allclose(mean, hits.mean(-1), atol=1e-6)
    gap = Run(fake_run("one_pass", class_token=False))
    hits = gap.results["agreement_mlp"].values.mean(-1)
    pooled = gap.paper["agreement_pooled", "mlp"]
    np.testing.assert_allclose(pooled, hits, atol=1e-6)


def test_windows_are_joined(paper_results, paper_run, monkeypatch):
    monkeypatch.setattr(per_image, "WINDOW_BYTES", 4 * 2 * 17 * 7)
    for key, values in Run(paper_results).paper.items():
        np.testing.assert_array_equal(values, paper_run.paper[key], str(key))


PAPER = tuple(paper.FIGURES)
CONTROL = "class_value_attention_shuffled"


@pytest.fixture(scope="module")
def made(report, paper_results):
    return report(paper_results)


@pytest.fixture(scope="module")
def figures(made):
    return made[0]


@pytest.fixture(scope="module")
def table(made):
    return made[1]["tests"]


def test_which_runs_have_which_figures(report, made):
    figures, tables, _ = made
    assert [key for key in figures if key in PAPER] == list(PAPER)
    assert set(tables) == {"summary", "edits", "tests"}
    figures, tables, _ = report(fake_run("one_pass"))
    assert set(PAPER) - set(figures) == {"heads"} and "edits" not in tables
    assert not set(report(fake_run())[0]) & set(PAPER)
    assert report(fake_run("paper", change={"valid": np.zeros(9, bool)}))[0] == {}


def test_means_are_those_of_the_rows(figures, paper_results):
    hits, answers = "key-value agreement, each head", "answer of one memory, each head"
    permuted = "attention, classes permuted"
    for key, panel, series, name in (
        ("agreement", "MLP", "published code", "agreement_vilas2023_mlp"),
        ("agreement", "attention", "paper, classes permuted", "chance_attention"),
        ("simple", "all tokens", "MLP", "simple_mlp"),
        ("simple", "all tokens", permuted, "chance_simple_attention"),
        ("class_value", "attention", "value vectors shuffled", CONTROL),
        ("heads", hits, "head 0", "agreement_head"),
        ("heads", answers, "head 1", "simple_head"),
    ):
        values = paper_results[name]
        if "head" in values.dims:
            values = values[..., int(series[-1])]
        expected = values.astype(float).mean({*values.dims} - {"layer"})
        rows = figures[key].data.set_index(["panel", "series"]).sort_index()
        rows = rows.loc[(panel, series)]
        np.testing.assert_allclose(rows["mean"], expected, atol=1e-6)
    rows = figures["heads"].data.set_index(["panel", "series"]).sort_index()
    for panel, name in ((hits, "chance_head"), (answers, "chance_simple_head")):
        chance = paper_results[name].astype(float).mean(("image", "head"))
        np.testing.assert_allclose(rows.loc[(panel, "head 1")]["chance"], chance)

    rows = figures["composition_published"].data.groupby("layer")["mean"].sum()
    assert (rows >= 1 - 1e-6).all()


def test_interventions_in_rows(made, paper_run):
    rows = made[1]["edits"].data.set_index("intervention")
    for name, row in rows.iterrows():
        one = {n: paper_run.paper[n, name] for n in ("before", "after", "correct")}
        exists = np.isfinite(one["after"])
        change = one["after"] - one["before"]
        assert row["images"] == exists.sum()
        assert row["before"] == pytest.approx(one["before"][exists].mean())
        assert row["change"] == pytest.approx(change[exists].mean())
        assert row["low"] <= row["change"] <= row["high"]
        assert row["accuracy_after"] == pytest.approx(one["correct"][exists].mean())
        p = sign_flip_test(change[:, None], alternative="two-sided")
        assert row["p"] == pytest.approx(p[0])
    order = "without_context", "random_as_class", "without_class", "random_as_context"
    assert tuple(rows.index[-4:]) == order


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
        edits = rows_of_all(runs, paper.edit_rows)
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


@pytest.mark.parametrize(
    "key, kinds, alternative",
    [
        ("identifiability_boxes", ("cls", "image"), "two-sided"),
        ("context_boxes", ("context", "object"), "less"),
    ],
)
def test_boxes_of_kinds(figures, paper_run, key, kinds, alternative):
    data = figures[key].data
    first, second = data.groupby("series", sort=False)
    values = [paper_run.curve(kind) for kind in kinds]
    for (_, rows), each in zip((first, second), values):
        np.testing.assert_allclose(rows["median"], np.nanmedian(each, axis=0))
        assert rows["images"].tolist() == np.isfinite(each).sum(0).tolist()
    difference = (values[0] - values[1]).astype(float)
    p = holm(sign_flip_test(difference, alternative=alternative))
    np.testing.assert_array_equal(first[1]["p_holm"], p)
    assert second[1]["p_holm"].isna().all()
    assert (data["chance"] == paper_run.chance("identifiability")).all()


def test_class_values_lie_beside_their_control(figures, paper_results):
    for panel, system in (("attention", "attention"), ("MLP", "mlp")):
        rows = figures["class_value_boxes"].panels()[panel]
        values = paper_results[f"class_value_{system}"].values
        control = paper_results[f"class_value_{system}_control"].values
        np.testing.assert_allclose(rows["mean"], values.mean(-1), rtol=1e-5)
        np.testing.assert_allclose(rows["chance"], control.mean(-1), rtol=1e-5)
        p = holm(wilcoxon_test(values.T, control.T))
        np.testing.assert_array_equal(rows["p_holm"], p)


def test_a_dot_for_every_class_that_has_an_image(report):
    label = np.array([0, 2, 2, 4, 4, 4, 0, 2, 4], np.int32)
    results = fake_run("paper", change={"label": label})
    rows = report(results)[0]["agreement_classes"].panels()["MLP"]
    assert rows["class"].unique().tolist() == ["kind 0", "kind 2", "kind 4"]
    for number in (0, 2, 4):
        own, hits = rows[rows["class"] == f"kind {number}"], label == number
        expected = results["agreement_mlp"].values[hits].mean((0, 2))
        np.testing.assert_allclose(own["mean"], expected, atol=1e-6)
        assert (own["images"] == hits.sum()).all()


def test_histograms_count_every_image_once(figures, paper_results):
    rows = figures["identifiable_tokens"].data
    counts = (paper_results["rank_residual"].values[:, -1, 1:] == 0).sum(-1)
    assert rows["images"].tolist() == np.bincount(counts, minlength=17).tolist()
    assert rows["mean"].sum() == pytest.approx(1)
    assert (rows["mean_number"] == counts.mean()).all()
    np.testing.assert_allclose(rows["chance_number"], 16 / 5)


def test_wide_histograms_have_wide_bars(report):
    ranks = np.ones((5, 3, 197), np.int32)
    for image, number in enumerate((0, 3, 4, 195, 196)):
        ranks[image, :, 1 : number + 1] = 0
    size = {"image_size": 56, "previews": 0}
    results = fake_run(images=5, change={"rank_residual": ranks}, **size)
    rows = report(results)[0]["identifiable_tokens"].data
    assert len(rows) == 50
    assert rows["tick"].iloc[[0, -1]].tolist() == ["0–3", "196"]
    assert rows["images"].iloc[[0, 1, 48, 49]].tolist() == [2, 1, 1, 1]


def test_without_cls_and_masks_image_tokens_are_alone(report):
    results = fake_run(class_token=False, depth=1, images=1, classes=1)
    figures, _, _ = report(results)
    assert not {"context_boxes", "agreement_classes"} & set(figures)
    rows = figures["identifiability_boxes"].data
    assert rows["series"].tolist() == ["image tokens"]
    assert rows["p_holm"].isna().all()


def test_tests_are_corrected_over_blocks(table):
    # Three streams; change rates, logit changes, agreements, class values, accuracy.
    quantities = table.data.groupby("quantity", sort=False)
    assert len(quantities) == 3 + 8 + 2 + 4 + 4 + 2 == len(table.shown)
    for _, rows in quantities:
        np.testing.assert_allclose(rows["p_holm"], holm(rows["p"].to_numpy()))
        expected = benjamini_hochberg(rows["p"].to_numpy())
        np.testing.assert_allclose(rows["p_bh"], expected)
    for _, _, words in table.shown.itertuples(index=False):
        assert words == "none" or set(words.split(", ")) <= {"0", "1"}


def test_every_quantity_is_tested_against_what_it_should_exceed(table, paper_run):
    rows = table.data.set_index(["quantity", "layer"])["difference"]
    change = paper_run.paper["change", "image", "residual"]
    name = "change rate of residual, image tokens, above 0.5"
    assert rows[name, 1] == pytest.approx(change[:, 1].mean() - 0.5, abs=1e-6)
    agreement, chance = (
        paper_run.paper[key, "vilas2023", "mlp"]
        for key in ("agreement", "agreement_chance")
    )
    name = "mlp agreement (vilas2023) above permuted classes"
    assert rows[name, 0] == pytest.approx((agreement - chance)[:, 0].mean(), abs=1e-6)
    values = [paper_run.class_value("mlp", w).T for w in ("trained", "control")]
    name = "mlp class-value agreement above control (Wilcoxon over classes)"
    p = table.data.set_index(["quantity", "layer"])["p"]
    assert p[name, 1] == pytest.approx(wilcoxon_test(*values)[1])


@pytest.mark.parametrize("kind", ["within_images", "vilas2023", "published"])
def test_tokens_as_units_are_an_option_that_names_its_subset(
    report, paper_results, kind
):
    rows = report(paper_results, tests=kind, subset=12)[1]["tests"].data
    words = kind.replace("_", " ").replace("published", "vilas2023")
    rows = rows[rows["quantity"].str.endswith(f"({words}, 12 images)")]
    assert len(rows) == 3 * 2 and rows["p"].between(0, 1).all()
    score = 1 - paper_results["rank_residual"].values[:12, 0, 1:] / 5
    patch_label = paper_results["patch_label"].values[:12]
    expected = score[patch_label == 1].mean() - score[patch_label == 0].mean()
    assert rows["difference"].iloc[0] == pytest.approx(expected)


def test_the_published_test_of_accuracy_reads_token_0(report, paper_results, paper_run):
    rows = report(paper_results, tests="vilas2023", subset=5)[1]["tests"].data
    name = "mlp agreement (vilas2023) at [CLS], right minus wrong images"
    rows = rows[rows["quantity"] == name]
    hits = paper_results["agreement_vilas2023_mlp"].values[:, :, 0].astype(float)
    right = paper_run.correct
    expected = hits[right].mean(0) - hits[~right].mean(0)
    np.testing.assert_allclose(rows["difference"], expected)
    np.testing.assert_array_equal(rows["p"], vilas2023_accuracy_test(hits, right))
    all_right = fake_run("one_pass", change={"prediction": np.zeros(9, np.int32)})
    all_right["label"][:] = 0
    hits = {"mlp": np.ones((9, 3))}
    tests = appendix.right_minus_wrong(
        Run(all_right), hits, "", vilas2023_accuracy_test
    )
    assert not list(tests)


def test_a_trained_run_is_tested_against_its_random_control():
    ranks = np.random.default_rng(0).integers(1, 5, (9, 3, 17)).astype(np.int32)
    random = {"manifest": {"model": {"sha256": None}}}
    control = Run(fake_run(change={"rank_residual": ranks}, **random), "control")
    better = {"rank_residual": ranks - 1}
    trained = Run(fake_run(change=better, masks=True), "trained")
    tests = list(appendix.control_tests(trained, [control, trained]))
    assert len(tests) == 2  # kinds that both have
    assert all((difference > 0).all() for _, difference, _ in tests)
    assert (tests[0][2] < 0.01).all()
    assert list(appendix.control_tests(control, [control, trained])) == []
    others = [Run(fake_run(depth=2, **random)), Run(fake_run(classes=4, **random))]
    others[1].manifest["data"]["id"] = "other"
    assert list(appendix.control_tests(trained, others)) == []


def test_without_masks_and_paper_there_is_nothing_to_test(report):
    assert "tests" not in report(fake_run())[1]
