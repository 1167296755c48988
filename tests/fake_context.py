"""A run in memory: the passes of a recipe over a source, without disk or processes."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vitjax.data.datasets import open_data
from vitjax.data.images import Preprocess
from vitjax.data.loader import batches
from vitjax.models.model import Model
from vitjax.recipes.recipe import Pass, Recipe

FILL = {"i": -1, "f": np.nan, "b": False}


@dataclasses.dataclass
class FakeContext:
    """A `recipe.Context`; `run` fills `arrays` and `static` and notes the last `carry`;
    `others` are data sets by name.
    """

    model: Model
    data: Any
    batch_size: int = 8
    limit: int | None = None
    seed: int = 0
    masks: bool = False
    on_error: Any = "stop"
    others: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        self.source = self.open_data(self.data)
        self.images = min(len(self.source), self.limit or len(self.source))
        self.arrays, self.static = {}, {}

    def open_data(self, spec):
        classes, ids = self.model.classes, self.model.class_ids
        spec = self.others.get(spec, spec)
        return open_data(spec, classes=classes, class_ids=ids)

    @functools.cached_property
    def loaded(self):
        """Pixels and labels of all images of the source."""
        count = len(self.source)
        whole = dataclasses.replace(self, batch_size=count)
        (batch,) = whole.batches(self.source, 0, count)
        return batch.images, batch.label

    def batches(self, source, start, stop):
        model = self.model
        loaded = batches(
            source,
            preprocess=model.preprocess or Preprocess(*model.config.shape),
            local_batch_size=self.batch_size,
            start=start,
            stop=stop,
            config=model.config if self.masks else None,
            on_error=self.on_error,
        )
        yield from (one.batch for one in loaded)

    def rows(self, name):
        return self.arrays[name]

    def run(self, recipe: Recipe) -> dict[str, np.ndarray]:
        with jax.default_matmul_precision("highest"):
            if recipe.passes is None:
                setup = jax.jit(lambda model: recipe.run_setup(model, self.seed))
                passes = [Pass(setup=lambda: setup(self.model))]
            else:
                passes = recipe.passes(self, **recipe.keywords)
                static = recipe.run_setup(self.model, self.seed).static
                self.static |= jax.device_get(dict(static))
            for sweep in map(recipe.complete, passes):
                self.run_pass(sweep, recipe.needs_label)
        return self.arrays

    def run_pass(self, sweep: Pass, needs_label: tuple[str, ...]) -> None:
        carry, static = self.carry, _ = sweep.setup()
        self.static |= jax.device_get(dict(static))
        step = jax.jit(sweep.step)
        for batch in self.batches(self.source, 0, self.images):
            for name, values in jax.device_get(step(self.model, batch, carry)).items():
                valid = np.asarray(batch.valid)
                labeled = valid & (np.asarray(batch.label) >= 0)
                known = labeled if name in needs_label else valid
                axes, config = sweep.dims[name], self.model.config
                sizes = dict(zip(axes, values.shape[1:], strict=True))
                if sweep.region:
                    sizes |= {"layer": config.depth, "token": config.tokens}
                if name not in self.arrays:
                    shape, fill = (self.images, *sizes.values()), values.dtype.kind
                    self.arrays[name] = np.full(shape, FILL[fill], values.dtype)
                region = [slice(*sweep.region.get(axis, (None,))) for axis in axes]
                index = np.asarray(batch.index)[known]
                self.arrays[name][index, *region] = values[known]
