"""How far a run is: a bar on a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator

LINE_SECONDS = 15.0
Advance = Callable[[int], None]


class Rate:
    """Images per second of a session, from its first step to its last result.

    Compiling is told apart: the clock starts when the first batch has been compiled.

    Args:
        total: images to do.
        clock: seconds, monotonic.
    """

    def __init__(self, total: int, *, clock: Callable[[], float] = time.monotonic):
        self.total, self.clock = total, clock
        self.done = 0
        self.started: float | None = None

    def start(self) -> None:
        """The program is compiled: computing begins."""
        if self.started is None:
            self.started = self.clock()

    @property
    def images_per_second(self) -> float | None:
        """None before the first image is done."""
        if self.started is None or self.done == 0:
            return None
        return self.done / max(self.clock() - self.started, 1e-9)

    def __str__(self) -> str:
        rate = self.images_per_second
        if rate is None:
            return "compiling" if self.started is None else "computing"
        left = clock_time((self.total - self.done) / rate)
        return f"{rate:.1f} images/s, {left} left"


def clock_time(seconds: int | float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


@contextlib.contextmanager
def progress(rate: Rate, *, title: str, done: int, show: bool) -> Iterator[Advance]:
    """Show a run's progress on stderr; gives a function to call with images just done.

    Args:
        rate: counts what this session does.
        title: what is running.
        done: images that an earlier session did.
        show: False for silence.
    """
    from rich import progress as bars
    from rich.console import Console

    console, total = Console(stderr=True), done + rate.total
    if show and (console.is_terminal or console.is_jupyter):
        columns = (
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[rate]}"),
        )
        with bars.Progress(*columns, console=console) as bar:
            task = bar.add_task(title, total=total, completed=done, rate=str(rate))

            def advance(images: int) -> None:
                rate.done += images
                bar.update(task, advance=images, rate=str(rate))

            yield advance
        return

    def print_line() -> None:
        state = f"{title}: {done + rate.done}/{total} images, {rate}"
        console.print(state, highlight=False, soft_wrap=True)

    printed = rate.clock()

    def advance(images: int) -> None:
        nonlocal printed
        rate.done += images
        due = rate.clock() - printed >= LINE_SECONDS or rate.done == rate.total
        if show and due:
            printed = rate.clock()
            print_line()

    if show:
        print_line()
    yield advance
