"""What a run is: everything its rows depend on, and what it was run with."""

import dataclasses
import datetime
import hashlib
import importlib.metadata
import platform
from typing import Any

import jax
import numpy as np

import vitjax
from vitjax.models.model import Model
from vitjax.runner.job import Job
from vitjax.runner.results import FORMAT, FORMAT_VERSION

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "tensorstore")


def describe(job: Job) -> dict[str, Any]:
    """A new run's manifest.

    Args:
        job: what is run.

    Returns:
        A dict that JSON can hold.
    """
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "recipe": job.recipe.name,
        "recipe_options": dict(job.recipe.options),
        "model": describe_model(job.model),
        "data": {"spec": job.spec, "id": job.source.id, "images": job.images},
        "batch_size": job.asked,
        "dtype": job.dtype,
        "matmul_precision": job.precision,
        "seed": job.seed,
        "limit": job.limit,
        "masks": dataclasses.asdict(job.labelling) if job.masks else None,
        "versions": versions(),
        "devices": devices(),
        "created": now(),
        "finished": None,
        "images_per_second": None,
        "resumed": [],
        "skipped": [],
        "vanished": [],
    }


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


def versions() -> dict[str, str]:
    """Of Python, this package, and those that numbers depend on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"vitjax": vitjax.__version__, "python": platform.python_version(), **found}


def devices() -> dict[str, Any]:
    """What a run computes on."""
    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": jax.device_count(),
        "processes": jax.process_count(),
    }


def note_resumption(manifest: dict[str, Any]) -> list[str]:
    """Record versions and devices that are not those the run began with.

    Returns:
        What changed, a phrase each; rows computed from here on may differ in the last
        bits from those computed before.
    """
    session = {"versions": versions(), "devices": devices()}
    past = manifest["resumed"][-1] if manifest["resumed"] else manifest
    changed = [
        f"{name} was {past[part].get(name)} and is {value}"
        for part in session
        for name, value in session[part].items()
        if past[part].get(name) != value
    ]
    if changed:
        manifest["resumed"].append({"at": now(), **session})
    return changed


def now() -> str:
    """The present moment: UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
