"""Settings of every test run: the CPU with two (fake) devices, and how Hypothesis draws.

The environment has to be set before anything imports jax, hence here and at import.
"""

import os

_DEVICES_FLAG = "--xla_force_host_platform_device_count"
if _DEVICES_FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES_FLAG}=2".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

# An example may compile a program, so neither a deadline nor a check of speed says anything here.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("dev", **_COMMON)
settings.register_profile("ci", derandomize=True, print_blob=True, **_COMMON)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


# How much is injected by the tests of faults. The defaults suit every run of the tests;
# docs/reliability.md has the commands, and what larger runs of them found.
FAULTS = {
    "kills": (6, "kills at random moments of a run"),
    "fuzz-files": (1_000, "mutated LETOR files that are read"),
    "fuzz-formulas": (5_000, "mutated formulas that are parsed"),
    "fault-seed": (0, "seed of the injected faults"),
}


def pytest_addoption(parser):
    for name, (default, text) in FAULTS.items():
        parser.addoption(f"--{name}", type=int, default=default, metavar="N", help=text)


@pytest.fixture(autouse=True, scope="session")
def user_cache(tmp_path_factory):
    """Nothing that is tested writes to the cache folder of who tests it."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder
