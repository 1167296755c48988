"""Where the top class after a block comes from, and what chance alone would give.

The top class of a token after a block is compared with those of its three sources: the
block's input, what attention adds, and what the MLP adds.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

COMPOSITION = ("previous", "attention", "mlp", "several", "composed")
PUBLISHED_COMPOSITION = ("previous", "attention", "mlp", "composed")

Tops = Mapping[str, Int[np.ndarray, "image layer token"]]
"""Stream -> top classes."""

Shares = dict[str, Float[np.ndarray, "image layer"]]
"""Category -> share of the tokens of an image."""


def composition(tops: Tops, came: Int[np.ndarray, "image layer token"]) -> Shares:
    """Shares of the five exclusive categories: see `vitjax.residual_composition`.

    Args:
        tops: of the stream after the block and of both updates.
        came: of what entered the block.

    Returns:
        Shares that add to one.
    """
    after = tops["residual"]
    sources = (came, tops["attention_update"], tops["mlp_update"])
    matches = [source == after for source in sources]
    count = np.sum(matches, axis=0)
    found = [match & (count == 1) for match in matches] + [count > 1, count == 0]
    return {name: hits.mean(-1) for name, hits in zip(COMPOSITION, found)}


def published_composition(
    tops: Tops, came: Int[np.ndarray, "image layer token"]
) -> Shares:
    """Shares that overlap, as the published code counts them.

    Args:
        tops, came: as of `composition`.

    Returns:
        Shares whose sum may exceed one.
    """
    after = tops["residual"]
    sources = (came, tops["attention_update"], tops["mlp_update"])
    previous_, attention, mlp = (source == after for source in sources)
    found = (previous_, attention, mlp, ~(previous_ | attention))
    return {name: hits.mean(-1) for name, hits in zip(PUBLISHED_COMPOSITION, found)}


def chance_compositions(
    tops: Tops, came: Int[np.ndarray, "image layer token"]
) -> dict[str, Shares]:
    """Both compositions if answers had nothing to do with their own token's sources.

    A token's top class is compared with the sources of every other token of its image:
    the exact mean over all such pairs, without a draw. It is what remains because the
    tokens of an image tend to the same classes, and zero where they never do.

    Args:
        tops, came: as of `composition`.

    Returns:
        composition_chance and published_composition_chance, NaN where an image has a
        single token.
    """
    after = tops["residual"]
    images, depth, tokens = after.shape
    exclusive = np.empty((len(COMPOSITION), images, depth))
    published = np.empty((len(PUBLISHED_COMPOSITION), images, depth))
    for layer in range(depth):
        sources = (came, tops["attention_update"], tops["mlp_update"])
        here = [source[:, layer] for source in sources]
        exclusive[:, :, layer], published[:, :, layer] = pairs(after[:, layer], *here)
    total = tokens * (tokens - 1) or np.nan
    return {
        "composition_chance": dict(zip(COMPOSITION, exclusive / total)),
        "published_composition_chance": dict(
            zip(PUBLISHED_COMPOSITION, published / total)
        ),
    }


def pairs(
    after: Int[np.ndarray, "image token"],
    came: Int[np.ndarray, "image token"],
    attention: Int[np.ndarray, "image token"],
    mlp: Int[np.ndarray, "image token"],
) -> tuple[Float[np.ndarray, "five image"], Float[np.ndarray, "four image"]]:
    """Pairs of different tokens (answer of one, sources of the other) by category."""
    images, tokens = after.shape
    classes = 1 + max(part.max(initial=0) for part in (after, came, attention, mlp))
    row = np.arange(images)[:, None]
    answers = np.bincount(
        (row * classes + after).reshape(-1), minlength=images * classes
    ).reshape(images, classes)

    def others(source):
        """How many other tokens of the image answer with this token's source."""
        return answers[row, source] - (source == after)

    total = tokens * (tokens - 1)
    p, a, m = (others(source) for source in (came, attention, mlp))
    same_pa, same_pm, same_am = came == attention, came == mlp, attention == mlp
    parts = [
        np.where(same_pa | same_pm, 0, p),
        np.where(same_pa | same_am, 0, a),
        np.where(same_pm | same_am, 0, m),
        np.where(same_pa | same_pm, p, np.where(same_am, a, 0)),
    ]
    exclusive = [part.sum(-1) for part in parts]
    exclusive.append(total - np.sum(exclusive, axis=0))
    published = [part.sum(-1) for part in (p, a, m)]
    published.append(total - (p + np.where(same_pa, 0, a)).sum(-1))
    return np.stack(exclusive).astype(float), np.stack(published).astype(float)
