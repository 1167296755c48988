import numpy as np
import pytest

from vitjax.report import per_image as room
from vitjax.report.per_image import MEASURES, STREAMS, digest
from vitjax.runner import results


def holes(run_rows):
    """Some tokens are absent, as interventions leave them."""
    draw = np.random.default_rng(7)
    return np.where(draw.random(run_rows.shape) < 0.2, -1, run_rows).astype(np.int32)


@pytest.mark.parametrize(
    "fields", [{}, {"registers": 2}, {"class_token": False, "norm": "residual_post"}]
)
def test_curves_are_the_means_over_tokens(make_run, fields, by_hand):
    plain = make_run(fields=fields, masks=True)
    change = {"rank_mlp_update": holes(plain["rank_mlp_update"][:])}
    run = make_run(fields=fields, masks=True, change=change)
    found = digest(run)
    assert ("cls" in found.tokens) == fields.get("class_token", True)
    assert ("register" in found.tokens) == bool(fields.get("registers"))
    for stream in STREAMS:
        for kind in found.tokens:
            for measure in MEASURES:
                np.testing.assert_allclose(
                    found.of(stream, measure, kind),
                    by_hand(run, stream, kind, measure),
                    atol=1e-6,
                )


def test_images_that_do_not_count(make_run):
    plain = make_run(images=11)
    done, valid, label = (plain[name][:] for name in ("done", "valid", "label"))
    done[8:], valid[8:], label[5], valid[2] = False, False, -1, False
    change = {"done": done, "valid": valid, "label": label}
    found = digest(make_run(images=11, change=change))
    assert found.image.tolist() == [0, 1, 3, 4, 6, 7]
    assert (found.total, found.done) == (11, 8)
    assert (found.skipped, found.unlabelled) == (1, 1)
    expected = plain["prediction"][:] == plain["label"][:]
    np.testing.assert_array_equal(found.correct, expected[found.image])


def test_windows_bound_what_is_read_and_change_nothing(make_run, monkeypatch):
    run = make_run(images=23, masks=True)
    whole = digest(run)
    sizes, read = [], results.Rows.__getitem__

    def counted(rows, key):
        block = read(rows, key)
        if block.ndim == 3:
            sizes.append(len(block))
        return block

    monkeypatch.setattr(results.Rows, "__getitem__", counted)
    row = 4 * whole.config.depth * whole.config.tokens
    monkeypatch.setattr(room, "WINDOW_BYTES", 11 * row)  # 11 hold 2 batches of 4
    pieces = digest(run)
    assert set(sizes) == {8, 7} and sum(sizes) == 3 * 23
    for stream in STREAMS:
        np.testing.assert_array_equal(pieces.curves[stream], whole.curves[stream])


def test_refuses_other_rows(make_run):
    run = make_run()
    del run.manifest["arrays"]["rank_residual"]
    with pytest.raises(ValueError, match="`identifiability` recipe"):
        digest(run)
