"""Rows -> one curve per image: the last place where single tokens are looked at.

For token t of an image of class c after block b, `rank` counts the classes with a
larger logit than c, and

    identifiability = 1 - rank / C,    identifiable = (rank == 0)

(Vilas et al. 2023, section 4). Both are averaged here over a kind of tokens within
each image; everything later averages over images, so that images count alike however
many tokens of a kind they have.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from vitjax.runner.results import Results
from vitjax.types import Config

STREAMS = {
    "residual": "block output",
    "attention_update": "attention update",
    "mlp_update": "MLP update",
}
"""What was projected onto the class space, by the name of its array."""

TOKENS = {
    "cls": "[CLS]",
    "register": "registers",
    "image": "image tokens",
    "class": "class tokens",
    "context": "context tokens",
}
"""Kinds of tokens. Class and context tokens are the image tokens that a mask names."""

MEASURES = ("identifiability", "rate")

WINDOW_BYTES = 2**24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digest:
    """One run, reduced to a value per image, block and kind of tokens.

    Args:
        manifest: of the run.
        config: architecture of its model.
        classes: names of the classes.
        total: images that were asked for.
        done: images that were computed or skipped so far.
        skipped: images among them that could not be read.
        unlabelled: images among them whose class is unknown.
        image: position in the data set of the others: done, read and labelled.
        label: its class.
        correct: whether the model's first class is the label.
        tokens: kinds of tokens that exist, keys of `TOKENS`.
        curves: by stream; measures in the order of `MEASURES`, token kinds in that of
            `tokens`. NaN where an image has no token of that kind.
    """

    manifest: Mapping[str, Any]
    config: Config
    classes: tuple[str, ...]
    total: int
    done: int
    skipped: int
    unlabelled: int
    image: Int[np.ndarray, " image"]
    label: Int[np.ndarray, " image"]
    correct: Bool[np.ndarray, " image"]
    tokens: tuple[str, ...]
    curves: Mapping[str, Float[np.ndarray, "image measure tokens layer"]]

    def chance(self, measure: str) -> float:
        """Expected measure if every rank were equally likely."""
        count = len(self.classes)
        return (count + 1) / (2 * count) if measure == "identifiability" else 1 / count

    def of(
        self, stream: str, measure: str, tokens: str
    ) -> Float[np.ndarray, "image layer"]:
        """One measure of one kind of tokens in one stream."""
        where = MEASURES.index(measure), self.tokens.index(tokens)
        return self.curves[stream][:, *where]


def digest(run: Results, *, streams: Sequence[str] = tuple(STREAMS)) -> Digest:
    """Reduce a run to per-image curves, reading some hundred images at a time.

    Args:
        run: rows of a recipe with ranks, finished or not.
        streams: which streams to read, keys of `STREAMS`; those that the run did not
            write are left out.

    Returns:
        Its digest; images that are not done, not valid or not labelled are counted
        and left out.

    Raises:
        ValueError: the run holds no ranks.
    """
    if "rank_residual" not in run:
        raise ValueError(
            f"A report needs the rows of the `identifiability` recipe; this run is of "
            f"recipe {run.manifest.get('recipe')!r} and holds {sorted(run.names)}. "
            "Make one with `vitjax run identifiability`."
        )
    model = run.manifest["model"]
    config, classes = Config.from_dict(model["config"]), tuple(model["classes"])
    done, valid = run["done"][:], run["valid"][:]
    label, prediction = run["label"][:], run["prediction"][:]
    use = done & valid & (label >= 0)
    tokens = _kinds(config, masks="patch_label" in run)
    present = [name for name in streams if f"rank_{name}" in run]
    return Digest(
        manifest=run.manifest,
        config=config,
        classes=classes,
        total=len(done),
        done=int(done.sum()),
        skipped=int((done & ~valid).sum()),
        unlabelled=int((done & valid & (label < 0)).sum()),
        image=np.flatnonzero(use),
        label=label[use],
        correct=prediction[use] == label[use],
        tokens=tokens,
        curves=_curves(run, config, len(classes), use, present, tokens),
    )


def _curves(run, config, classes, use, streams, tokens) -> dict[str, np.ndarray]:
    """The loop over the image axis; only what it returns outlives a window."""
    ranks = {name: run[f"rank_{name}"] for name in streams}
    masked = "class" in tokens
    shape = (int(use.sum()), len(MEASURES), len(tokens), config.depth)
    curves = {name: np.empty(shape, np.float32) for name in streams}
    filled = 0
    for window, chosen in windows(run, config, use):
        rows = slice(filled, filled + int(chosen.sum()))
        filled = rows.stop
        mask = run["patch_label"][window][chosen] if masked else None
        kinds = [members(config, kind, mask) for kind in tokens]
        for stream, array in ranks.items():
            block = array[window][chosen]
            for place, there in enumerate(kinds):
                curves[stream][rows, :, place] = _average(block, there, classes)
    return curves


def _kinds(config, *, masks) -> tuple[str, ...]:
    exists = {
        "cls": config.class_token,
        "register": config.registers > 0,
        "image": True,
        "class": masks,
        "context": masks,
    }
    return tuple(kind for kind in TOKENS if exists[kind])


def windows(
    run: Results, config: Config, use: Bool[np.ndarray, " image"]
) -> Iterator[tuple[slice, Bool[np.ndarray, " window"]]]:
    """Slices of the image axis with what to use of each; whole batches if they fit.

    Args:
        run: whose rows are read.
        config: architecture of its model.
        use: which images count.

    Returns:
        Slices in order, those without any such image left out.
    """
    most = max(1, min(1024, WINDOW_BYTES // (4 * config.depth * config.tokens)))
    batch = max(1, int(run.manifest.get("batch_size") or 1))
    step = most // batch * batch or most
    for start in range(0, len(use), step):
        window = slice(start, min(start + step, len(use)))
        if use[window].any():
            yield window, use[window]


def members(
    config: Config, kind: str, mask: Int[np.ndarray, "image patch"] | None
) -> Bool[np.ndarray, "image_or_1 token"]:
    """Which tokens are of a kind: the same for all images, or read from the masks.

    Args:
        config: architecture of the model.
        kind: key of `TOKENS`.
        mask: for class and context tokens: 1 class, 0 context, -1 neither.

    Returns:
        One row for all images, or one for each.
    """
    if kind in ("class", "context") and mask is not None:
        there = np.zeros((len(mask), config.tokens), bool)
        there[:, config.prefix :] = mask == (1 if kind == "class" else 0)
        return there
    ranges = {
        "cls": slice(0, 1),
        "register": slice(int(config.class_token), config.prefix),
        "image": slice(config.prefix, None),
    }
    there = np.zeros((1, config.tokens), bool)
    there[:, ranges[kind]] = True
    return there


def _average(ranks, there, classes) -> Float[np.ndarray, "image measure layer"]:
    """Mean of each measure over the tokens that are there; rank -1 is an absent one."""
    there = there[:, None] & (ranks >= 0)
    count = there.sum(-1)
    total = np.where(there, ranks, 0).sum(-1, dtype=np.int64)
    hits = (there & (ranks == 0)).sum(-1)
    with np.errstate(invalid="ignore"):  # no token of this kind: 0 / 0
        return np.stack([1 - total / (count * classes), hits / count], axis=1)
