"""Tests losses on every fold of a data set, for several models.

    python experiments/run_effectiveness.py --data MQ2008 --out runs/models --models mlp,linear

Every --loss is a formula; without any, the hand-designed ones alone are compared. A model
that was tested before is not tested again.
"""

from pathlib import Path

from absl import app, flags, logging
from rich.console import Console

import autoloss_jax as al
from autoloss_jax.report import effectiveness_table

_DATA = flags.DEFINE_string("data", None, "LETOR text; by default synthetic queries")
_OUT = flags.DEFINE_string("out", None, "folder of the run folders", required=True)
_LOSS = flags.DEFINE_multi_string("loss", [], "a formula to test; may be given again")
_MODELS = flags.DEFINE_list("models", ["linear", "mlp", "attention"], "by name")
_SEEDS = flags.DEFINE_integer("seeds", 5, "models trained under each loss", lower_bound=1)
_FEATURES = flags.DEFINE_string("features", "standardize", "standardize, log1p or none")
_EMPTY = flags.DEFINE_string("empty", "skip", "skip, zero or one")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    dataset = al.load_dataset(_DATA.value) if _DATA.value else al.synthetic()
    losses = [al.parse(text) for text in _LOSS.value]
    for model in _MODELS.value:
        config = al.EffectivenessConfig(
            model=model, features=_FEATURES.value, seeds=_SEEDS.value, empty=_EMPTY.value
        )
        result = al.effectiveness_test(
            dataset,
            losses,
            config,
            out=str(Path(_OUT.value) / model),
            on_progress=lambda text, share: logging.info("%s, %.0f %%", text, 100 * share),
        )
        print(f"{model}: {result['verdict']}")
        Console().print(effectiveness_table(result))


if __name__ == "__main__":
    app.run(main)
