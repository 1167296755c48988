"""The run directory: what a run wrote, opened lazily.

    DIR/manifest.json   what was run: recipe, model, data, numerics, versions
    DIR/images.csv      index, name, label_name, label of every image
    DIR/content.txt     of a data set in files: a digest of every image
    DIR/lease.json      only while a process writes there: which one
    DIR/rows.zarr       a Zarr v3 group; every array has named dimensions

`done` (one flag per image) is written after that image's rows and is the resume state.
Paths may also be `gs://bucket/...` or `s3://bucket/...`.
"""

import dataclasses
import json
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from vitjax.runner.storage import (
    ROWS,
    DamageError,
    chunk_length,
    gone_chunks,
    join,
    open_store,
    ranges,
    read_bytes,
    run_path,
    wait,
)

FORMAT = "vitjax-run"
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """One array of a run before it exists.

    Args:
        dims: name of each axis; the axis `image`, where there is one, comes first.
        shape: length of each axis.
        dtype: numpy's name for it. Cells that were not written read as -1 (integers),
            NaN (floats), False or 0 (unsigned).
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str

    @property
    def fill_value(self) -> Any:
        """What cells that were never written read as."""
        return {"b": False, "i": -1, "u": 0, "f": float("nan")}[
            np.dtype(self.dtype).kind
        ]

    def metadata(self, *, images_per_chunk: int) -> dict[str, Any]:
        """The array's zarr.json, as tensorstore takes it."""
        fill = self.fill_value
        chunk = [max(1, size) for size in self.shape]
        if self.dims[0] == "image":
            chunk[0] = images_per_chunk
        elif self.dims[0] == "shown":  # place n is image n's, so in the same hands
            chunk[0] = min(images_per_chunk, chunk[0])
        return {
            "shape": list(self.shape),
            "data_type": self.dtype,
            "dimension_names": list(self.dims),
            "fill_value": "NaN" if isinstance(fill, float) else fill,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "zstd", "configuration": {"level": 3, "checksum": True}},
            ],
        }


class Rows:
    """One array of a run, read when it is sliced; slices as numpy's.

    Args:
        store: the open tensorstore.
        path: the run directory.
        name: of the array.
        gone: chunks that were written and have no file any more. They would read as if
            they had never been written, so that reading there is refused.
    """

    def __init__(
        self, store: Any, path: str = "", name: str = "", gone: Iterable[int] = ()
    ):
        self.store, self.path, self.name = store, path, name
        self.gone = frozenset(gone)
        self.dims: tuple[str, ...] = tuple(store.domain.labels)
        self.shape: tuple[int, ...] = tuple(store.shape)
        self.dtype: np.dtype = store.dtype.numpy_dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        axes = " ".join(f"{d}={n}" for d, n in zip(self.dims, self.shape))
        return f"Rows({self.dtype} [{axes}])"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = self[...]
        return values if dtype is None else values.astype(dtype)

    def __getitem__(self, key: Any) -> Any:
        boxes, inside = [], []
        for part, size in zip(full_key(key, self.ndim), self.shape, strict=True):
            box, rest = bounding_box(part, size)
            boxes.append(box)
            inside.append(rest)
        shape = tuple(box.stop - box.start for box in boxes)
        if 0 in shape:
            return np.empty(shape, self.dtype)[tuple(inside)]
        if self.gone:
            self.refuse_gone(np.arange(boxes[0].start, boxes[0].stop)[inside[0]])
        block = wait(
            self.store[tuple(boxes)].read(), doing="read rows from", path=self.path
        )
        return block[tuple(inside)]

    def refuse_gone(self, places: Any) -> None:
        """Raise where a file with some of these places of the first axis is gone."""
        length = chunk_length(self.store)
        if self.gone.isdisjoint(np.ravel(places // length).tolist()):
            return
        where = ranges(self.gone, length=length, stop=len(self))
        what = {"image": "images", "shown": "pictures"}.get(self.dims[0], self.dims[0])
        raise DamageError(
            f"Files of {self.name} in {self.path} are gone, those of {what} {where}. "
            "The `vitjax run` command that wrote the folder computes them again."
        )


def full_key(key: Any, ndim: int) -> tuple[Any, ...]:
    """A numpy index with one entry per axis."""
    parts = list(key) if isinstance(key, tuple) else [key]
    if any(part is None or np.ndim(part) > 1 for part in parts if part is not ...):
        raise IndexError(
            "Rows take integers, slices and one-dimensional index or bool arrays; read "
            "the part you need first, then index the numpy array."
        )
    missing = ndim - sum(part is not ... for part in parts)
    if missing < 0:
        raise IndexError(f"{len(parts)} indices for an array of {ndim} axes.")
    at = next((i for i, part in enumerate(parts) if part is ...), len(parts))
    return (*parts[:at], *[slice(None)] * missing, *parts[at + 1 :])


def bounding_box(part: Any, size: int) -> tuple[slice, Any]:
    """The contiguous range to read for one axis, and the index within what was read."""
    if isinstance(part, slice):
        chosen = range(*part.indices(size))
        if not chosen:
            return slice(0, 0), slice(None)
        ends = sorted((chosen[0], chosen[-1]))
        return slice(ends[0], ends[1] + 1), slice(None, None, chosen.step)
    index = np.asarray(part)
    if index.dtype == bool and index.shape == (size,):
        index = np.nonzero(index)[0]
    if index.size == 0:
        return slice(0, 0), index.astype(np.int64)
    if index.dtype.kind not in "iu" or index.min() < -size or index.max() >= size:
        raise IndexError(f"index {part!r} does not fit an axis of {size}.")
    index = np.where(index < 0, index + size, index)
    low, high = int(index.min()), int(index.max())
    return slice(low, high + 1), index - low if index.ndim else 0


class Results:
    """A run on disk: `results["rank_residual"][:100, -1]` reads just those rows.

    Rows that were not computed so far read as fill values. Where rows were computed and
    their file is gone, or cannot be decoded, reading them is a DamageError.

    Args:
        path: the run directory.
        manifest: what was run.
    """

    def __init__(self, path: str, manifest: dict[str, Any]):
        self.path = path
        self.manifest = manifest
        self._whole: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arrays."""
        return tuple(self.manifest["arrays"])

    def __contains__(self, name: str) -> bool:
        return name in self.manifest["arrays"]

    def __getitem__(self, name: str) -> Rows:
        if name not in self:
            raise KeyError(f"{name!r} is not in this run; it holds {self.names}.")
        return self._rows(name)

    def _rows(self, name: str) -> Rows:
        """An array or the coordinates of an axis."""
        store = open_store(self.path, name)
        gone = set() if name in self._whole else self._gone(name, store)
        if not gone:
            self._whole.add(name)  # asked once: of each array all its files are listed
        return Rows(store, self.path, name, gone)

    def _gone(self, name: str, store: Any) -> set[int]:
        """Chunks of an array that were written and have no file any more."""
        axis, finished = store.domain.labels[0], self.manifest.get("finished")
        if not finished and (axis not in ("image", "shown") or name == "done"):
            return set()
        if not finished:  # read before files are listed: they are there by then
            written = Rows(open_store(self.path, "done"), self.path)[:]
        elif axis == "shown":
            written = np.ones(self.manifest["data"]["images"], bool)
        else:
            written = np.ones(store.shape[0], bool)
        if axis == "shown":
            written &= Rows(open_store(self.path, "valid"), self.path)[:]
        return gone_chunks(store, self.path, written)

    def __repr__(self) -> str:
        data, model = self.manifest["data"], self.manifest["model"]
        return (
            f"Results({self.path!r}: {self.manifest['recipe']} of {model['name']} over "
            f"{data['images']} images of {data['spec']})"
        )

    def to_xarray(self) -> Any:
        """An `xarray.Dataset` with named dimensions and coordinates, read lazily.

        Raises:
            ImportError: xarray is not installed.
        """
        import xarray

        arrays = {name: self[name] for name in self.names}
        axes = dict.fromkeys(axis for rows in arrays.values() for axis in rows.dims)
        kept = [
            axis for axis in axes if read_bytes(self.path, f"{ROWS}/{axis}/zarr.json")
        ]
        return xarray.Dataset(
            {name: lazy_variable(rows) for name, rows in arrays.items()},
            {axis: (axis, self._rows(axis)[:]) for axis in kept},
            {"manifest": json.dumps(self.manifest)},
        )


def lazy_variable(rows: Rows) -> Any:
    """An `xarray.Variable` that reads what is selected of it."""
    import xarray
    from xarray.backends import BackendArray
    from xarray.core import indexing

    class Lazy(BackendArray):
        shape, dtype = rows.shape, rows.dtype

        def __getitem__(self, key):
            basic = indexing.IndexingSupport.BASIC
            return indexing.explicit_indexing_adapter(
                key, rows.shape, basic, rows.__getitem__
            )

    return xarray.Variable(rows.dims, indexing.LazilyIndexedArray(Lazy()))


def open_results(path: str | os.PathLike) -> Results:
    """Open a run directory, finished or not.

    Args:
        path: a folder that `vitjax run` wrote.

    Returns:
        The run's manifest and its arrays, read lazily.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: it was written in a format that this version does not read.
    """
    path = run_path(path)
    manifest = read_manifest(path)
    if manifest is None:
        raise FileNotFoundError(
            f"There is no run in {path}: it has no manifest.json. Give the folder that "
            "`vitjax run ... --out` wrote."
        )
    found = manifest.get("format"), manifest.get("format_version")
    if found != (FORMAT, FORMAT_VERSION):
        raise ValueError(
            f"{path} holds {found[0]!r} of version {found[1]!r}; this vitjax reads "
            f"{FORMAT!r} of version {FORMAT_VERSION}. Update vitjax, or run again."
        )
    return Results(path, manifest)


def read_manifest(path: str) -> dict[str, Any] | None:
    """manifest.json, or None where there is none."""
    content = read_bytes(path, "manifest.json")
    if content is None:
        return None
    try:
        manifest = json.loads(content)
    except ValueError as error:
        raise ValueError(
            f"{join(path, 'manifest.json')} is not JSON ({error}); restore it, or give "
            "another folder."
        ) from error
    if not isinstance(manifest, dict):
        raise ValueError(
            f"{join(path, 'manifest.json')} holds no JSON object; restore it, or give "
            "another folder."
        )
    return manifest
