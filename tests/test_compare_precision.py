"""Two runs of one recipe, compared: against values by hand."""

import numpy as np
import pytest
import xarray
from compare_precision import compare

RANKS = np.array([[[0, 4]], [[2, 1]], [[5, 5]]])
MAPS = np.array([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0], [0.0, 0.0, 1.0]])


def run(ranks=RANKS, maps=MAPS, hits=True, seed=0):
    """Three images, the last without a label, of ten classes."""
    tokens, layers = ("image", "layer", "token"), ranks.shape
    arrays = {
        "label": ("image", np.array([3, 1, -1])),
        "valid": ("image", np.ones(3, bool)),
        "rank_residual": (tokens, ranks),
        "agreement_mlp": (tokens, np.full(layers, hits)),
        "logit_residual": (tokens, ranks.astype(np.float32)),
        "map_chefer": (("image", "patch"), maps),
        "prediction": ("image", ranks[:, 0, 0]),
    }
    attrs = {"recipe": "paper", "model": {"classes": list(range(10))}, "seed": seed}
    return xarray.Dataset(arrays, attrs=attrs)


def test_a_run_equals_itself():
    for name, measures in compare(run(), run()).items():
        for measure, value in measures.items():
            assert value == (1 if measure in ("equal", "spearman") else 0), name


def test_differences_by_hand():
    ranks, maps = RANKS.copy(), MAPS.copy()
    ranks[0, 0, 1] += 2  # one of four tokens with a label
    ranks[2] = 0  # no label: does not count, except for the prediction
    maps[1] = -maps[1]
    measures = compare(run(), run(ranks, maps, hits=False))
    assert measures["rank_residual"] == pytest.approx(
        {"equal": 0.75, "identifiability": 0.05}
    )
    assert measures["prediction"]["equal"] == pytest.approx(2 / 3)
    assert measures["agreement_mlp"] == {"equal": 0, "rate": 1}
    assert measures["map_chefer"]["spearman"] == pytest.approx(0)
    spread = np.std([0, 4, 2, 1])
    assert measures["logit_residual"] == pytest.approx(
        {"difference": 0.5, "deviations": 0.5 / spread}
    )
    assert "label" not in measures and "valid" not in measures


def test_other_runs_are_not_compared():
    with pytest.raises(ValueError, match="seed=0"):
        compare(run(), run(seed=1))
