"""The commands `list` and `convert`: models and their weights."""

import dataclasses
import os
import pathlib
from typing import Annotated, Any, ClassVar, Literal

import jax
import tyro

from vitjax.checkpoints import download, loading, registry
from vitjax.checkpoints.loading import Fact, describe_preprocessing, weightless
from vitjax.cli.command import ModelCommand, WeightsCommand, format_table, metavar

NUMBERS = "parameters", "input", "tokens", "classes"
COLUMNS = ("model", *NUMBERS, "family", "source", "license", "weights")


@dataclasses.dataclass(frozen=True, kw_only=True)
class List(ModelCommand):
    """List the models that can be loaded by name, or what one does to an image.

    Models whose classes are a "class file" are compared with embeddings of class names;
    those of a "head" take a file with one, or a probe of yours.

    Example: vitjax list vit_b16

    Args:
        model: print the mean, deviation, geometry, epsilon and GELU of this model,
            and where each comes from: its row, its file, or your flags. Without it,
            print the table of models.
    """

    needs_device: ClassVar[bool] = False

    model: tyro.conf.Positional[  # pyright: ignore[reportIncompatibleVariableOverride]
        Annotated[str | None, metavar("NAME")]
    ] = None

    def __call__(self) -> tuple[Any, ...]:
        if self.model is not None:
            row = registry.VARIANTS.get(self.model)
            model = weightless(row) if row and self.weightless else self.load()
            facts = describe_preprocessing(model)
            lines = [(fact.setting, fact.text, fact.source) for fact in facts]
            table = format_table(Fact._fields, lines, right=())
            self.show([fact._asdict() for fact in facts], table)
            return facts
        rows = [describe_model(row) for row in registry.VARIANTS.values()]
        facts = [dict(zip(COLUMNS, row)) for row in rows]
        lines = [[as_text(value) for value in row] for row in rows]
        self.show(facts, format_table(COLUMNS, lines, right=range(1, 5)))
        return tuple(registry.VARIANTS)


def as_text(value: Any) -> str:
    """A number as people read it; text as it is."""
    return f"{value:,}" if isinstance(value, int) else value


def describe_model(row: registry.Variant) -> tuple[Any, ...]:
    """A row of `vitjax list`: numbers where it holds numbers."""
    config, classes = row.config, len(row.labels()[0])
    if not classes:
        classes = "class file" if config.head == "cosine" else "head"
    size = "x".join(map(str, config.shape))
    if row.packaged:
        weights = "in the package"
    elif download.cached(row) is not None:
        weights = "cached"
    else:
        weights = "to be downloaded" if row.url else "from its authors"
    numbers = count_parameters(row), size, config.tokens, classes
    return row.name, *numbers, row.family, row.source, row.license, weights


def count_parameters(row: registry.Variant) -> int:
    """The number of a model's parameters, from its sizes: `list` traces no model."""
    cfg, dim, hidden = row.config, row.config.dim, row.config.mlp_dim
    attention = 4 * dim**2 + dim + 3 * dim * cfg.qkv_bias
    mlp = 2 * dim * hidden + hidden + dim
    gate = (dim + 1) * hidden * (cfg.mlp == "swiglu")
    block = attention + mlp + gate + 4 * dim + 2 * dim * cfg.layer_scale
    count = (3 * cfg.patch_size**2 + cfg.patch_bias + cfg.tokens + cfg.prefix) * dim
    count += cfg.depth * block + 2 * dim * (1 + cfg.embed_norm)
    count += cfg.refinement * (cfg.depth - 1) * 5 * dim * (2 * dim + 1)
    if cfg.pooling == "map":
        count += attention + mlp + 3 * dim
    count += dim * (cfg.projection or 0) + (cfg.head == "cosine") + cfg.sigmoid
    return count + (cfg.embed_dim + 1) * len(row.labels()[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert(WeightsCommand):
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
            model = loading.load(
                self.model, checkpoint=self.source, **self.own_settings
            )
        elif os.path.isfile(self.source):
            raise ValueError(
                "A checkpoint file does not identify its architecture: pass --model "
                f"for {self.source}, a name that `vitjax list` shows."
            )
        else:
            model = loading.load(self.source, **self.own_settings)
        name = self.model or model.provenance.name or "model"
        out = self.out or os.path.join("checkpoints", pathlib.PurePath(name).name)
        loading.save(model, out, dtype=self.dtype)
        count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
        self.show(
            {"path": out, "parameters": count, "dtype": self.dtype},
            f"{out}: {count:,} parameters, {self.dtype}",
        )
        return out
