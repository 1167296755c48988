"""The writing side of a run directory: create, go on, refuse, write, mark done."""

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vitjax.runner.results import (
    FORMAT,
    ArraySpec,
    Results,
    Rows,
    open_results,
    read_manifest,
)
from vitjax.runner.storage import (
    ROWS,
    exists,
    list_files,
    open_store,
    read_bytes,
    run_path,
    wait,
    write_bytes,
)

CHUNK_BYTES = 4 << 20
"""Aim for the largest array's chunks: some thousand objects for 50,000 images."""

SKIPPED = "skipped-"
"""Files beside the manifest, of processes other than the first."""

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
        process: which of the run's processes writes; the first writes the manifest.
    """

    path: str
    manifest: dict[str, Any]
    specs: dict[str, ArraySpec]
    images_per_chunk: int
    process: int = 0

    @functools.cached_property
    def stores(self) -> dict[str, Any]:
        """The open arrays."""
        return {name: open_store(self.path, name) for name in self.specs}

    @property
    def images(self) -> int:
        """How many there are."""
        return self.specs["done"].shape[0]

    def read(self, name: str) -> np.ndarray:
        """An array as it is on disk now."""
        return Rows(self.stores[name], self.path)[:]

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

    def save_skipped(self) -> None:
        """Write which images could not be read: in the manifest, or beside it."""
        if self.process == 0:
            self.save_manifest()
            return
        text = json.dumps(self.manifest["skipped"], indent=1)
        write_bytes(self.path, f"{SKIPPED}{self.process}.json", text.encode())

    def collect_skipped(self) -> None:
        """Take into the manifest what other processes wrote beside it."""
        found = {line["index"]: line for line in self.manifest["skipped"]}
        files = list_files(self.path, SKIPPED)
        for name in files:
            lines = json.loads(read_bytes(self.path, name) or b"[]")
            found |= {line["index"]: line for line in lines}
        if not files:
            return
        self.manifest["skipped"] = [found[index] for index in sorted(found)]
        self.save_manifest()
        for name in files:  # now: until it is in the manifest, a kill must not lose it
            write_bytes(self.path, name, None)

    def results(self) -> Results:
        """The same run for reading."""
        if self.process == 0:
            return Results(self.path, self.manifest)
        return open_results(self.path)


def start_run(
    path: str | os.PathLike,
    manifest: dict[str, Any],
    specs: Mapping[str, ArraySpec],
    *,
    coordinates: Mapping[str, np.ndarray],
    batch_size: int,
    processes: int = 1,
) -> Run:
    """Create a run directory, or go on in one that holds the same run.

    Args:
        path: the folder; created where it is missing.
        manifest: what is to be run.
        specs: arrays of the recipe; `done` is added.
        coordinates: values along named axes.
        batch_size: images per batch of one process; chunks hold whole batches, but a
            run that stands keeps the chunks that it has.
        processes: how many write, each chunks of its own.

    Returns:
        The run, with the manifest that stands in the folder.

    Raises:
        ValueError: the folder holds another run; the message names what differs.
        StorageError: the folder cannot be written.
    """
    path = run_path(path)
    specs = complete(specs, manifest)
    standing = read_manifest(path)
    if standing is not None:
        refuse_other(path, standing, manifest)
    chunk = standing_chunk(path, specs) if standing else None
    run = Run(
        path=path,
        manifest=standing or manifest,
        specs=specs,
        images_per_chunk=chunk
        or images_per_chunk(specs.values(), batch_size=batch_size, processes=processes),
    )
    if standing is None:
        run.save_manifest()  # first: from now on the folder belongs to this run
    else:
        refuse_lost_arrays(run)
    create_arrays(run, coordinates)
    return run


def join_run(
    path: str | os.PathLike,
    manifest: dict[str, Any],
    specs: Mapping[str, ArraySpec],
    *,
    process: int,
) -> Run:
    """Take part in a run that process 0 has created or found.

    Args:
        path: the folder.
        manifest: what is to be run, as this process sees it.
        specs: arrays of the recipe.
        process: which one this is; not the first.

    Raises:
        ValueError: the folder does not hold that run: it is not on common storage, or
            processes were given different models, data or options.
    """
    path = run_path(path)
    specs = complete(specs, manifest)
    standing = read_manifest(path)
    chunk = standing_chunk(path, specs) if standing else None
    if standing is None or chunk is None:
        raise ValueError(
            f"Process {process} does not see the run that process 0 keeps in {path}; "
            "--out must be on storage that all processes share."
        )
    refuse_other(path, standing, manifest)
    standing["skipped"] = []  # of this process, since it began
    return Run(path, standing, specs, chunk, process)


def complete(
    specs: Mapping[str, ArraySpec], manifest: dict[str, Any]
) -> dict[str, ArraySpec]:
    """All arrays, `done` among them; the manifest is told their axes."""
    done = ArraySpec(("image",), (manifest["data"]["images"],), "bool")
    specs = {**specs, "done": done}
    manifest["arrays"] = {name: list(spec.dims) for name, spec in specs.items()}
    return specs


def standing_chunk(path: str, specs: Mapping[str, ArraySpec]) -> int | None:
    """Images per chunk of a run's arrays, of those that exist; else None.

    A run may go on with other devices, processes and batches than it began with.
    """
    for name, spec in specs.items():
        if spec.dims[0] == "image" and exists(path, f"{ROWS}/{name}/zarr.json"):
            return open_store(path, name).chunk_layout.read_chunk.shape[0]
    return None


def images_per_chunk(
    specs: Iterable[ArraySpec], *, batch_size: int, processes: int = 1
) -> int:
    """How many images a chunk holds: whole batches, about CHUNK_BYTES at the widest,
    and such that every process has as many.
    """
    rows = [spec for spec in specs if spec.dims[0] == "image"]
    sizes = (np.dtype(spec.dtype).itemsize * np.prod(spec.shape[1:]) for spec in rows)
    widest = max(int(size) for size in sizes)
    images = max(1, *(spec.shape[0] for spec in rows))
    most = max(1, CHUNK_BYTES // (widest * batch_size))
    each = -(-images // (batch_size * processes))  # batches of a process
    return batch_size * -(-each // -(-each // most))


def refuse_lost_arrays(run: Run) -> None:
    """Raise where images are marked done and an array of their rows is not there."""
    lost = [n for n in run.specs if not exists(run.path, f"{ROWS}/{n}/zarr.json")]
    if (
        lost
        and "done" not in lost
        and Rows(open_store(run.path, "done"), run.path)[:].any()
    ):
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
        if spec.dims[0] == "shown" and exists(run.path, f"{ROWS}/{name}/zarr.json"):
            continue  # whatever its chunks are
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
