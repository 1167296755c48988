"""Tuned lenses beside the class projection, early exit, and errors foreseen."""

import functools
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped

from vitjax.recipes import schema
from vitjax.report.figure import (
    FigureTable,
    Rows,
    Section,
    Table,
    figures_of,
    quote,
    rows_of_all,
    sentences_of,
    with_interval,
)
from vitjax.report.per_image import BAND, Frame, Run, over_tokens
from vitjax.statistics import (
    at_thresholds,
    aucpr,
    aurc,
    bootstrap_statistic,
    fit_logistic,
)

MEASURES = {
    "kl": "KL to the model's answer, nats",
    "agreement": "share with the model's answer",
    "settled": "share whose answer stays",
    "identifiability": "class identifiability",
    "bias": "KL of mean answers, nats",
    "blocks": "share of blocks run",
    "change": "change of accuracy",
}
"""What is measured of every block, averaged over images; the last two if an image stops
at the first block, from this one on, that answers as the block before."""


def lenses(runs: Sequence[Run]) -> Section:
    """What both lenses read of every block, and what stopping early would cost."""
    probes = [run for run in runs if schema.RANK_PROBE("residual") in run]
    used = [run for run in runs if schema.KL_BY("lens") in run]
    rows = rows_of_all(used, functools.partial(lens_rows, probes=probes))

    def of_measure(run: Run, measure: str) -> Rows:
        yield rows[(rows["run"] == run.name) & (rows["measure"] == measure)]

    figures = {
        f"lens_{measure}": (
            functools.partial(of_measure, measure=measure),
            *words,
            {"y_label": MEASURES[measure]},
        )
        for measure, words in LENS_FIGURES.items()
    }
    return Section(
        key="lenses",
        title="Tuned lenses",
        sentences=sentences_of(runs, used, describe_lens, rows),
        figures=figures_of(used, {**figures, **EXIT_FIGURES}),
        tables=[lens_table(rows)] if len(rows) else [],
    )


def lens_rows(run: Run, probes: Sequence[Run]) -> Rows:
    """Measures over the blocks, by both lenses and, of ranks, by probes of the same
    model.
    """
    for style, (reader, name) in enumerate(schema.LENSES.items()):
        for measure, values in measures(run, reader).items():
            line = run.line("pooled token", name, style, values)
            yield line.assign(measure=measure)
        if schema.RANK_TOKENS_BY(reader) in run:
            ranks = run.read(schema.RANK_TOKENS_BY(reader))[..., run.config.prefix :]
            scores = (1 - ranks / len(run.classes)).mean(-1)
            line = run.line("image tokens", name, style, scores)
            yield line.assign(measure="identifiability")
    for other in probes:
        if other.manifest["model"] == run.manifest["model"] and len(other.image):
            ranks = other.read(schema.RANK_PROBE("residual"))
            member = other.members(other.pooled, other.image)
            scores = 1 - over_tokens(ranks, member[:, None]) / len(run.classes)
            line = other.line("pooled token", "linear probe", 2, scores)
            yield line.assign(run=run.name, measure="identifiability")


def measures(run: Run, reader: str) -> dict[str, Shaped[np.ndarray, "image layer"]]:
    """What is measured of every block, image by image."""
    answer = run.read(schema.PREDICTION())[:, None]
    answers = run.read(schema.PREDICTION_BY(reader))
    agrees = answers == answer
    depth = run.config.depth
    stops = np.zeros(answers.shape, bool)
    stops[:, 1:] = answers[:, 1:] == answers[:, :-1]
    block = np.where(stops, np.arange(depth), depth)  # after the last: all are run
    block = np.minimum.accumulate(block[:, ::-1], axis=1)[:, ::-1]
    stopped = np.take_along_axis(np.hstack([answers, answer]), block, axis=1)
    correct = (stopped == run.label[:, None]).astype(float)
    return {
        "kl": run.read(schema.KL_BY(reader)),
        "agreement": agrees,
        "settled": np.logical_and.accumulate(agrees[:, ::-1], axis=1)[:, ::-1],
        "identifiability": 1 - run.read(schema.RANK_BY(reader)) / len(run.classes),
        "bias": run.read(schema.BIAS_BY(reader)),
        "blocks": np.minimum(block + 1, depth) / depth,
        "change": correct - run.correct[:, None],
    }


def exit_curves(run: Run) -> Rows:
    """Change of accuracy against the share of blocks that are run."""
    for style, (reader, name) in enumerate(schema.LENSES.items()):
        each = measures(run, reader)
        axis = {"layer": np.arange(run.config.depth), "x": each["blocks"].mean(0)}
        yield run.line("pooled token", name, style, each["change"], axis=axis)


def describe_lens(run: Run, rows: Frame) -> Iterator[str]:
    """How both lenses compare halfway, and what stopping early would cost."""
    rows = rows[rows["panel"] == "pooled token"]
    rows = rows.set_index(["measure", "series", "layer"]).sort_index()
    middle, names = run.config.depth // 2, list(schema.LENSES.values())
    (kl, lens_kl), (agreement, lens_agreement) = (
        [quote(rows.loc[each, name, middle].to_dict(), unit=unit) for name in names]
        for each, unit in (("kl", ""), ("agreement", " %"))
    )
    yield (
        f"After block {middle}, the KL of the model's answer to what the tuned lens "
        f"reads is {lens_kl}, to what the class projection reads {kl}; the class read "
        f"is the model's answer in {lens_agreement} and {agreement} of the images."
    )
    change = rows.loc["change", names[1]]
    layer = int((change["high"] >= 0).to_numpy().argmax())
    share = 100 * rows.loc[("blocks", names[1], layer), "mean"]
    cost = f"changes by {quote(change.loc[layer].to_dict(), unit=' points')}"
    if change.loc[layer, "low"] == change.loc[layer, "high"] == 0:
        images = int(change.loc[layer, "images"])
        cost = f"is that of the whole model: of {images:,} images, none is lost or won"
    yield (
        "If images stop where the tuned lenses of two blocks in a row agree, from "
        f"block {layer} on, {share:.0f} % of the blocks are run, and accuracy {cost}."
    )


SHOWN = "kl", "agreement", "settled", "bias"
"""Columns that a page has room for."""


def lens_table(rows: Frame) -> Table:
    """Measures of every block, the projection beside the lens."""
    own = rows[(rows["panel"] == "pooled token") & (rows["series"] != "linear probe")]
    shown = own.assign(cell=with_interval(own, "mean"))
    shown = shown.rename(columns={"layer": "block", "series": "read by"})
    index = ["run", "block", "read by"]
    shown = shown.pivot(index=index, columns="measure", values="cell")
    return Table(
        key="lens",
        title="What each block would answer",
        caption="Of the pooled token; means over images with 95 % intervals. "
        "“Stays”: the answer is the model's from this block on. The CSV also has "
        "identifiability, and what it costs if an image stops at the first block, from "
        "this one on, that answers as the block before, or runs through; reading has a "
        "cost of its own.",
        data=rows.drop(columns=["style", "chance"]),
        shown=shown[list(SHOWN)].rename(columns=MEASURES).reset_index(),
    )


POOLED = "Read from the pooled token after each block by the head, as it is and by the "
POOLED += "tuned lens, which was fitted on other images"
LENS_FIGURES = {
    "kl": (
        "How far each block is from the answer",
        "Where the lens lies below the projection, the block knows more of the answer "
        "than the head can read.",
        f"{POOLED}: KL of the model's probabilities to these. {BAND}",
    ),
    "agreement": (
        "Which block has the answer",
        "Where the lens is high early, later blocks change few answers.",
        f"{POOLED}: share of images with the model's answer. {BAND}",
    ),
    "identifiability": (
        "The true class by lens, projection and probe",
        "A lens is fitted on the model's answers, a probe on labels.",
        f"{POOLED}: class identifiability. Linear probes are those of a run of the "
        f"recipe probes on this page. {BAND}",
    ),
}
"""Measure -> (title, what to look for, caption)."""

EXIT_FIGURES: FigureTable = {
    "lens_exit": (
        exit_curves,
        "Stopping early",
        "The further left a line returns to 0, the sooner the model could stop.",
        "Accuracy less that of the whole model, if an image stops at the first block "
        "whose answer is that of the block before, from block 0, 1, ... on, against "
        f"the mean share of blocks that are run. {BAND}",
        {"x": "x", "x_label": MEASURES["blocks"], "y_label": MEASURES["change"]},
    )
}

CONFIDENCES = {
    "dynamics": "logistic regression on all blocks",
    "probability": "maximum probability",
    "margin": "margin of the two best",
    "entropy": "entropy",
    "energy": "energy",
}
"""What says how sure the model is; all but the first read the last block alone."""

FEWEST = 5
"""Right and wrong images that each half needs."""


def errors(runs: Sequence[Run]) -> Section:
    """Whether errors are foreseen, and the risk at every coverage."""
    used = [run for run in runs if schema.RIVAL_LOGITS() in run]
    rows = rows_of_all(used, error_rows)
    return Section(
        key="errors",
        title="Errors foreseen",
        sentences=sentences_of(runs, used, describe_errors, rows),
        figures=figures_of(used, ERROR_FIGURES),
        tables=[error_table(rows)] if len(rows) else [],
    )


def features(run: Run) -> Float[np.ndarray, "image feature"]:
    """How the answer comes about, after LogitDynamics: the log-probabilities of the
    answer and its rivals at every block; how often the first class changes from block
    to block, and how much the best classes overlap, weighted by probability.
    """
    energy = run.read(schema.ENERGY()).astype(float)[..., None]
    course = run.read(schema.RIVAL_LOGITS()) - energy
    classes = run.read(schema.TOP_CLASSES())
    weight = np.exp(run.read(schema.TOP_LOGITS()) - energy)
    before, after = weight[:, :-1, None], weight[:, 1:, :, None]
    same = classes[:, 1:, :, None] == classes[:, :-1, None]
    shared = np.where(same, np.minimum(before, after), 0).sum((2, 3))
    overlap = shared / (weight[:, 1:].sum(-1) + weight[:, :-1].sum(-1) - shared)
    switches = classes[:, 1:, 0] != classes[:, :-1, 0]
    rates = [switches.mean(1), overlap.mean(1)] if run.config.depth > 1 else []
    return np.column_stack([course.reshape(len(course), -1), *rates])


@functools.lru_cache(maxsize=4)
def confidences(run: Run) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """How sure the model is of the images of a random half, by every measure, and
    whether it is wrong; the other half is fitted on. Empty where either half has hardly
    any right or wrong ones.
    """
    order, right = np.random.default_rng(0).permutation(len(run.image)), run.correct
    fit, test = np.array_split(order, 2)
    fewest = min(np.bincount(right[half], minlength=2).min() for half in (fit, test))
    if fewest < FEWEST:
        return {}, ~right[test]
    values = features(run)
    weights, bias = fit_logistic(values[fit], right[fit])
    energy = run.read(schema.ENERGY())[test, -1].astype(float)
    logits = run.read(schema.RIVAL_LOGITS())[test, -1]
    best = np.exp(logits - energy[:, None])
    return {
        "dynamics": values[test] @ weights + bias,
        "probability": best[:, 0],
        "margin": best[:, 0] - best[:, 1],
        "entropy": -run.read(schema.ENTROPY())[test, -1].astype(float),
        "energy": energy,
    }, ~right[test]


AREAS = {"aucpr": aucpr, "aurc": aurc}


def error_rows(run: Run) -> Rows:
    """Both areas of every confidence, and their differences to maximum probability."""
    sure, wrong = confidences(run)
    if not sure:
        return
    plain = list(sure).index("probability")

    def areas(counts: np.ndarray) -> np.ndarray:
        each = [[a(c, wrong, counts) for c in sure.values()] for a in AREAS.values()]
        each = np.moveaxis(np.array(each), -1, 0)
        return np.stack([each, each - each[..., plain, None]], axis=1)

    interval = bootstrap_statistic(areas, len(wrong))
    columns: dict[str, np.ndarray] = {}
    for which, suffix in enumerate(("", "_difference")):
        for place, name in enumerate(AREAS):
            column = f"{name}{suffix}"
            names = column, f"{column}_low", f"{column}_high"
            columns |= {n: end[which, place] for n, end in zip(names, interval)}
    counts = {"images": len(wrong), "errors": int(wrong.sum())}
    yield pd.DataFrame({"run": run.name, "confidence": list(sure)} | counts | columns)


def describe_errors(run: Run, rows: Frame) -> Iterator[str]:
    """Whether the blocks tell more of errors than the last answer alone."""
    if not len(rows):
        yield (
            f"{len(run.image)} images with {int((~run.correct).sum())} errors are too "
            "few to say whether errors are foreseen: each of two halves needs "
            f"{FEWEST} right and {FEWEST} wrong ones."
        )
        return
    of = rows.set_index("confidence").to_dict("index")
    found, known = (
        quote(of[name], unit="", mean="aucpr") for name in ("dynamics", "probability")
    )
    low, high = (of["dynamics"][f"aucpr_difference_{end}"] for end in ("low", "high"))
    verdict = "beats" if low > 0 else "is worse than" if high < 0 else "does not beat"
    yield (
        f"A logistic regression on the log-probabilities of all blocks {verdict} the "
        f"maximum probability at finding errors: AUCPR {found} and {known}, difference "
        f"{quote(of['dynamics'], unit='', mean='aucpr_difference')}."
    )


def error_table(rows: Frame) -> Table:
    """Confidences by both areas."""
    shown = rows[["run"]].assign(confidence=rows["confidence"].map(CONFIDENCES))
    for name, heading in (("aucpr", "AUCPR of errors ↑"), ("aurc", "AURC ↓")):
        shown[heading] = with_interval(rows, name)
        less = f"{heading} less that of maximum probability"
        shown[less] = with_interval(rows, f"{name}_difference")
    return Table(
        key="errors",
        title="How well errors are foreseen",
        caption="Of a random half of the images, on which nothing is fitted. AUCPR: "
        "average precision of finding errors among the least confident images; AURC: "
        "rate of errors among the most confident ones, averaged over coverages. 95 % "
        "bootstrap intervals over images, of differences paired.",
        data=rows,
        shown=shown,
    )


COVERAGE = np.linspace(0.05, 1, 20)


def risk_curves(run: Run) -> Rows:
    """The rate of errors among the most confident images."""
    sure, wrong = confidences(run)
    for style, (name, confidence) in enumerate(sure.items()):

        def risks(counts: np.ndarray, confidence=confidence) -> np.ndarray:
            curves = zip(*at_thresholds(confidence, wrong, counts))
            rates = [(COVERAGE * n[-1], n, e / np.maximum(n, 1)) for n, e in curves]
            return np.stack([np.interp(*each) for each in rates])

        columns = {"run": run.name, "panel": "held-out images", "chance": np.nan}
        columns |= {"series": CONFIDENCES[name], "style": style, "x": COVERAGE}
        interval = bootstrap_statistic(risks, len(wrong))
        yield pd.DataFrame(columns | {"images": len(wrong)} | interval._asdict())


def leads(run: Run) -> Rows:
    """The answer's logit less that of its best rival, of right and wrong answers."""
    logits = run.read(schema.RIVAL_LOGITS()).astype(float)
    if logits.shape[-1] == 1:  # of one class
        return
    lead, right = logits[..., 0] - logits[..., 1:].max(-1), run.correct
    for style, (name, own) in enumerate({"right": right, "wrong": ~right}.items()):
        if own.any():
            yield run.line("the model's answer", name, style, lead[own])


ERROR_FIGURES: FigureTable = {
    "errors_lead": (
        leads,
        "When the answer takes the lead",
        "Where the lines differ before the last block, the course of the logits says "
        "something about errors.",
        "Logit of the model's answer less that of its best rival, as the head reads "
        f"them after each block, of right and of wrong answers. {BAND}",
        {"y_label": "lead of the answer's logit"},
    ),
    "risk_coverage": (
        risk_curves,
        "Risk and coverage",
        "The lower a line, the better its confidence keeps errors out.",
        "Rate of errors if only the most confident images are answered, of images on "
        "which nothing is fitted. Band: 95 % bootstrap interval over images.",
        {"x": "x", "x_label": "coverage", "y_label": "rate of errors"},
    ),
}
