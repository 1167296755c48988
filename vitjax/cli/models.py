"""The commands `list` and `convert`: models and their weights."""

import dataclasses
import math
import os
import pathlib
from typing import Annotated, Literal

import jax
import tyro

from vitjax.checkpoints import download, loading, registry
from vitjax.cli.command import Command, metavar, show_table
from vitjax.models.model import parameter_shapes

NUMBERS = "parameters", "input", "tokens", "classes"
COLUMNS = ("model", *NUMBERS, "source", "license", "weights")


@dataclasses.dataclass(frozen=True, kw_only=True)
class List(Command):
    """List the models that can be loaded by name.

    Example: vitjax list --json
    """

    def __call__(self) -> tuple[str, ...]:
        rows = [describe_model(row) for row in registry.VARIANTS.values()]
        if self.json:
            self.show([dict(zip(COLUMNS, row)) for row in rows], "")
        else:
            show_table(COLUMNS, rows, right=(1, 2, 3, 4))
        return tuple(registry.VARIANTS)


def describe_model(row: registry.Variant) -> tuple[str, ...]:
    """A row of `vitjax list`."""
    config, classes = row.config, len(row.labels()[0])
    count = sum(map(math.prod, parameter_shapes(config, classes).values()))
    size = "x".join(map(str, config.shape))
    if row.packaged:
        weights = "in the package"
    elif download.cached(row) is not None:
        weights = "cached"
    else:
        weights = "to be downloaded" if row.url else "from its authors"
    numbers = f"{count:,}", size, str(config.tokens), str(classes)
    return row.name, *numbers, row.source, row.license, weights


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
    """

    source: tyro.conf.Positional[Annotated[str, metavar("SOURCE")]]
    out: Annotated[str | None, metavar("DIR")] = None
    model: Annotated[str | None, metavar("NAME")] = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def __call__(self) -> str:
        if self.model is not None:
            model = loading.load(self.model, checkpoint=self.source)
        elif self.source in registry.VARIANTS or loading.is_folder(self.source):
            model = loading.load(self.source)
        else:
            raise ValueError(
                "A checkpoint file does not identify its architecture: pass --model "
                f"for {self.source}, one of {', '.join(registry.VARIANTS)}."
            )
        name = self.model or model.provenance.name or "model"
        out = self.out or os.path.join("checkpoints", pathlib.PurePath(name).name)
        loading.save(model, out, dtype=self.dtype)
        count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
        self.show(
            {"path": out, "parameters": count, "dtype": self.dtype},
            f"{out}: {count:,} parameters, {self.dtype}",
        )
        return out
