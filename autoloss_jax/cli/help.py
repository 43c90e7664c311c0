"""What `autoloss --help` and `autoloss <command> --help` say."""

from autoloss_jax.cli.flags import CommandFlags

SUMMARIES = {
    "run": "search a loss, test it against the hand-designed ones, write the report",
    "search": "the search alone (Phase I)",
    "test": "the effectiveness test alone (Phase II)",
    "report": "write the page of a run again, or one that compares several runs",
    "data": "look at a data set: counts, lists, labels, what would spoil a result",
    "export": "print a loss as source for jax, torch, numpy or boosting, or as LaTeX",
    "explain": "say what a loss does: how its gradient behaves, what it is like",
    "losses": "list the hand-designed losses",
}

_ABOUT = {
    "run": """\
Searches a loss on training queries (Phase I), trains fresh models to convergence under what was
found and under the hand-designed losses (Phase II), and compares them on test queries. Without
--data it runs on embedded synthetic queries. A run is a folder: config.json, ledger.jsonl,
finalists.json, effectiveness.json, report.html, best_loss.py, run.log. Killed or stopped, the
same command goes on in the same folder; `search` and then `test` with the same flags do the same
in two parts.""",
    "search": """\
Searches a loss on the training queries of one fold. Afterwards `autoloss test` with the same flags
tests the finalists in the same folder; `autoloss test --from DIR --out OTHER` tests them with other
flags, or on other data.""",
    "test": """\
Trains fresh models to convergence under each loss and compares them on test queries: the finalists
of --out if that is a searched folder, those of --from, and every --loss, against the hand-designed
ones. A --loss that is a name counts as hand-designed. --lambdamart adds gradient-boosted trees as a
reference; per_query.npz holds every query's figures, and --dump_scores writes the scores.""",
    "report": """\
Reads a run folder, finished or not, and writes its report.html; nothing else changes. Of several
folders it writes one page that compares them: verdicts, best losses, settings that differ. They
must be runs of the same data.""",
    "data": """\
Prints how many queries, documents and labels each fold and role has, how long the lists are, what
padding them costs, and what is suspicious, with what to do about it: labels, duplicates, queries
shared between roles, features that are constant, wild in scale, or give the label away. Without
FOLDER it looks at the embedded synthetic queries.""",
    "export": "The source is complete: it needs nothing but its target.",
    "explain": """\
Prints canonical form, type, size, depth and LaTeX of a loss; whether shifting or doubling the
scores changes its gradient, whether moving the better document up can raise it, whether its
gradient is bounded, whether it is convex, what it uses of the labels, how it treats ties and lists
without a relevant document, which pairs and ranks it pushes most, and the hand-designed losses
nearest by gradient direction. All of it is measured on fixed probes, none proved.""",
    "losses": "Prints name, formula, paper, and where a loss differs from other implementations.",
}

_EXAMPLES = {
    "run": (
        "autoloss run --budget 500 --out runs/first",
        "autoloss run --data MQ2008 --features none --empty zero --out runs/mq2008",
        "autoloss run --data train.txt,vali.txt,test.txt --proposer evolution --model linear",
    ),
    "search": ("autoloss search --data MQ2008/Fold1 --budget 2000 --out runs/search",),
    "test": (
        "autoloss test --loss 'sum_ij(softplus(s_j - s_i), where=y_i > y_j)' --out runs/test",
        "autoloss test --from runs/search --data MQ2008/Fold1 --test_seeds 10",
        "autoloss test --hand_designed softmax,lambdarank --data MQ2008 --lambdamart",
    ),
    "report": (
        "autoloss report runs/first",
        "autoloss report runs/mlp runs/linear --out mlp_or_linear.html",
    ),
    "data": ("autoloss data MQ2008", "autoloss data --data tfds:mslr_web/10k_fold1"),
    "export": (
        "autoloss export --loss approx_ndcg --target torch",
        "autoloss export --from runs/first --target lightgbm",
    ),
    "explain": (
        "autoloss explain 'mean_i(square(s_i - y_i))'",
        "autoloss explain lambdarank",
        "autoloss explain --from runs/first",
    ),
    "losses": ("autoloss losses",),
}

STATUSES = """\
Exit status:
  0    done
  1    something else went wrong, such as a full disk, or another process of the run is gone
  2    bad input: data, flags, formulas, a folder in use or of another configuration, or a canary
       that failed; one message says what was given and what was expected
  130  stopped by Ctrl-C, 143 by SIGTERM; the same command goes on
  134  another process of the run is gone, as JAX found (it then aborts)"""


def overview() -> str:
    """All commands."""
    width = max(map(len, SUMMARIES))
    lines = [f"  {name:<{width}}  {text}" for name, text in SUMMARIES.items()]
    return "\n".join(
        [
            "autoloss: searches for the loss a learning-to-rank model should be trained with.",
            "",
            "autoloss <command> [flags]",
            "",
            *lines,
            "",
            "`autoloss <command> --help` explains its flags. To begin with:",
            "",
            f"  {_EXAMPLES['run'][0]}",
            "",
            STATUSES,
        ]
    )


def about(command: str) -> str:
    """What a command does, in a few sentences."""
    return _ABOUT[command]


def examples(command: str) -> tuple[str, ...]:
    """Commands to paste."""
    return _EXAMPLES[command]


def explanation(command: str) -> str:
    """One command, its examples and its flags."""
    argument = {"report": " DIR ...", "data": " FOLDER", "explain": " LOSS"}.get(command, "")
    flags = CommandFlags(command).explain()
    parts = [
        f"autoloss {command}{argument}{' [flags]' if flags else ''}: {SUMMARIES[command]}",
        _ABOUT[command],
        "Examples:\n" + "\n".join(f"  {line}" for line in _EXAMPLES[command]),
        flags,
        STATUSES,
    ]
    return "\n\n".join(part for part in parts if part)
