"""Run a recipe over a data set: load, compute, write whole chunks, resume.

Chunk i of the rows belongs to process i mod n. A process computes its pending chunks on
its own devices and writes each once, whole; it needs nothing from the others.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from vitjax.checkpoints.loading import load
from vitjax.data.datasets import open_data
from vitjax.data.images import ImageError, Preprocess
from vitjax.data.loader import Loaded, batches
from vitjax.models.model import Model
from vitjax.recipes import schema
from vitjax.recipes.recipe import Pass, Recipe, Setup
from vitjax.recipes.registry import find_recipe
from vitjax.runner import mesh as meshes
from vitjax.runner.estimate import RunEstimator
from vitjax.runner.manifest import (
    FORMAT,
    FORMAT_VERSION,
    describe_model,
    describe_session,
    now,
    session_changes,
)
from vitjax.runner.options import RunOptions
from vitjax.runner.progress import Rate, progress
from vitjax.runner.results import Results, open_results
from vitjax.runner.store import ROWS, Folder, StorageError
from vitjax.runner.writer import (
    PREVIEWS,
    ArraySpec,
    RunWriter,
    create_or_resume,
    images_per_chunk,
)
from vitjax.types import Batch, Config

LABEL, VALID, DIGEST = schema.LABEL(), schema.VALID(), schema.DIGEST()
PATCH_LABEL = schema.PATCH_LABEL()


@dataclasses.dataclass(eq=False)
class Job:
    """A recipe, a model and a data set, ready to run: the `Context` of its passes.

    Args:
        recipe: what is computed.
        loaded_model: the model as it was loaded.
        model: the same in the dtype of the run, on every device.
        source: the data set, labels as class numbers.
        spec: how the user named it.
        images: how many of it are run.
        has_masks: whether it has masks.
        mesh: the devices of this process.
        batch_size: images per step, a multiple of the devices.
        options: of the run.
    """

    recipe: Recipe
    loaded_model: Model
    model: Model
    source: Any
    spec: str
    images: int
    has_masks: bool
    mesh: Mesh
    batch_size: int
    options: RunOptions
    writer: RunWriter | None = None
    first_outputs: dict[str, Array] | None = None
    chunks: tuple[int, ...] = ()
    seconds: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def seed(self) -> int:
        """Of whatever is random."""
        return self.options.seed

    @functools.cached_property
    def preprocess(self) -> Preprocess:
        """Image to array, as the weights expect it."""
        model = self.loaded_model
        return model.preprocess or Preprocess(*model.config.shape)

    def open_data(self, spec: Any) -> Any:
        """Another data set, labels matched against the same classes."""
        model = self.loaded_model
        return open_data(spec, classes=model.classes, class_ids=model.class_ids)

    def batches(self, source: Any, start: int, stop: int) -> Iterator[Batch]:
        """Batches of one shape of images of a source, without masks."""
        for loaded in self.load(source, start, stop, masks=False):
            yield loaded.batch

    def rows(self, name: str) -> np.ndarray:
        """An array as it is on disk, of this process's chunks; zeros elsewhere."""
        assert self.writer is not None
        array, spec = self.writer.array(name), self.writer.specs[name]
        values = np.zeros(spec.shape, spec.dtype)
        for start, stop in map(self.writer.span, self.chunks):
            values[start:stop] = array[start:stop]
        return values

    def load(
        self,
        source: Any,
        start: int,
        stop: int,
        *,
        masks: bool,
        workers: int | None = None,
    ) -> Iterator[Loaded]:
        """Batches of a source as the loader gives them."""
        return batches(
            source,
            preprocess=self.preprocess,
            local_batch_size=self.batch_size,
            start=start,
            stop=stop,
            config=self.model.config if masks else None,
            on_error=self.options.on_error,
            mask_rule=self.options.mask_rule,
            threads=min(16, os.cpu_count() or 1),
            workers=self.options.workers if workers is None else workers,
        )

    def empty_batch(self) -> Batch:
        """A batch that holds no image."""
        return empty_batch(self.model.config, self.batch_size, masks=self.has_masks)

    @functools.cached_property
    def setup_program(self) -> Any:
        """The recipe's setup, jitted."""
        return jitted_setup(self.recipe, self.mesh)

    @functools.cached_property
    def setup(self) -> Setup:
        """What depends on the model alone, on every device."""
        with jax.default_matmul_precision(self.options.precision):
            return self.setup_program(self.model, seed=self.seed)

    @functools.cached_property
    def setup_shape(self) -> Setup:
        """Its shapes."""
        return self.setup_program.eval_shape(self.model, seed=self.seed)

    @functools.cached_property
    def passes(self) -> tuple[Pass, ...]:
        """The sweeps over the images: the recipe's own, or the one of its step."""
        if self.recipe.passes is not None:
            return tuple(self.recipe.passes(self, **self.recipe.keywords))
        whole = Pass(
            step=self.recipe.run_step,
            dims=self.recipe.dims,
            setup=lambda: self.setup,
            carry_shape=self.setup_shape.carry,
            previews=self.recipe.previews,
        )
        return (whole,)

    def step(self, part: Pass, batch: Batch, carry: Any) -> dict[str, Array]:
        """Dispatch a batch to the devices; its arrays are there once they are read."""
        program = jitted_step(part.step, self.mesh)
        with jax.default_matmul_precision(self.options.precision):
            return program(self.model, meshes.shard(batch, self.mesh), carry)

    def output_shapes(self, part: Pass) -> dict[str, Any]:
        """Shapes of what a step returns."""
        program = jitted_step(part.step, self.mesh)
        shapes = program.eval_shape(self.model, self.empty_batch(), part.carry_shape)
        if undeclared := set(shapes) - set(part.dims):
            raise ValueError(
                f"The recipe {self.recipe.name!r} returns {sorted(undeclared)}, whose "
                "axes its dims do not name."
            )
        return shapes

    @functools.cached_property
    def specs(self) -> dict[str, ArraySpec]:
        """Every array of the run; floats are float32 on disk."""

        def spec(axes, shape, dtype, region=None):
            if jax.numpy.issubdtype(dtype, np.floating):
                dtype = np.float32
            return ArraySpec(axes, shape, np.dtype(dtype).name, region or {})

        def of_images(axes, shape, dtype, region=None):
            return spec(("image", *axes), (self.images, *shape), dtype, region)

        specs: dict[str, ArraySpec] = {}
        for part in self.passes:
            parts = {dim: stop - start for dim, (start, stop) in part.region.items()}
            for name, output in self.output_shapes(part).items():
                axes, shape = part.dims[name], output.shape[1:]
                shape = [
                    part.region[dim][1] if dim in part.region else size
                    for dim, size in zip(axes, shape)
                ]
                if name in specs:  # the first part of an axis is the size of a chunk
                    shape = np.maximum(specs[name].shape[1:], shape).tolist()
                    parts = specs[name].region
                specs[name] = of_images(axes, tuple(shape), output.dtype, parts)
        specs = {  # in the order that the recipe declares
            **{name: specs[name] for name in self.recipe.dims if name in specs},
            **{
                name: spec(axes, self.setup_shape.static[name].shape, np.float32)
                for name, axes in self.recipe.static.items()
                if name in self.setup_shape.static
            },
            LABEL: of_images((), (), np.int32),
            VALID: of_images((), (), np.bool_),
            DIGEST: of_images((), (), np.uint64),
        }
        config = self.model.config
        if self.has_masks:
            specs[PATCH_LABEL] = of_images(("patch",), (config.patches,), np.int8)
        previews = min(max(part.previews for part in self.passes), self.images)
        if previews:
            shape = (previews, *config.shape, 3)
            for name, size in zip(PREVIEWS, (shape, shape[:1])):
                axes = schema.SCHEMA[name].axes
                specs[name] = ArraySpec(
                    axes, size, "uint8" if size == shape else "int32"
                )
        specs["done"] = of_images((), (), np.bool_)
        return specs

    def describe(self) -> dict[str, Any]:
        """The manifest of a new run."""
        options, recipe = self.options, self.recipe
        study = recipe.describe and recipe.describe(self, **recipe.keywords)
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "recipe": recipe.name,
            "recipe_options": recipe.keywords,
            "model": describe_model(self.loaded_model),
            "data": {"spec": self.spec, "id": self.source.id, "images": self.images},
            "batch_size": options.batch_size,
            "dtype": options.dtype,
            "matmul_precision": options.precision,
            "seed": options.seed,
            "limit": options.limit,
            "masks": dataclasses.asdict(options.mask_rule) if self.has_masks else None,
            **({"study": study} if study else {}),
            **describe_session(),
            "created": now(),
            "finished": None,
            "images_per_second": None,
            "skipped": [],
            "no_object_tokens": [],
        }

    def compile(self, part: Pass, carry: Any) -> float:
        """Compile a pass's program; the seconds that it took."""
        started = time.monotonic()
        batch = meshes.shard(self.empty_batch(), self.mesh)
        program = jitted_step(part.step, self.mesh)
        with jax.default_matmul_precision(self.options.precision):
            program.lower(self.model, batch, carry).compile()
        return time.monotonic() - started

    def choose_chunk(self, rate: float, processes: int = 1) -> int:
        """Images per chunk of a new run, at so many images per second."""
        return images_per_chunk(
            self.specs,
            images=self.images,
            batch_size=self.batch_size,
            batch_seconds=self.batch_size / max(rate, 1e-9),
            processes=processes,
        )

    def measure_rate(self) -> float:
        """Images per second of the first batch, whose outputs are kept for the run
        itself; infinite where a recipe has passes.
        """
        if self.recipe.passes is not None:
            return math.inf
        part, carry = self.passes[0], self.setup.carry
        stop = min(self.batch_size, self.images)
        try:
            first = self.load(self.source, 0, stop, masks=self.has_masks, workers=0)
            batch = next(first).batch
        except ImageError:  # the run itself says so
            return math.inf
        self.compile(part, carry)
        started = time.monotonic()
        self.first_outputs = jax.block_until_ready(self.step(part, batch, carry))
        return self.batch_size / (time.monotonic() - started)


def empty_batch(config: Config, size: int, *, masks: bool) -> Batch:
    """A batch that holds no image."""
    kinds = np.full((size, config.patches), -1, np.int32) if masks else None
    return Batch(
        images=np.zeros((size, *config.shape, 3), np.float32),
        label=np.full(size, -1, np.int32),
        valid=np.zeros(size, bool),
        index=np.zeros(size, np.int32),
        patch_label=kinds,
    )


@functools.lru_cache(maxsize=8)
def jitted_setup(recipe: Recipe, mesh: Mesh) -> Any:
    """A recipe's setup, jitted once for all runs of this process."""
    return jax.jit(
        recipe.run_setup, static_argnames="seed", out_shardings=meshes.replicated(mesh)
    )


@functools.lru_cache(maxsize=16)
def jitted_step(step: Callable[..., Any], mesh: Mesh) -> Any:
    """A step, jitted once for all runs of this process."""
    return jax.jit(meshes.data_parallel(step, mesh))


def make_job(
    recipe: str | Recipe,
    model: str | Config | Model,
    data: Any,
    *,
    recipe_options: Any = None,
    options: RunOptions,
) -> Job:
    """Find, load and place what a run needs.

    Raises:
        ValueError: an argument is unknown or out of its range.
    """
    recipe = find_recipe(recipe) if isinstance(recipe, str) else recipe
    recipe = recipe.with_options(recipe_options) if recipe_options else recipe
    mesh = meshes.make_mesh()
    model = model if isinstance(model, Model) else load(model)
    source = open_data(data, classes=model.classes, class_ids=model.class_ids)
    limit = options.limit or len(source)
    images = min(limit, len(source))
    if images == 0:
        raise ValueError(f"The data set {source.id} holds no images.")
    return Job(
        recipe=recipe,
        loaded_model=model,
        model=meshes.replicate(model.astype(options.dtype), mesh),
        source=source,
        spec=os.fspath(data) if isinstance(data, str | os.PathLike) else source.id,
        images=images,
        has_masks=has_masks(source),
        mesh=mesh,
        batch_size=meshes.fit_batch_size(min(options.batch_size, images), mesh),
        options=options,
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


@dataclasses.dataclass(frozen=True)
class ImageSubset:
    """Some images of a data set, under positions of their own."""

    source: Any
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Any:
        return self.source[int(self.indices[position])]

    def name(self, position: int) -> str:
        """What the data set calls an image."""
        return self.source.name(int(self.indices[position]))


class BatchResult(NamedTuple):
    """The rows of one batch, padding left out.

    Args:
        rows: array name -> values, one for each image.
        errors: images that could not be read, as the manifest lists them.
        previews: image -> pixels, as the model saw it.
    """

    rows: dict[str, np.ndarray]
    errors: list[dict[str, Any]]
    previews: dict[int, np.ndarray]

    @property
    def images(self) -> int:
        """How many there are."""
        return len(next(iter(self.rows.values())))


def run_batches(
    job: Job, part: Pass, carry: Any, indices: np.ndarray
) -> Iterator[BatchResult]:
    """Run a pass over some images.

    Double buffering: batch n + 1 is dispatched before the rows of batch n are read, so
    that devices compute while the host writes.
    """
    dispatched: tuple[Any, ...] | None = None
    subset = ImageSubset(job.source, indices)
    try:
        for loaded in job.load(subset, 0, len(indices), masks=job.has_masks):
            batch = loaded.batch
            position = np.minimum(np.asarray(batch.index), len(indices) - 1)
            real = np.asarray(batch.index) < len(indices)
            index = np.where(real, indices[position], job.images).astype(np.int32)
            batch = dataclasses.replace(batch, index=index)
            outputs, job.first_outputs = job.first_outputs, None
            if outputs is None or index[0] != 0:
                outputs = job.step(part, batch, carry)
            if dispatched is not None:
                yield collect(job, part, *dispatched)
            dispatched = loaded._replace(batch=batch), real, outputs
    except ImageError:  # the chunk before it may be whole
        if dispatched is not None:
            yield collect(job, part, *dispatched)
        raise
    if dispatched is not None:
        yield collect(job, part, *dispatched)


def collect(
    job: Job, part: Pass, loaded: Loaded, real: np.ndarray, outputs: Any
) -> BatchResult:
    """The rows of a batch once the devices are through with it: fill values where there
    is no image or, for what is about the true class, no label.
    """
    batch, outputs = loaded.batch, meshes.to_host(outputs)
    valid = np.asarray(batch.valid)[real]
    label = np.where(valid, np.asarray(batch.label)[real], -1)

    def masked(name: str, values: np.ndarray, known: np.ndarray) -> np.ndarray:
        values = np.array(values[real], job.specs[name].dtype)
        values[~known] = job.specs[name].fill_value
        return values

    needs_label = set(job.recipe.needs_label)
    rows = {
        name: masked(
            name, values, valid & (label >= 0) if name in needs_label else valid
        )
        for name, values in outputs.items()
    }
    indices = np.asarray(batch.index)
    if part is job.passes[-1]:
        rows[LABEL] = label.astype(np.int32)
        rows[VALID] = valid
        rows[DIGEST] = loaded.digest[real]
        if job.has_masks:
            rows[PATCH_LABEL] = masked(
                PATCH_LABEL, np.asarray(batch.patch_label), valid
            )
    shown = np.asarray(batch.valid) & real & (indices < part.previews)
    images = np.asarray(batch.images)
    return BatchResult(
        rows=rows,
        errors=[
            {"index": int(indices[row]), "name": error.name, "reason": error.error}
            for error, row in zip(loaded.errors, np.flatnonzero(real)[~valid])
        ],
        previews={
            int(indices[row]): job.preprocess.denormalize(images[row])
            for row in np.flatnonzero(shown)
        },
    )


def run_pass(
    job: Job,
    part: Pass,
    carry: Any,
    chunks: list[int],
    advance: Callable[[int], None],
    observe: Callable[[BatchResult], None],
) -> None:
    """Compute and write some chunks, in order."""
    assert job.writer is not None
    writer, last = job.writer, part is job.passes[-1]
    spans = {chunk: np.arange(*writer.span(chunk)) for chunk in chunks}
    waiting: list[BatchResult] = []
    left = iter(chunks)
    chunk = next(left)
    for result in run_batches(job, part, carry, np.concatenate(list(spans.values()))):
        observe(result)
        waiting.append(result)
        advance(result.images)
        while waiting and sum(w.images for w in waiting) >= len(spans[chunk]):
            whole = join(waiting)
            size = len(spans[chunk])
            mine, rest = [], []
            for error in whole.errors:
                (mine if error["index"] in spans[chunk] else rest).append(error)
            writer.write_chunk(
                chunk,
                {name: values[:size] for name, values in whole.rows.items()},
                region=part.region,
                previews=whole.previews if part.previews else None,
                errors=mine,
                last=last,
            )
            # What is left belongs to the next chunk.
            rows = {name: values[size:] for name, values in whole.rows.items()}
            waiting = [BatchResult(rows, rest, whole.previews)]
            if waiting[0].images == 0:
                waiting = []
            chunk = next(left, chunk)


def join(results: list[BatchResult]) -> BatchResult:
    """The results of several batches as one."""
    names = results[0].rows
    return BatchResult(
        {name: np.concatenate([r.rows[name] for r in results]) for name in names},
        [error for result in results for error in result.errors],
        {image: pixels for r in results for image, pixels in r.previews.items()},
    )


def run(
    recipe: str | Recipe,
    model: str | Config | Model,
    data: Any,
    out: str | os.PathLike | Any,
    *,
    options: Any = None,
    show_progress: bool = True,
    process: tuple[int, int] | None = None,
    **run_options: Any,
) -> Results:
    """Run a recipe over a data set and keep the rows on disk.

    The step is compiled once; memory depends on the batch, not on the data set. Stopped
    at any moment, also by `kill -9`, the same call resumes and ends with the same
    arrays; a finished run is returned at once. Rows are written in whole chunks, of
    about a minute each at most; chunk i belongs to process i mod n, and nothing has to
    be arranged between processes but that they share `out`.

    Args:
        recipe: a name out of `vitjax.recipes.registry.RECIPES`, or one of your own.
        model: a model, or the name of one.
        data: a source such as "textured_digits" or "folder:photos", or a random-access
            source object.
        out: the run directory: a local folder, a URL such as gs://bucket/rows, or an
            obstore store.
        options: of the recipe, to replace its own: a mapping, or its dataclass.
        show_progress: a bar with images/s and time left, or plain lines where stderr is
            no terminal.
        process: (i, n), this process being i of n; by default what JAX says.
        run_options: batch_size, limit, seed, on_error, dtype, mask_convention,
            mask_threshold, workers: see `RunOptions`.

    Returns:
        The rows and the manifest, as `open_results` gives them. Of several processes,
        the last to end finds all rows; the others those that are there so far.

    Raises:
        ValueError: `out` holds another run, an image has changed since it was run, or
            an argument is out of its range.
        ImageError: an image cannot be read, with on_error="stop".
        StorageError: `out` cannot be written; the chunks before are kept.

    Example:
        >>> vitjax.run("identifiability", "vit_b16", "folder:photos", "rows", limit=100)
    """
    settings = RunOptions(**run_options)
    job = make_job(recipe, model, data, recipe_options=options, options=settings)
    number, processes = process or (jax.process_index(), jax.process_count())
    if not 0 <= number < processes:
        raise ValueError(f"process={number} is out of range [0, {processes}).")
    folder = Folder(out)

    def choose_chunk() -> int:
        return job.choose_chunk(job.measure_rate(), processes)

    writer = create_or_resume(folder, job.describe(), job.specs, choose_chunk)
    job.writer = writer
    job.chunks = tuple(writer.chunks[number::processes])
    try:
        resume(job, processes, show=show_progress)
    except BaseException as error:
        if isinstance(error, ImageError):
            error.add_note("Repair it, or skip such images: --on-error skip.")
        error.add_note(progress_note(folder))
        raise
    return open_results(out)


def resume(job: Job, processes: int, *, show: bool) -> None:
    """Compute what is pending of this process's chunks, then finish the run if nothing
    is left of anyone's.
    """
    writer = job.writer
    assert writer is not None

    def pending(chunks: Any, *, verify: bool) -> dict[Pass, list[int]]:
        existing = set(writer.folder.list(ROWS))
        return {
            part: writer.pending(
                chunks, row_names(job, part), part.region, existing, verify=verify
            )
            for part in job.passes
        }

    repaired = {c for c in job.chunks if is_repaired(job, c)}
    writer.mark_pending(repaired)
    left = pending(job.chunks, verify=True)
    check_unchanged(job, [c for c in job.chunks if c not in left[job.passes[-1]]])
    if any(left.values()) or not writer.has_static():
        for change in session_changes(writer.manifest) if show else ():
            report(f"{change}: the last bits of new rows may differ.")
        if job.batch_size > job.options.batch_size and show:
            report(f"Batches of {job.batch_size} images on {job.mesh.size} devices.")
        writer.create_arrays()
        writer.write_static(
            {
                name: np.asarray(values, writer.specs[name].dtype)
                for name, values in job.setup.static.items()
            }
        )
    rate = None
    for part in job.passes:
        if left[part]:
            rate = sweep(job, part, left[part], processes, show=show)
    if rate is None and writer.manifest["finished"]:
        return
    if not any(pending(writer.chunks, verify=False).values()):
        finish(job, rate)


def sweep(
    job: Job, part: Pass, chunks: list[int], processes: int, *, show: bool
) -> Rate:
    """Run one pass over its pending chunks, with progress and an estimate."""
    writer = job.writer
    assert writer is not None
    images = sum(stop - start for start, stop in map(writer.span, chunks))
    mine = sum(stop - start for start, stop in map(writer.span, job.chunks))
    rate = Rate(images)
    title = (
        f"{job.recipe.name} · {writer.manifest['model']['name']} {part.title}".strip()
    )
    with progress(rate, title=title, done=mine - images, show=show) as advance:
        started = time.monotonic()
        with jax.default_matmul_precision(job.options.precision):
            carry = meshes.replicate(part.setup().carry, job.mesh)
        seconds = job.compile(part, carry)
        rate.start()
        estimator = None
        if show and job.recipe.passes is None:
            estimator = RunEstimator(job, images=images, compile_seconds=seconds)

        def observe(result: BatchResult) -> None:
            if estimator is not None and (estimate := estimator.observe(result.rows)):
                report(str(estimate))

        run_pass(job, part, carry, chunks, advance, observe)
    ended, computing = time.monotonic(), rate.started or started
    job.seconds.append(
        {
            "pass": part.title,
            "setup": computing - started - seconds,
            "steps": ended - computing,
        }
    )
    return rate


def row_names(job: Job, part: Pass) -> list[str]:
    """Arrays that a pass writes for every chunk."""
    names = [name for name in part.dims if name in job.specs]
    if part is job.passes[-1]:
        names += [LABEL, VALID, DIGEST, "done"]
        names += [PATCH_LABEL] if job.has_masks else []
    return names + (list(PREVIEWS) if part.previews else [])


def is_repaired(job: Job, chunk: int) -> bool:
    """Whether an image of a chunk that could not be read can be read by now."""
    assert job.writer is not None
    for line in job.writer.skipped(chunk):
        with contextlib.suppress(ImageError):
            _ = job.source[line["index"]]
            return True
    return False


def check_unchanged(job: Job, chunks: list[int]) -> None:
    """Refuse to resume where an image that was run is not what it was.

    Raises:
        ValueError: it names the first images that have changed.
    """
    writer, digest_of = job.writer, getattr(job.source.source, "digest", None)
    assert writer is not None
    if not chunks or digest_of is None:
        return

    def is_changed(index: int, before: np.uint64) -> bool:
        try:
            return bool(before) and int(before) != digest_of(index)
        except ImageError:  # it is gone
            return True

    changed: list[int] = []
    array = writer.array(DIGEST)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for start, stop in map(writer.span, chunks):
            indices, before = range(start, stop), np.asarray(array[start:stop])
            flags = pool.map(is_changed, indices, before)
            changed += [index for index, flag in zip(indices, flags) if flag]
    if changed:
        names = ", ".join(job.source.name(index) for index in changed[:3])
        raise ValueError(
            f"{len(changed)} of the images in {writer.folder.path} have changed since "
            f"they were run: {names}. Restore them, or give another --out to run them "
            "as they are now."
        )


def finish(job: Job, rate: Rate | None) -> None:
    """Write what sums the run up; any process may, and all write the same."""
    writer, recipe = job.writer, job.recipe
    assert writer is not None
    facts: dict[str, Any] = {}
    if rate is not None:
        facts["images_per_second"] = rate.images_per_second
    if job.has_masks:
        kinds = np.asarray(writer.array(PATCH_LABEL)[:])
        lost = (kinds >= 0).any(axis=1) & ~(kinds == 1).any(axis=1)
        facts["no_object_tokens"] = [
            {"index": index, "name": job.source.name(index)}
            for index in np.flatnonzero(lost).tolist()
        ]
    if recipe.benchmark is not None:
        batch = meshes.shard(job.empty_batch(), job.mesh)
        with jax.default_matmul_precision(job.options.precision):
            facts["measured"] = recipe.benchmark(job.model, batch, **recipe.keywords)
    if recipe.passes is not None and len(job.seconds) == len(job.passes):
        facts["measured"] = {**facts.get("measured", {}), "passes": job.seconds}
    writer.finalize(job.source.name, facts)


def progress_note(folder: Folder) -> str:
    """What a stopped run has, and how to resume it."""
    try:
        results = open_results(folder.store)
        done, images = int(results["done"].sum()), results.sizes["image"]
    except (StorageError, ValueError, FileNotFoundError):
        return f"What was written to {folder.path} is kept."
    return (
        f"{done} of {images} images are done and kept in {folder.path}; the same "
        "command resumes from there."
    )


def report(message: str) -> None:
    """Print to stderr what is no result."""
    print(message, file=sys.stderr)
