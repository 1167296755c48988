"""`vitjax run probes`: linear probes against the class projection (section 8).

    vitjax run probes --model vit_b32 --train imagenet_s:PATH:probe \\
        --data imagenet_s:PATH:paper --out DIR

fits the published 1,800 ridge probes (3 streams, 12 blocks, 50 tokens) on 9,090 images
and ranks the classes of 4,550 others with them; the same images are ranked by the
projection. Then tokens are removed in the order of the probes' ranks, in that of
gradients, and at random.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Int

from vitjax.data.masks import MaskConvention, MaskRule
from vitjax.models.model import Model
from vitjax.recipes.identifiability import STREAMS
from vitjax.runner import manifest as manifests
from vitjax.runner import processes, stream
from vitjax.runner.buffer import Buffer
from vitjax.runner.content import check_content
from vitjax.runner.dealing import undone
from vitjax.runner.folder import Run, start_run
from vitjax.runner.groups import Group, Kind, parse_bytes
from vitjax.runner.job import OnError, make_job
from vitjax.runner.lease import held
from vitjax.runner.mending import mend
from vitjax.runner.probe_removal import removal_job, removal_recipe
from vitjax.runner.probe_study import (
    Study,
    check_streams,
    costs,
    keep_counts,
    make_study,
    recipe_options,
)
from vitjax.runner.probing import Prober
from vitjax.runner.progress import Rate, progress
from vitjax.runner.results import Results
from vitjax.runner.store import gone_chunks
from vitjax.types import Config


def run_probes(
    model: str | Config | Model,
    train: Any,
    data: Any,
    out: str | os.PathLike,
    *,
    shots: int = 10,
    alpha: float = 1.0,
    probe: Kind = "ridge",
    streams: Sequence[str] = STREAMS,
    steps: int = 16,
    memory: str | int = "4GiB",
    batch_size: int = 32,
    limit: int | None = None,
    seed: int = 0,
    on_error: OnError = "stop",
    dtype: Literal["float32", "bfloat16"] = "float32",
    mask_convention: MaskConvention = "area",
    mask_threshold: float = 0.5,
    workers: int = 0,
    show_progress: bool = True,
) -> Results:
    """Fit a linear probe for every stream, block and token; compare with projection.

    Three parts, each on all images of `data`: the rank of the true class by every
    probe, by the projection onto class space, and whether the model is still right
    when it keeps only the tokens that probes or gradients call important (Vilas et al.
    2023, section 8). Stopped at any moment, the same call goes on: at the next group of
    probes, or in the last part at the next image.

    Args:
        model: a model, or the name of one.
        train: the source that probes are fitted on, other images than `data`.
        data: the source that they are measured on.
        out: the run directory.
        shots: of every class, at most so many images to fit on: the first ones.
        alpha: weight of the ridge penalty. Above 0.
        probe: "ridge", the published one, or "softmax".
        streams: which, with "residual" among them: its ranks order the tokens.
        steps: points of a removal curve, evenly spaced; at most one per image token.
        memory: for the probes that are fitted at once, such as "2GiB"; the less, the
            more passes over the images.
        batch_size: images per step over all devices.
        limit: measure on only the first so many images.
        seed: of random removal, and of softmax probes.
        on_error: what to do with an image that cannot be read.
        dtype: what the model computes in.
        mask_convention: which tokens are of the class, where there are masks.
        mask_threshold: share of a token's pixels that makes it one of the class.
        workers: processes that decode and preprocess; 0 for threads.
        show_progress: a bar or lines on stderr.

    Returns:
        rank_probe_* [image layer token] (ties take the best rank; classes without an
        example to fit on tie at -1) beside the rows of `identifiability`;
        correct_negative_probe, correct_negative_gradient, correct_positive_probe,
        correct_positive_gradient and correct_random [image step], with the kept tokens
        of every step as its coordinate. `manifest["probes"]` tells what was fitted and
        what it cost.

    Raises:
        ValueError: an argument is out of its range, or `out` holds another run.
        ImageError: an image cannot be read, with on_error="stop".
        StorageError: `out` cannot be written; what was written before is kept.
    """
    processes.refuse("Probes are fitted")
    say = stream.print_to_stderr if show_progress else stream.ignore
    projection = make_job(
        *("identifiability", model, data),
        batch_size=batch_size,
        dtype=dtype,
        limit=limit,
        labelling=MaskRule(mask_convention, mask_threshold),
        workers=workers,
        seed=seed,
    )
    study = make_study(
        projection,
        train,
        kind=probe,
        options={"shots": shots, "alpha": alpha, "streams": check_streams(streams)},
        counts=keep_counts(projection.model.config.patches, steps=steps),
        memory=parse_bytes(memory),
    )
    if study.shared:
        say(f"{study.shared} images are measured on that probes are fitted on.")
    with held(out, say=say):
        target = open_target(study, out)
        for found in mend(target):
            say(found)
        forget_lost(study, target)
        check_content(target, projection.source)
        if not target.manifest["finished"]:
            for change in manifests.note_resumption(target.manifest):
                say(f"{change}; new rows may differ from old ones in their last bits.")
            target.save_manifest()
            fit_groups(study, target, on_error=on_error, show=show_progress)
            project_all(study, target, on_error=on_error, show=show_progress)
            remove_all(study, target, on_error=on_error, show=show_progress)
    return target.results()


def open_target(study: Study, out: str | os.PathLike) -> Run:
    """The folder of a study's run, new or to go on in."""
    job = study.projection
    recipe = removal_recipe(study.counts)
    recipe = dataclasses.replace(recipe, options=recipe_options(study))
    described = manifests.describe(dataclasses.replace(job, recipe=recipe))
    described["probes"] = costs(study)
    specs = study.specs
    coordinates = {**job.coordinates, "step": np.array(study.counts, np.int32)}
    return start_run(
        out, described, specs, coordinates=coordinates, batch_size=job.batch_size
    )


def forget_lost(study: Study, target: Run) -> None:
    """Fit and project again where rows of either are gone, of whichever images."""
    everywhere = np.ones(target.images, bool)

    def lost(names: Iterable[str]) -> bool:
        stores = [target.stores[name] for name in names if name in target.stores]
        return any(gone_chunks(one, target.path, everywhere) for one in stores)

    fitted, told = target.read("fitted"), target.manifest["probes"]
    ranks = [f"rank_probe_{name}" for name in study.options["streams"]]
    if fitted.any() and lost(ranks):
        target.write({"fitted": (..., np.zeros_like(fitted))})
    if told["projected"] and lost(study.projection.recipe.dims):
        told["projected"] = False
        target.save_manifest()


def fit_groups(study: Study, target: Run, *, on_error: OnError, show: bool) -> None:
    """Fit and rank with every group of probes that is not done yet."""
    job, fitted = study.projection, target.read("fitted")
    places = [(group, study.place(group)) for group in study.groups]
    left = [(group, place) for group, place in places if not fitted[place].all()]
    each = study.training.images + job.images
    rate = Rate(len(left) * each)
    title = f"{study.kind} probes, {len(places)} groups"
    before = (len(places) - len(left)) * each
    with progress(rate, title=title, done=before, show=show and bool(left)) as tick:
        prober = Prober(study.training, job, study.new_fit, on_error)
        warm: set[Any] = set()
        try:
            for group, place in left:
                if (group.streams, group.shape) not in warm:
                    prober.warm_up(group)
                warm.add((group.streams, group.shape))
                fit_group(prober, group, target, tick)
                target.write({"fitted": (place, np.ones(group.shape, bool))})
        except BaseException as error:
            error.add_note(
                f"Groups of probes that are done are kept in {target.path}; the same "
                "command goes on from there."
            )
            raise


def fit_group(
    prober: Prober, group: Group, target: Run, tick: Callable[[int], None]
) -> None:
    """Fit a group, write its ranks, and note what both took."""
    told = target.manifest["probes"]
    fitted, errors = prober.fitted(group, told["seconds"], tick)
    told["train"]["skipped"] = [
        {"index": error.index, "name": error.name, "reason": error.error}
        for error in errors
    ]
    started = time.monotonic()
    write_ranks(prober.ranked(group, fitted), group, target, tick)
    told["seconds"]["test"] += time.monotonic() - started
    target.save_manifest()


def write_ranks(
    ranked: Iterable[tuple[int, Int[np.ndarray, "image stream layer token"]]],
    group: Group,
    target: Run,
    tick: Callable[[int], None],
) -> None:
    """Write ranks of a group, whole chunks of images at once."""
    for start, ranks in chunks(ranked, target.images_per_chunk):
        where = (slice(start, start + len(ranks)), *group.place)
        target.write(
            {
                f"rank_probe_{name}": (where, ranks[:, place])
                for place, name in enumerate(group.streams)
            }
        )
        tick(len(ranks))


def chunks(
    batches: Iterable[tuple[int, np.ndarray]], size: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Consecutive batches joined up to multiples of `size`."""
    first, kept = 0, []
    for start, rows in batches:
        first = first if kept else start
        kept.append(rows)
        if (start + len(rows)) % size == 0:
            yield first, np.concatenate(kept)
            kept = []
    if kept:
        yield first, np.concatenate(kept)


def project_all(study: Study, target: Run, *, on_error: OnError, show: bool) -> None:
    """The rows of `identifiability`, by themselves so that their seconds are known."""
    cost, job = target.manifest["probes"], study.projection
    if cost["projected"]:
        return
    jax.block_until_ready(job.step(job.blank()))  # compile
    rate, started = Rate(job.images), time.monotonic()
    with progress(rate, title="projection", done=0, show=show) as tick:
        spans = [(0, job.images)]
        for part in stream.computed(job, spans, on_error=on_error, pictures=0):
            rows = {n: v for n, v in part.rows.items() if n in job.recipe.dims}
            place = slice(part.start, part.stop)
            target.write({name: (place, values) for name, values in rows.items()})
            tick(part.stop - part.start)
    cost["seconds"]["projection"] = time.monotonic() - started
    cost["projected"] = True
    target.save_manifest()


def remove_all(study: Study, target: Run, *, on_error: OnError, show: bool) -> None:
    """Removal curves; an image is done when its own are written."""
    ranks = target.results()["rank_probe_residual"]
    job = removal_job(study.projection, study.counts, ranks)
    done = target.read("done")
    rate = Rate(int((~done).sum()))
    shown = show and rate.total > 0
    with progress(rate, title="removal", done=int(done.sum()), show=shown) as tick:
        buffer = Buffer(target)
        spans = undone(done, batch_size=job.batch_size)
        pictures = job.recipe.pictures
        parts = stream.computed(job, spans, on_error=on_error, pictures=pictures)
        stream.write(parts, buffer, tick)
    stream.finish(job, target, rate)
