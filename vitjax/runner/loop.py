"""Run a recipe over a data set: load, compute, write whole chunks, resume.

Chunk i of the rows belongs to process i mod n. A process computes its pending chunks on
its own devices and writes each once, whole; it needs nothing from the others.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from vitjax.checkpoints.loading import describe_preprocessing, load
from vitjax.data.datasets import open_data
from vitjax.data.images import ImageError, Preprocess, printable
from vitjax.data.loader import Loaded, batches
from vitjax.messages import check_classes
from vitjax.models.model import Model
from vitjax.recipes import schema
from vitjax.recipes.recipe import Pass, Recipe, Setup, Subset
from vitjax.recipes.registry import RECIPES, find_recipe
from vitjax.runner import mesh as meshes
from vitjax.runner.interrupt import check_interrupt
from vitjax.runner.manifest import (
    FORMAT,
    FORMAT_VERSION,
    describe_model,
    describe_session,
    now,
    session_changes,
)
from vitjax.runner.options import BATCH_SIZE, SMALL_BATCH_SIZE, RunOptions
from vitjax.runner.progress import Progress
from vitjax.runner.results import Results, open_results
from vitjax.runner.store import ROWS, Folder, StorageError
from vitjax.runner.writer import (
    ArraySpec,
    RunWriter,
    create_or_resume,
    images_per_chunk,
)
from vitjax.types import Batch, Config

LABEL, VALID, DIGEST = schema.LABEL(), schema.VALID(), schema.DIGEST()
PATCH_LABEL = schema.PATCH_LABEL()
PREVIEW, PREVIEW_INDEX = schema.PREVIEW(), schema.PREVIEW_INDEX()

BatchResult = tuple[dict[str, np.ndarray], dict[int, dict[str, Any]]]
"""Array name -> rows of a batch; unreadable image -> its line of the manifest."""


@dataclasses.dataclass(eq=False)
class Job:
    """A recipe, a model and a data set, ready to run: the `Context` of its passes.

    `loaded_model` is the model before it took the dtype of the run, `spec` what the
    user called the data set, whose labels are class numbers in `source`.
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
    writer: RunWriter = dataclasses.field(init=False)
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
        """Batches of one shape of images of a source, on the devices, without masks."""
        for loaded in self.load(source, start, stop, masks=False):
            yield meshes.shard(loaded.batch, self.mesh)

    def rows(self, name: str) -> np.ndarray:
        """An array as it is on disk, of this process's chunks; zeros elsewhere."""
        array, spec = self.writer.array(name), self.writer.specs[name]
        values = np.zeros(spec.shape, spec.dtype)
        for start, stop in map(self.writer.span, self.chunks):
            values[start:stop] = array[start:stop]
        return values

    def load(
        self, source: Any, start: int, stop: int, *, masks: bool
    ) -> Iterator[Loaded]:
        """Batches of a source as the loader gives them, until the user interrupts."""
        for loaded in batches(
            source,
            preprocess=self.preprocess,
            local_batch_size=self.batch_size,
            start=start,
            stop=stop,
            config=self.model.config if masks else None,
            on_error=self.options.on_error,
            mask_rule=self.options.mask_rule,
            threads=min(16, os.cpu_count() or 1),
            workers=self.options.workers if stop - start > self.batch_size else 0,
        ):
            check_interrupt()
            yield loaded

    def empty_batch(self, size: int | None = None) -> Batch:
        """A batch that holds no image."""
        config, size = self.model.config, size or self.batch_size
        no_labels = np.full((size, config.patches), -1, np.int32)
        return Batch(
            images=np.zeros((size, *config.shape, 3), np.float32),
            label=np.full(size, -1, np.int32),
            valid=np.zeros(size, bool),
            index=np.zeros(size, np.int32),
            patch_label=no_labels if self.has_masks else None,
        )

    @functools.cached_property
    def setup(self) -> Setup:
        """What depends on the model alone, on every device."""
        return jitted_setup(self.recipe, self.mesh)(self.model, seed=self.seed)

    @functools.cached_property
    def setup_shape(self) -> Setup:
        """The shapes of `setup`."""
        program = jitted_setup(self.recipe, self.mesh)
        return program.eval_shape(self.model, seed=self.seed)

    @functools.cached_property
    def passes(self) -> tuple[Pass, ...]:
        """The sweeps over the images: the recipe's own, or the one of its step."""
        if self.recipe.passes is not None:
            passes = self.recipe.passes(self, **self.recipe.keywords)
        else:
            carry_shape = self.setup_shape.carry
            passes = [Pass(setup=lambda: self.setup, carry_shape=carry_shape)]
        return tuple(map(self.recipe.complete, passes))

    def step(self, part: Pass, batch: Batch, carry: Any) -> dict[str, Array]:
        """Dispatch a batch to the devices; its arrays are there once they are read."""
        program = jitted_step(part.step, self.mesh)
        return program(self.model, meshes.shard(batch, self.mesh), carry)

    def compile(self, part: Pass, carry: Any) -> Any:
        """A pass's program for this run's batches."""
        batch = meshes.shard(self.empty_batch(), self.mesh)
        program = jitted_step(part.step, self.mesh)
        return program.lower(self.model, batch, carry).compile()

    @functools.cached_property
    def specs(self) -> dict[str, ArraySpec]:
        """Every array of the run; floats are float32 on disk."""
        recipe, config, specs = self.recipe, self.model.config, {}
        batch = meshes.shard(self.empty_batch(), self.mesh)  # `compile` traces no more
        for part in self.passes:
            program = jitted_step(part.step, self.mesh)
            outputs = program.eval_shape(self.model, batch, part.carry_shape)
            if undeclared := set(outputs) - set(part.dims):
                raise ValueError(
                    f"The recipe {recipe.name!r} returns {sorted(undeclared)}, whose "
                    "axes its dims do not name."
                )
            region = {dim: stop - start for dim, (start, stop) in part.region.items()}
            for name, output in outputs.items():
                shape = [
                    part.region[dim][1] if dim in part.region else size
                    for dim, size in zip(part.dims[name], output.shape[1:])
                ]
                if name in specs:  # the first part of an axis is the size of a chunk
                    shape = np.maximum(specs[name].shape[1:], shape).tolist()
                    region = specs[name].region
                is_float = jax.numpy.issubdtype(output.dtype, np.floating)
                dtype = "float32" if is_float else np.dtype(output.dtype).name
                dims = ("image", *part.dims[name])
                specs[name] = ArraySpec(dims, (self.images, *shape), dtype, region)
        specs = {name: specs[name] for name in recipe.dims if name in specs}
        static = self.setup_shape.static
        for name in filter(static.__contains__, recipe.static):
            axes = tuple(recipe.static[name])
            specs[name] = ArraySpec(axes, static[name].shape, "float32")
        dtypes = {LABEL: "int32", VALID: "bool", DIGEST: "uint64", "done": "bool"}
        for name, dtype in dtypes.items():
            specs[name] = ArraySpec(("image",), (self.images,), dtype)
        if self.has_masks:
            shape = (self.images, config.patches)
            specs[PATCH_LABEL] = ArraySpec(("image", "patch"), shape, "int8")
        if count := min(max(part.previews for part in self.passes), self.images):
            axes = schema.SCHEMA[PREVIEW].axes
            specs[PREVIEW] = ArraySpec(axes, (count, *config.shape, 3), "uint8")
            specs[PREVIEW_INDEX] = ArraySpec(axes[:1], (count,), "int32")
        return specs

    def describe(self, processes: int) -> dict[str, Any]:
        """The manifest of a new run."""
        options, recipe, specs = self.options, self.recipe, self.specs
        size = images_per_chunk(specs, self.images, self.batch_size, processes)
        study = recipe.describe and recipe.describe(self, **recipe.keywords)
        program = self.hash_programs()
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "recipe": recipe.name,
            "recipe_options": recipe.keywords,
            **({"recipe_sha256": program} if program else {}),
            "model": describe_model(self.loaded_model),
            "data": {"spec": self.spec, "id": self.source.id, "images": self.images},
            "batch_size": options.batch_size or BATCH_SIZE,
            "dtype": options.dtype,
            "matmul_precision": options.precision,
            "seed": options.seed,
            "limit": options.limit,
            "masks": dataclasses.asdict(options.mask_rule) if self.has_masks else None,
            **({"study": study} if study else {}),
            "arrays": {name: list(spec.dims) for name, spec in specs.items()},
            **describe_session(),
            "created": now(),
            "finished": None,
            "images_per_second": None,
            "skipped": [],
            "no_object_tokens": [],
            "images_per_chunk": size,
        }

    def hash_programs(self) -> str | None:
        """A hash of a user's own recipe's jaxprs; vitjax's are those of its version."""
        recipe, known = self.recipe, RECIPES.get(self.recipe.name)
        if known and (recipe.step, recipe.passes) == (known.step, known.passes):
            return None
        model, batch = self.model, self.empty_batch(1)
        setup = functools.partial(recipe.run_setup, seed=self.seed)
        with jax.default_matmul_precision(None):  # which the manifest says by itself
            programs = [jax.make_jaxpr(setup)(model)] + [
                jax.make_jaxpr(part.step)(model, batch, part.carry_shape)
                for part in self.passes
            ]
        digest = hashlib.sha256()
        for program in programs:  # without the addresses of functions
            digest.update(re.sub(r"0x[0-9a-f]+", "", str(program)).encode())
            for constant in program.consts:
                digest.update(np.asarray(constant).tobytes())
        return digest.hexdigest()

    def notes(self) -> Iterator[str]:
        """Settings in force, what the data set leaves out, other batches, versions."""
        settings: dict[str, list[str]] = {}
        for fact in describe_preprocessing(self.loaded_model):
            settings.setdefault(fact.source, []).append(f"{fact.setting} {fact.text}")
        for source, facts in settings.items():
            yield f"{'; '.join(facts)} ({source})"
        yield from getattr(self.source, "notes", ())
        if self.batch_size != (size := self.options.batch_size or BATCH_SIZE):
            kind = self.mesh.devices.flat[0].device_kind
            why = f"the run has {self.images} images and {self.mesh.size} x {kind}"
            if self.options.batch_size is None and takes_long(self.recipe, self.mesh):
                why = "an image takes long on a CPU; --batch-size says otherwise"
            yield f"Batches of {self.batch_size} images, not {size}: {why}."
        for change in session_changes(self.writer.manifest):
            yield f"{change}: the last bits of new rows may differ."


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
    """Find, load and place what a run needs."""
    recipe = find_recipe(recipe) if isinstance(recipe, str) else recipe
    if recipe_options and recipe_options != recipe.options:  # else its program is there
        recipe = recipe.with_options(recipe_options)
    mesh = meshes.make_mesh()
    model = model if isinstance(model, Model) else load(model)
    if recipe.needs_label:
        check_classes(model.num_classes)
    source = open_data(data, model, mask_format=options.mask_format)
    limit = options.limit or len(source)
    images = min(limit, len(source))
    default = SMALL_BATCH_SIZE if takes_long(recipe, mesh) else BATCH_SIZE
    batch_size = options.batch_size or default
    if images == 0:
        raise ValueError(f"The data set {source.id} holds no images.")
    return Job(
        recipe=recipe,
        loaded_model=model,
        model=meshes.replicate(model.astype(options.dtype), mesh),
        source=source,
        spec=printable(os.fspath(data))
        if isinstance(data, str | os.PathLike)
        else source.id,
        images=images,
        has_masks=has_masks(source),
        mesh=mesh,
        batch_size=meshes.fit_batch_size(min(batch_size, images), mesh),
        options=options,
    )


def takes_long(recipe: Recipe, mesh: Mesh) -> bool:
    """Whether a step of many images would show no progress for minutes."""
    return recipe.many_passes and mesh.devices.flat[0].platform == "cpu"


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


def batch_indices(start: int, stop: int, batch_size: int) -> np.ndarray:
    """Images of a chunk in whole batches, the last image repeated at their end."""
    size = -(-(stop - start) // batch_size) * batch_size
    return np.minimum(np.arange(start, start + size), stop - 1)


def run_batches(
    job: Job, part: Pass, carry: Any, indices: np.ndarray, progress: Progress
) -> Iterator[BatchResult]:
    """Run a pass over images, whole batches of them. `progress` starts when the first
    has arrived.

    Double buffering: batch n + 1 is dispatched before the rows of batch n are read, so
    that devices compute while the host writes.
    """
    subset, dispatched = Subset(job.source, indices, job.source.id), None
    for loaded in job.load(subset, 0, len(indices), masks=job.has_masks):
        progress.start()
        index = indices[np.asarray(loaded.batch.index)].astype(np.int32)
        batch = dataclasses.replace(loaded.batch, index=index)
        outputs = job.step(part, batch, carry)
        if dispatched is not None:
            yield collect(job, part, *dispatched)
        dispatched = loaded._replace(batch=batch), outputs
    if dispatched is not None:
        yield collect(job, part, *dispatched)


def collect(job: Job, part: Pass, loaded: Loaded, outputs: Any) -> BatchResult:
    """The rows of a batch; fill values without an image or, of `needs_label`, label."""
    batch, rows = loaded.batch, dict(outputs)
    index, valid = np.asarray(batch.index), np.asarray(batch.valid)
    label = np.where(valid, np.asarray(batch.label), -1).astype(np.int32)
    last, labeled = part is job.passes[-1], set(job.recipe.needs_label)
    if last and job.has_masks:
        rows[PATCH_LABEL] = np.asarray(batch.patch_label)
    for name, values in rows.items():
        known = label >= 0 if name in labeled else valid
        rows[name] = np.array(values, job.specs[name].dtype)
        rows[name][~known] = job.specs[name].fill_value
    if last:
        rows |= {LABEL: label, VALID: valid, DIGEST: loaded.digest}
    if part.previews:
        count = int((index < part.previews).sum())
        images = np.asarray(batch.images)[:count]
        rows[PREVIEW] = job.preprocess.denormalize(images)
        rows[PREVIEW][~valid[:count]] = 0
        rows[PREVIEW_INDEX] = np.where(valid, index, -1)[:count].astype(np.int32)
    failed = zip(index[~valid].tolist(), loaded.errors)
    return rows, {
        i: {"index": i, "name": error.name, "reason": error.error}
        for i, error in failed
    }


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
    eight batches or 1/64 of the run at most; chunk i belongs to process i mod n, and
    nothing has to be arranged between processes but that they share `out`.

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
    number, processes = process or (jax.process_index(), jax.process_count())
    if not 0 <= number < processes:
        raise ValueError(f"process={number} is out of range [0, {processes}).")
    with jax.default_matmul_precision(settings.precision):
        job = make_job(recipe, model, data, recipe_options=options, options=settings)
        folder = Folder(out)
        job.writer = create_or_resume(folder, job.describe(processes), job.specs)
        job.chunks = tuple(job.writer.chunks[number::processes])
        try:
            resume(job, show=show_progress)
        except BaseException as error:
            if isinstance(error, ImageError):
                error.add_note("Repair it, or skip such images: --on-error skip.")
            error.add_note(progress_note(folder))
            raise
    return open_results(out)


def resume(job: Job, *, show: bool) -> None:
    """Compute this process's pending chunks, then finish the run if none is left."""
    writer, last = job.writer, job.passes[-1]

    def pending(chunks: Sequence[int], *, verify: bool) -> dict[Pass, list[int]]:
        existing, left = set(writer.folder.list(ROWS)), {}
        for part in job.passes:
            names = set(part.dims)
            if part is last:
                names |= {LABEL, VALID, DIGEST, PATCH_LABEL, "done"}
            if part.previews:
                names |= {PREVIEW, PREVIEW_INDEX}
            names &= writer.specs.keys()
            left[part] = writer.pending(
                chunks, names, part.region, existing, verify=verify
            )
        return left

    for chunk, lines in writer.skipped().items():
        for line in lines if chunk in job.chunks else ():
            with contextlib.suppress(ImageError):
                _ = job.source[line["index"]]  # it is repaired
                writer.mark_pending([chunk])
                break
    writer.create_arrays()
    left = pending(job.chunks, verify=True)
    check_unchanged(job, [c for c in job.chunks if c not in left[last]])
    for line in job.notes() if show and any(left.values()) else ():
        print(line, file=sys.stderr)
    if not writer.has_static():
        for name, values in job.setup.static.items():
            writer.write(name, ..., values)
    rate = None
    for part, chunks in left.items():
        if chunks:
            rate = sweep(job, part, chunks, show=show)
    if rate is None and writer.manifest["finished"]:
        return
    if not any(pending(writer.chunks, verify=False).values()):
        finish(job, rate)


def sweep(job: Job, part: Pass, chunks: list[int], *, show: bool) -> float | None:
    """Compute and write the pending chunks of a pass; images per second."""
    writer = job.writer
    spans = [writer.span(chunk) for chunk in chunks]
    images, mine = (
        sum(stop - start for start, stop in each)
        for each in (spans, map(writer.span, job.chunks))
    )
    title = f"{job.recipe.name} · {writer.manifest['model']['name']} {part.title}"
    progress = Progress(images, title=title.strip(), before=mine - images, show=show)
    with progress:
        started = time.monotonic()
        carry = meshes.replicate(part.setup().carry, job.mesh)
        prepared, progress.state = time.monotonic(), "compiling"
        job.compile(part, carry)
        progress.state = "reading images"
        indices = [batch_indices(*span, job.batch_size) for span in spans]
        results = run_batches(job, part, carry, np.concatenate(indices), progress)
        for chunk, (start, stop) in zip(chunks, spans):
            rows, batches, errors = {}, [], {}
            for first in range(start, stop, job.batch_size):
                rows, unreadable = next(results)
                batches.append(rows)
                errors |= unreadable
                progress.advance(min(job.batch_size, stop - first))
            writer.write_chunk(
                chunk,
                {name: np.concatenate([b[name] for b in batches]) for name in rows},
                region=part.region,
                errors=list(errors.values()),
                last=part is job.passes[-1],
            )
    seconds = {"setup": prepared - started, "steps": progress.seconds}
    job.seconds.append({"pass": part.title, **seconds})
    return progress.images_per_second


def check_unchanged(job: Job, chunks: list[int]) -> None:
    """Refuse to resume where an image that was run is not what it was."""
    writer, digest_of = job.writer, getattr(job.source.source, "digest", None)
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


def finish(job: Job, rate: float | None) -> None:
    """Write what sums the run up; any process may, and all write the same."""
    writer, recipe = job.writer, job.recipe
    facts: dict[str, Any] = {}
    if rate is not None:
        facts["images_per_second"] = rate
    if job.has_masks:
        kinds = np.asarray(writer.array(PATCH_LABEL)[:])
        lost = (kinds >= 0).any(axis=1) & ~(kinds == 1).any(axis=1)
        facts["no_object_tokens"] = [
            {"index": index, "name": job.source.name(index)}
            for index in np.flatnonzero(lost).tolist()
        ]
    if recipe.benchmark is not None:
        batch = meshes.shard(job.empty_batch(), job.mesh)
        facts["measured"] = recipe.benchmark(job.model, batch, **recipe.keywords)
    if recipe.passes is not None and len(job.seconds) == len(job.passes):
        facts["measured"] = {**facts.get("measured", {}), "passes": job.seconds}
    writer.finalize(job.source.name, facts)


def progress_note(folder: Folder) -> str:
    """What a stopped run has, and how to resume it."""
    try:
        results = open_results(folder.store)
        done, images = int(results["done"].sum()), results.sizes["image"]
    except (StorageError, ValueError, FileNotFoundError, KeyError):  # no arrays yet
        return f"What was written to {folder.path} is kept."
    return (
        f"{done} of {images} images are done and kept in {folder.path}; the same "
        "command resumes from there."
    )
