"""The command line: `autoloss <command> [flags]`."""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence

from autoloss_jax import processes
from autoloss_jax.cli.commands import execute
from autoloss_jax.cli.flags import CommandFlags
from autoloss_jax.cli.help import SUMMARIES, explanation, overview
from autoloss_jax.errors import AutolossError
from autoloss_jax.files import printable

_HELP = ("--help", "-h", "--helpfull", "-help")


class _Stopped(BaseException):
    """A signal asked to stop."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status, which `autoloss --help` explains.

    argv: the program's name and its arguments; those of the process by default.
    """
    arguments = list(sys.argv if argv is None else argv)[1:]
    try:
        status, together = _run(arguments)
    except Exception:
        if not processes.joined():
            raise
        traceback.print_exc()
        status, together = 1, False
    processes.leave(status, together=together)
    return status


def _run(arguments: list[str]) -> tuple[int, bool]:
    """The exit status, and whether all processes end with it, if there are several."""
    going_on: list[str] = []
    received: list[int] = []
    try:
        with _signals(received):
            _dispatch(arguments, going_on)
            sys.stdout.flush()
    except AutolossError as error:
        return _fail(2, f"autoloss: {error}"), isinstance(error, processes.SharedError)
    except BrokenPipeError:  # as in `autoloss losses | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE, False
    except OSError as error:
        hint = f"; to go on, once that is mended: {going_on[0]}" if going_on else ""
        return _fail(1, f"autoloss: {error}{hint}"), False
    except (_Stopped, processes.Preempted) as stopped:
        number = signal.Signals(received[0] if received else signal.SIGTERM)
        where, all_stop = "", False
        if isinstance(stopped, processes.Preempted):
            where, all_stop = f", all processes at step {stopped.step}", True
        hint = f"; to go on: {going_on[0]}" if going_on else ", before anything was begun"
        return _fail(128 + number, f"autoloss: stopped by {number.name}{where}{hint}"), all_stop
    except Exception as error:
        if not processes.lost(error):
            raise
        hint = f"; to go on: {going_on[0]}" if going_on else ""
        reason = str(error).partition("\n")[0]
        message = f"autoloss: another process is gone, so this one ends too ({reason}){hint}"
        return _fail(1, message), False
    return 0, True


def _dispatch(arguments: list[str], going_on: list[str]) -> None:
    command, rest = (arguments or [""])[0], arguments[1:]
    if command in _HELP:
        print(overview())
        return
    if command not in SUMMARIES:
        given = f"got '{command}'" if command else "got none"
        raise AutolossError(
            f"expected a command first, one of {', '.join(SUMMARIES)}; {given}. "
            "`autoloss --help` explains them"
        )
    if any(argument in _HELP for argument in rest):
        print(explanation(command))
        return
    flags = CommandFlags(command)
    if command == "explain" and rest and _is_negative_formula(rest[0]):
        rest = [*rest[1:], "--", rest[0]]
    positional = flags.parse(rest)
    execute(command, rest, flags.values, positional, going_on.append)


def _is_negative_formula(argument: str) -> bool:
    """Whether it looks like a flag and is a formula: no flag's name has a bracket."""
    return argument.startswith("-") and "(" in argument.partition("=")[0]


def _fail(status: int, message: str) -> int:
    print(processes.prefix() + printable(message), file=sys.stderr, flush=True)
    return status


@contextlib.contextmanager
def _signals(received: list[int]) -> Iterator[None]:
    """Turns Ctrl-C and SIGTERM into _Stopped; a second one ends the process at once.

    Of several processes all stop together, at their next meeting: there JAX has taken SIGTERM.
    """

    def stop(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)
        if not processes.ask_to_stop():
            raise _Stopped

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
