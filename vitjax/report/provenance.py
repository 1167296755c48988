"""Provenance of a run's rows: what somebody needs to compute the same again."""

from collections.abc import Iterable, Mapping
from typing import Any

from vitjax.report.per_image import Run


def provenance(run: Run) -> dict[str, str]:
    """Name -> value, without what the manifest does not say."""
    manifest = run.manifest
    model, data = manifest["model"], manifest["data"]
    rate = manifest.get("images_per_second")
    pairs = {
        "recipe": manifest["recipe"],
        "model": model["name"],
        "architecture": listed(model["config"]),
        "classes": len(model["classes"]),
        "checkpoint": model.get("checkpoint") or "none (random initialization)",
        "checkpoint sha256": model.get("sha256"),
        "parameters sha256": model.get("parameters_sha256"),
        "preprocessing": listed(model.get("preprocess") or {}),
        "data": data["spec"],
        "data id": data["id"],
        "images": f"{run.done} of {run.total} done, {len(run.image)} used",
        "batch size": manifest.get("batch_size"),
        "dtype": manifest.get("dtype"),
        "matmul precision": manifest.get("matmul_precision"),
        "object tokens": listed(manifest.get("masks") or {}),
        "seed": manifest.get("seed"),
        "devices": listed(manifest.get("devices") or ()),
        "images per second": f"{rate:.4g}" if rate else None,
        "versions": listed(manifest["versions"]),
        "created": manifest.get("created"),
        "resumed": ", ".join(map(str, manifest.get("resumed") or ())),
        "finished": manifest.get("finished") or "not yet",
    }
    return {name: str(v) for name, v in pairs.items() if v not in (None, "")}


def listed(values: Mapping[str, Any] | Iterable[Any]) -> str:
    """A manifest's dict or list in a line."""
    pairs = values.items() if isinstance(values, Mapping) else [(v,) for v in values]
    return ", ".join(" ".join(map(str, pair)) for pair in pairs)
