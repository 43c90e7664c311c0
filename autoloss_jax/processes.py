"""Several processes as one program: how they start, agree, and end together.

JAX's multi-controller model: every process runs the same program on the same data, holds a part of
the devices, and meets the others in collectives. Only the first one writes files and prints. What
depends on files, it reads and tells the others (`from_first`).
"""

import contextlib
import hashlib
import itertools
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from autoloss_jax.errors import AutolossError
from autoloss_jax.files import differences, to_jsonable

Result = TypeVar("Result")

HEARTBEAT_TIMEOUT = 30
"""Seconds without a sign of life after which a process counts as lost, which ends the others."""
START_TIMEOUT = 300
"""Seconds that processes wait for each other at the start."""

_steps = itertools.count(1)


class Preempted(BaseException):
    """A process was asked to stop, and all of them stop at this step."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


class SharedError(AutolossError):
    """Every process raises it at the same time, so none waits for another."""


def launcher(environment: dict[str, str] | None = None) -> str | None:
    """Who started this as one of several processes: "Slurm", "Open MPI", "a TPU pod", or None.

    Reads environment variables only, so it neither waits nor asks the network.
    """
    found = os.environ if environment is None else environment

    def number(name: str) -> int:
        text = found.get(name, "")
        return int(text) if text.isdecimal() else 0

    # A shell inside an allocation has SLURM_JOB_ID and SLURM_NTASKS too; only srun gives a task its
    # number and the nodes of its step.
    if {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"} <= found.keys():
        step_tasks = number("SLURM_STEP_NUM_TASKS") or number("SLURM_NTASKS")
        if step_tasks > 1 and number("SLURM_NTASKS") > 1:
            return "Slurm"
    if "OMPI_MCA_orte_hnp_uri" in found and number("OMPI_COMM_WORLD_SIZE") > 1:
        return "Open MPI"
    workers = found.get("TPU_PROCESS_ADDRESSES") or found.get("TPU_WORKER_HOSTNAMES", "")
    if "," in workers or number("MEGASCALE_NUM_SLICES") > 1:
        return "a TPU pod"
    return None


def start(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins the other processes, if there are any; before JAX does anything else.

    Without arguments that is if Slurm, Open MPI or a TPU pod started several. Else give all three,
    `coordinator_address` being host:port of the first process.

    Raises:
      AutolossError: some of the three are missing or out of range, the coordinator's port is taken,
        or the others were not reached.
    """
    given = {
        "coordinator_address": coordinator_address,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    found = launcher()
    if len(missing) == len(given) and (found is None or joined()):
        return
    if missing and len(missing) < len(given):
        raise AutolossError(
            f"--{missing[0]} is missing: expected --coordinator_address, --num_processes and "
            "--process_id together"
        )
    if not missing:
        _check(str(coordinator_address), int(num_processes or 0), int(process_id or 0))
        if num_processes == 1:
            return
    # Concerns CPU devices only, which exchange nothing by default.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    where = coordinator_address or f"the one that {found} names"
    failure = f"could not join the other processes at {where}"
    expected = f"expected all of them to start within {START_TIMEOUT} seconds"
    if coordinator_address and process_id == 0:
        _check_port(int(coordinator_address.rpartition(":")[2]), failure)
    try:
        with _given_up_after(START_TIMEOUT, f"{failure}; {expected}"):
            jax.distributed.initialize(
                **given,  # type: ignore[arg-type]
                cluster_detection_method=None if missing else "deactivate",
                initialization_timeout=2 * START_TIMEOUT,
                heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
                shutdown_timeout_seconds=HEARTBEAT_TIMEOUT,
            )
    except (RuntimeError, ValueError) as error:
        raise AutolossError(f"{failure}: {str(error).splitlines()[0]}; {expected}") from error


@contextlib.contextmanager
def _given_up_after(seconds: float, message: str) -> Iterator[None]:
    """Ends the process if this lasts longer; JAX itself would abort, with a dump of its stack."""

    def give_up() -> None:
        print(f"autoloss: {message}", file=sys.stderr)
        _end(2)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _check(coordinator_address: str, num_processes: int, process_id: int) -> None:
    host, _, port = coordinator_address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise AutolossError(
            f"--coordinator_address is {coordinator_address!r}, expected host:port of process 0"
        )
    if num_processes < 1:
        raise AutolossError(f"--num_processes is {num_processes}, expected at least 1")
    if not 0 <= process_id < num_processes:
        raise AutolossError(
            f"--process_id is {process_id}, expected from 0 to {num_processes - 1}, one less than "
            "--num_processes"
        )


def _check_port(port: int, failure: str) -> None:
    """Refuses a port that this process cannot listen at, over which JAX may crash."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise AutolossError(f"{failure}: {reason}; expected a free port of this machine") from error


def joined() -> bool:
    """Whether this process has joined others."""
    return bool(jax.distributed.is_initialized())


def several() -> bool:
    """Whether there is more than one process."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this process is the one that writes files and prints."""
    return jax.process_index() == 0


def gather(text: str) -> list[str]:
    """The texts of all processes, which all call this, in the order of the processes."""
    if not several():
        return [text]
    data = text.encode()
    sizes = _meet(np.array([len(data)]))[:, 0]
    padded = np.zeros(max(1, int(sizes.max())), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    rows = _meet(padded)
    return [
        row[:size].tobytes().decode(errors="replace") for row, size in zip(rows, sizes, strict=True)
    ]


def _meet(x: np.ndarray) -> np.ndarray:
    """An array of each process, in all processes: [processes, ...]."""
    return np.asarray(multihost_utils.process_allgather(x))


def from_first(read: Callable[[], Result]) -> Result:
    """What `read` returns in the first process, which alone calls it; JSON values only.

    Raises what `read` raises if that is an AutolossError: in every process, so that none waits for
    one that is gone.
    """
    if not several():
        return read()
    told: dict[str, Any] = {}
    if is_first():
        try:
            told = {"result": to_jsonable(read())}
        except AutolossError as error:
            told = {"error": str(error)}
    first = json.loads(gather(json.dumps(told))[0])
    if "error" in first:
        raise SharedError(first["error"])
    result: Result = first["result"]
    return result


def together(work: Callable[[], Result]) -> Result:
    """What `work` returns; every process calls it, and all end if it is refused to one.

    `work` must not call what waits for other processes. Raises AutolossError.
    """
    if not several():
        return work()
    refusal = ""
    result: list[Result] = []
    try:
        result.append(work())
    except AutolossError as error:
        refusal = str(error)
    refusals = gather(refusal)
    if refusal:
        raise SharedError(refusal)
    for process, other in enumerate(refusals):
        if other:
            raise SharedError(f"process {process} ended: {other}")
    return result[0]


def agree(what: str, value: Any) -> None:
    """Makes sure that all processes have the same JSON value.

    Raises:
      AutolossError: in every process, naming one that differs from the first.
    """
    if not several():
        return
    text = json.dumps(to_jsonable(value), sort_keys=True)
    digests = gather(hashlib.sha256(text.encode()).hexdigest())
    if len(set(digests)) == 1:
        return
    values = [json.loads(text) for text in gather(text)]
    process = next(k for k, value in enumerate(values) if value != values[0])
    found = differences(values[0], values[process], ("process 0", f"process {process}"))
    lines = [line if len(line) < 200 else line[:200] + "..." for line in found]
    raise SharedError(
        f"process {process} has another {what} than process 0; expected the same command "
        "on the same data, versions and kind of machine. They differ in\n  " + "\n  ".join(lines)
    )


def stop_together() -> None:
    """A point at which all processes stop, if one of them was asked to.

    Raises Preempted. One process alone has its signal handler for that.
    """
    step = next(_steps)
    if several() and multihost_utils.reached_preemption_sync_point(step):
        raise Preempted(step)


def ask_to_stop() -> bool:
    """Asks all processes to stop together, as SIGTERM does; False if this is the only one."""
    if not joined():
        return False
    os.kill(os.getpid(), signal.SIGTERM)  # JAX has taken its handler
    return True


def prefix() -> str:
    """What messages begin with in a process other than the first."""
    number = jax.process_index() if joined() else 0
    return f"process {number}: " if number else ""


def leave(status: int, *, together: bool) -> None:
    """Ends this process with a status other than 0, if it is one of several.

    together: all of them end now, so each waits until all are here: who sees another one go first
    would report it as lost. Otherwise it ends at once, as the others would wait for it; they learn
    of it from the connections that break, or from the missing heartbeat.
    """
    if not joined():
        return
    if together:
        with contextlib.suppress(RuntimeError):
            jax.distributed.shutdown()
    if status:
        _end(status)


def _end(status: int) -> NoReturn:
    logging.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def lost(error: BaseException) -> bool:
    """Whether an error says that another process is gone.

    JAX raises it as different kinds of error, by where it was waiting.
    """
    words = ("Gloo", "gloo", "Connection closed", "Connection reset", "UNAVAILABLE", "heartbeat")
    return joined() and any(word in str(error) for word in words)
