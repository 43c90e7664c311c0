"""What each command does, once its flags are read."""

import contextlib
import logging as std_logging
import sys
from collections.abc import Callable, Sequence

import jax
from absl import flags, logging
from rich.console import Console

from autoloss_jax import processes
from autoloss_jax.cli.data_summary import print_summary
from autoloss_jax.cli.flags import WORKING_COMMANDS
from autoloss_jax.cli.machine import set_compilation_cache, set_devices
from autoloss_jax.cli.plans import Plan, has_finalists, load_data, make_plan
from autoloss_jax.cli.progress import (
    METRICS_FOLDER,
    Reporter,
    StandardError,
    logging_to_stderr,
    tensorboard_writer,
)
from autoloss_jax.data import scale_fold, summarize
from autoloss_jax.effectiveness import contenders, run_effectiveness
from autoloss_jax.errors import AutolossError
from autoloss_jax.execution.batched import interpreter_in_use, using_interpreter
from autoloss_jax.explain import explain
from autoloss_jax.export import export_source, write_best_loss
from autoloss_jax.files import printable, write_json
from autoloss_jax.finalists import read_finalists
from autoloss_jax.language.parsing import parse, parse_stored
from autoloss_jax.losses import HAND_DESIGNED
from autoloss_jax.profile import PROFILE_FILE, Profile, profile_table
from autoloss_jax.report import effectiveness_table, finalists_table, write_report
from autoloss_jax.report.reading import read_run
from autoloss_jax.runs import EFFECTIVENESS_FILE, FINALISTS_FILE, RunFolder, fingerprint, open_run
from autoloss_jax.search import run_search

BEST_LOSS_FILE = "best_loss.py"
_ARGUMENTS = {"data": "one FOLDER and", "explain": "one LOSS and"}
_PLAIN_WIDTH = 120  # of tables that go to a file or a pipe

GoOn = Callable[[str], None]
"""Takes the command that goes on with the run that has begun."""


def execute(
    command: str,
    arguments: Sequence[str],
    values: flags.FlagValues,
    positional: Sequence[str],
    go_on: GoOn,
) -> None:
    """Runs a command. Raises AutolossError for bad input, before anything is written."""
    allowed = {"report": len(positional), "data": 1, "explain": 1}.get(command, 0)
    if len(positional) > allowed:
        raise AutolossError(
            f"unexpected argument '{positional[allowed]}': autoloss takes one command, and "
            f"`autoloss {command}` {_ARGUMENTS.get(command, 'nothing but')} flags"
        )
    if command in WORKING_COMMANDS:
        _work(command, arguments, values, go_on)
    elif command == "report":
        _report(positional, values)
    elif command == "data":
        _describe_data(positional, values)
    elif command == "export":
        _export(values)
    elif command == "explain":
        _explain(positional, values)
    else:
        _list_losses()


def _work(command: str, arguments: Sequence[str], values: flags.FlagValues, go_on: GoOn) -> None:
    """run, search and test: the phases of a run, in its folder."""
    with logging_to_stderr() as handler, using_interpreter(values.interpreter):
        if values.tensorboard:
            tensorboard_writer(None)
        set_devices(values.devices)
        processes.start(values.coordinator_address, values.num_processes, values.process_id)
        if not processes.is_first():
            handler.setLevel(std_logging.ERROR)
        own = processes.from_first(lambda: has_finalists(command, values.out))
        plan = processes.together(lambda: make_plan(command, arguments, values, own))
        processes.together(lambda: set_compilation_cache(values.compilation_cache))
        environment = {"interpreter": interpreter_in_use(plan.search.proxy.truncation_level)}
        processes.agree(
            "configuration", plan.described() | {"machine": fingerprint() | environment}
        )
        with open_run(
            plan.out, plan.described(), about=plan.about(), environment=environment
        ) as folder:
            go_on(plan.command)
            if folder is not None:
                _log_start(plan, folder)
            with _reporter(handler, folder, values.tensorboard) as reporter:
                if command != "test":
                    _search(plan, folder, reporter, values.profile)
                if command != "search":
                    _test(plan, folder, reporter)
            processes.from_first(lambda: None if folder is None else _conclude(folder))


def _reporter(handler: StandardError, folder: RunFolder | None, tensorboard: bool) -> Reporter:
    """What shows the progress, in the process that has the folder."""
    if folder is None:
        return Reporter(handler, bars=False)
    writer = tensorboard_writer(folder.path / METRICS_FOLDER) if tensorboard else None
    return Reporter(handler, bars=sys.stderr.isatty(), writer=writer)


def _log_start(plan: Plan, folder: RunFolder) -> None:
    for note in plan.notes:
        logging.get_absl_logger().info(note)
    fold = plan.search_fold
    logging.info(
        "%s %s: %s, %d features; %d training, %d validation and %d test queries in %s; "
        "%d %s devices of %d processes",
        "going on in" if folder.resumed else "writing to", folder.path, plan.dataset.name,
        plan.dataset.num_features, len(fold.train), len(fold.validation), len(fold.test),
        fold.name, jax.device_count(), jax.default_backend(), jax.process_count(),
    )  # fmt: skip


def _is_there(folder: RunFolder | None, name: str) -> bool:
    """Whether the run folder has a file, in every process."""
    return processes.from_first(lambda: folder is not None and (folder.path / name).exists())


def _search(plan: Plan, folder: RunFolder | None, reporter: Reporter, with_profile: bool) -> None:
    if _is_there(folder, FINALISTS_FILE):
        logging.info("the search is finished already")
        return
    reporter.begin("search")
    train = scale_fold(plan.search_fold, plan.search.features).train
    profile = Profile()
    with profile.measuring() if with_profile else contextlib.nullcontext():
        result = run_search(
            train, plan.search, folder, placement=plan.placement, profile=profile,
            on_round=reporter.on_round,
        )  # fmt: skip
    trained = sum(record["status"] == "trained" for record in result.records)
    logging.info("search: %d candidates trained, %d finalists", trained, len(result.finalists))
    if with_profile and folder is not None:
        described = profile.described()
        write_json(folder.path / PROFILE_FILE, described)
        logging.info("%s", profile_table(described))


def _test(plan: Plan, folder: RunFolder | None, reporter: Reporter) -> None:
    if _is_there(folder, EFFECTIVENESS_FILE):
        logging.info("the test is finished already")
        return
    found = [parse(formula) for formula in plan.losses.found]
    if plan.losses.finalists:
        found = [*map(parse, processes.from_first(lambda: _finalists(folder))), *found]
    losses = contenders(list(dict.fromkeys(found)), plan.losses.hand_designed)
    logging.info(
        "test: %d found and %d hand-designed losses%s on %s",
        len(losses) - len(plan.losses.hand_designed), len(plan.losses.hand_designed),
        ", and LambdaMART as a reference," if plan.effectiveness.lambdamart else "",
        ", ".join(fold.name for fold in plan.test_data.folds),
    )  # fmt: skip
    reporter.begin("test")
    result = run_effectiveness(
        plan.test_data, losses, plan.effectiveness, folder, placement=plan.placement,
        on_progress=reporter.on_test,
    )  # fmt: skip
    reporter.on_tested(result)


def _finalists(folder: RunFolder | None) -> list[str]:
    """The finalists of the run's own search."""
    if folder is None:
        return []
    return [str(finalist.expression) for finalist in read_finalists(folder.path / FINALISTS_FILE)]


def _conclude(folder: RunFolder) -> None:
    """Writes what is for people, and prints the result."""
    files = read_run(folder.path)
    best = files.best
    paths = [write_report(folder.path)]
    verdict = str((files.effectiveness or {}).get("verdict", ""))
    if best is not None:
        paths.append(folder.path / BEST_LOSS_FILE)
        about = [f"The best found loss of the run {files.name}.", *filter(None, [verdict])]
        loss = parse_stored(best.get("formula"), f"{folder.path}: its best found loss")
        write_best_loss(paths[-1], loss, about)
    console = _console()
    if files.effectiveness is not None:
        table = effectiveness_table(files.effectiveness)
        table.title = None  # the verdict, which follows
        console.print(table)
    elif files.finalists is not None:
        console.print(finalists_table(files.finalists))
    lines = [verdict, f"Best found loss: {best['formula']}" if best else "No loss was found."]
    for line in [*lines, *map(str, paths)]:
        if line:
            print(printable(line))


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=_PLAIN_WIDTH)


def _report(positional: Sequence[str], values: flags.FlagValues) -> None:
    if positional:
        print(write_report(*positional, out=values.out))
    elif values.out:  # as on every command, the run folder
        print(write_report(values.out))
    else:
        raise AutolossError("expected a run folder, or several: autoloss report DIR ...")


def _describe_data(positional: Sequence[str], values: flags.FlagValues) -> None:
    given = [*positional, *filter(None, [values.data])]
    if len(given) > 1:
        raise AutolossError(f"expected data once, got {' and '.join(given)}")
    with logging_to_stderr():
        dataset = load_data(given[0] if given else None, values)
    print_summary(summarize(dataset, max_buckets=values.max_buckets), _console())


def _export(values: flags.FlagValues) -> None:
    folder = values["from"].value
    if (values.loss is None) == (folder is None):
        raise AutolossError("expected either --loss or --from: what should be exported?")
    formula = values.loss if folder is None else _best_of(folder)
    print(export_source(formula, values.target).rstrip("\n"))


def _explain(positional: Sequence[str], values: flags.FlagValues) -> None:
    losses = [*positional, *filter(None, [values.loss])]
    folders = [*filter(None, [values["from"].value])]
    if len(losses) + len(folders) != 1:
        raise AutolossError("expected one loss: autoloss explain LOSS, or --loss, or --from")
    print(explain(losses[0] if losses else _best_of(folders[0])))


def _best_of(folder: str) -> str:
    """The formula of the best found loss of a run."""
    best = read_run(folder).best
    if best is None:
        raise AutolossError(f"--from {folder}: the run has found no loss yet")
    return str(parse_stored(best.get("formula"), f"--from {folder}: its best found loss"))


def _list_losses() -> None:
    for name, loss in HAND_DESIGNED.items():
        lines = [name, f"    {loss.formula}", f"    {loss.source}"]
        print("\n".join(lines + ([f"    {loss.note}"] if loss.note else [])))
