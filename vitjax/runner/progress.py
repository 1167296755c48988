"""How far a run is: a bar on a terminal, plain lines elsewhere."""

import threading
import time
from typing import Any

LINE_SECONDS = 15.0


class Progress:
    """Images done of `total`, besides those `before`; inside `with`, shown on stderr.

    `state` is what is going on before the first images are done. The rate is that of
    the images since the first batch arrived: it counts, compiling does not.
    """

    def __init__(
        self,
        total: int,
        *,
        title: str = "",
        before: int = 0,
        show: bool = False,
        interval: float = LINE_SECONDS,
    ):
        self.total, self.title, self.before = total, title, before
        self.show, self.interval, self.done = show, interval, 0
        self.state, self.entered = "preparing", time.monotonic()
        self.started: float | None = None
        self.console: Any = None
        self.bar: Any = None
        self.ended = threading.Event()

    @property
    def seconds(self) -> float:
        """Since `start`."""
        return 0.0 if self.started is None else time.monotonic() - self.started

    @property
    def images_per_second(self) -> float | None:
        """None before the first image is done."""
        return self.done / max(self.seconds, 1e-9) if self.done else None

    def __str__(self) -> str:
        rate, elapsed = self.images_per_second, time.monotonic() - self.entered
        text = f"{clock_time(elapsed)} elapsed"
        if rate is None:
            return f"{self.state}, {text}"
        left = clock_time((self.total - self.done) / rate)
        return f"{rate:.1f} images/s, {text}, {left} left"

    def start(self) -> None:
        """A batch has arrived, the program is compiled: count time from the first."""
        if self.started is None:
            self.state, self.started = "computing", time.monotonic()

    def advance(self, images: int) -> None:
        """So many images are done."""
        self.done += images
        if self.bar is not None:
            self.bar.update(0, completed=self.before + self.done)
        elif self.console is not None and self.done == self.total:
            self.print_line()

    def print_line(self) -> None:
        """One line on how far the run is."""
        count = f"{self.before + self.done}/{self.before + self.total} images"
        text = f"{self.title}: {count}, {self}"
        self.console.print(text, highlight=False, soft_wrap=True)

    def print_lines(self) -> None:
        """A line now and then, also while a batch takes long."""
        while not self.ended.wait(self.interval):
            self.print_line()

    def __enter__(self) -> "Progress":
        if not self.show:
            return self
        from rich import progress as bars
        from rich.console import Console

        self.console = Console(stderr=True)
        if not (self.console.is_terminal or self.console.is_jupyter):
            self.print_line()
            threading.Thread(target=self.print_lines, daemon=True).start()
            return self

        self.bar = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[state]}"),  # written anew at every refresh
            console=self.console,
        )
        total = self.before + self.total
        self.bar.add_task(self.title, total=total, completed=self.before, state=self)
        self.bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.ended.set()
        if self.bar is not None:
            self.bar.stop()


def clock_time(seconds: int | float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
