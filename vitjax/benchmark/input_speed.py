"""How fast the host reads, decodes and preprocesses, without any model pass."""

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
class Pipeline:
    """How fast the host decodes and preprocesses.

    Args:
        data: the data set's id.
        images: that were read.
        threads: that read; of each worker one.
        workers: processes, 0 for threads of this one.
        images_per_second: at the median time between batches.
    """

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
) -> Pipeline:
    """Measure reading, decoding and preprocessing alone, without any model pass.

    Args:
        data: what `open_data` takes.
        model: whose preprocessing counts.
        batch_size: images per batch.
        images: how many to read at most, from the first.
        workers: processes that decode; 0 for threads.

    Returns:
        Images per second once threads or workers run, and how they were read.

    Raises:
        ValueError: the data set cannot be opened, or is too short for a measurement.
    """
    source = open_data(data, classes=model.classes, class_ids=model.class_ids)
    stop = min(images, len(source))
    least = 2 * batch_size * max(1, workers)
    if stop < least:
        raise ValueError(
            f"{source!r} gives {stop} images; a measurement needs {least}, two batches "
            f"of {batch_size} from each process. Give a smaller --batch-size."
        )
    threads = min(16, os.cpu_count() or 1)
    arrived: list[float] = []
    for _ in batches(
        source,
        preprocess=model.preprocess or Preprocess(*model.config.shape),
        local_batch_size=batch_size,
        stop=stop,
        config=model.config,
        on_error="skip",
        threads=threads,
        workers=workers,
    ):
        arrived.append(time.perf_counter())
    return Pipeline(
        data=source.id,
        images=stop,
        threads=1 if workers else threads,
        workers=workers,
        images_per_second=median_rate(arrived, batch_size, together=max(1, workers)),
    )


def median_rate(arrived: Sequence[float], batch_size: int, *, together: int) -> float:
    """Images per second at the median time between batches, after the first few.

    Args:
        arrived: when each batch came, in seconds.
        batch_size: images per batch.
        together: batches that come at once, one from each process.
    """
    laps = np.diff(np.asarray(arrived)[:: max(1, together)])
    return together * batch_size / float(np.median(laps[len(laps) // 4 :]))
