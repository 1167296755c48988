"""How fast the host is: what is read, and how the rate is taken."""

import pytest

from vitjax.benchmark.input_speed import bench_data, median_rate


def test_the_host_pipeline_is_measured_by_itself(tiny, photos):
    found = bench_data(f"folder:{photos}", tiny, batch_size=4)
    assert found.images == 29 and found.workers == 0 and found.threads >= 1
    assert found.images_per_second > 0 and found.data.startswith("folder/")
    with pytest.raises(ValueError, match="29 images; a measurement needs 40"):
        bench_data(f"folder:{photos}", tiny, batch_size=10, workers=2)


def test_the_rate_is_the_median_batch():
    # Two processes hand over two batches of 10 at once, every second but one.
    arrived = [float(t) for t in (0, 0, 1, 1, 2, 2, 7, 7, 8, 8, 9, 9)]
    assert median_rate(arrived, 10, together=2) == 20
