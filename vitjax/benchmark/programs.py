"""Programs whose calls are timed, and what is known of them besides."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from vitjax.benchmark.macs import multiplications


@dataclasses.dataclass(frozen=True)
class Timing:
    """One program.

    Args:
        images_per_second: at the median of the repetitions.
        seconds: median of one call.
        passes: seconds in plain forward passes of the same images; of "removal_curve"
            per count of kept patches.
        floor: the same in multiplications of matrix products: what a device that does
            nothing else would reach. None where it was not counted.
        compile_seconds: tracing and compiling.
        temporary_bytes: of scratch memory per device, as the compiler planned it.
        peak_bytes: the same with arguments (weights, images) and results.
        device_peak_bytes: what the device's allocator saw at most in this process so
            far, or None where it does not count.
    """

    images_per_second: float
    seconds: float
    passes: float
    floor: float | None = None
    compile_seconds: float | None = None
    temporary_bytes: int | None = None
    peak_bytes: int | None = None
    device_peak_bytes: int | None = None


class Calls:
    """What the calls of a program took."""

    seconds: list[float]
    work: int | None = None
    """Multiplications."""

    def timing(self, images: int, plain: "Calls", steps: int = 1) -> Timing:
        """What the calls so far say.

        Args:
            images: of one call.
            plain: the forward pass that this is compared with.
            steps: equal parts of the program, of which each is compared.
        """
        seconds = statistics.median(self.seconds)
        passes = seconds / statistics.median(plain.seconds) / steps
        known = self.work is not None and plain.work
        return Timing(
            images_per_second=images / seconds,
            seconds=seconds,
            passes=passes,
            floor=self.work / plain.work / steps if known else None,  # pyright: ignore
            **self.costs(),
        )

    def costs(self) -> dict[str, Any]:
        """What else a `Timing` says, where it is known."""
        return {}


class Program(Calls):
    """A compiled function and what its calls took.

    Args:
        function: jitted; called once more than it is measured.
        arguments: what to call it with.
        device: whose memory to watch.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any, device: Any):
        self.work = multiplications(function, *arguments)
        start = time.perf_counter()
        self.compiled = function.lower(*arguments).compile()  # pyright: ignore
        self.compile_seconds = time.perf_counter() - start
        self.arguments = arguments
        self.seconds = []
        jax.block_until_ready(self.compiled(*arguments))
        self.device_peak_bytes = peak_bytes(device)

    def measure(self) -> None:
        """Call it once and keep the time."""
        start = time.perf_counter()
        jax.block_until_ready(self.compiled(*self.arguments))
        self.seconds.append(time.perf_counter() - start)

    def costs(self) -> dict[str, Any]:
        """Compile time and memory."""
        memory = self.compiled.memory_analysis()
        return {
            "compile_seconds": self.compile_seconds,
            "temporary_bytes": memory.temp_size_in_bytes,
            "peak_bytes": memory.temp_size_in_bytes
            + memory.argument_size_in_bytes
            + memory.output_size_in_bytes,
            "device_peak_bytes": self.device_peak_bytes,
        }


class Eager(Calls):
    """A function that is not JAX's, called like a `Program`."""

    def __init__(self, forward: Callable[[], Any]):
        self.forward = forward
        self.forward()
        self.seconds = []

    def measure(self) -> None:
        """Call it once and keep the time."""
        start = time.perf_counter()
        self.forward()
        self.seconds.append(time.perf_counter() - start)


def peak_bytes(device: Any) -> int | None:
    """Peak of a device's allocator; None on backends that do not count."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")
