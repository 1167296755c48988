"""How far a run is: a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable
from typing import Any

LINE_SECONDS = 15.0


class Progress:
    """Images done of `total`, besides those `before`; inside `with`, shown on stderr.

    Compiling is told apart: the clock starts when the program has been compiled.
    """

    def __init__(
        self,
        total: int,
        *,
        title: str = "",
        before: int = 0,
        show: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total, self.title, self.before = total, title, before
        self.show, self.clock = show, clock
        self.done, self.started, self.printed = 0, None, clock()
        self.console: Any = None
        self.bar: Any = None

    @property
    def seconds(self) -> float:
        """Since `start`."""
        return 0.0 if self.started is None else self.clock() - self.started

    @property
    def images_per_second(self) -> float | None:
        """None before the first image is done."""
        return self.done / max(self.seconds, 1e-9) if self.done else None

    def __str__(self) -> str:
        rate = self.images_per_second
        if rate is None:
            return "compiling" if self.started is None else "computing"
        left = clock_time((self.total - self.done) / rate)
        return f"{rate:.1f} images/s, {left} left"

    def start(self) -> None:
        """The program is compiled: computing begins."""
        self.started = self.clock()

    def advance(self, images: int) -> None:
        """So many images are done."""
        self.done += images
        due = self.clock() - self.printed >= LINE_SECONDS or self.done == self.total
        if self.bar is not None:
            self.bar.update(0, completed=self.before + self.done, rate=str(self))
        elif self.console is not None and due:
            self.print_line()

    def print_line(self) -> None:
        """One line on how far the run is."""
        self.printed = self.clock()
        count = f"{self.before + self.done}/{self.before + self.total} images"
        text = f"{self.title}: {count}, {self}"
        self.console.print(text, highlight=False, soft_wrap=True)

    def __enter__(self) -> "Progress":
        from rich import progress as bars
        from rich.console import Console

        if not self.show:
            return self
        self.console = Console(stderr=True)
        if not (self.console.is_terminal or self.console.is_jupyter):
            self.print_line()
            return self
        self.bar = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[rate]}"),
            console=self.console,
        )
        total = self.before + self.total
        self.bar.add_task(self.title, total=total, completed=self.before, rate="")
        self.bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.bar is not None:
            self.bar.stop()


def clock_time(seconds: int | float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
