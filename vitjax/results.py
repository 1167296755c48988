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
import errno
import json
import os
import re
from typing import Any

import numpy as np

FORMAT = "vitjax-run"
FORMAT_VERSION = 1
ROWS = "rows.zarr"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DAMAGE = re.compile("DATA_LOSS|(FAILED_PRECONDITION|INVALID_ARGUMENT): Error reading")
"""How tensorstore begins to say that what it read cannot be decoded."""


class StorageError(OSError):
    """A run directory that cannot be read or written; one paragraph that says why."""


class DamageError(StorageError):
    """A file of a run directory that is there and cannot be decoded."""


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
    """

    def __init__(self, store: Any, path: str = ""):
        self.store, self.path = store, path
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
        block = wait(
            self.store[tuple(boxes)].read(), doing="read rows from", path=self.path
        )
        return block[tuple(inside)]


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

    Args:
        path: the run directory.
        manifest: what was run.
    """

    def __init__(self, path: str, manifest: dict[str, Any]):
        self.path = path
        self.manifest = manifest

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arrays."""
        return tuple(self.manifest["arrays"])

    def __contains__(self, name: str) -> bool:
        return name in self.manifest["arrays"]

    def __getitem__(self, name: str) -> Rows:
        if name not in self:
            raise KeyError(f"{name!r} is not in this run; it holds {self.names}.")
        return Rows(open_store(self.path, name), self.path)

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
            {axis: (axis, Rows(open_store(self.path, axis))[:]) for axis in kept},
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


def run_path(path: str | os.PathLike) -> str:
    """A run directory as the user gave it, `~` expanded.

    Raises:
        ValueError: it is empty, as an unset variable of a shell is.
    """
    path = os.path.expanduser(os.fspath(path))
    if not path:
        raise ValueError("The run directory's path is empty; give a folder.")
    return path


def join(path: str, *names: str) -> str:
    """A path below a folder or a URL."""
    return "/".join([path.rstrip("/") or path, *names])


def kvstore(path: str) -> dict[str, str]:
    """Where tensorstore finds a folder or URL."""
    match = re.fullmatch(r"(gs|s3)://([^/]+)/?(.*)", path)
    if match:
        driver, bucket, key = match.groups()
        driver = "gcs" if driver == "gs" else driver
        return {"driver": driver, "bucket": bucket, "path": f"{key.rstrip('/')}/"}
    return {"driver": "file", "path": f"{os.path.abspath(path)}/"}


def open_store(path: str, name: str, metadata: dict | None = None) -> Any:
    """Open an array of a run; with metadata, create it where it is missing."""
    import tensorstore

    spec: dict[str, Any] = {
        "driver": "zarr3",
        "kvstore": kvstore(join(path, ROWS, name)),
        # Else a chunk of nothing but fill values has no file, as if it were lost.
        "store_data_equal_to_fill_value": True,
    }
    if metadata is None:
        opened = tensorstore.open(spec, open=True)
    else:
        spec["metadata"] = metadata
        opened = tensorstore.open(spec, open=True, create=True)
    return wait(opened, doing=f"open the array {name} of", path=path)


def write_bytes(path: str, name: str, content: bytes | None) -> None:
    """Write a file of a run directory, whole or not at all; None removes it."""
    import tensorstore

    store = wait(tensorstore.KvStore.open(kvstore(path)), doing="open", path=path)
    wait(store.write(name, content), doing=f"write {name} to", path=path)


def read_bytes(path: str, name: str) -> bytes | None:
    """A file of a run directory, or None where there is none."""
    import tensorstore

    store = wait(tensorstore.KvStore.open(kvstore(path)), doing="open", path=path)
    found = wait(store.read(name), doing=f"read {name} of", path=path)
    return found.value if found.state == "value" else None


def list_files(path: str, prefix: str) -> list[str]:
    """Names of a run directory's files that begin in some way, in order."""
    import tensorstore

    store = wait(tensorstore.KvStore.open(kvstore(path)), doing="open", path=path)
    chosen = tensorstore.KvStore.KeyRange(prefix, f"{prefix}\x7f")
    keys = wait(store.list(chosen), doing="list the files of", path=path)
    return sorted(key.decode() for key in keys)


def exists(path: str, name: str) -> bool:
    """Whether a run directory has a file of that name."""
    return read_bytes(path, name) is not None


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


def wait(future: Any, *, doing: str, path: str = "") -> Any:
    """A tensorstore future's value; its failures as one paragraph.

    Raises:
        StorageError: tensorstore failed.
    """
    try:
        return future.result()
    except Exception as error:
        code = re.search(r"\[os_error_code='(\d+)'\]", str(error))
        raise storage_error(error, code and int(code[1]), doing, path) from error


def storage_error(
    error: Exception, code: int | None, doing: str, path: str
) -> StorageError:
    """What failed and what to do about it."""
    reason = os.strerror(code) if code else str(error).partition(" [")[0]
    place, kind = path or "the run directory", StorageError
    if not code and DAMAGE.match(str(error)):
        kind = DamageError
        advice = (
            "This file is damaged: remove it, and the `vitjax run` command that wrote "
            "the folder computes its rows again."
        )
    elif code in NO_ROOM:
        advice = "Make room there, or raise the quota, and give the same command again."
    else:
        advice = "Check that the folder exists and that you may write there."
    failure = kind(f"Cannot {doing} {place}: {reason}. {advice}")
    failure.errno = code
    return failure
