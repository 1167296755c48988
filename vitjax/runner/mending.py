"""Rows that an earlier session wrote and that are no longer whole are computed anew."""

from collections.abc import Iterable

import numpy as np

from vitjax.results import DamageError, Rows, wait
from vitjax.runner.folder import Run

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
    damaged = {n: damaged_chunks(run, n) if thorough else set() for n in names}
    remove(run, "done", damaged["done"])  # reads as undone from now on
    done = run.read("done")
    lost = {name: damaged[name] | gone_chunks(run, name, done) for name in names}
    lost = {name: chunks for name, chunks in lost.items() if chunks}
    images = images_of(run, set().union(*lost.values()))
    said = undo(run, images, lost)
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
    return [
        f"Files of {', '.join(names)} in {run.path} are damaged or gone; the "
        f"{images.sum()} images that they were of are run again."
    ]


def gone_chunks(run: Run, name: str, done: np.ndarray) -> set[int]:
    """Chunks with finished images that have no file."""
    size = run.images_per_chunk
    held = set((np.flatnonzero(done) // size).tolist())
    return held - chunks_there(run, name)


def chunks_there(run: Run, name: str) -> set[int]:
    """Numbers, along the first axis, of the chunks that have a file."""
    store = run.stores[name].kvstore
    keys = wait(store.list(), doing="list the files of", path=run.path)
    parts = (key.decode().split("/") for key in keys)
    return {int(part[1]) for part in parts if part[0] == "c"}


def damaged_chunks(run: Run, name: str) -> set[int]:
    """Numbers of the chunks whose file cannot be decoded."""
    rows, found = Rows(run.stores[name], run.path), set()
    size = rows.store.chunk_layout.read_chunk.shape[0]
    for chunk in sorted(chunks_there(run, name)):
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
        held = np.flatnonzero(there[: run.specs[name].shape[0]]) // shown_chunk(run)
        lost = set(held.tolist()) - chunks_there(run, name)
        found[name] = lost | (damaged_chunks(run, name) if thorough else set())
    return {name: chunks for name, chunks in found.items() if chunks}


def shown_in(run: Run, chunks: set[int]) -> np.ndarray:
    """Per image, whether its picture, if it has one, is in one of the chunks."""
    images = np.arange(run.images)
    kept = images < run.specs["picture_image"].shape[0]
    return kept & np.isin(images // shown_chunk(run), sorted(chunks))


def shown_chunk(run: Run) -> int:
    """Pictures per chunk; place n is that of image n."""
    return run.stores["picture_image"].chunk_layout.read_chunk.shape[0]
