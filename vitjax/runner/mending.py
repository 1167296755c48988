"""Rows that an earlier session wrote and that are no longer whole are computed anew."""

from collections.abc import Iterable

import numpy as np

from vitjax.runner.folder import Run
from vitjax.runner.results import Rows
from vitjax.runner.storage import (
    DamageError,
    chunk_length,
    chunks_there,
    gone_chunks,
    wait,
)

PICTURE_ARRAYS = ("picture", "picture_image")


def mend(run: Run) -> list[str]:
    """Mark the images undone of which a file of rows is damaged or gone.

    Files that cannot be decoded are removed. Of an unfinished run all rows are read
    once. Of a finished one only whether every file is there; it is finished no more
    where one is not.

    Args:
        run: to go on with.

    Returns:
        What was found, a sentence each.
    """
    thorough = not run.manifest["finished"]
    names = [n for n, spec in run.specs.items() if spec.dims[0] == "image"]
    said = [] if thorough else undo(run, np.zeros(run.images, bool), lost_once(run))
    damaged = {n: damaged_chunks(run, n) if thorough else set() for n in names}
    remove(run, "done", damaged["done"])  # reads as undone from now on
    # Of a finished run all is done; where `done` says otherwise, it is what is lost.
    done = run.read("done") if thorough else np.ones(run.images, bool)
    gone = {n: gone_chunks(run.stores[n], run.path, done) for n in names}
    lost = {n: damaged[n] | gone[n] for n in names if damaged[n] | gone[n]}
    images = images_of(run, set().union(*lost.values()))
    said += undo(run, images, lost)
    for name in lost:  # after that: whoever is killed between finds them undone
        remove(run, name, lost[name])
    pictures = lost_pictures(run, thorough=thorough)
    said += undo(run, shown_in(run, set().union(*pictures.values())), pictures)
    for name in pictures:
        remove(run, name, pictures[name])
    return said


def undo(run: Run, images: np.ndarray, names: Iterable[str]) -> list[str]:
    """Mark images undone, and say why, if there is a reason."""
    if not names:
        return []
    if run.manifest["finished"]:
        run.manifest["finished"] = None
        run.save_manifest()
    done = run.read("done")
    for start in range(0, len(done), run.images_per_chunk):
        part = slice(start, min(start + run.images_per_chunk, len(done)))
        if (done & images)[part].any():
            run.write({"done": (part, (done & ~images)[part])})
    what = f"the {images.sum()} images that they were of are run again"
    what = what if images.any() else "they are written again"
    return [f"Files of {', '.join(names)} in {run.path} are damaged or gone; {what}."]


def lost_once(run: Run) -> list[str]:
    """Arrays that are gone and are not of images; who goes on writes them anew."""
    return [
        name
        for name, spec in run.specs.items()
        if spec.dims[0] not in ("image", "shown")
        and gone_chunks(run.stores[name], run.path, np.ones(spec.shape[0], bool))
    ]


def damaged_chunks(run: Run, name: str) -> set[int]:
    """Numbers of the chunks whose file cannot be decoded."""
    rows, found = Rows(run.stores[name], run.path), set()
    size = chunk_length(rows.store)
    for chunk in sorted(chunks_there(rows.store, run.path)):
        try:
            rows[chunk * size : (chunk + 1) * size]
        except DamageError:
            found.add(chunk)
    return found


def remove(run: Run, name: str, chunks: set[int]) -> None:
    """Remove the files of some chunks of an array."""
    store = run.stores[name].kvstore
    tail = "/0" * (len(run.specs[name].shape) - 1)
    for chunk in chunks:
        wait(store.write(f"c/{chunk}{tail}", None), doing="write to", path=run.path)


def images_of(run: Run, chunks: set[int]) -> np.ndarray:
    """Per image, whether it is in one of the chunks."""
    images = run.specs["done"].shape[0]
    return np.isin(np.arange(images) // run.images_per_chunk, sorted(chunks))


def lost_pictures(run: Run, *, thorough: bool) -> dict[str, set[int]]:
    """By array of pictures, chunks that cannot be read, or are gone though a finished
    image has its picture there.
    """
    there = run.read("done") & run.read("valid")
    found = {}
    for name in PICTURE_ARRAYS:
        lost = gone_chunks(run.stores[name], run.path, there)
        found[name] = lost | (damaged_chunks(run, name) if thorough else set())
    return {name: chunks for name, chunks in found.items() if chunks}


def shown_in(run: Run, chunks: set[int]) -> np.ndarray:
    """Per image, whether its picture, if it has one, is in one of the chunks."""
    images = np.arange(run.images)
    kept = images < run.specs["picture_image"].shape[0]
    return kept & np.isin(images // shown_chunk(run), sorted(chunks))


def shown_chunk(run: Run) -> int:
    """Pictures per chunk; place n is that of image n."""
    return chunk_length(run.stores["picture_image"])
