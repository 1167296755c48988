"""The command `neurons`: the strongest memories and the classes that they promote."""

import csv
import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np

from vitjax import api
from vitjax.analysis.memory import System, memory_logits
from vitjax.checkpoints import loading
from vitjax.cli.command import Command, make_folder, metavar
from vitjax.cli.console import show_table
from vitjax.messages import out_of_range
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
    """The `count` memories of each layer whose best class has the largest logit, or the
    given `memories`, with their `k` best classes (5, or all where there are fewer).

    Raises:
        ValueError: a block, a memory, or a count that does not exist.
    """
    values, config = api.memory_values(model)[system], model.config
    layers = range(config.depth) if layers is None else layers
    k = min(5, model.num_classes) if k is None else k
    for name, numbers, low, high in (
        ("layers", layers, -config.depth, config.depth),
        ("memories", memories or (), 0, values.shape[1]),
        ("count", [count], 1, values.shape[1] + 1),
        ("classes", [k], 1, model.num_classes + 1),
    ):
        for number in numbers:
            if not low <= number < high:
                raise ValueError(out_of_range(name, number, low, high))
    rows = []
    for layer in layers:
        logits = np.asarray(memory_logits(model.class_space, values[layer]))
        strongest = np.argsort(-logits.max(0), kind="stable")[:count]
        for memory in strongest if memories is None else memories:
            best = np.argsort(-logits[:, memory], kind="stable")[:k]
            neuron = Neuron(
                system=system,
                layer=layer % config.depth,
                memory=int(memory),
                head=int(memory) // config.head_dim if system == "attention" else None,
                classes=tuple(model.classes[c] for c in best),
                logits=tuple(float(logits[c, memory]) for c in best),
            )
            rows.append(neuron)
    return rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neurons(Command):
    """List the strongest memories of a model and the classes that they promote.

    Example: vitjax neurons --model vit_b16 --layers -2 --count 20

    Args:
        model: a name that `vitjax list` shows, or a converted folder.
        checkpoint: your own file with the model's weights, or a converted folder.
        system: mlp, or attention.
        layers: blocks from 0, negative ones from the end; by default the last but one,
            where the paper finds most.
        memories: show these instead of the strongest.
        count: how many of each block.
        classes: how many of each memory; by default 5, or all where there are fewer.
        out: CSV file for the table.
        json: print JSON instead of a table.
    """

    model: Annotated[str, metavar("NAME")]
    checkpoint: Annotated[str | None, metavar("FILE")] = None
    system: System = "mlp"
    layers: tuple[int, ...] = ()
    memories: tuple[int, ...] = ()
    count: int = 10
    classes: int | None = None
    out: Annotated[pathlib.Path | None, metavar("FILE")] = None
    json: bool = False

    def __call__(self) -> list[Neuron]:
        if self.out:
            make_folder(self.out.parent)
        model = loading.load(self.model, checkpoint=self.checkpoint)
        rows = neurons(
            model,
            system=self.system,
            layers=self.layers or (max(0, model.config.depth - 2),),
            memories=self.memories or None,
            count=self.count,
            k=self.classes,
        )
        if self.json:
            print(json.dumps([row._asdict() for row in rows]))
        else:
            columns = ("block", "memory", "head", "classes and their raw logits")
            show_table(columns, [describe(row) for row in rows], right=(0, 1, 2))
        if self.out:
            with self.out.open("w", newline="") as file:
                table = csv.writer(file, lineterminator="\n")
                table.writerow((*Neuron._fields[:4], "class", "logit"))
                for row in rows:
                    for pair in zip(row.classes, row.logits):
                        table.writerow((*row[:4], *pair))
        return rows


def describe(row: Neuron) -> tuple[str, ...]:
    """A line of the table."""
    head = "" if row.head is None else str(row.head)
    pairs = zip(row.classes, row.logits)
    names = "; ".join(f"{name.split(',')[0]} {logit:.2f}" for name, logit in pairs)
    return str(row.layer), str(row.memory), head, names
