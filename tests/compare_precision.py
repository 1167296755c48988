"""What another precision changes: two runs of one recipe compared, array by array.

    vitjax run paper --model NAME --data SOURCE --out exact --dtype float32
    vitjax run paper --model NAME --data SOURCE --out rough --dtype bfloat16
    python tests/compare_precision.py exact rough

Prints one line an array, over the images that both runs hold:

- ranks, predictions, top classes, truth values: the share that is equal; of ranks also
  the mean absolute difference of identifiability, 1 - rank / classes;
- rates, which are means of truth values over images and tokens: their absolute
  difference, mean over layers and what other axes there are;
- logits and other numbers: the mean absolute difference, and that in standard
  deviations of the first run;
- maps of explanation methods: Spearman's rank correlation, mean over images.

Run both on one machine: other devices move last bits too.
"""

import sys

import numpy as np
import xarray
from scipy.stats import spearmanr

from vitjax.recipes import schema
from vitjax.runner.results import open_results

SAME_IN_BOTH = {
    schema.LABEL(),
    schema.VALID(),
    schema.DIGEST(),
    schema.PATCH_LABEL(),
    schema.PREVIEW(),
    schema.PREVIEW_INDEX(),
    schema.KEPT(),
}


def compare(first: xarray.Dataset, second: xarray.Dataset) -> dict[str, dict]:
    """Array name -> measure -> value, of one recipe, model, data set and seed."""
    for key in ("recipe", "model", "data", "seed"):
        if first.attrs.get(key) != second.attrs.get(key):
            raise ValueError(
                f"{key}={first.attrs.get(key)!r} of the first run is "
                f"{second.attrs.get(key)!r} of the second: run the same recipe twice."
            )
    classes = len(first.attrs["model"]["classes"])
    valid = first["valid"].values
    labeled = valid & (first["label"].values >= 0)
    measures = {}
    for name, array in schema.SCHEMA.items():
        if name in SAME_IN_BOTH or not (name in first and name in second):
            continue
        a, b = first[name].values, second[name].values
        if "image" in array.axes:
            known = labeled if array.needs_label else valid
            a, b = a[known], b[known]
        measures[name] = compare_arrays(name, a, b, classes)
    return measures


def compare_arrays(name, a, b, classes) -> dict[str, float]:
    """Measures of one array; images first, NaN left out."""
    if name in schema.MAP.names:
        pairs = zip(a.reshape(len(a), -1), b.reshape(len(b), -1))
        return {"spearman": np.nanmean([spearmanr(*pair)[0] for pair in pairs])}
    if a.dtype.kind not in "iub":
        both = np.isfinite(a) & np.isfinite(b)
        difference = np.abs(a[both] - b[both]).mean()
        spread = max(a[both].std(), 1e-30)
        return {"difference": difference, "deviations": difference / spread}
    measures = {"equal": (a == b).mean()}
    if name.startswith("rank_"):
        measures["identifiability"] = np.abs(a / classes - b / classes).mean()
    if a.dtype.kind == "b":
        axes = tuple(axis for axis in range(a.ndim) if axis != 1)
        measures["rate"] = np.abs(a.mean(axes) - b.mean(axes)).mean()
    return measures


if __name__ == "__main__":
    for name, measures in compare(*map(open_results, sys.argv[1:])).items():
        values = "  ".join(f"{key} {value:.4g}" for key, value in measures.items())
        print(f"{name:36} {values}")
