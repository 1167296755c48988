"""Picture files that change while a run is under way are noticed.

A data set's `id` holds the names of its files. What they contain is told by a digest of
each: of its size and of its bytes at the beginning, the middle and the end, which is
all of a small file. It costs an `open` per file, not a pass over the data set; times of
change do not count, so that a copy of the data set is the same.
"""

import concurrent.futures
import hashlib
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from vitjax.runner.folder import Run
from vitjax.runner.storage import read_bytes, write_bytes

DIGESTS = "content.txt"
"""Digests of the images that are run, a line each, in their order."""

PIECE = 4096
THREADS = 16


def check_content(run: Run, source: Any) -> None:
    """Refuse to go on where an image that was run is not what it was.

    An image that could not be read may have been repaired, and one that is still to be
    run may be another by now.

    Args:
        run: to go on with; it gets `content.txt` where it has none.
        source: its data set, as `open_source` returns it.

    Raises:
        ValueError: files have changed; the message names the first.
    """
    paths = getattr(source.source, "paths", None)
    if paths is None:
        return
    images = run.specs["done"].shape[0]
    now = digests(map(paths, range(images)))
    before = (read_bytes(run.path, DIGESTS) or b"").decode().split()
    if len(before) == images:
        changed = np.array([a != b for a, b in zip(before, now)])
        changed &= run.read("done") & run.read("valid")
        if changed.any():
            raise ValueError(refusal(run, source, np.flatnonzero(changed).tolist()))
    if before != now:
        write_bytes(run.path, DIGESTS, "\n".join(now).encode())


def refusal(run: Run, source: Any, changed: list[int]) -> str:
    """Which files have changed, and what to do."""
    names = ", ".join(source.name(index) for index in changed[:3])
    more = " and others" if len(changed) > 3 else ""
    return (
        f"{len(changed)} of the images that {run.path} holds rows of have changed "
        f"since: {names}{more}. Restore them, or give another --out to run them as "
        "they are now."
    )


def digests(images: Iterable[tuple[pathlib.Path, ...]]) -> list[str]:
    """One digest per image, of its files together."""
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(digest, images))


def digest(paths: tuple[pathlib.Path, ...]) -> str:
    """Of the sizes and some bytes of files; one that is missing counts as empty."""
    found = hashlib.sha256()
    for path in paths:
        try:
            size = path.stat().st_size
            found.update(b"%d " % size)
            with path.open("rb") as file:
                for place in (0, (size - PIECE) // 2, size - PIECE):
                    file.seek(max(0, place))
                    found.update(file.read(PIECE))
        except OSError:
            found.update(b"? ")
    return found.hexdigest()[:16]
