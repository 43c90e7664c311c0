"""Which part of a loss matters: it is trained whole and without each of its parts.

    python experiments/ablation.py --from runs/mq2008 --data MQ2008
    python experiments/ablation.py --loss lambdarank --data MQ2008/Fold1 --out runs/lambdarank_parts

A loss that was chosen by models of seed 0 needs another `--seed`: theirs would measure its luck.

Of a run, the best found loss under the conditions of the run's test: its folds, model, learning
rates, number of seeds and patience; but the models are others, for the loss was chosen by those of
the run. Prints what the loss does (`autoloss explain`), the comparison and what it shows; writes
ablation.json, and the run's page anew. Interrupted, the same command goes on.
"""

from dataclasses import fields, replace
from pathlib import Path

from absl import app, flags, logging
from rich.console import Console

import autoloss_jax as al
from autoloss_jax.files import printable
from autoloss_jax.report import ablation_table, write_report
from autoloss_jax.report.reading import RunFiles, read_run
from autoloss_jax.runs import ABLATION_FOLDER

_DATA = flags.DEFINE_string("data", None, "LETOR text; by default synthetic queries")
_FROM = flags.DEFINE_string("from", None, "run folder, tested, whose best found loss it is")
_LOSS = flags.DEFINE_string("loss", None, "the loss instead: a formula or the name of one")
_OUT = flags.DEFINE_string("out", None, "folder to write to; by default `ablation` in the run's")
_MODEL = flags.DEFINE_string("model", "mlp", "of a given --loss: linear, mlp or attention")
_SEED = flags.DEFINE_integer("seed", None, "by default 0, or another than the run's")
_SEEDS = flags.DEFINE_integer("seeds", None, "models a loss; by default as many as the run's, or 3")


def _conditions(run: RunFiles, dataset: al.Dataset) -> tuple[al.Dataset, al.EffectivenessConfig]:
    """The folds and settings of the run's own test, but for its models."""
    settings = run.setting("effectiveness")
    known = {field.name for field in fields(al.EffectivenessConfig)}
    if not isinstance(settings, dict) or not settings.keys() <= known:
        raise al.AutolossError(
            f"--from {run.path}: expected a run whose test has the settings {', '.join(known)}"
        )
    if run.setting("data", "sha256") != dataset.sha256:
        raise al.AutolossError(f"--from {run.path}: it was on other data than --data names")
    places = run.setting("data", "tested_folds") or range(1, len(dataset.folds) + 1)
    folds = tuple(dataset.folds[place - 1] for place in places)
    rates, seed = tuple(settings["learning_rates"]), (settings["seed"] + 1) % 2**31
    return replace(dataset, folds=folds), al.EffectivenessConfig(
        **settings | {"learning_rates": rates, "seed": seed}
    )


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    if (_FROM.value is None) == (_LOSS.value is None):
        raise app.UsageError("expected either --from or --loss: which loss?")
    dataset = al.load_dataset(_DATA.value) if _DATA.value else al.synthetic()
    out = _OUT.value
    if _FROM.value:
        run = read_run(_FROM.value)
        if run.best is None:
            raise al.AutolossError(f"--from {run.path}: the run has found no loss yet")
        loss = run.best["formula"]
        dataset, config = _conditions(run, dataset)
        out = out or str(Path(run.path) / ABLATION_FOLDER)
    else:
        loss, config = _LOSS.value, al.EffectivenessConfig(model=_MODEL.value)
    if out is None:
        raise app.UsageError("expected --out with --loss: where to?")
    if _SEED.value is not None:
        config = replace(config, seed=_SEED.value)
    if _SEEDS.value is not None:
        config = replace(config, seeds=_SEEDS.value)
    print(printable(str(al.explain(loss))), end="\n\n")
    result = al.ablation_test(
        dataset,
        loss,
        config,
        out=out,
        on_progress=lambda text, share: logging.info("%s, %.0f %%", text, 100 * share),
    )
    Console(width=160).print(ablation_table(result))
    print(printable(result["verdict"]))
    if _FROM.value and _OUT.value is None:
        logging.info("the run's page shows it too: %s", write_report(_FROM.value))


if __name__ == "__main__":
    app.run(main)
