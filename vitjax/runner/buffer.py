"""Rows on their way to disk: collected to whole chunks, written, marked done."""

import time
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from vitjax.runner.folder import Run

FLUSH_SECONDS = 30.0
"""A kill loses no more than this, or than a chunk of rows where that fills sooner."""


class Part(NamedTuple):
    """What one batch leaves behind.

    Args:
        start: index of its first image.
        rows: array name -> values, one per image; no padding.
        skipped: images that could not be read, as the manifest lists them.
        pictures: (index, pixels) of the first valid images.
    """

    start: int
    rows: dict[str, np.ndarray]
    skipped: list[dict]
    pictures: list[tuple[int, UInt8[np.ndarray, "height width channel"]]]

    @property
    def stop(self) -> int:
        """Index after its last image."""
        return self.start + len(self.rows["valid"])


class Buffer:
    """Collects parts, and writes them when a chunk is full or FLUSH_SECONDS are over.

    What a part needs besides its rows (pictures, skipped images) is on disk before its
    images are marked done; writing a part twice changes nothing.

    Args:
        run: where to.
    """

    def __init__(self, run: Run):
        self.run = run
        self.parts: list[Part] = []
        self.written = time.monotonic()

    def add(self, part: Part) -> None:
        """Take the rows of a batch, if it has any."""
        if part.stop == part.start:
            return
        if self.parts and self.parts[-1].stop != part.start:
            self.flush()
        self.parts.append(part)
        chunk = self.run.images_per_chunk
        full = part.stop // chunk > part.start // chunk
        if full or time.monotonic() - self.written > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what was collected.

        Raises:
            StorageError: it cannot be written; it stays collected.
        """
        if not self.parts:
            return
        self.write_pictures()
        self.write_skipped()
        names = self.parts[0].rows
        rows = {n: np.concatenate([p.rows[n] for p in self.parts]) for n in names}
        self.run.write_rows(self.parts[0].start, rows)
        self.parts = []
        self.written = time.monotonic()

    def write_pictures(self) -> None:
        """Keep the first valid images as the model saw them, each at its own place."""
        new = dict(shown for part in self.parts for shown in part.pictures)
        if not new:
            return
        first, last = min(new), max(new)
        index = np.array([i if i in new else -1 for i in range(first, last + 1)])
        blank = np.zeros_like(new[first])
        pixels = np.stack([new.get(i, blank) for i in range(first, last + 1)])
        place = slice(first, last + 1)
        self.run.write(
            {
                "picture": (place, pixels),
                "picture_image": (place, index.astype(np.int32)),
            }
        )

    def write_skipped(self) -> None:
        """List images that could not be read in the manifest."""
        listed = {skipped["index"] for skipped in self.run.manifest["skipped"]}
        found = [skipped for part in self.parts for skipped in part.skipped]
        new = [skipped for skipped in found if skipped["index"] not in listed]
        if new:
            self.run.manifest["skipped"] += new
            self.run.save_skipped()
