"""Rows of the recipe `paper` -> one value per image, quantity and block.

As in `digest`, tokens are averaged within an image first; later averages are over
images. Blocks are compared with what entered them, so that the first one counts as
well; the paper's figures begin at the second.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from vitjax.report import per_image as digests
from vitjax.report.composition import (
    chance_compositions,
    composition,
    published_composition,
)
from vitjax.report.per_image import Digest
from vitjax.runner.results import Results

CHANGES = {
    "residual": "block output against block input",
    "attention_update": "attention against its input",
    "mlp_update": "MLP against its input",
    "mlp_update_published": "MLP against the block's input (published)",
}
"""What class-similarity change compares; by name of the quantity."""

SYSTEMS = ("attention", "mlp")

HEADS = ("agreement_head", "chance_head", "simple_head", "chance_simple_head")

ATTENTION_EDITS = (
    *("self_only", "self_only_renormalized", "self_only_code"),
    *("no_cls", "no_cls_renormalized"),
)
TOKEN_EDITS = {
    "without_context": 1,
    "random_as_class": 1,
    "without_class": 0,
    "random_as_context": 0,
}
"""Edits of which tokens exist -> what of the mask stays, or as many tokens as that."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mechanism:
    """Per image and block, NaN where an image has no such token.

    Args:
        digest: of the same run; images in the same order.
        change: quantity of `CHANGES` -> kind of tokens -> share that rises.
        composition: category -> share of all tokens; exclusive.
        published_composition: the same as the published code counts it; overlapping.
        composition_chance, published_composition_chance: likewise, where a token's
            answer is compared with the sources of every other token of its image.
        agreement: "paper" or "code" -> system -> share of all tokens.
        chance: likewise, with permuted classes.
        at_readout: likewise "paper" agreement, at [CLS] or over the image tokens.
        simple: system -> share of all tokens whose answer is that of one memory.
        simple_chance: likewise, with permuted classes.
        heads: row of `memories.head_rows` -> its means over tokens, head by head; empty
            where a run has none.
        gain: update -> kind of tokens -> mean of its true logit minus its input's.
        interventions: name -> per-image numbers of `Intervention`.
        class_value: system -> agreement [layer class]; also SYSTEM_control, _shuffled;
            head -> that of every attention head [layer head class].
    """

    digest: Digest
    change: Mapping[str, Mapping[str, Float[np.ndarray, "image layer"]]]
    composition: Mapping[str, Float[np.ndarray, "image layer"]]
    published_composition: Mapping[str, Float[np.ndarray, "image layer"]]
    composition_chance: Mapping[str, Float[np.ndarray, "image layer"]]
    published_composition_chance: Mapping[str, Float[np.ndarray, "image layer"]]
    agreement: Mapping[str, Mapping[str, Float[np.ndarray, "image layer"]]]
    chance: Mapping[str, Mapping[str, Float[np.ndarray, "image layer"]]]
    at_readout: Mapping[str, Float[np.ndarray, "image layer"]]
    simple: Mapping[str, Float[np.ndarray, "image layer"]]
    simple_chance: Mapping[str, Float[np.ndarray, "image layer"]]
    heads: Mapping[str, Float[np.ndarray, "image layer head"]]
    gain: Mapping[str, Mapping[str, Float[np.ndarray, "image layer"]]]
    interventions: Mapping[str, "Intervention"]
    class_value: Mapping[str, Float[np.ndarray, "layer *head class"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Intervention:
    """One intervention, image by image: the same tokens before and after.

    Args:
        before, after: share of identifiable image tokens in the last block, among
            those that exist after the edit; NaN where none does.
        correct_before, correct_after: whether the model's answer is the label.
    """

    before: Float[np.ndarray, " image"]
    after: Float[np.ndarray, " image"]
    correct_before: Bool[np.ndarray, " image"]
    correct_after: Bool[np.ndarray, " image"]


def is_paper(run: Results) -> bool:
    """Whether a run holds the rows that this file reads."""
    return "logit_middle" in run and "agreement_mlp" in run


def mechanism(run: Results, digest: Digest) -> Mechanism:
    """Reduce a run of the recipe `paper`, reading some hundred images at a time.

    Args:
        run: its rows.
        digest: of the same run.

    Returns:
        Its per-image values.
    """
    use = np.zeros(digest.total, bool)
    use[digest.image] = True
    pieces = [
        reduced(run, digest, rows, chosen)
        for rows, chosen in digests.windows(run, digest.config, use)
    ]
    joined = join(pieces)
    class_value = {
        name.removeprefix("class_value_"): run[name][:]
        for name in run.names
        if name.startswith("class_value_")
    }
    return Mechanism(digest=digest, class_value=class_value, **joined)


def join(pieces: list[Any]) -> Any:
    """Nested dicts of arrays, one after the other along the image axis."""
    first = pieces[0]
    if isinstance(first, dict):
        return {key: join([piece[key] for piece in pieces]) for key in first}
    if isinstance(first, Intervention):
        fields = [field.name for field in dataclasses.fields(first)]
        return Intervention(
            **{n: np.concatenate([getattr(p, n) for p in pieces]) for n in fields}
        )
    return np.concatenate(pieces)


def reduced(run, digest: Digest, rows: slice, chosen) -> dict[str, Any]:
    """The per-image values of some consecutive images."""

    def read(name):
        return run[name][rows][chosen]

    config, kinds = digest.config, digest.tokens
    mask = read("patch_label") if "class" in kinds else None
    members = {kind: digests.members(config, kind, mask) for kind in kinds}
    readout = "cls" if config.class_token else "image"
    before = previous(read("logit_embedding"), read("logit_residual"))
    tops = {name: read(f"first_{name}") for name in digests.STREAMS}
    came = previous(read("first_embedding"), tops["residual"])
    return {
        "change": changes(read, before, members),
        "composition": composition(tops, came),
        "published_composition": published_composition(tops, came),
        **chance_compositions(tops, came),
        "agreement": {
            kind: {s: read(f"agreement_{code}{s}").mean(-1) for s in SYSTEMS}
            for kind, code in (("paper", ""), ("code", "code_"))
        },
        "chance": {
            kind: {s: read(f"chance_{code}{s}") for s in SYSTEMS}
            for kind, code in (("paper", ""), ("code", "code_"))
        },
        "at_readout": {
            s: average(read(f"agreement_{s}"), members[readout]) for s in SYSTEMS
        },
        "simple": {s: read(f"simple_{s}").mean(-1) for s in SYSTEMS},
        "simple_chance": {  # runs of older versions have none
            s: read(f"chance_simple_{s}")
            for s in SYSTEMS
            if f"chance_simple_{s}" in run
        },
        "heads": {name: read(name) for name in HEADS if name in run},
        "gain": gains(read, before, members),
        "interventions": dict(interventions(run, read, config, mask)),
    }


def previous(embedding, residual):
    """What entered each block: the embedding, then the stream after the one before."""
    return np.concatenate([embedding[:, None], residual[:, :-1]], axis=1)


def average(
    hits: Bool[np.ndarray, "image layer token"],
    there: Bool[np.ndarray, "image_or_1 token"],
) -> Float[np.ndarray, "image layer"]:
    """Share of a kind of tokens; NaN where an image has none."""
    count = there.sum(-1)[:, None].astype(float)
    total = (hits & there[:, None]).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (total / count).astype(np.float32)


def changes(read, before, members) -> dict[str, dict[str, np.ndarray]]:
    """Class-similarity change, by what is compared and kind of tokens."""
    mlp, middle = read("logit_mlp_update"), read("logit_middle")
    rises = {
        "residual": read("logit_residual") > before,
        "attention_update": read("logit_attention_update") > before,
        "mlp_update": mlp > middle,
        "mlp_update_published": mlp > before,
    }
    return {
        name: {kind: average(hits, there) for kind, there in members.items()}
        for name, hits in rises.items()
    }


def gains(read, before, members) -> dict[str, dict[str, np.ndarray]]:
    """How much larger the true logit of an update is than that of what it read."""
    rises = {
        "attention_update": read("logit_attention_update") - before,
        "mlp_update": read("logit_mlp_update") - read("logit_middle"),
    }
    return {
        name: {kind: weighted(values, there) for kind, there in members.items()}
        for name, values in rises.items()
    }


def weighted(values, there) -> Float[np.ndarray, "image layer"]:
    """Mean over a kind of tokens; NaN where an image has none."""
    count = there.sum(-1)[:, None].astype(float)
    total = np.where(there[:, None], values, 0.0).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / count


def interventions(run, read, config, mask) -> Iterator[tuple[str, Intervention]]:
    """Every intervention that the run holds."""
    label, prediction = read("label"), read("prediction")
    last = np.asarray(read("rank_residual")[:, -1])
    image = np.arange(config.tokens) >= config.prefix
    for name in (*ATTENTION_EDITS, *TOKEN_EDITS):
        if f"rank_{name}" not in run:
            continue
        ranks = read(f"rank_{name}")
        there = (ranks >= 0) & image
        yield (
            name,
            Intervention(
                before=share(last == 0, there),
                after=share(ranks == 0, there),
                correct_before=prediction == label,
                correct_after=read(f"prediction_{name}") == label,
            ),
        )


def share(hits, there) -> Float[np.ndarray, " image"]:
    """Share of the tokens that are there; NaN where none is."""
    count = there.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (hits & there).sum(-1) / count.astype(float)
