"""The manifest of a run: everything that its rows depend on, and what it ran with."""

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import platform
from typing import Any

import jax
import numpy as np

import vitjax
from vitjax.models.model import Model
from vitjax.runner.store import Folder

FORMAT, FORMAT_VERSION = "vitjax-run", 2
MANIFEST = "manifest.json"
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "zarr")

IDENTITY = (
    "format_version",
    "recipe",
    "recipe_options",
    "recipe_sha256",
    "model",
    "data",
    "batch_size",
    "dtype",
    "matmul_precision",
    "seed",
    "limit",
    "masks",
    "study",
    "arrays",
)
"""What must be equal for a run to be resumed."""

LOCATIONS = ("model.checkpoint", "data.spec")
"""Paths may change; `model.sha256` and `data.id` say whether the content did."""


def describe_model(model: Model) -> dict[str, Any]:
    """Name, architecture, classes, numerics and identity of a model."""
    provenance, preprocess = model.provenance, model.preprocess
    return {
        "name": provenance.name or "unnamed",
        "config": dataclasses.asdict(model.config),
        "classes": list(model.classes),
        "class_ids": list(model.class_ids),
        "checkpoint": provenance.path or None,
        "sha256": provenance.sha256 or None,
        "parameters_sha256": hash_parameters(model.params),
        "preprocess": preprocess.to_dict() if preprocess else None,
    }


def hash_parameters(params: Any) -> str:
    """sha256 over the parameters' paths, shapes, dtypes and values.

    A checkpoint's own hash does not say what its user changed after loading it.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(leaf)
        header = f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n"
        digest.update(header.encode())
        digest.update(array.view(np.uint8).data)
    return digest.hexdigest()


def describe_session() -> dict[str, Any]:
    """Versions and devices that a process computes with."""
    first = jax.local_devices()[0]
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "versions": {
            "vitjax": vitjax.__version__,
            "python": platform.python_version(),
            **packages,
        },
        "devices": {
            "platform": first.platform,
            "kind": first.device_kind,
            "count": jax.local_device_count(),
        },
    }


def session_changes(manifest: dict[str, Any]) -> list[str]:
    """How this session differs from the one that created the run, a phrase each."""
    session = describe_session()
    return differences("session", {key: manifest[key] for key in session}, session)


def now() -> str:
    """The present moment: UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def read_manifest(folder: Folder) -> dict[str, Any] | None:
    """The manifest of a run directory, None where there is none."""
    content = folder.read(MANIFEST)
    if content is None:
        return None
    try:
        manifest = json.loads(content)
        version = manifest["format"], manifest["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{MANIFEST} in {folder.path} is no manifest of a run ({error!r}). Restore "
            "it, or give another folder."
        ) from error
    if version != (FORMAT, FORMAT_VERSION):
        raise ValueError(
            f"{folder.path} holds {version[0]!r} of version {version[1]!r}; this "
            f"vitjax reads {FORMAT!r} of version {FORMAT_VERSION}. Run again into "
            "another folder, or use the version of vitjax that wrote it."
        )
    return manifest


def check_same_run(path: str, existing: dict, manifest: dict) -> None:
    """Raise a ValueError that names what differs between two runs."""
    manifest = json.loads(json.dumps(manifest))  # tuples become lists, as on disk
    if existing["versions"]["jax"] != manifest["versions"]["jax"]:
        existing = existing | {"recipe_sha256": manifest.get("recipe_sha256")}
    lines = [
        line
        for key in IDENTITY
        for line in differences(key, existing.get(key), manifest.get(key))
    ]
    if lines:
        raise ValueError(
            f"{path} holds another run: {'; '.join(lines)}. Give another --out, or the "
            "options of that run to resume it."
        )


def differences(name: str, there: Any, here: Any) -> list[str]:
    """What differs between two JSON values, one short phrase each."""
    if name in LOCATIONS or there == here:
        return []
    if isinstance(there, dict) and isinstance(here, dict):
        keys = [*there, *(key for key in here if key not in there)]
        parts = (differences(f"{name}.{k}", there.get(k), here.get(k)) for k in keys)
        return [line for part in parts for line in part]
    shown = [json.dumps(value) for value in (there, here)]
    if max(map(len, shown)) > 80:
        return [f"{name} differs"]
    return [f"{name} is {shown[0]} there and {shown[1]} here"]
