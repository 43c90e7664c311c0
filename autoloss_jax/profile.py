"""Where the time of a search goes, stage by stage."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from jax import monitoring

PROFILE_FILE = "profile.json"
STAGES = (
    "sampling",
    "deduplication",
    "rejection",
    "training",
    "evaluation",
    "update",
    "compilation",
    "host",
)
"""Proposing losses; canonical forms and equal gradients; screening; training and evaluating models;
the proposer's learning; XLA at work on any of these; everything else, such as batches and files."""

_COMPILATION = "/jax/core/compile/backend_compile_duration"


class Profile:
    """Seconds by stage. Every moment counts for one stage: the innermost that is open, or "host".

    Compilation counts as such wherever it happens. `trained` counts the candidates, and the
    hall of fame again for each fresh seed. `processor_seconds` are of all threads together: on a
    busy machine they say what a quiet one would take.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.processor_seconds = dict.fromkeys(STAGES, 0.0)
        self.trained = 0  # candidates
        self._open = ["host"]
        self._since, self._processor_since = time.perf_counter(), time.process_time()
        self._compiling = 0.0  # of the time since

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Measures as long as it lasts."""
        self._since, self._processor_since = time.perf_counter(), time.process_time()
        monitoring.register_event_duration_secs_listener(self._compiled)
        try:
            yield
        finally:
            self._turn()
            monitoring.unregister_event_duration_listener(self._compiled)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the time within for the stage, but for that of stages opened in there."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def _turn(self) -> None:
        now, processor = time.perf_counter(), time.process_time()
        compiling = min(self._compiling, now - self._since)
        self.seconds["compilation"] += compiling
        self.seconds[self._open[-1]] += now - self._since - compiling
        self.processor_seconds[self._open[-1]] += processor - self._processor_since
        self._since, self._processor_since, self._compiling = now, processor, 0.0

    def _compiled(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == _COMPILATION:
            self._compiling += duration_secs

    def described(self) -> dict[str, Any]:
        """What profile.json holds."""
        total = sum(self.seconds.values())
        running = total - self.seconds["compilation"]
        return {
            "seconds": _rounded(self.seconds),
            "processor_seconds": _rounded(self.processor_seconds),
            "total_seconds": round(total, 3),
            "candidates_trained": self.trained,
            "candidates_per_hour": round(3600 * self.trained / running) if running > 0 else None,
        }


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in seconds.items()}


def profile_table(described: dict[str, Any]) -> str:
    """The stages of a `described` profile as lines of text, with their shares of all but compiling.

    What the search does apart from compiling is what grows with the budget.
    """
    seconds = described["seconds"]
    running = described["total_seconds"] - seconds["compilation"]
    lines = [f"{'stage':<14}{'seconds':>10}{'share':>9}{'processor':>12}"]
    for name, value in seconds.items():
        share = "" if name == "compilation" or running <= 0 else f"{value / running:8.1%}"
        processor = described["processor_seconds"][name]
        lines.append(f"{name:<14}{value:10.2f}{share:>9}{processor:12.2f}")
    lines.append(
        f"{described['candidates_trained']} candidates trained in {running:.1f} s without "
        f"compilation: {described['candidates_per_hour']} an hour"
    )
    return "\n".join(lines)
