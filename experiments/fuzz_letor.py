"""Coverage-guided fuzzing of the LETOR readers, on the oracle of the tests.

    pip install atheris                 # CPython 3.11 to 3.13 on Linux
    PYTHONPATH=. python experiments/fuzz_letor.py -max_total_time=600 CORPUS_FOLDER

The corpus folder is filled with the made-up files if it is empty, and grows by whatever covers
something new; more options are libFuzzer's. A file on which the package and the reference differ,
that takes too long, or that raises anything but AutolossError is kept as `crash-*` and ends the
run; give its name instead of the folder to see it again.
"""

import logging
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

import atheris
import pytest

with atheris.instrument_imports(include=["autoloss_jax.data", "tests.faults.letor_reference"]):
    from tests.faults import letor_oracle
from tests.faults.letor_mutations import make_files, mutate

FOLDER = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
BLOCKS = (1, 7, 30, 100, 1000, letor_oracle.LIMITS.line_bytes)
PATCH = pytest.MonkeyPatch()
COUNTS = {"accepted": 0, "refused": 0}


def check_file(data: bytes) -> None:
    """The first byte says where blocks end and whether the cache takes part."""
    how, content = data[0] if data else 0, data[1:]
    PATCH.undo()
    letor_oracle.set_limits(PATCH, BLOCKS[how % len(BLOCKS)])
    path = FOLDER / "file.txt"
    path.write_bytes(content)
    packed = content[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7")
    expected = letor_oracle.Refused(0) if packed else letor_oracle.expect(content)
    cache = FOLDER / "cache" if how >= 192 else None
    good = letor_oracle.check(path, cache, expected, may_be_refused=packed)
    COUNTS["accepted" if good else "refused"] += 1
    if sum(COUNTS.values()) % 10_000 == 0:
        print(COUNTS, flush=True)
        shutil.rmtree(FOLDER / "cache", ignore_errors=True)


def change(data: bytes, max_size: int, seed: int) -> bytes:
    """Half by libFuzzer's own mutations, half by those of the tests."""
    rng = random.Random(seed)
    if not data or rng.random() < 0.5:
        return atheris.Mutate(data, max_size)
    return (data[:1] + mutate(rng, data[1:]))[:max_size]


def fill(corpus: Path) -> None:
    corpus.mkdir(parents=True, exist_ok=True)
    if not any(corpus.iterdir()):
        for number, content in enumerate(make_files()):
            for how in (2, 199):
                (corpus / f"{number}-{how}").write_bytes(bytes([how]) + content)


def main() -> None:
    os.fsync = lambda file: None  # durability is not what is looked at
    logging.getLogger("autoloss_jax.data.roles").setLevel(logging.ERROR)
    logging.lastResort = None
    for argument in sys.argv[1:]:
        if not argument.startswith("-") and not Path(argument).is_file():
            fill(Path(argument))
    defaults = ["-max_len=6000", "-timeout=30", "-rss_limit_mb=8000"]
    atheris.Setup([sys.argv[0], *defaults, *sys.argv[1:]], check_file, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
