"""The strongest memories of a model and the classes that they promote."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vitjax.analysis.memory import System, memory_logits
from vitjax.models.heads import memory_values
from vitjax.models.model import Model


class Neuron(NamedTuple):
    """One memory: a neuron of an MLP, or a dimension of a head's output.

    Args:
        system: "mlp" or "attention".
        layer: block, from 0.
        memory: its number in the layer.
        head: of attention, `memory // key`; None for an MLP.
        classes: names of the classes that it promotes most, strongest first.
        logits: their raw logits `E.v`, without norm and bias.
    """

    system: System
    layer: int
    memory: int
    head: int | None
    classes: tuple[str, ...]
    logits: tuple[float, ...]


def neurons(
    model: Model,
    *,
    system: System = "mlp",
    layers: Sequence[int] | None = None,
    memories: Sequence[int] | None = None,
    count: int = 10,
    k: int | None = None,
) -> list[Neuron]:
    """The memories whose best class has the largest logit, and their best classes.

    Args:
        model: the model.
        system: "mlp" or "attention".
        layers: which blocks, negative ones from the end; None for all.
        memories: show these of each layer instead of the strongest.
        count: how many of each layer.
        k: how many classes of each; by default 5, or all where there are fewer.

    Returns:
        Layer by layer, strongest first; given memories in the given order.

    Raises:
        ValueError: a block, a memory, or a count that does not exist.
    """
    values, config = memory_values(model.params)[system], model.config
    total = values.shape[1]
    layers = range(config.depth) if layers is None else layers
    k = min(5, model.num_classes) if k is None else k
    wrong = [n for n in layers if not -config.depth <= n < config.depth]
    wrong += [n for n in memories or () if not 0 <= n < total]
    if wrong or count < 1 or not 1 <= k <= model.num_classes:
        raise ValueError(
            f"There are {config.depth} blocks of {total} memories and "
            f"{model.num_classes} classes; asked for {wrong or (count, k)}."
        )
    found = []
    for layer in layers:
        logits = np.asarray(memory_logits(model.class_space, values[layer]))
        strongest = np.argsort(-logits.max(0), kind="stable")[:count]
        for memory in strongest if memories is None else memories:
            best = np.argsort(-logits[:, memory], kind="stable")[:k]
            found.append(
                Neuron(
                    system=system,
                    layer=layer % config.depth,
                    memory=int(memory),
                    head=memory // config.head_dim if system == "attention" else None,
                    classes=tuple(model.classes[c] for c in best),
                    logits=tuple(float(logits[c, memory]) for c in best),
                )
            )
    return found
