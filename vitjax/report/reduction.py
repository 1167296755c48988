"""The numbers of a report: means over images with their intervals."""

from typing import Any

import numpy as np
from jaxtyping import Float

from vitjax.report.per_image import MEASURES, TOKENS, Digest, digest
from vitjax.runner.results import Results
from vitjax.statistics import bootstrap_mean


def curve_table(digest: Digest, *, run: str) -> list[dict[str, Any]]:
    """The numbers of every curve, one row per stream, kind, measure and block.

    Args:
        digest: of the run.
        run: name of the run in the column `run`.

    Returns:
        Rows with `mean` over images, `low` and `high` (95 % bootstrap interval of that
        mean), `q25` and `q75` (quartiles over images), `chance` and `images`, how many
        have such tokens. `layer` counts from 0 and `block` from 1.
    """
    rows = []
    for stream, values in digest.curves.items():
        interval = bootstrap_mean(values)
        quarters = _quartiles(values)
        images = np.isfinite(values).sum(0)
        for place in np.ndindex(values.shape[1:]):
            measure, tokens = MEASURES[place[0]], digest.tokens[place[1]]
            rows.append(
                {
                    "run": run,
                    "stream": stream,
                    "tokens": tokens,
                    "measure": measure,
                    "layer": place[2],
                    "block": place[2] + 1,
                    "images": int(images[place]),
                    "mean": float(interval.mean[place]),
                    "low": float(interval.low[place]),
                    "high": float(interval.high[place]),
                    "q25": float(quarters[0][place]),
                    "q75": float(quarters[1][place]),
                    "chance": digest.chance(measure),
                }
            )
    return rows


def _quartiles(values) -> Float[np.ndarray, "two measure tokens layer"]:
    result = np.full((2, *values.shape[1:]), np.nan)
    some = np.isfinite(values).any(0)
    result[:, some] = np.nanquantile(values[:, some], (0.25, 0.75), axis=0)
    return result


def summary(run: Results) -> list[dict[str, Any]]:
    """The numbers to quote for a run, with 95 % bootstrap intervals over images.

    Args:
        run: rows of a recipe with ranks, such as `identifiability`.

    Returns:
        Rows with `quantity` (words), `value`, `low`, `high`, `chance` (None where
        there is no such level) and `images`, fractions in [0, 1]; NaN where nothing
        was measured.
    """
    return summary_table(digest(run, streams=("residual",)))


def summary_table(digest: Digest) -> list[dict[str, Any]]:
    """What `summary` returns, from a digest that holds the residual stream."""
    rate, score = digest.chance("rate"), digest.chance("identifiability")
    tokens = digest.of("residual", "rate", "image")[:, -1]
    some = np.where(np.isfinite(tokens), tokens > 0, np.nan)
    columns = [
        ("top-1 accuracy", digest.correct.astype(float), rate),
        ("image tokens that are identifiable, last block", tokens, rate),
        ("images with an identifiable token, last block", some, None),
    ]
    for kind in ("class", "context"):
        if kind in digest.tokens:
            values = digest.of("residual", "rate", kind)[:, -1]
            name = f"{TOKENS[kind]} that are identifiable, last block"
            columns.append((name, values, rate))
    for kind in digest.tokens:
        values = digest.of("residual", "identifiability", kind)[:, -1]
        columns.append(
            (f"identifiability of {TOKENS[kind]}, last block", values, score)
        )
    if "class" in digest.tokens:
        name = "identifiability of class minus context tokens, last block"
        columns.append((name, _last(digest, "class") - _last(digest, "context"), 0.0))
    values = np.stack([column[1] for column in columns], axis=1)
    interval = bootstrap_mean(values)
    return [
        {
            "quantity": name,
            "value": float(interval.mean[place]),
            "low": float(interval.low[place]),
            "high": float(interval.high[place]),
            "chance": chance,
            "images": int(np.isfinite(values[:, place]).sum()),
        }
        for place, (name, _, chance) in enumerate(columns)
    ]


def _last(digest, kind) -> Float[np.ndarray, " image"]:
    return digest.of("residual", "identifiability", kind)[:, -1]
