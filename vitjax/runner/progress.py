"""How far a run is: a bar on a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator

LINE_SECONDS = 15.0
Advance = Callable[[int], None]


class Rate:
    """Images per second since the first step ended, which had to compile.

    Args:
        total: images to do.
        clock: seconds, monotonic.
    """

    def __init__(self, total: int, *, clock: Callable[[], float] = time.monotonic):
        self.total = total
        self.clock = clock
        self.started = clock()
        self.done = 0
        self.first: tuple[int, float] | None = None

    def advance(self, images: int) -> None:
        """Count images that are done."""
        self.done += images
        if self.first is None:
            self.first = (self.done, self.clock())

    @property
    def images_per_second(self) -> float | None:
        """None before the first image is done."""
        if self.first is None:
            return None
        images, seconds = self.done - self.first[0], self.clock() - self.first[1]
        if images == 0:  # one step only: its compilation is in the figure
            images, seconds = self.done, self.clock() - self.started
        return images / max(seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """None before the first image is done."""
        rate = self.images_per_second
        return None if rate is None else (self.total - self.done) / rate

    def __str__(self) -> str:
        if self.first is None:
            return "compiling"
        left = clock_time(self.seconds_left or 0.0)
        return f"{self.images_per_second:.1f} images/s, {left} left"


def clock_time(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


@contextlib.contextmanager
def progress(rate: Rate, *, title: str, done: int, show: bool) -> Iterator[Advance]:
    """Show a run's progress on stderr while the context is open.

    Args:
        rate: counts what this session does.
        title: what is running.
        done: images that an earlier session did.
        show: False for silence.

    Returns:
        A function to call with the number of images just done.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not show:
        yield rate.advance
    elif console.is_terminal or console.is_jupyter:
        with bar(console, rate, title, done) as advance:
            yield advance
    else:
        yield lines(console, rate, title, done)


@contextlib.contextmanager
def bar(console, rate: Rate, title: str, done: int) -> Iterator[Advance]:
    """A rich progress bar with images/s and time left."""
    from rich import progress as rich_progress

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[rate]}"),
    )
    with rich_progress.Progress(*columns, console=console) as shown:
        total = done + rate.total
        task = shown.add_task(title, total=total, completed=done, rate=str(rate))

        def advance(images: int) -> None:
            rate.advance(images)
            shown.update(task, advance=images, rate=str(rate))

        yield advance


def lines(console, rate: Rate, title: str, done: int) -> Advance:
    """A line at the start, every LINE_SECONDS, and at the end."""
    total = done + rate.total
    state = f"{title}: {done}/{total} images, {rate}"
    console.print(state, highlight=False, soft_wrap=True)
    shown = rate.clock()

    def advance(images: int) -> None:
        nonlocal shown
        rate.advance(images)
        if rate.clock() - shown >= LINE_SECONDS or rate.done == rate.total:
            shown = rate.clock()
            state = f"{title}: {done + rate.done}/{total} images, {rate}"
            console.print(state, highlight=False, soft_wrap=True)

    return advance
