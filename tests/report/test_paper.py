"""Metrics of section 6 with loops; figures, tables, distributions and tests of them."""

import numpy as np
import pytest
from fake_runs import fake_run

import vitjax
from vitjax.report import appendix, paper, per_image
from vitjax.report.per_image import Run, as_runs, composition_chance
from vitjax.statistics import (
    benjamini_hochberg,
    holm,
    sign_flip_test,
    vilas2023_accuracy_test,
    wilcoxon_test,
)


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


@pytest.fixture(scope="module")
def figures(report, paper_results):
    return report(paper_results)[0]


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
    hits = results["agreement_mlp"].values
    assert rows["class"].unique().tolist() == ["kind 0", "kind 2", "kind 4"]
    for number in (0, 2, 4):
        own = rows[rows["class"] == f"kind {number}"]
        expected = hits[label == number].mean((0, 2))
        np.testing.assert_allclose(own["mean"], expected, atol=1e-6)
        assert (own["images"] == (label == number).sum()).all()


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


@pytest.fixture(scope="module")
def table(report, paper_results):
    return report(paper_results)[1]["tests"]


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
    change = paper_run.metric("change", compared="residual", tokens="image")
    name = "change rate of residual, image tokens, above 0.5"
    assert rows[name, 1] == pytest.approx(change[:, 1].mean() - 0.5, abs=1e-6)
    where = {"convention": "vilas2023", "system": "mlp"}
    above = paper_run.metric("agreement", **where)
    above = above - paper_run.metric("agreement_chance", **where)
    name = "mlp agreement (vilas2023) above permuted classes"
    assert rows[name, 0] == pytest.approx(above[:, 0].mean(), abs=1e-6)
    values = [
        paper_run.metric("class_value", system="mlp", weights=weights).T
        for weights in ("trained", "control")
    ]
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
    label = fake_run("one_pass")["label"].values
    all_right = Run(fake_run("one_pass", change={"prediction": label}))
    assert list(appendix.accuracy_tests(all_right)) == []


def test_a_trained_run_is_tested_against_its_random_control():
    ranks = np.random.default_rng(0).integers(1, 5, (9, 3, 17)).astype(np.int32)
    random = {"manifest": {"model": {"sha256": None}}}
    control = Run(fake_run(change={"rank_residual": ranks}, **random), "control")
    better = {"rank_residual": ranks - 1}
    trained = Run(fake_run(change=better, masks=True), "trained")
    rows = list(appendix.control_tests([control, trained]))
    assert len(rows) == 2  # kinds that both have
    assert all((each["difference"] > 0).all() for each in rows)
    assert all((each["run"] == "trained").all() for each in rows)
    assert (rows[0]["p"] < 0.01).all()
    others = [Run(fake_run(depth=2, **random)), Run(fake_run(classes=4, **random))]
    others[1].manifest["data"]["id"] = "other"
    for other in (trained, *others):
        assert list(appendix.control_tests([trained, other])) == []


def test_without_masks_and_paper_there_is_nothing_to_test(report):
    assert "tests" not in report(fake_run())[1]
