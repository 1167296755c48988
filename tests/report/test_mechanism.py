"""Rows of the recipe `paper` become per-image values, checked with loops."""

import numpy as np
import pytest

from vitjax.report.mechanism import is_paper, mechanism
from vitjax.report.per_image import digest


def test_which_runs_have_these_rows(paper_run, masked_run):
    assert is_paper(paper_run) and not is_paper(masked_run)


def test_change_is_the_share_of_tokens_whose_logit_rises(paper_run):
    found = mechanism(paper_run, digest(paper_run))
    arrays = {name: np.asarray(paper_run[name][...]) for name in paper_run.names}
    images, layers, _ = arrays["logit_residual"].shape
    assert set(found.change["residual"]) == {"cls", "image", "class", "context"}
    for image in range(images):
        for layer in range(layers):
            if layer == 0:
                before = arrays["logit_embedding"][image]
            else:
                before = arrays["logit_residual"][image, layer - 1]
            mlp = arrays["logit_mlp_update"][image, layer]
            middle = arrays["logit_middle"][image, layer]
            kinds = arrays["patch_label"][image]
            for name, rises in (
                ("residual", arrays["logit_residual"][image, layer] > before),
                (
                    "attention_update",
                    arrays["logit_attention_update"][image, layer] > before,
                ),
                ("mlp_update", mlp > middle),
                ("mlp_update_published", mlp > before),
            ):
                got = {k: v[image, layer] for k, v in found.change[name].items()}
                assert got["cls"] == rises[0]
                assert got["image"] == pytest.approx(rises[1:].mean())
                for kind, number in (("class", 1), ("context", 0)):
                    there = rises[1:][kinds == number]
                    expected = there.mean() if len(there) else np.nan
                    np.testing.assert_allclose(got[kind], expected, rtol=1e-6)


def test_composition_is_that_of_the_public_function(paper_run):
    import vitjax

    found = mechanism(paper_run, digest(paper_run))
    tops = {
        name: paper_run[f"first_{name}"][...]
        for name in ("residual", "attention_update", "mlp_update")
    }
    embedding = paper_run["first_embedding"][...][:, None]
    before = np.concatenate([embedding, tops["residual"][:, :-1]], axis=1)
    for convention, ours in (
        ("paper", found.composition),
        ("vilas2023_code", found.published_composition),
    ):
        expected = vitjax.residual_composition(
            tops["residual"],
            before=before,
            attention=tops["attention_update"],
            mlp=tops["mlp_update"],
            convention=convention,
        )
        for name, share in ours.items():
            theirs = np.asarray(expected[name]).mean(-1)
            np.testing.assert_allclose(share, theirs, atol=1e-6)
    total = sum(found.composition.values())
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_interventions_compare_the_same_tokens(paper_run):
    found = mechanism(paper_run, digest(paper_run))
    one = found.interventions["without_context"]
    before = paper_run["rank_residual"][...][:, -1]
    after = paper_run["rank_without_context"][...]
    for image in range(len(before)):
        there = [t for t in range(1, before.shape[1]) if after[image, t] >= 0]
        if not there:
            assert np.isnan(one.before[image]) and np.isnan(one.after[image])
            continue
        for ranks, share in ((before, one.before), (after, one.after)):
            expected = np.mean([ranks[image, t] == 0 for t in there])
            assert share[image] == pytest.approx(expected)
    label = paper_run["label"][:]
    np.testing.assert_array_equal(
        one.correct_after, paper_run["prediction_without_context"][:] == label
    )


def test_windows_are_joined(paper_run, monkeypatch):
    from vitjax.report import per_image as digests

    whole = mechanism(paper_run, digest(paper_run))
    monkeypatch.setattr(digests, "WINDOW_BYTES", 4 * 2 * 17 * 3)
    pieces = mechanism(paper_run, digest(paper_run))
    np.testing.assert_array_equal(whole.simple["mlp"], pieces.simple["mlp"])
    np.testing.assert_array_equal(
        whole.interventions["no_cls"].after, pieces.interventions["no_cls"].after
    )


def test_agreement_at_the_readout_is_that_of_cls(paper_run):
    found = mechanism(paper_run, digest(paper_run))
    hits = paper_run["agreement_attention"][...]
    np.testing.assert_array_equal(found.at_readout["attention"], hits[:, :, 0])
    np.testing.assert_allclose(
        found.agreement["paper"]["attention"], hits.mean(-1), atol=1e-6
    )


def test_a_run_without_labels_has_a_page_all_the_same(tmp_path):
    import vitjax
    from vitjax.data.records import Record
    from vitjax.data.textured_digits import TexturedDigits
    from vitjax.report.document import write_report

    class Unlabelled:
        id = "unlabelled/1"

        def __len__(self):
            return 4

        def __getitem__(self, index):
            return Record(image=TexturedDigits()[index].image, label=None, name="x")

    shape = vitjax.Config(64, 16, dim=16, depth=2, heads=2, mlp_dim=24)
    model = vitjax.init(shape, classes=10)
    run = vitjax.run(
        "one_pass", model, Unlabelled(), tmp_path, batch_size=4, show_progress=False
    )
    assert (run["rank_residual"][...] == -1).all()
    assert "no labels" in write_report([run], tmp_path / "page").read_text()
