"""The writing side of a run directory: create, go on, refuse, write, mark done."""

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vitjax.results import (
    FORMAT,
    ROWS,
    ArraySpec,
    Results,
    Rows,
    exists,
    open_store,
    read_manifest,
    run_path,
    wait,
    write_bytes,
)

CHUNK_BYTES = 4 << 20
"""Aim for the largest array's chunks: some thousand objects for 50,000 images."""

IDENTITY = (
    "format_version",
    "recipe",
    "recipe_options",
    "model",
    "data",
    "batch_size",
    "dtype",
    "matmul_precision",
    "seed",
    "limit",
    "masks",
    "arrays",
)
"""What must be equal for a run to go on in a folder."""

IGNORED = ("model.checkpoint", "data.spec")
"""Paths may change; `model.sha256` and `data.id` say whether the content did."""


@dataclasses.dataclass
class Run:
    """A run directory that is being written.

    Args:
        path: the run directory.
        manifest: what is run; `save_manifest` writes it after a change.
        specs: every array.
        images_per_chunk: whole chunks of this many images are written at once.
    """

    path: str
    manifest: dict[str, Any]
    specs: dict[str, ArraySpec]
    images_per_chunk: int

    @functools.cached_property
    def stores(self) -> dict[str, Any]:
        """The open arrays."""
        return {name: open_store(self.path, name) for name in self.specs}

    def read(self, name: str) -> np.ndarray:
        """An array as it is on disk now."""
        return Rows(self.stores[name])[:]

    def write_rows(self, start: int, rows: Mapping[str, np.ndarray]) -> None:
        """Write rows of consecutive images, then mark them done.

        Args:
            start: index of the first.
            rows: array name -> values with a leading `image` axis.

        Raises:
            StorageError: they cannot be written; nothing was marked done.
        """
        stop = start + len(next(iter(rows.values())))
        self.write({name: (slice(start, stop), rows[name]) for name in rows})
        done = np.ones(stop - start, bool)
        self.write({"done": (slice(start, stop), done)})

    def write(self, parts: Mapping[str, tuple[Any, Any]]) -> None:
        """Write `values` at `index` of each array, and wait until all are on disk."""
        writes = [self.stores[name][i].write(v) for name, (i, v) in parts.items()]
        for future in writes:
            wait(future, doing="write rows to", path=self.path)

    def save_manifest(self) -> None:
        """Write manifest.json, whole or not at all."""
        text = json.dumps(self.manifest, indent=1)
        write_bytes(self.path, "manifest.json", text.encode())

    def results(self) -> Results:
        """The same run for reading."""
        return Results(self.path, self.manifest)


def start_run(
    path: str | os.PathLike,
    manifest: dict[str, Any],
    specs: Mapping[str, ArraySpec],
    *,
    coordinates: Mapping[str, np.ndarray],
    batch_size: int,
) -> Run:
    """Create a run directory, or go on in one that holds the same run.

    Args:
        path: the folder; created where it is missing.
        manifest: what is to be run.
        specs: arrays of the recipe; `done` is added.
        coordinates: values along named axes.
        batch_size: images per batch; chunks hold whole batches.

    Returns:
        The run, with the manifest that stands in the folder.

    Raises:
        ValueError: the folder holds another run; the message names what differs.
        StorageError: the folder cannot be written.
    """
    path = run_path(path)
    images = manifest["data"]["images"]
    specs = {**specs, "done": ArraySpec(("image",), (images,), "bool")}
    manifest["arrays"] = {name: list(spec.dims) for name, spec in specs.items()}
    standing = read_manifest(path)
    if standing is not None:
        refuse_other(path, standing, manifest)
    run = Run(
        path=path,
        manifest=standing or manifest,
        specs=specs,
        images_per_chunk=images_per_chunk(specs.values(), batch_size=batch_size),
    )
    if standing is None:
        run.save_manifest()  # first: from now on the folder belongs to this run
    else:
        refuse_lost_arrays(run)
    create_arrays(run, coordinates)
    return run


def images_per_chunk(specs: Iterable[ArraySpec], *, batch_size: int) -> int:
    """How many images a chunk holds: whole batches, about CHUNK_BYTES at the widest."""
    rows = [spec for spec in specs if spec.dims[0] == "image"]
    sizes = (np.dtype(spec.dtype).itemsize * np.prod(spec.shape[1:]) for spec in rows)
    widest = max(int(size) for size in sizes)
    images = max(1, *(spec.shape[0] for spec in rows))
    batches = min(CHUNK_BYTES // (widest * batch_size), -(-images // batch_size))
    return batch_size * max(1, batches)


def refuse_lost_arrays(run: Run) -> None:
    """Raise where images are marked done and an array of their rows is not there."""
    lost = [n for n in run.specs if not exists(run.path, f"{ROWS}/{n}/zarr.json")]
    if lost and "done" not in lost and Rows(open_store(run.path, "done"))[:].any():
        raise ValueError(
            f"{run.path} has lost {', '.join(lost)}, which its finished images had. "
            "Restore it, or give another --out to run again."
        )


def create_arrays(run: Run, coordinates: Mapping[str, np.ndarray]) -> None:
    """Make the group and every array that is not there yet."""
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"format": FORMAT}}
    write_bytes(run.path, f"{ROWS}/zarr.json", json.dumps(group).encode())
    for name, spec in run.specs.items():
        metadata = spec.metadata(images_per_chunk=run.images_per_chunk)
        open_store(run.path, name, metadata)
    for name, values in coordinates.items():
        spec = ArraySpec((name,), values.shape, str(values.dtype))
        metadata = spec.metadata(images_per_chunk=max(1, len(values)))
        store = open_store(run.path, name, metadata)
        wait(store.write(values), doing="write rows to", path=run.path)


def refuse_other(path: str, standing: dict, manifest: dict) -> None:
    """Raise unless two manifests describe the same run."""
    ours = json.loads(json.dumps(manifest))  # tuples become lists, as on disk
    found = [
        line
        for key in IDENTITY
        for line in differences(key, standing.get(key), ours.get(key))
    ]
    if found:
        raise ValueError(
            f"{path} holds another run: {'; '.join(found)}. Give another --out, or the "
            "same options as that run to go on with it."
        )


def differences(name: str, there: Any, here: Any) -> list[str]:
    """What differs between two JSON values, one short phrase each."""
    if name in IGNORED or there == here:
        return []
    if isinstance(there, dict) and isinstance(here, dict):
        keys = [*there, *(key for key in here if key not in there)]
        parts = (differences(f"{name}.{k}", there.get(k), here.get(k)) for k in keys)
        return [line for part in parts for line in part]
    shown = [json.dumps(value) for value in (there, here)]
    if max(map(len, shown)) > 80:
        return [f"{name} differs"]
    return [f"{name} is {shown[0]} there and {shown[1]} here"]
