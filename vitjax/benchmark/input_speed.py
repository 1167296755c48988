"""Input speed: how fast the host reads, decodes and preprocesses images."""

import dataclasses
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from vitjax.data.datasets import open_data
from vitjax.data.images import Preprocess
from vitjax.data.loader import batches
from vitjax.models.model import Model


@dataclasses.dataclass(frozen=True)
class InputSpeed:
    """How fast the host decodes and preprocesses; `threads` are those of a worker."""

    data: str
    images: int
    threads: int
    workers: int
    images_per_second: float


def bench_data(
    data: Any,
    model: Model,
    *,
    batch_size: int = 32,
    images: int = 512,
    workers: int = 0,
) -> InputSpeed:
    """Measure reading, decoding and preprocessing of the first `images`, as a run has
    them, without any model pass.
    """
    source = open_data(data, classes=model.classes, class_ids=model.class_ids)
    stop, processes = min(images, len(source)), max(1, workers)
    least = 2 * batch_size * processes
    if stop < least:
        raise ValueError(
            f"{source.id} gives {stop} images; a measurement needs {least}, two "
            f"batches of {batch_size} from each process. Give a smaller --batch-size."
        )
    threads = min(16, os.cpu_count() or 1)
    arrivals = [
        time.perf_counter()
        for _ in batches(
            source,
            preprocess=model.preprocess or Preprocess(*model.config.shape),
            local_batch_size=batch_size,
            stop=stop,
            config=model.config,
            on_error="skip",
            threads=threads,
            workers=workers,
        )
    ]
    return InputSpeed(
        data=source.id,
        images=stop,
        threads=1 if workers else threads,
        workers=workers,
        images_per_second=median_rate(arrivals, batch_size, together=processes),
    )


def median_rate(arrivals: Sequence[float], batch_size: int, *, together: int) -> float:
    """Images per second at the median time between batches after the first few, where
    so many come together, one from each process.
    """
    laps = np.diff(np.asarray(arrivals)[::together])
    return together * batch_size / float(np.median(laps[len(laps) // 4 :]))
