"""Input speed: how fast the host reads, decodes and preprocesses images."""

import dataclasses
import os
import time
from typing import Any

from vitjax.data.datasets import open_data
from vitjax.data.images import Preprocess
from vitjax.data.loader import batches
from vitjax.models.model import Model


@dataclasses.dataclass(frozen=True)
class InputSpeed:
    """How fast the host decodes and preprocesses."""

    data: str
    images: int
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
    loaded = batches(
        source,
        preprocess=model.preprocess or Preprocess(*model.config.shape),
        local_batch_size=batch_size,
        stop=stop,
        config=model.config,
        on_error="skip",
        threads=min(16, os.cpu_count() or 1),
        workers=workers,
    )
    arrivals = [time.perf_counter() for _ in loaded]
    # Workers hand over a batch each at once; the first of each also starts it.
    first = processes * (len(arrivals) // (4 * processes))
    seconds = arrivals[-1] - arrivals[first]
    rate = batch_size * (len(arrivals) - 1 - first) / seconds
    return InputSpeed(source.id, stop, workers, rate)
