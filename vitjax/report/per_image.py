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
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
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

    def windows(self) -> Iterator[Int[np.ndarray, " image"]]:
        """Positions of the images that count, some hundred at a time."""
        size = 4 * self.config.depth * self.config.tokens
        step = max(1, min(1024, WINDOW_BYTES // size))
        for start in range(0, len(self.image), step):
            yield self.image[start : start + step]

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
    def curves(self) -> dict[tuple[str, str], Float[np.ndarray, "image measure layer"]]:
        """(stream, kind of tokens) -> both measures; NaN where an image has no token of
        that kind.
        """
        empty = np.empty((0, len(MEASURES), self.config.depth), np.float32)
        keys = itertools.product(self.streams, self.tokens)
        curves = {key: [empty] for key in keys}
        for images, stream in itertools.product(self.windows(), self.streams):
            ranks = self.read(schema.RANK(stream), images)
            for kind in self.tokens:
                members = self.members(kind, images)
                average = _average(ranks, members, len(self.classes))
                curves[stream, kind].append(average.astype(np.float32))
        return {key: np.concatenate(parts) for key, parts in curves.items()}

    def curve(
        self, tokens: str, measure: str = "identifiability", stream: str = "residual"
    ) -> Float[np.ndarray, "image layer"]:
        """One measure of one kind of tokens in one stream."""
        return self.curves[stream, tokens][:, list(MEASURES).index(measure)]

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

    @functools.cached_property
    def paper(self) -> xr.Dataset:
        """Metrics of sections 5 and 6; only where `has_paper`."""
        return paper_metrics(self)

    def metric(self, name: str, **where: str) -> np.ndarray:
        """One of the metrics `paper` at some keys of its dimensions, images first."""
        values = self.paper[name].sel(where)
        return values.transpose("image", ..., missing_dims="ignore").values


def _average(ranks, member, classes) -> Float[np.ndarray, "image measure layer"]:
    """Mean of each measure over member tokens; rank -1 is an absent one."""
    member = member[:, None] & (ranks >= 0)
    count = member.sum(-1)
    total = np.where(member, ranks, 0).sum(-1, dtype=np.int64)
    hits = (member & (ranks == 0)).sum(-1)
    with np.errstate(invalid="ignore"):  # no token of this kind: 0 / 0
        return np.stack([1 - total / (count * classes), hits / count], axis=1)


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
AGREEMENTS = (schema.AGREEMENT, schema.AGREEMENT_VILAS2023)
CHANCES = (schema.CHANCE, schema.CHANCE_VILAS2023)
"""In the order of `CONVENTIONS`."""

HEADS = ("agreement_head", "chance_head", "simple_head", "chance_simple_head")
"""Arrays that are metrics as they are."""


def paper_metrics(run: Run) -> xr.Dataset:
    """The metrics of a run with rows of section 6 and at least one image.

    Dimensions have names and keys; NaN where an image has no such token.
    """
    interventions = [n for n in schema.INTERVENTIONS if schema.RANK_EDITED(n) in run]
    windows = [_window(run, images, interventions) for images in run.windows()]
    systems = list(schema.SYSTEMS)
    names = [[schema.CLASS_VALUE(system) for system in systems]]
    for control in schema.CONTROLS:
        names.append([schema.CLASS_VALUE_CONTROL(s, control) for s in systems])
    values = [[run.results[name].values for name in pair] for pair in names]
    heads = run.results[schema.CLASS_VALUE_HEAD()].values
    metrics = xr.concat(windows, dim="image", data_vars="all")
    metrics["class_value"] = ("weights", "system", "layer", "class"), np.array(values)
    metrics["class_value_head"] = ("layer", "head", "class"), heads
    return metrics.assign_coords(
        compared=list(COMPARED),
        update=list(UPDATES),
        tokens=list(run.tokens),
        convention=list(CONVENTIONS),
        category=list(CATEGORIES),
        system=systems,
        intervention=interventions,
        weights=["trained", *schema.CONTROLS],
    )


def _window(run: Run, images: np.ndarray, interventions: list[str]) -> xr.Dataset:
    """The metrics of some images, without those of the weights."""
    read = functools.partial(run.read, images=images)
    logits = {stream: read(schema.LOGIT(stream)) for stream in schema.STREAMS}
    before = entering(read(schema.LOGIT_EMBEDDING()), logits["residual"])
    steps = {
        "residual": (before, logits["residual"]),
        "attention_update": (before, logits["attention_update"]),
        "mlp_update": (read(schema.LOGIT_MIDDLE()), logits["mlp_update"]),
        "mlp_update_vilas2023": (before, logits["mlp_update"]),
    }
    tops = {stream: read(schema.FIRST(stream)) for stream in schema.STREAMS}
    after = tops["residual"]
    sources = {
        "before": entering(read(schema.FIRST_EMBEDDING()), after),
        "attention": tops["attention_update"],
        "mlp": tops["mlp_update"],
    }
    parts = [
        residual_composition(after, **sources, convention=convention)
        for convention in CONVENTIONS.values()
    ]
    kinds = [run.members(kind, images) for kind in run.tokens]
    head, patches = run.members(run.pooled, images), run.members("image", images)
    pooled = [over_tokens(read(name), head) for name in schema.AGREEMENT.names]
    last, label = read(schema.RANK("residual"))[:, -1], read(schema.LABEL())
    edited = [read(schema.RANK_EDITED(name)) for name in interventions]
    stay = [(ranks >= 0) & patches for ranks in edited]
    answers = [read(schema.PREDICTION_EDITED(name)) for name in interventions]
    systems = schema.SYSTEMS
    by_kind = ("tokens", "image", "layer")
    by_system = ("system", "image", "layer")
    by_edit = ("intervention", "image")
    metrics = {
        "change": (  # share of tokens whose class logit rises
            ("compared", *by_kind),
            [
                [over_tokens(end > start, kind).astype(np.float32) for kind in kinds]
                for start, end in steps.values()
            ],
        ),
        "gain": (  # of an update's class logit over that of its input
            ("update", *by_kind),
            [
                [over_tokens(end - start, kind) for kind in kinds]
                for start, end in (steps[update] for update in UPDATES)
            ],
        ),
        "composition": (
            ("convention", "category", "image", "layer"),
            [[np.asarray(hit).mean(-1) for hit in hits.values()] for hits in parts],
        ),
        "composition_chance": (
            ("image", "convention", "category", "layer"),
            composition_chance(after, sources),
        ),
        "agreement": (
            ("convention", *by_system),
            [[read(name(s)).mean(-1) for s in systems] for name in AGREEMENTS],
        ),
        "agreement_chance": (
            ("convention", *by_system),
            [[read(name(s)) for s in systems] for name in CHANCES],
        ),
        "agreement_pooled": (by_system, [hits.astype(np.float32) for hits in pooled]),
        "simple": (by_system, [read(schema.SIMPLE(s)).mean(-1) for s in systems]),
        "simple_chance": (by_system, [read(schema.CHANCE_SIMPLE(s)) for s in systems]),
        # Identifiable image tokens in the last block, of those that stay.
        "before": (by_edit, [over_tokens(last == 0, kind) for kind in stay]),
        "after": (
            by_edit,
            [over_tokens(e == 0, kind) for e, kind in zip(edited, stay)],
        ),
        "correct": (by_edit, [answer == label for answer in answers]),
    }
    for name in filter(run.__contains__, HEADS):
        metrics[name] = ("image", "layer", "head"), read(name)
    return xr.Dataset(
        {n: (dims, np.array(v)) for n, (dims, v) in metrics.items() if len(v)}
    )


def entering(embedding: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """What entered each block: the embedding, then the stream after the one before."""
    return np.concatenate([embedding[:, None], residual[:, :-1]], axis=1)


def over_tokens(
    values: Bool[np.ndarray, "image ... token"] | Float[np.ndarray, "image ... token"],
    member: Bool[np.ndarray, "image_or_1 token"],
) -> Float[np.ndarray, "image ..."]:
    """Mean over member tokens; NaN where an image has none."""
    member = np.expand_dims(member, tuple(range(1, values.ndim - 1)))
    total = np.where(member, values, 0).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / member.sum(-1).astype(float)


def composition_chance(
    after: Int[np.ndarray, "image layer token"],
    sources: Mapping[str, Int[np.ndarray, "image layer token"]],
) -> Float[np.ndarray, "image convention category layer"]:
    """The composition that is left where answers and sources are of different tokens.

    The exact mean over all pairs of tokens of an image, as cyclic shifts: what remains
    because the tokens of an image tend to the same classes. NaN where an image has a
    single token.
    """
    tokens = after.shape[-1]
    total = np.asarray(_count_pairs(after, sources)).transpose(2, 0, 1, 3)
    return total / (tokens * (tokens - 1) or np.nan)


@jax.jit
def _count_pairs(after, sources) -> Int[jax.Array, "convention category image layer"]:
    """Pairs of different tokens in every category, one cyclic shift after another."""

    def add(shift, total):
        shifted = {name: jnp.roll(tops, shift, -1) for name, tops in sources.items()}
        hits = [
            list(residual_composition(after, **shifted, convention=convention).values())
            for convention in CONVENTIONS.values()
        ]
        return total + jnp.array(hits).sum(-1, dtype=jnp.int32)

    images, depth, tokens = after.shape
    start = jnp.zeros((len(CONVENTIONS), len(CATEGORIES), images, depth), jnp.int32)
    return jax.lax.fori_loop(1, tokens, add, start)
