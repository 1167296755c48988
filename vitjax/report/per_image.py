"""Runs as a report reads them: one curve per image, averaged over a kind of tokens.

For token t of an image of class c after block b, `rank` counts the classes with a
larger logit than c, and

    identifiability = 1 - rank / C,    identifiable = (rank == 0)

(Vilas et al. 2023, section 3). Both are averaged here over a kind of tokens within
each image; everything later averages over images, so that images count alike however
many tokens of a kind they have. Rows are read some hundred images at a time, of images
that are done, valid and labeled.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Shaped

from vitjax.analysis.interventions import Convention
from vitjax.analysis.residual_stream import residual_composition
from vitjax.recipes import schema
from vitjax.runner.results import Results
from vitjax.statistics import bootstrap_mean
from vitjax.types import Config

if TYPE_CHECKING:  # pandas has no stubs, and what it infers is often wrong
    Frame: TypeAlias = Any
else:
    Frame = pd.DataFrame

MEASURES = {
    "identifiability": "class identifiability",
    "rate": "identifiability rate",
}

WINDOW_BYTES = 2**24

BAND = "Line: mean over images; band: its 95 % interval."


def intervals(values: np.ndarray, *, shares: bool = False) -> dict[str, np.ndarray]:
    """images, mean, low and high over the first axis, each flat.

    Shares of images, which are boolean, have Wilson's interval. So have other `shares`,
    in [0, 1], that are all 0 or 1; a curve with a few such points would open there.
    """
    rates = shares or values.dtype == bool
    interval = bootstrap_mean(values.astype(np.float64), rates=rates)
    columns = {"images": np.isfinite(values).sum(0), **interval._asdict()}
    return {name: np.ravel(column) for name, column in columns.items()}


def interval_of(
    values: Shaped[np.ndarray, " image"], *, shares: bool = True
) -> dict[str, Any]:
    """The same of one number per image."""
    columns = intervals(values[:, None], shares=shares)
    return {name: column[0] for name, column in columns.items()}


def summarize(
    measured: Mapping[str, np.ndarray], *, shares: bool = False
) -> dict[str, np.ndarray]:
    """Columns of a table: images, and each mean with the ends of its interval."""
    columns = {}
    for name, values in measured.items():
        mean = intervals(values, shares=shares)
        columns |= {"images": mean["images"], name: mean["mean"]}
        columns |= {f"{name}_{end}": mean[end] for end in ("low", "high")}
    return columns


def mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of the values that exist; NaN where none does."""
    exists = np.isfinite(values)
    with np.errstate(invalid="ignore"):  # 0 / 0
        return np.where(exists, values, 0).sum(0, dtype=float) / exists.sum(0)


class Run:
    """One run of a recipe, finished or not, by the name that it goes by.

    Attributes:
        total, done: images that were requested; that were computed or skipped so far.
        skipped, unlabeled: among these, not readable; without a known class.
        valid: position in the data set of those that were read.
        image: position in the data set of the others, that all numbers are about.
        label, correct: their class; whether the prediction is it.
        tokens: kinds of tokens that exist, keys of `schema.KINDS`.
    """

    def __init__(self, results: Results, name: str = ""):
        if schema.PREDICTION() not in results:
            raise ValueError(
                f"A report needs predictions; this run of recipe "
                f"{results.manifest.get('recipe')!r} holds {sorted(map(str, results))}."
                " Make one with `vitjax run identifiability`."
            )
        self.results, self.name = results, name
        self.manifest: Mapping[str, Any] = results.manifest
        model = self.manifest["model"]
        self.config = Config.from_dict(model["config"])
        self.classes = tuple(model["classes"])
        done = np.flatnonzero(results["done"].values)
        valid, label = self.read(schema.VALID(), done), self.read(schema.LABEL(), done)
        use = valid & (label >= 0)
        self.valid = done[valid]
        self.total, self.done = len(results["done"]), len(done)
        self.skipped = int((~valid).sum())
        self.unlabeled = int((valid & (label < 0)).sum())
        self.image, self.label = done[use], label[use]
        self.correct = self.read(schema.PREDICTION()) == self.label
        masks = schema.PATCH_LABEL() in results
        exists = {"object": masks, "context": masks, "image": True}
        exists |= {"cls": self.config.class_token, "register": self.config.registers}
        self.tokens = tuple(kind for kind in schema.KINDS if exists[kind])

    def __contains__(self, name: str) -> bool:
        return name in self.results

    @property
    def pooled(self) -> str:
        """The kind of tokens that the prediction is read from; where it is read from
        both, [CLS].
        """
        return "cls" if self.config.pooling in ("cls", "cls_mean") else "image"

    @property
    def streams(self) -> tuple[str, ...]:
        """Streams whose ranks the run holds."""
        return tuple(s for s in schema.STREAMS if schema.RANK(s) in self.results)

    def read(
        self, name: str, images: Int[np.ndarray, " image"] | None = None
    ) -> np.ndarray:
        """Rows of an array at increasing positions; by default those of `image`."""
        images = self.image if images is None else images
        rows: Any = images
        if len(images) and images[-1] - images[0] + 1 == len(images):
            rows = slice(int(images[0]), int(images[-1]) + 1)  # faster
        return self.results[name][rows].values

    def by_window(
        self, compute: Callable[[np.ndarray], dict[Any, np.ndarray]]
    ) -> dict[Any, np.ndarray]:
        """Key -> values of the images that count, from windows of some hundred."""
        size = 4 * self.config.depth * self.config.tokens
        step = max(1, min(1024, WINDOW_BYTES // size))
        starts = range(0, max(1, len(self.image)), step)
        windows = [compute(self.image[start : start + step]) for start in starts]
        return {key: np.concatenate([w[key] for w in windows]) for key in windows[0]}

    def members(
        self, kind: str, images: Int[np.ndarray, " image"]
    ) -> Bool[np.ndarray, "image_or_1 token"]:
        """Which tokens are of a kind: one row for all images, or one for each."""
        prefix = self.config.prefix
        token = np.arange(self.config.tokens)
        if kind in ("object", "context"):
            patch_label = self.read(schema.PATCH_LABEL(), images)
            on_kind = patch_label == (1 if kind == "object" else 0)
            return np.pad(on_kind, ((0, 0), (prefix, 0)))
        member = {
            "cls": token < 1,
            "register": (token >= self.config.class_token) & (token < prefix),
            "image": token >= prefix,
        }
        return member[kind][None]

    @functools.cached_property
    def curves(self) -> dict[tuple[str, str, str], Float[np.ndarray, "image layer"]]:
        """(measure, stream, kind of tokens) -> its means; NaN where an image has no
        such token. A rank of -1 is that of an absent one.
        """

        def compute(images):
            curves = {}
            for stream in self.streams:
                ranks = self.read(schema.RANK(stream), images)
                for kind in self.tokens:
                    member = self.members(kind, images)[:, None] & (ranks >= 0)
                    scores = 1 - over_tokens(ranks, member) / len(self.classes)
                    curves["identifiability", stream, kind] = scores.astype(np.float32)
                    rates = over_tokens(ranks == 0, member)
                    curves["rate", stream, kind] = rates.astype(np.float32)
            return curves

        return self.by_window(compute)

    def curve(
        self, tokens: str, measure: str = "identifiability", stream: str = "residual"
    ) -> Float[np.ndarray, "image layer"]:
        """One measure of one kind of tokens in one stream."""
        return self.curves[measure, stream, tokens]

    def line(
        self,
        panel: str,
        series: str,
        style: int,
        values: Shaped[np.ndarray, "unit ..."],
        *,
        chance: float | Float[np.ndarray, " x"] = np.nan,
        axis: Mapping[str, Any] | None = None,
    ) -> Frame:
        """The rows of one series of a figure, over blocks by default; else `axis` has a
        column for each axis of the values.

        Values are NaN where an image (or class) has none; `chance` is a level, or one
        for each x.
        """
        columns = {
            "run": self.name,
            "panel": panel,
            "series": series,
            "style": style,
            **(axis or {"layer": np.arange(values.shape[1])}),
            **intervals(values),
            "chance": chance,
        }
        return pd.DataFrame(columns)

    def chance(self, measure: str) -> float:
        """Expected measure if every rank were equally likely."""
        count = len(self.classes)
        return (count + 1) / (2 * count) if measure == "identifiability" else 1 / count

    @property
    def has_paper(self) -> bool:
        """Whether it holds rows of section 6 of the paper, of at least one image."""
        needed = schema.LOGIT_MIDDLE(), *schema.AGREEMENT.names
        return len(self.image) > 0 and all(name in self for name in needed)

    @property
    def interventions(self) -> list[str]:
        """Those whose rows it holds."""
        return [n for n in schema.INTERVENTIONS if schema.RANK_EDITED(n) in self]

    @functools.cached_property
    def paper(self) -> dict[tuple[str, ...], np.ndarray]:
        """Metrics of section 6, images first; only where `has_paper`."""
        return self.by_window(functools.partial(paper_metrics, self))

    def class_value(
        self, system: str, weights: str = "trained"
    ) -> Float[np.ndarray, "layer class"]:
        """Class-value agreement of the weights, or of one of `schema.CONTROLS`."""
        name = schema.CLASS_VALUE(system)
        if weights != "trained":
            name = schema.CLASS_VALUE_CONTROL(system, weights)
        return self.results[name].values


def as_runs(
    results: Results | Sequence[Results], names: Sequence[str] = ()
) -> list[Run]:
    """One run or several, with names; by default what tells them apart."""
    several = [results] if isinstance(results, Results) else list(results)
    if not several:
        raise ValueError("Expected at least one run, as open_results returns it.")
    if names and len(names) != len(several):
        raise ValueError(
            f"names={tuple(names)} are {len(names)}, not one for each of "
            f"{len(several)} runs."
        )
    names = names or run_names([each.manifest for each in several])
    return [Run(each, name) for each, name in zip(several, names)]


def run_names(manifests: Sequence[Mapping[str, Any]]) -> list[str]:
    """Short names that tell runs apart: the first of model, recipe, data and so on that
    differ; of a single run, its model.
    """
    fields = [
        lambda m: m["model"]["name"],
        short_data,
        lambda m: m.get("recipe"),
        lambda m: m.get("dtype"),
        lambda m: pathlib.PurePath(str(m["model"].get("checkpoint"))).name,
        lambda m: str(m["model"].get("sha256"))[:8],
        lambda m: f"seed {m.get('seed')}",
    ]
    names = [""] * len(manifests)
    for place, field in enumerate(fields):
        values = [str(field(m)) for m in manifests]
        # Other data is always worth saying, the rest only to tell namesakes apart.
        needed = place < 2 or len(set(names)) < len(names)
        if needed and len(set(values)) > 1:
            names = [f"{a} · {b}" if a else b for a, b in zip(names, values)]
    names = [name or m["model"]["name"] for name, m in zip(names, manifests)]
    return [
        name if names.count(name) == 1 else f"{name} ({names[:place].count(name) + 1})"
        for place, name in enumerate(names)
    ]


def short_data(manifest: Mapping[str, Any]) -> str:
    """The data as on the command line, of a path only the last part."""
    spec = str(manifest["data"]["spec"])
    if spec.startswith("photos:"):  # of `vitjax look`: how many, then their digest
        return spec.removeprefix("photos:").partition(",")[0]
    return pathlib.PurePath(spec).name if "/" in spec else spec


UPDATES = ("attention_update", "mlp_update")
COMPARED = {
    "residual": "block output against block input",
    "attention_update": "attention against its input",
    "mlp_update": "MLP against its input",
    "mlp_update_vilas2023": "MLP against the block's input (published)",
}
"""What class-similarity change compares: a stream with what its layer read."""

CATEGORIES = {
    "previous": "the block's input",
    "attention": "attention",
    "mlp": "MLP",
    "several": "more than one of them",
    "composed": "none: a new class",
}
"""Where the top class after a block comes from: see `vitjax.residual_composition`."""

CONVENTIONS: dict[str, Convention] = {"paper": "paper", "vilas2023": "vilas2023_code"}
AGREEMENTS = (
    ("paper", schema.AGREEMENT, schema.CHANCE),
    ("vilas2023", schema.AGREEMENT_VILAS2023, schema.CHANCE_VILAS2023),
)
"""(convention, arrays of key-value agreement, and of it with permuted classes)."""


def paper_metrics(
    run: Run, images: Int[np.ndarray, " image"]
) -> dict[tuple[str, ...], np.ndarray]:
    """(metric, and what it is of) -> [image layer], of interventions [image]; NaN where
    an image has no such token.
    """
    read = functools.partial(run.read, images=images)
    logits = {stream: read(schema.LOGIT(stream)) for stream in schema.STREAMS}
    before = entering(read(schema.LOGIT_EMBEDDING()), logits["residual"])
    steps = {
        "residual": (before, logits["residual"]),
        "attention_update": (before, logits["attention_update"]),
        "mlp_update": (read(schema.LOGIT_MIDDLE()), logits["mlp_update"]),
        "mlp_update_vilas2023": (before, logits["mlp_update"]),
    }
    metrics = {}
    for kind in run.tokens:
        member = run.members(kind, images)[:, None]
        for compared, (start, end) in steps.items():
            # The share of tokens whose class logit rises, and by how much.
            rises = over_tokens(end > start, member)
            metrics["change", kind, compared] = rises.astype(np.float32)
            metrics["gain", kind, compared] = over_tokens(end - start, member)
    tops = {stream: read(schema.FIRST(stream)) for stream in schema.STREAMS}
    sources = {
        "before": entering(read(schema.FIRST_EMBEDDING()), tops["residual"]),
        "attention": tops["attention_update"],
        "mlp": tops["mlp_update"],
    }
    metrics |= composition(tops["residual"], sources)
    pooled = run.members(run.pooled, images)[:, None]
    for system in schema.SYSTEMS:
        for convention, hits, chance in AGREEMENTS:
            metrics["agreement", convention, system] = read(hits(system)).mean(-1)
            metrics["agreement_chance", convention, system] = read(chance(system))
        hits = over_tokens(read(schema.AGREEMENT(system)), pooled)
        metrics["agreement_pooled", system] = hits.astype(np.float32)
        metrics["simple", system] = read(schema.SIMPLE(system)).mean(-1)
        metrics["simple_chance", system] = read(schema.CHANCE_SIMPLE(system))
    last = read(schema.RANK("residual"))[:, -1]
    for name in run.interventions:
        # Identifiable image tokens in the last block, of those that stay.
        ranks = read(schema.RANK_EDITED(name))
        stay = (ranks >= 0) & run.members("image", images)
        metrics["before", name] = over_tokens(last == 0, stay)
        metrics["after", name] = over_tokens(ranks == 0, stay)
        prediction = read(schema.PREDICTION_EDITED(name))
        metrics["correct", name] = prediction == read(schema.LABEL())
    return metrics


def entering(embedding: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """What entered each block: the embedding, then the stream after the one before."""
    return np.concatenate([embedding[:, None], residual[:, :-1]], axis=1)


def over_tokens(
    values: Shaped[np.ndarray, "image ... token"],
    member: Bool[np.ndarray, "image_or_1 ... token"],
) -> Float[np.ndarray, "image ..."]:
    """Mean over member tokens; NaN where an image has none."""
    total = np.where(member, values, 0).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / member.sum(-1).astype(float)


def composition(
    after: Int[np.ndarray, "image layer token"],
    sources: Mapping[str, Int[np.ndarray, "image layer token"]],
) -> dict[tuple[str, ...], Float[np.ndarray, "image layer"]]:
    """Shares of tokens in every category of each convention, and those by chance.

    Chance is what is left where answers and sources are of different tokens, the exact
    mean over all pairs of tokens of an image, as cyclic shifts: the tokens of an image
    tend to the same classes. NaN where an image has a single token.
    """
    tokens = after.shape[-1]
    counts, pairs = jax.tree.map(np.asarray, _count_compositions(after, sources))
    shares = {("composition", *key): n / tokens for key, n in counts.items()}
    total = tokens * (tokens - 1) or np.nan
    return shares | {
        ("composition_chance", *key): n / total for key, n in pairs.items()
    }


@jax.jit
def _count_compositions(after, sources):
    """Tokens, and pairs of different tokens, of every convention and category."""

    def count(shift):
        shifted = {name: jnp.roll(tops, shift, -1) for name, tops in sources.items()}
        return {
            (key, category): hits.sum(-1, dtype=jnp.int32)
            for key, convention in CONVENTIONS.items()
            for category, hits in residual_composition(
                after, **shifted, convention=convention
            ).items()
        }

    def add(shift, total):
        return jax.tree.map(jnp.add, total, count(shift))

    own = count(0)
    start = jax.tree.map(jnp.zeros_like, own)
    return own, jax.lax.fori_loop(1, after.shape[-1], add, start)
