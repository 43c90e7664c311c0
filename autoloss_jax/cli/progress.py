"""How a command shows what it does: log lines, progress bars, TensorBoard scalars."""

import contextlib
import logging as std_logging
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from absl import logging
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from autoloss_jax.errors import AutolossError
from autoloss_jax.search_rounds import Progress as SearchProgress

LOG_EVERY = 10.0
"""Seconds between two log lines about progress."""

METRICS_FOLDER = "metrics"
_LIBRARY_LOGGER = "autoloss_jax"


class StandardError(std_logging.Handler):
    """Writes to what sys.stderr is at the time, which a progress bar replaces.

    quiet: whether to leave out the lines about progress, since a bar shows it.
    """

    quiet = False

    def emit(self, record: std_logging.LogRecord) -> None:
        if not (self.quiet and getattr(record, "progress", False)):
            print(self.format(record), file=sys.stderr, flush=True)


@contextlib.contextmanager
def logging_to_stderr() -> Iterator[StandardError]:
    """Shows what absl and the library log, from INFO on, on standard error."""
    handler = StandardError()
    handler.setFormatter(std_logging.Formatter("%(message)s"))
    loggers = [logging.get_absl_logger(), std_logging.getLogger(_LIBRARY_LOGGER)]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(std_logging.INFO)
        logger.propagate = False
        logger.addHandler(handler)
    try:
        yield handler
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


@contextlib.contextmanager
def held_back() -> Iterator[list[str]]:
    """Collects what the library logs meanwhile, for a log file that is not open yet."""
    lines: list[str] = []

    class Collector(std_logging.Handler):
        def emit(self, record: std_logging.LogRecord) -> None:
            lines.append(record.getMessage())

    collector, logger = Collector(), std_logging.getLogger(_LIBRARY_LOGGER)
    logger.addHandler(collector)
    try:
        yield lines
    finally:
        logger.removeHandler(collector)


def tensorboard_writer(folder: Path | None) -> Any:
    """A writer of scalars to `folder`; without one it is only checked that there could be one.

    Raises AutolossError if tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise AutolossError(
            "--tensorboard needs tensorboardX, which is not installed: "
            "pip install 'autoloss_jax[tb]'"
        ) from error
    return None if folder is None else SummaryWriter(str(folder))


class Reporter:
    """Shows the progress of both phases: bars on a terminal, log lines otherwise.

    on_round, on_test: what `run_search` and `run_effectiveness` call.
    """

    def __init__(self, handler: StandardError, *, bars: bool, writer: Any = None) -> None:
        self._handler = handler
        self._writer = writer
        self._shown = -math.inf
        self._tasks: dict[str, TaskID] = {}
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            disable=not bars,
        )
        self._with_bars = bars

    def __enter__(self) -> Self:
        self._handler.quiet = self._with_bars
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()
        self._handler.quiet = False
        if self._writer is not None:
            self._writer.close()

    def begin(self, phase: str) -> None:
        """Shows a bar from the start, since the first step compiles for a while."""
        self._advance(phase, 0.0, "compiling")

    def on_round(self, progress: SearchProgress) -> None:
        """After a round of the search."""
        share = min(1.0, progress.trained / progress.budget)
        best = "no candidate trained yet"
        if math.isfinite(progress.best_reward):
            best = f"best {progress.best_reward:+.4f}  {progress.best_formula}"
        done = f"round {progress.round}, {progress.trained} of {progress.budget} trained"
        self._show("search", share, best, f"search: {done}, {best}")
        if self._writer is not None:
            scalars = {**progress.metrics, "trained": progress.trained}
            if math.isfinite(progress.best_reward):
                scalars["best_reward"] = progress.best_reward
            self._write(scalars, "search", progress.round)

    def on_test(self, text: str, share: float) -> None:
        """During the effectiveness test."""
        self._show("test", share, text, f"test: {text}, {share:.0%} of all folds done")

    def on_tested(self, effectiveness: dict[str, Any]) -> None:
        """The figures of every loss, once they are known."""
        if self._writer is not None:
            for row in effectiveness["rows"]:
                means = {metric: value["mean"] for metric, value in row["test"].items()}
                self._write(means, f"test/{row['name'].replace(' ', '_')}", 0)

    def _advance(self, phase: str, share: float, note: str) -> None:
        if phase not in self._tasks:
            self._tasks[phase] = self._bars.add_task(phase, total=1.0, note="")
        self._bars.update(self._tasks[phase], completed=share, note=note)

    def _show(self, phase: str, share: float, note: str, line: str) -> None:
        self._advance(phase, share, note)
        if time.monotonic() - self._shown >= LOG_EVERY:
            self._shown = time.monotonic()
            logging.get_absl_logger().info(line, extra={"progress": True})

    def _write(self, scalars: dict[str, Any], group: str, step: int) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(f"{group}/{name}", float(value), step)
        self._writer.flush()
