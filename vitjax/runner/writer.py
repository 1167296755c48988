"""The writing side of a run directory: whole chunks, owned by index.

A chunk of rows is written once, whole, and what it holds is a function of the manifest
alone. Writing it twice is harmless, so that no lock and no coordination are needed: any
number of processes, of the same run or of two commands on one folder, write the same
bytes. A chunk is pending as long as one of its objects is missing or corrupt; its part
of `done` is written last.
"""

import concurrent.futures
import contextlib
import csv
import dataclasses
import functools
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.errors import ContainsArrayError
from zarr.storage import ObjectStore

from vitjax.recipes import schema
from vitjax.runner.manifest import (
    MANIFEST,
    check_same_run,
    now,
    read_manifest,
)
from vitjax.runner.store import ROWS, Folder, is_intact, storage_errors

FILL = {"b": False, "i": -1, "u": 0, "f": float("nan")}
"""What rows hold where there is no image or no label, by kind of dtype."""

SKIPPED = "skipped"

CHUNK_BYTES = 4 << 20
CHUNK_BATCHES = 8
CHUNKS = 64
"""A kill costs at most so small a part of a run, however slow its recipe is."""
CHUNKS_PER_PROCESS = 4
THREADS = 16


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """One array of a run before it exists: `image`, where it is an axis, is the first.
    `region` has the sizes of chunks along axes that are not written whole.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    region: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def fill_value(self) -> Any:
        """What rows hold where there is no image or no label."""
        return FILL[np.dtype(self.dtype).kind]

    @property
    def axis(self) -> str:
        """The first axis: `image` of arrays with a row for every image."""
        return self.dims[0] if self.dims else ""

    @property
    def row_bytes(self) -> int:
        """Bytes of one image, in memory."""
        return int(np.prod(self.shape[1:])) * np.dtype(self.dtype).itemsize

    def chunk_shape(self, images_per_chunk: int) -> tuple[int, ...]:
        """Lengths of a chunk's axes."""
        whole = {"image": images_per_chunk, "preview": images_per_chunk, **self.region}
        sizes = zip(self.dims, self.shape)
        return tuple(max(1, min(whole.get(dim, size), size)) for dim, size in sizes)


def images_per_chunk(
    specs: Mapping[str, ArraySpec], images: int, batch_size: int, processes: int = 1
) -> int:
    """Choose how many images a chunk holds: whole batches, CHUNK_BYTES of the widest
    array and CHUNK_BATCHES at most, and CHUNKS of them, or some for every process.
    """
    widest = max(spec.row_bytes for spec in specs.values() if spec.axis == "image")
    batches = -(-images // batch_size)
    most = min(
        CHUNK_BYTES // (widest * batch_size),
        CHUNK_BATCHES,
        -(-batches // CHUNKS),
        batches // (CHUNKS_PER_PROCESS * processes),
    )
    return batch_size * max(1, most)


class RunWriter:
    """A run directory that is being written."""

    def __init__(
        self, folder: Folder, manifest: dict[str, Any], specs: Mapping[str, ArraySpec]
    ):
        self.folder, self.manifest, self.specs = folder, manifest, specs
        self.images: int = manifest["data"]["images"]
        self.images_per_chunk: int = manifest["images_per_chunk"]
        self.arrays: dict[str, Any] = {}

    @property
    def chunks(self) -> range:
        """Numbers of all chunks."""
        return range(-(-self.images // self.images_per_chunk))

    def span(self, chunk: int) -> tuple[int, int]:
        """First image of a chunk, and the one after its last."""
        start = chunk * self.images_per_chunk
        return start, min(start + self.images_per_chunk, self.images)

    @functools.cached_property
    def group(self) -> zarr.Group:
        """The open arrays."""
        with storage_errors("open", self.folder.path):
            store = ObjectStore(self.folder.store)
            return zarr.open_group(store, path=ROWS, mode="a")

    def array(self, name: str) -> Any:
        """An array for writing; a chunk of fill values is written as well."""
        if name not in self.arrays:  # opening takes as long as writing a chunk
            array: Any = self.group[name]
            self.arrays[name] = array.with_config({"write_empty_chunks": True})
        return self.arrays[name]

    def create_arrays(self) -> None:
        """Write the metadata of group and arrays where it is missing."""
        own = f"Of the recipe {self.manifest['recipe']}."
        for name, spec in self.specs.items():
            meaning = schema.SCHEMA[name].meaning if name in schema.SCHEMA else own
            writing = storage_errors("write rows to", self.folder.path)
            with writing, contextlib.suppress(ContainsArrayError):
                self.group.create_array(
                    name,
                    shape=spec.shape,
                    dtype=spec.dtype,
                    chunks=spec.chunk_shape(self.images_per_chunk),
                    compressors=(ZstdCodec(level=3), Crc32cCodec()),
                    fill_value=spec.fill_value,
                    attributes={"description": meaning},
                    dimension_names=spec.dims,
                )

    def has_static(self) -> bool:
        """Whether the arrays that have no image axis are there and intact."""
        keys = [
            f"{ROWS}/{name}/c" + "/0" * len(spec.shape)
            for name, spec in self.specs.items()
            if spec.axis not in ("image", "preview")
        ]
        return all(is_intact(self.folder.read(key) or b"") for key in keys)

    def write(self, name: str, where: Any, values: Any) -> None:
        """Write a part of an array."""
        with storage_errors("write rows to", self.folder.path):
            self.array(name)[where] = np.asarray(values, self.specs[name].dtype)

    def write_chunk(
        self,
        chunk: int,
        rows: Mapping[str, np.ndarray],
        *,
        region: Mapping[str, tuple[int, int]],
        errors: Sequence[Mapping[str, Any]],
        last: bool,
    ) -> None:
        """Write rows of a chunk's images, of which more are left out, in a `region` of
        the arrays, axis -> (start, stop); and those of `errors`, which could not be
        read. After the `last` of its rows the chunk is done; if it cannot be written it
        stays pending.
        """
        start, stop = self.span(chunk)
        for name, values in rows.items():
            spec = self.specs[name]
            end = min(stop, spec.shape[0])  # there are fewer previews
            if end > start:
                index = (slice(*region.get(dim, (None,))) for dim in spec.dims[1:])
                self.write(name, (slice(start, end), *index), values[: end - start])
        if errors:
            self.folder.write(skipped_name(chunk), json.dumps(errors).encode())
        if last:
            self.write("done", slice(start, stop), np.ones(stop - start))

    def chunk_keys(
        self, chunk: int, names: Iterable[str], region: Mapping[str, tuple[int, int]]
    ) -> list[str]:
        """Objects of a chunk, of some arrays."""
        keys = []
        for name in names:
            spec = self.specs[name]
            sizes = spec.chunk_shape(self.images_per_chunk)
            if spec.axis == "preview" and chunk * sizes[0] >= spec.shape[0]:
                continue
            parts = [
                region[dim][0] // size if dim in region else 0
                for dim, size in zip(spec.dims[1:], sizes[1:])
            ]
            keys.append(f"{ROWS}/{name}/c/" + "/".join(map(str, (chunk, *parts))))
        return keys

    def pending(
        self,
        chunks: Sequence[int],
        names: Iterable[str],
        region: Mapping[str, tuple[int, int]],
        existing: set[str],
        *,
        verify: bool,
    ) -> list[int]:
        """Mark and return chunks with an object missing or, to `verify`, corrupt."""

        def is_pending(chunk: int) -> bool:
            keys = self.chunk_keys(chunk, names, region)
            if not existing.issuperset(keys):
                return True
            contents = (self.folder.read(key) or b"" for key in keys if verify)
            return not all(map(is_intact, contents))

        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            pending = [c for c, yes in zip(chunks, pool.map(is_pending, chunks)) if yes]
        self.mark_pending(c for c in pending if done_name(c) in existing)
        return pending

    def mark_pending(self, chunks: Iterable[int]) -> None:
        """Remove `done`, which exists only where all is written, and lists of skips."""
        for chunk in chunks:
            self.folder.delete([done_name(chunk), skipped_name(chunk)])

    def skipped(self) -> dict[int, list[dict[str, Any]]]:
        """Chunk -> its images that could not be read."""
        names = self.folder.list(SKIPPED)
        lists = (json.loads(self.folder.read(name) or b"[]") for name in names)
        numbers = (int(name[len(SKIPPED) + 1 : -len(".json")]) for name in names)
        return dict(zip(numbers, lists))

    def finalize(self, name_of: Callable[[int], str], facts: Mapping[str, Any]) -> None:
        """Write images.csv, with names of images, and the manifest with more facts."""
        with storage_errors("read rows of", self.folder.path):
            label: np.ndarray = np.asarray(self.array(schema.LABEL())[:])
        classes, text = self.manifest["model"]["classes"], io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(("index", "name", "label_name", "label"))
        for index, number in enumerate(label.tolist()):
            class_name = classes[number] if number >= 0 else ""
            table.writerow((index, name_of(index), class_name, number))
        # Names of files need not be valid Unicode.
        self.folder.write(
            "images.csv", text.getvalue().encode(errors="surrogateescape")
        )
        skipped = [line for lines in self.skipped().values() for line in lines]
        self.manifest |= {"skipped": skipped, **facts, "finished": now()}
        self.folder.write(MANIFEST, json.dumps(self.manifest, indent=1).encode())


def skipped_name(chunk: int) -> str:
    """The object that lists a chunk's images that could not be read."""
    return f"{SKIPPED}/{chunk:06d}.json"


def done_name(chunk: int) -> str:
    """The object that says that a chunk is written."""
    return f"{ROWS}/done/c/{chunk}"


def create_or_resume(
    folder: Folder,
    manifest: dict[str, Any],
    specs: Mapping[str, ArraySpec],
) -> RunWriter:
    """Create a run directory, or resume the same run in it."""
    # Read before the manifest, which is written first.
    rows = folder.read(f"{ROWS}/zarr.json")
    existing = read_manifest(folder)
    if existing is None and rows is not None:
        raise ValueError(
            f"{folder.path} holds rows but no {MANIFEST} that says what they are. "
            "Restore it, or give another --out."
        )
    if existing is None:
        folder.create(MANIFEST, json.dumps(manifest, indent=1).encode())
        existing = read_manifest(folder)  # of whoever was first
    assert existing is not None
    check_same_run(folder.path, existing, manifest)
    return RunWriter(folder, existing, specs)
