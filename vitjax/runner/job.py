"""What is computed, of what, where; nothing about where it is written."""

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from vitjax.checkpoints.loading import load
from vitjax.data.datasets import open_source
from vitjax.data.images import ImageError, Preprocess
from vitjax.data.loader import ExampleError, batches
from vitjax.data.masks import MaskRule
from vitjax.models.model import Model
from vitjax.recipes.recipe import Prepared, Recipe
from vitjax.recipes.registry import find_recipe
from vitjax.runner import mesh as meshes
from vitjax.runner.results import ArraySpec
from vitjax.types import Batch, Config

OnError = Literal["stop", "skip"]


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """A recipe, ready to run on batches.

    Args:
        recipe: the question.
        model: as it was loaded.
        placed: the same in the dtype it computes in, on every device.
        source: the data set, labels as class numbers.
        spec: how the user named it.
        images: how many of it are run.
        masks: whether the source has masks.
        mesh: the devices.
        batch_size: images per step over all devices, a multiple of them.
        asked: the batch size that was asked for; the run is the same on any devices.
        dtype: what the model computes in.
        precision: of matrix products.
        limit: run only the first so many images, as it was asked for.
        labelling: how masks decide on tokens.
        workers: processes that decode and preprocess; 0 for threads.
        seed: of what the recipe draws at random.
    """

    recipe: Recipe
    model: Model
    placed: Model
    source: Any
    spec: str
    images: int
    masks: bool
    mesh: Mesh
    batch_size: int
    asked: int
    dtype: str
    precision: str
    limit: int | None = None
    labelling: MaskRule = MaskRule()
    workers: int = 0
    seed: int = 0

    @functools.cached_property
    def preprocess(self) -> Preprocess:
        """Image to array, as the weights expect it."""
        return self.model.preprocess or Preprocess(*self.model.config.shape)

    @property
    def share(self) -> int:
        """Images per step of this process."""
        return meshes.share_of(self.batch_size, self.mesh)

    @property
    def program(self) -> Any:
        """The jitted step."""
        return compiled(self.recipe, self.mesh)

    @functools.cached_property
    def specs(self) -> dict[str, ArraySpec]:
        """Every array of the run; the traced step tells the shapes of its own."""
        with jax.default_matmul_precision(self.precision):
            make = preparation(self.recipe, self.mesh)
            made = make.eval_shape(self.placed, seed=self.seed)
            whole = jax.eval_shape(lambda: self.blank(self.batch_size))
            shapes = self.program.eval_shape(self.placed, whole, made.aux)
        if undeclared := set(shapes) - set(self.recipe.dims):
            raise ValueError(
                f"The recipe {self.recipe.name!r} returns {sorted(undeclared)}, whose "
                "axes its dims do not name."
            )
        specs = {
            name: self.per_image(axes, shapes[name].shape[1:], shapes[name].dtype)
            for name, axes in self.recipe.dims.items()
            if name in shapes
        }
        specs |= {
            name: ArraySpec(axes, made.once[name].shape, "float32")
            for name, axes in self.recipe.once.items()
            if name in made.once
        }
        specs["label"] = self.per_image((), (), np.int32)
        specs["valid"] = self.per_image((), (), np.bool_)
        if self.masks:
            patches = (self.model.config.patches,)
            specs["patch_label"] = self.per_image(("patch",), patches, np.int8)
        shown = (self.recipe.pictures, *self.model.config.shape, 3)
        axes = ("shown", "height", "width", "channel")
        specs["picture"] = ArraySpec(axes, shown, "uint8")
        specs["picture_image"] = ArraySpec(axes[:1], shown[:1], "int32")
        return specs

    def per_image(
        self, axes: tuple[str, ...], shape: tuple[int, ...], dtype: Any
    ) -> ArraySpec:
        """An array with one row per image; floats are float32 on disk."""
        if jax.numpy.issubdtype(dtype, np.floating):
            dtype = np.float32
        return ArraySpec(("image", *axes), (self.images, *shape), np.dtype(dtype).name)

    @property
    def coordinates(self) -> dict[str, np.ndarray]:
        """Numbers from 0 along the axes that are worth selecting by."""
        sizes = {
            axis: size
            for spec in self.specs.values()
            for axis, size in zip(spec.dims, spec.shape)
        }
        chosen = ("image", "layer", "token", "top", "patch", "head")
        return {a: np.arange(sizes[a], dtype=np.int32) for a in chosen if a in sizes}

    def batches(
        self, start: int, stop: int, *, on_error: OnError
    ) -> Iterator[tuple[Batch, list[ExampleError]]]:
        """Of a range of images, the batches that this process hands to the devices, all
        of one structure; the index of padding is that of no image.
        """
        loaded = batches(
            self.source,
            preprocess=self.preprocess,
            local_batch_size=self.share,
            start=start,
            stop=stop,
            config=self.model.config if self.masks else None,
            on_error=on_error,
            mask_rule=self.labelling,
            threads=min(16, os.cpu_count() or 1),
            workers=self.workers,
        )
        for batch, errors, _ in loaded:
            index = np.asarray(batch.index)
            index = np.where(index < stop, index, np.maximum(index, self.images))
            batch = dataclasses.replace(batch, index=index.astype(np.int32))
            yield self.with_masks(batch), errors

    def with_masks(self, batch: Batch) -> Batch:
        """The same batch, with masks exactly if the source has any."""
        if self.masks == (batch.patch_label is not None):
            return batch
        kinds = None
        if self.masks:  # none in this batch
            shape = (len(batch.label), self.model.config.patches)
            kinds = np.full(shape, -1, np.int32)
        return dataclasses.replace(batch, patch_label=kinds)  # pyright: ignore

    def blank(self, size: int | None = None) -> Batch:
        """A batch that holds nothing, by default as much of it as a process's share."""
        size = self.share if size is None else size
        config = self.model.config
        return blank_batch(config, size, index=self.images, masks=self.masks)

    def step(self, batch: Batch) -> dict[str, jax.Array]:
        """Dispatch a batch to the devices; its arrays are there once they are read."""
        with jax.default_matmul_precision(self.precision):
            aux = self.prepared.aux
            return self.program(self.placed, meshes.shard(batch, self.mesh), aux)

    @functools.cached_property
    def prepared(self) -> Prepared:
        """What the recipe makes of the model alone, on every device."""
        make = preparation(self.recipe, self.mesh)
        with jax.default_matmul_precision(self.precision):
            made = make(self.placed, seed=self.seed)
        return made

    def measured(self) -> dict[str, Any]:
        """What the recipe measures of itself, on a batch of the run's size."""
        measure: Any = self.recipe.measure
        batch = meshes.shard(self.blank(), self.mesh)
        with jax.default_matmul_precision(self.precision):
            return measure(self.placed, batch, **self.recipe.options)

    @property
    def once(self) -> dict[str, np.ndarray]:
        """Arrays that are written once, as they are on disk."""
        return {
            name: np.asarray(values, self.specs[name].dtype)
            for name, values in self.prepared.once.items()
        }

    def rows(
        self, batch: Batch, outputs: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """What of a step's outputs goes to disk: nothing of padding, nothing where
        there was no image or, for what is about the true class, no label.
        """
        real = np.asarray(batch.index) < self.images
        valid = np.asarray(batch.valid)[real]
        label = np.where(valid, np.asarray(batch.label)[real], -1).astype(np.int32)
        rows = {"label": label, "valid": valid}
        for name in self.recipe.dims:
            if name not in self.specs:
                continue
            known = valid & (label >= 0) if name in self.recipe.labelled else valid
            rows[name] = self.blank_out(name, outputs[name][real], known)
        if self.masks:
            kinds = np.asarray(batch.patch_label)[real]
            rows["patch_label"] = self.blank_out("patch_label", kinds, valid)
        return rows

    def blank_out(self, name: str, values: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Values in the dtype they have on disk; fill values where not known."""
        spec = self.specs[name]
        values = np.array(values, spec.dtype)
        values[~known] = spec.fill_value
        return values


def blank_batch(config: Config, size: int, *, index: int, masks: bool) -> Batch:
    """A batch that holds nothing.

    Args:
        config: of the model that it is for.
        size: how many images.
        index: of all of them.
        masks: whether it has masks.
    """
    kinds = np.full((size, config.patches), -1, np.int32) if masks else None
    return Batch(
        images=np.zeros((size, *config.shape, 3), np.float32),
        label=np.full(size, -1, np.int32),
        valid=np.zeros(size, bool),
        index=np.full(size, index, np.int32),
        patch_label=kinds,
    )


@functools.lru_cache(maxsize=8)
def preparation(recipe: Recipe, mesh: Mesh) -> Any:
    """What a recipe makes of a model, jitted once for all runs of this process."""
    everywhere = meshes.everywhere(mesh)
    return jax.jit(recipe.make, static_argnames="seed", out_shardings=everywhere)


@functools.lru_cache(maxsize=8)
def compiled(recipe: Recipe, mesh: Mesh) -> Any:
    """A recipe's step, jitted once for all runs of this process."""
    return jax.jit(meshes.on_each_device(recipe.rows, mesh))


def make_job(
    recipe: str | Recipe,
    model: str | Config | Model,
    data: Any,
    *,
    batch_size: int,
    dtype: str,
    limit: int | None,
    labelling: MaskRule = MaskRule(),
    workers: int = 0,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Job:
    """Find, load and place what a run needs.

    Args:
        recipe: a recipe, or its name.
        model: a model, or what `vitjax.load` takes.
        data: what `open_source` takes.
        batch_size: images per step; rounded up to a multiple of the devices.
        dtype: what the model computes in.
        limit: run only the first so many images.
        labelling: how masks decide on tokens.
        workers: processes that decode and preprocess; 0 for threads.
        seed: of what the recipe draws at random.
        options: of the recipe, to replace its own.

    Raises:
        ValueError: an argument is unknown or out of its range.
    """
    recipe = find_recipe(recipe) if isinstance(recipe, str) else recipe
    recipe = recipe.asked(options) if options else recipe
    precision = meshes.precision_of(dtype)
    mesh = meshes.make_mesh()
    fitted = meshes.fit_batch_size(batch_size, mesh)
    if workers < 0:
        raise ValueError(f"workers is {workers}; it must be at least 0.")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; it must be at least 1, or left out.")
    model = model if isinstance(model, Model) else load(model)
    source = open_source(data, classes=model.classes, class_ids=model.class_ids)
    images = len(source) if limit is None else min(limit, len(source))
    if images == 0:
        raise ValueError(f"The data set {source.id} holds no images.")
    return Job(
        recipe=recipe,
        model=model,
        placed=meshes.replicate(model.astype(dtype), mesh),
        source=source,
        spec=os.fspath(data) if isinstance(data, str | os.PathLike) else source.id,
        images=images,
        masks=has_masks(source),
        mesh=mesh,
        batch_size=fitted,
        asked=batch_size,
        dtype=dtype,
        precision=precision,
        limit=limit,
        labelling=labelling,
        workers=workers,
        seed=seed,
    )


def has_masks(source: Any) -> bool:
    """Whether a data set has masks: what it says, else what its first image shows."""
    listed = getattr(source.source, "masks", None)
    if listed is not None:
        return any(mask is not None for mask in listed)
    for index in range(min(len(source), 16)):
        try:
            return source[index].mask is not None
        except ImageError:
            continue
    return False
