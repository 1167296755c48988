"""What a report says of how its rows were computed."""

from collections.abc import Iterable, Mapping
from typing import Any

from vitjax.report.per_image import Digest


def provenance(manifest: Mapping[str, Any], digest: Digest) -> dict[str, Any]:
    """What somebody needs to compute the same again.

    Args:
        manifest: of a run.
        digest: of the same run.

    Returns:
        `pairs`: name -> value, without what the run does not say; `skipped` and
        `vanished`: images that could not be read or have no token on their object.
    """
    model, data = manifest["model"], manifest["data"]
    rate = manifest.get("images_per_second")
    pairs = {
        "recipe": manifest["recipe"],
        "model": model["name"],
        "architecture": listed(model["config"]),
        "classes": len(model["classes"]),
        "checkpoint": model.get("checkpoint") or "none (random initialisation)",
        "checkpoint sha256": model.get("sha256"),
        "parameters sha256": model.get("parameters_sha256"),
        "preprocessing": listed(model.get("preprocess") or {}),
        "data": data["spec"],
        "data id": data["id"],
        "images": f"{digest.done} of {digest.total} done, {len(digest.image)} used",
        "batch size": manifest.get("batch_size"),
        "dtype": manifest.get("dtype"),
        "matmul precision": manifest.get("matmul_precision"),
        "class tokens": listed(manifest.get("masks") or {}),
        "seed": manifest.get("seed"),
        "devices": listed(manifest.get("devices") or ()),
        "images per second": f"{rate:.4g}" if rate else None,
        "versions": listed(manifest["versions"]),
        "created": manifest.get("created"),
        "resumed": ", ".join(map(str, manifest.get("resumed") or ())),
        "finished": manifest.get("finished") or "not yet",
    }
    return {
        "pairs": {
            key: value for key, value in pairs.items() if value not in (None, "")
        },
        "skipped": manifest.get("skipped") or [],
        "vanished": manifest.get("vanished") or [],
    }


def listed(values: Mapping[str, Any] | Iterable[Any]) -> str:
    """A manifest's dict or list in a line."""
    pairs = values.items() if isinstance(values, Mapping) else [(v,) for v in values]
    return ", ".join(" ".join(map(str, pair)) for pair in pairs)
