"""A run on disk as a labelled, lazy data set.

    DIR/manifest.json   what was run: recipe, model, data, numerics, versions
    DIR/images.csv      index, name, label_name, label of every image
    DIR/rows.zarr       a Zarr v3 group; every array has named dimensions
    DIR/skipped         only where images could not be read: which, and why

The folder may also be `gs://bucket/...` or `s3://bucket/...`.
"""

import collections
import html
import os
import textwrap
from typing import Any

import numpy as np
import xarray
from zarr.storage import ObjectStore

from vitjax.runner.manifest import read_manifest
from vitjax.runner.store import ROWS, CheckedStore, Folder

AXES = ("image", "layer", "token", "top", "patch", "head")
"""Axes whose coordinates are their indices."""


class Results(xarray.Dataset):
    """A run: `results["rank_residual"][:100, -1]` reads just those rows.

    A Mapping from name to `xarray.DataArray`, with named dimensions, coordinates, a
    description on every array and the manifest in `attrs`. Reading images that are
    pending, lost or corrupt is a `DamageError`; `done` says which images are there.

    Args:
        data_vars, coords, attrs: as of `xarray.Dataset`; `open_results` gives them.
    """

    __slots__ = ()

    @property
    def manifest(self) -> dict[str, Any]:
        """What was run."""
        return self.attrs

    @property
    def path(self) -> str:
        """The run directory."""
        return self.encoding.get("source", "")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arrays."""
        return tuple(str(name) for name in self.data_vars)

    @property
    def pending(self) -> np.ndarray:
        """Images that are not there, in order."""
        return np.flatnonzero(~self["done"].values)

    def __repr__(self) -> str:
        manifest, lines, axes = self.manifest, [], collections.defaultdict(list)
        if "recipe" in manifest and "done" in self:  # not a selection of arrays
            done, images = int(self["done"].sum()), len(self["done"])
            lines += [
                f"Results of {manifest['recipe']}: {manifest['model']['name']} on "
                f"{manifest['data']['spec']}, {done} of {images} images",
                f"  {self.path}",
            ]
        for name, array in self.data_vars.items():
            axes[array.dims].append(f"{name} ({array.dtype})")
        for dims, names in axes.items():
            sizes = ", ".join(f"{dim} {self.sizes[dim]}" for dim in dims)
            text = f"[{sizes}] {', '.join(names)}"
            lines += textwrap.wrap(
                text, 88, initial_indent="  ", subsequent_indent="      "
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


def open_results(path: str | os.PathLike | Any) -> Results:
    """Open a run directory, finished or not.

    Args:
        path: a folder that `vitjax run` wrote: local, a URL, or an obstore store.

    Returns:
        Its arrays, read lazily, and its manifest in `attrs`.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: it was written in a format that this version does not read.

    Example:
        >>> results = vitjax.open_results("rows")
        >>> results["rank_residual"][:100, -1].values
    """
    folder = Folder(path)
    manifest = read_manifest(folder)
    if manifest is None:
        raise FileNotFoundError(
            f"There is no run in {folder.path}: it has no manifest.json. Give the "
            "folder that `vitjax run ... --out` wrote."
        )
    store = CheckedStore(ObjectStore(folder.store, read_only=True))
    # A store of its own type needs neither dask nor consolidated metadata.
    opened = xarray.open_dataset(
        store,  # pyright: ignore[reportArgumentType]
        engine="zarr",
        group=ROWS,
        consolidated=False,
        decode_cf=False,
        chunks=None,
        cache=False,
    )
    size, images = manifest["images_per_chunk"], manifest["data"]["images"]
    prefix = f"{ROWS}/done/c/"
    written = [int(key.removeprefix(prefix)) for key in folder.list(prefix.rstrip("/"))]
    done = np.isin(np.arange(images) // size, written)
    opened["done"] = ("image", done, opened["done"].attrs)
    arrays = {name: opened[name] for name in manifest["arrays"]}
    axes = {dim: np.arange(size) for dim, size in opened.sizes.items() if dim in AXES}
    results = Results(arrays, axes, manifest)
    results.encoding["source"] = folder.path
    return results
