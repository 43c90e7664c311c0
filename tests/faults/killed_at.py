"""Runs the command line and kills its own process (SIGKILL) at a given moment.

python killed_at.py MOMENT COUNT RECORD ARGUMENTS...

MOMENT is one of MOMENTS, or "random:SECONDS" after the run folder was opened; COUNT says at which
time of its coming, from 1 on. The moment is added to the file RECORD when it is hit. Phase II saves
a checkpoint after every block here, as the runs of the tests are short. The package knows nothing
of this: its functions are replaced from outside.
"""

import functools
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from autoloss_jax import (
    convergence,
    effectiveness,
    files,
    fold_tests,
    interruption,
    runs,
    search_rounds,
)
from autoloss_jax.cli import commands, main
from autoloss_jax.proxy import ProxyTraining

# A moment in calls: before a call, in the middle of it, after it.
CALLS = {
    "opening": (runs, "repair_ledger"),
    "proxy training": (ProxyTraining, "run"),
    "test training": (convergence, "_plan"),
    "reading test queries": (fold_tests, "_read_test"),
    "comparing": (effectiveness, "compare"),
    "report": (commands, "write_report"),
}
PROPOSER_CALLS = {"sampling": "propose", "update": "observe"}
# A moment in the writing of a file: before it, with half of it written, before the rename, after.
FILES = {
    "config": r"config\.json",
    "search checkpoint": r"search/\d+\.msgpack",
    "test checkpoint": r"test/\d+\.msgpack",
    "tested part": r"tested/\d+\.msgpack",
    "finalists": r"finalists\.json",
    "per query": r"per_query\.npz",
    "effectiveness": r"effectiveness\.json",
    "report file": r"report\.html",
    "best loss": r"best_loss\.py",
}
MOMENTS = [
    *(
        f"{when} {name}"
        for name in (*CALLS, *PROPOSER_CALLS)
        for when in ("before", "during", "after")
    ),
    *(f"{when} {name}" for name in FILES for when in ("half", "rename", "after")),
    *(f"{when} ledger" for when in ("before", "half", "written", "after")),
]


class Killer:
    """Kills the process when a moment comes for the count-th time."""

    def __init__(self, moment: str, count: int, record: Path) -> None:
        self.moment, self.left, self.record = moment, count, record

    def comes(self, moment: str) -> bool:
        """Whether a moment that comes is the one."""
        if moment != self.moment:
            return False
        self.left -= 1
        return self.left == 0

    def kill(self) -> None:
        with self.record.open("a") as file:
            file.write(f"{self.moment}\n")
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # the signal may come a little later


def watch_call(killer: Killer, name: str, function: Callable) -> Callable:
    @functools.wraps(function)
    def watched(*arguments, **settings):
        if killer.comes(f"before {name}"):
            killer.kill()
        if killer.comes(f"during {name}"):
            threading.Timer(0.002, killer.kill).start()
        result = function(*arguments, **settings)
        if killer.comes(f"after {name}"):
            killer.kill()
        return result

    return watched


def watch_proposer(killer: Killer) -> None:
    make = search_rounds.make_proposer

    def watched(*arguments, **settings):
        proposer = make(*arguments, **settings)
        calls = {attribute: watch_call(killer, name, getattr(proposer, attribute))
                 for name, attribute in PROPOSER_CALLS.items()}  # fmt: skip
        return proposer._replace(**calls)

    search_rounds.make_proposer = watched


def watch_files(killer: Killer) -> None:
    replace = os.replace

    def watched(source, target):
        name = next((n for n, p in FILES.items() if re.search(f"/{p}$", str(target))), None)
        if killer.comes(f"half {name}"):
            os.truncate(source, os.path.getsize(source) // 2)
            killer.kill()
        if killer.comes(f"rename {name}"):
            killer.kill()
        replace(source, target)
        if killer.comes(f"after {name}"):
            killer.kill()

    os.replace = watched


def watch_ledger(killer: Killer) -> None:
    append, sync = files._append_bytes, os.fsync

    def watched(path, data):
        if killer.comes("before ledger"):
            killer.kill()
        if killer.comes("half ledger"):
            with open(path, "ab") as file:
                file.write(data[: len(data) // 2])
            killer.kill()
        if killer.comes("written ledger"):  # and not synced
            os.fsync = lambda descriptor: killer.kill()
        append(path, data)
        os.fsync = sync
        if killer.comes("after ledger"):
            killer.kill()

    files._append_bytes = watched


def watch_time(killer: Killer, seconds: float) -> None:
    open_run = runs.RunFolder.open.__func__

    def watched(cls, *arguments, **settings):
        timer = threading.Timer(seconds, killer.kill)
        timer.daemon = True  # a run that ends earlier is not waited for
        timer.start()
        return open_run(cls, *arguments, **settings)

    runs.RunFolder.open = classmethod(watched)


if __name__ == "__main__":
    moment, count, record, *arguments = sys.argv[1:]
    interruption.SECONDS, interruption.SHARE = 0.0, float("inf")
    killer = Killer(moment, int(count), Path(record))
    if moment.startswith("random:"):
        watch_time(killer, float(moment.partition(":")[2]))
    for name, (owner, attribute) in CALLS.items():
        setattr(owner, attribute, watch_call(killer, name, getattr(owner, attribute)))
    watch_proposer(killer)
    watch_files(killer)
    watch_ledger(killer)
    sys.exit(main(["autoloss", *arguments]))
