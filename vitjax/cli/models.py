"""Models and their weights: list, convert, train."""

import dataclasses
import json
import os
import pathlib
from typing import Annotated, Literal

import jax
import tyro

from vitjax.checkpoints import loading, registry
from vitjax.cli.command import Command, metavar
from vitjax.cli.console import describe_variant, show_table
from vitjax.runner import train


@dataclasses.dataclass(frozen=True, kw_only=True)
class List(Command):
    """The models that can be loaded by name.

    Example: vitjax list --json

    Args:
        json: print JSON instead of a table.
    """

    json: bool = False

    def __call__(self) -> tuple[str, ...]:
        columns = ("model", "parameters", "input", "tokens", "classes", "source")
        columns = (*columns, "licence", "weights")
        rows = [describe_variant(row) for row in registry.VARIANTS.values()]
        if self.json:
            print(json.dumps([dict(zip(columns, row)) for row in rows], indent=1))
        else:
            show_table(columns, rows, right=(1, 2, 3, 4))
        return tuple(registry.VARIANTS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert(Command):
    """Write a checkpoint as model.safetensors and config.json.

    Example: vitjax convert B_16.npz --model vit_b16 --out checkpoints/vit_b16

    Args:
        source: a checkpoint file, or the name of a model to fetch.
        out: folder to write; by default checkpoints/ and the model's name.
        model: whose architecture the file has; not needed where the source is a name
            or a converted folder.
        dtype: of the weights on disk; float32 reloads bit for bit.
        json: print JSON instead of a sentence.
    """

    source: tyro.conf.Positional[Annotated[str, metavar("SOURCE")]]
    out: Annotated[str | None, metavar("DIR")] = None
    model: Annotated[str | None, metavar("NAME")] = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    json: bool = False

    def __call__(self) -> str:
        if self.model is not None:
            model = loading.load(self.model, checkpoint=self.source)
        elif self.source in registry.VARIANTS or loading.is_folder(self.source):
            model = loading.load(self.source)
        else:
            raise ValueError(
                f"A file does not say whose it is: give --model for {self.source}, one "
                f"of {', '.join(registry.VARIANTS)}."
            )
        name = self.model or model.provenance.name or "model"
        out = self.out or os.path.join("checkpoints", pathlib.PurePath(name).name)
        loading.save(model, out, dtype=self.dtype)
        count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
        if self.json:
            facts = {"path": out, "parameters": count, "dtype": self.dtype}
            print(json.dumps(facts))
        else:
            print(f"{out}: {count:,} parameters, {self.dtype}")
        return out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(train.Train, Command):
    """Train the embedded model anew by our own recipe.

    Stopped at any moment, the same command goes on from its last state.

    Example: vitjax train --out checkpoint --recipe.steps 2000

    Args:
        out: folder for the checkpoint, the last state and log.csv.
        recipe: what is trained and how.
        save_every: steps between states on disk.
        pictures: number of unseen pictures per correlation in the last evaluation.
    """
