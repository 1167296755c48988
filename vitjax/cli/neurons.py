"""The command `neurons`: the strongest memories and the classes that they promote."""

import dataclasses
import pathlib
from typing import Annotated, NamedTuple

import numpy as np

from vitjax.analysis.memory import System, memory_logits
from vitjax.cli.command import BLOCKS, ModelCommand, format_table, make_folder, metavar
from vitjax.messages import check_range
from vitjax.models.model import memory_values


class Neuron(NamedTuple):
    """One memory: a neuron of an MLP, or a dimension of a head's output.

    `head` is `memory // key`, None for an MLP; `classes` are those that it promotes
    most, strongest first, `logits` theirs, `E.v` without norm and bias.
    """

    system: System
    layer: int
    memory: int
    head: int | None
    classes: tuple[str, ...]
    logits: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neurons(ModelCommand):
    """List the strongest memories of a model and the classes that they promote.

    Example: vitjax neurons --model vit_b16 --blocks -2 --count 20

    Args:
        system: mlp, or attention.
        layers: blocks from 0, negative ones from the end; by default the last but one,
            where the paper finds most.
        memories: show these instead of the strongest.
        count: how many of each block: those whose best class has the largest logit.
        classes: how many of each memory; by default 5, or all where there are fewer.
        out: CSV file for the table.
    """

    system: System = "mlp"
    layers: Annotated[tuple[int, ...], BLOCKS] = ()
    memories: tuple[int, ...] = ()
    count: int = 10
    classes: int | None = None
    out: Annotated[pathlib.Path | None, metavar("FILE")] = None
    class_names: Annotated[str | None, metavar("FILE|N")] = None  # classes is taken

    def __call__(self) -> list[Neuron]:
        if self.out:
            make_folder(self.out.parent)
        model = self.load()
        values, depth = memory_values(model)[self.system], model.config.depth
        layers = self.layers or (max(0, depth - 2),)
        k = min(5, model.num_classes) if self.classes is None else self.classes
        check_range("blocks", layers, -depth, depth - 1)
        check_range("memories", self.memories, 0, len(values[0]) - 1)
        check_range("count", self.count, 1)
        check_range("classes", k, 1, model.num_classes)
        rows = []
        for layer in layers:
            logits = np.asarray(memory_logits(model.class_space, values[layer]))
            strongest = np.argsort(-logits.max(0), kind="stable")[: self.count]
            for memory in map(int, self.memories or strongest):
                best = np.argsort(-logits[:, memory], kind="stable")[:k]
                head = memory // model.config.head_dim
                neuron = Neuron(
                    system=self.system,
                    layer=layer % depth,
                    memory=memory,
                    head=head if self.system == "attention" else None,
                    classes=tuple(model.classes[c] for c in best),
                    logits=tuple(logits[best, memory].tolist()),
                )
                rows.append(neuron)
        columns = ("block", "memory", "head", "classes and their raw logits")
        table = format_table(columns, map(describe, rows), right=(0, 1, 2))
        self.show([row._asdict() for row in rows], table)
        if self.out:
            import pandas

            columns = (*Neuron._fields[:4], "class", "logit")
            frame = pandas.DataFrame(rows).set_axis(columns, axis=1)
            frame.explode(["class", "logit"]).to_csv(self.out, index=False)
        return rows


def describe(row: Neuron) -> tuple[str, ...]:
    """A line of the table."""
    head = "" if row.head is None else str(row.head)
    pairs = zip(row.classes, row.logits)
    names = "; ".join(f"{name.split(',')[0]} {logit:.2f}" for name, logit in pairs)
    return str(row.layer), str(row.memory), head, names
