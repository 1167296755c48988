"""The recipe protocol: what is computed for every image of a data set.

A recipe is `setup(model) -> carry, static arrays` and `step(model, batch, carry) ->
rows`. Both are pure and traceable; neither knows disks, processes or devices. A recipe
that fits something on images first, or needs more than one sweep over them, has
`passes`.
"""

import dataclasses
import functools
import inspect
import operator
import time
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vitjax.data.images import ImageError
from vitjax.data.records import Record
from vitjax.messages import unknown
from vitjax.models.model import Model
from vitjax.types import ArrayLike, Batch

Dims = Mapping[str, tuple[str, ...]]
"""Array name -> names of its axes after `image`."""


class Setup(NamedTuple):
    """What depends on the model alone: a pytree for every step, and arrays by name that
    are written once, without an image axis.
    """

    carry: Any = ()
    static: Mapping[str, Array] = {}


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some images of a data set; `id` is of the data set and the choice."""

    whole: Any
    indices: Any
    id: str

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Record:
        return self.whole[int(self.indices[position])]


def subset(source: Any, indices: np.ndarray, choice: str) -> Subset:
    """Some images of an opened data set."""
    chosen = tuple(np.unique(indices).tolist())
    return Subset(source, chosen, f"{source.id}; {choice}")


def evenly(length: int, count: int) -> Int[np.ndarray, " place"]:
    """At most so many places of a sequence, evenly spread."""
    count = min(count, length)
    return np.arange(count) * length // max(count, 1)


def spread(source: Any, count: int) -> Subset:
    """At most so many images, evenly spread over a data set: it may be sorted."""
    indices = evenly(len(source), count)
    if not len(indices):
        raise ValueError(f"The data set {source.id} holds no image.")
    return subset(source, indices, f"{len(indices)} images")


def open_training_data(context: "Context", recipe: str, spec: str | None) -> Any:
    """The data set of --train."""
    if spec is None:
        raise ValueError(
            f"The recipe {recipe!r} fits on other images than those of --data: pass "
            "--train SOURCE (in Python, the option train)."
        )
    return context.open_data(spec)


def describe_training(context: "Context", source: Subset) -> dict[str, Any]:
    """What is fitted on, and how many of its images are also measured."""
    same = source.whole.id == context.source.id
    return {
        "train": {"id": source.id, "images": len(source)},
        "shared_images": sum(same and i < context.images for i in source.indices),
    }


def mean_over(
    context: "Context", source: Any, sums: Callable[[Model, Batch], Any]
) -> Any:
    """The mean over the images of a source of what `sums` adds up for each batch."""
    total, count = None, 0
    for batch in context.batches(source, 0, len(source)):
        parts = sums(context.model, batch)
        total = parts if total is None else jax.tree.map(operator.add, total, parts)
        count += int(np.sum(batch.valid))
    if not count:
        raise ValueError(f"The data set {source.id} holds no image to average over.")
    return jax.tree.map(lambda leaf: leaf / count, total)


def labels_of(source: Any) -> Iterator[int]:
    """The label of every image; decodes only where the source has no list of them."""
    names = getattr(source.source, "label_names", ())
    if len(names) == len(source):
        yield from map(source.number, names)
        return
    for index in range(len(source)):
        try:
            yield source[index].label
        except ImageError:  # left out; a run stops or goes on by its own images
            yield -1


@runtime_checkable
class Context(Protocol):
    """What a pass may ask of the run that it belongs to.

    Args:
        model: on the devices, in the dtype of the run.
        source: the data set, labels as class numbers; with `id` and `len`.
        images: how many of it are run.
        batch_size: images per step over the devices of this process.
        seed: of whatever is random.
    """

    model: Model
    source: Any
    images: int
    batch_size: int
    seed: int

    def open_data(self, spec: Any) -> Any:
        """Another data set, labels matched against the same classes."""
        ...

    def batches(self, source: Any, start: int, stop: int) -> Iterator[Batch]:
        """Batches of one shape of images of a source, split over the devices of this
        process; padding has `valid` False.
        """
        ...

    def rows(self, name: str) -> np.ndarray:
        """An array of the run as it is on disk, image i in row i, to be read in slices.

        Rows of images that are not this process's may hold fill values.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Pass:
    """One sweep over all images: `step(model, batch, carry)` as of a `Recipe`.

    Without a step, it is the recipe's, with its options, dims and previews. Equal
    programs are one step object: it is jitted by identity. `setup` is called once,
    before the first step if anything is left to do, under the run's matmul precision;
    `carry_shape` is its carry as a pytree of `jax.ShapeDtypeStruct`. `region` is axis
    -> (start, stop), where the arrays are a part of what the run holds; all passes that
    write an array cut its axes at multiples of one size. `title`, such as "fit 2/9", is
    shown beside the progress.
    """

    step: Any = None
    dims: Dims = dataclasses.field(default_factory=dict)
    setup: Callable[[], Setup] = Setup
    carry_shape: Any = ()
    region: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    title: str = ""
    previews: int = 0


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Recipe:
    """What is computed for every image, and the names of the axes of what comes out.

    Args:
        name: what it is called on the command line.
        step: `step(model, batch, **options) -> {array name: rows}`; with `setup` or
            `passes`, it is `step(model, batch, carry, **options)`. Every array that it
            returns has a leading image axis, and an image's rows do not depend on its
            batch.
        dims: for every array that the step may return, the names of its axes after
            `image`.
        needs_label: arrays that mean nothing for an image without a known class; they
            hold fill values there.
        options: a frozen dataclass, its fields the keywords of `step` and `setup`; they
            become flags of `vitjax run NAME` and part of the manifest. A mapping is
            made into one.
        setup: None, or `setup(model, *, seed, **options) -> Setup`.
        static: for every array that `setup` may return, the names of its axes.
        benchmark: None, or `benchmark(model, batch, **options) -> JSON`, called once a
            run is through; it goes into the manifest as "measured".
        previews: how many of the first images are kept as the model saw them.
        passes: None, or `passes(context, **options) -> [Pass]`: sweeps whose carry is
            made of images, by `step` or steps of their own; `dims` hold the arrays of
            all of them.
        describe: None, or `describe(context, **options) -> JSON` for the manifest, as
            "study"; what it says does not identify the run.
        many_passes: whether an image takes hundreds of forward passes: on CPUs, steps
            then have few images unless --batch-size says otherwise.

    Example:
        >>> Recipe(name="entropy", step=entropy, dims={"entropy": ("layer", "token")})
    """

    name: str
    step: Callable[..., dict[str, Array]] | None = None
    dims: Dims
    needs_label: tuple[str, ...] = ()
    options: Any = dataclasses.field(default_factory=dict)
    setup: Callable[..., Setup] | None = None
    static: Dims = dataclasses.field(default_factory=dict)
    benchmark: Callable[..., dict[str, Any]] | None = None
    previews: int = 8
    passes: Callable[..., Sequence[Pass]] | None = None
    describe: Callable[..., dict[str, Any]] | None = None
    many_passes: bool = False

    def __post_init__(self):
        if isinstance(self.options, Mapping):
            fields = [
                (name, type(value), dataclasses.field(default=value))
                for name, value in self.options.items()
            ]
            kind = dataclasses.make_dataclass("Options", fields, frozen=True)
            object.__setattr__(self, "options", kind())

    def __repr__(self) -> str:
        return f"Recipe({self.name!r}: {len(self.dims)} arrays, {self.options})"

    @property
    def about(self) -> str:
        """The first line of the docstring of the step, or of the passes."""
        text = inspect.getdoc(self.step or self.passes) or self.name
        return text.splitlines()[0]

    @property
    def keywords(self) -> dict[str, Any]:
        """The options as keywords of the step."""
        return {
            field.name: getattr(self.options, field.name)
            for field in dataclasses.fields(self.options)
        }

    def with_options(self, options: Any) -> "Recipe":
        """A copy with other options: all of them, or a mapping of those to replace."""
        if isinstance(options, Mapping):
            types = typing.get_type_hints(type(self.options))
            for name, value in options.items():
                if name not in types:
                    what = f"option of the recipe {self.name!r}"
                    raise ValueError(unknown(what, name, types))
                check_choice(name, value, types[name])
            options = dataclasses.replace(self.options, **options)
        return dataclasses.replace(self, options=options)

    def run_setup(self, model: Model, seed: int) -> Setup:
        """The carry and the static arrays of a model; nothing without `setup`."""
        if self.setup is None:
            return Setup()
        return self.setup(model, seed=seed, **self.keywords)

    def run_step(self, model: Model, batch: Batch, carry: Any) -> dict[str, Array]:
        """The rows of one batch."""
        assert self.step is not None
        extra = () if self.setup is None and self.passes is None else (carry,)
        return self.step(model, batch, *extra, **self.keywords)

    def complete(self, part: Pass) -> Pass:
        """A pass with the recipe's step, unless it has its own."""
        if part.step is not None:
            return part
        return dataclasses.replace(
            part,
            step=self.run_step,
            dims=self.dims,
            setup=functools.cache(part.setup),
            previews=self.previews,
        )


def check_choice(name: str, value: Any, kind: Any) -> None:
    """Refuse a value that is none of a `Literal`, or holds one in a tuple of them."""
    if typing.get_origin(kind) is typing.Literal and value not in typing.get_args(kind):
        raise ValueError(unknown(name, value, typing.get_args(kind)))
    if typing.get_origin(kind) is tuple:
        for item in value:
            check_choice(name, item, typing.get_args(kind)[0])


def median_seconds(function: Callable[..., Any], *arguments: Any) -> float:
    """The median of three calls of a function, compiled: for `benchmark`."""
    compiled, laps = jax.jit(function).lower(*arguments).compile(), []
    for _ in range(4):  # the first is left out
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        laps.append(time.perf_counter() - start)
    return sorted(laps[1:])[1]


def image_noise(
    key: Array, index: Int[ArrayLike, " batch"], size: int
) -> Float[Array, "batch entry"]:
    """Uniform noise in [0, 1) of each image, the same whatever batch it is in."""

    def draw(index):
        return jax.random.uniform(jax.random.fold_in(key, index), (size,))

    return jax.vmap(draw)(jnp.asarray(index))


Step = TypeVar("Step", bound=Callable[..., dict[str, Array]])

LOGIT_BYTES = 256 << 20
"""The most that class logits of a microbatch may take, unless it is a single image."""


def microbatched(step: Step) -> Step:
    """A recipe's step over microbatches; a batch that fits is passed on as it is.

    Class logits of every token, [batch token class], are by far the largest arrays of a
    step with very many classes, and several live at once. A step takes one microbatch
    after the other inside one program, and only rows outlive it: for B/16, 32 images
    and 21,843 classes `identifiability` needs 664 MiB beside the weights instead of
    2,185 on a CPU. Classes are not split: the logits that a rank compares are of one
    product.
    """

    @functools.wraps(step)
    def wrapped(model: Model, batch: Batch, *carry: Any, **options: Any):
        images = len(batch.label)
        size = microbatch_size(images, logit_bytes(model))
        if size == images:
            return step(model, batch, *carry, **options)

        def split(leaf):  # the last microbatch is padded with zeros
            padding = [(0, -images % size), *[(0, 0)] * (leaf.ndim - 1)]
            return jnp.pad(leaf, padding).reshape(-1, size, *leaf.shape[1:])

        def join(leaf):
            return leaf.reshape(-1, *leaf.shape[2:])[:images]

        def rows(part):
            return step(model, part, *carry, **options)

        return jax.tree.map(join, jax.lax.map(rows, jax.tree.map(split, batch)))

    return wrapped  # pyright: ignore


def logit_bytes(model: Model) -> int:
    """Bytes of the class logits of every token of an image, in float32 at least."""
    width = max(jnp.dtype(model.dtype).itemsize, 4)
    return model.config.tokens * model.num_classes * width


def microbatch_size(images: int, bytes_per_image: int) -> int:
    """Images of a microbatch: as few microbatches as fit, of about one size."""
    limit = max(LOGIT_BYTES // bytes_per_image, 1)
    count = -(-images // limit)
    return -(-images // count)
