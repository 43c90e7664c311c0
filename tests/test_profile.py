"""The profile of a search."""

import contextlib
import time

import jax
import jax.numpy as jnp
import pytest

from autoloss_jax import profile
from autoloss_jax.profile import STAGES, Profile, profile_table


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""
    now = [100.0]
    monkeypatch.setattr(profile.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(profile.time, "process_time", lambda: 2 * now[0])  # both cores are busy

    def move(seconds):
        now[0] += seconds

    return move


def test_every_moment_counts_for_the_innermost_stage(clock):
    measured = Profile()
    clock(50)  # before it is measuring
    with measured.measuring():
        clock(1)
        with measured.stage("deduplication"):
            clock(2)
            with measured.stage("rejection"):
                clock(4)
            clock(8)
        with contextlib.suppress(KeyError), measured.stage("training"):
            clock(16)
            raise KeyError
        clock(32)
    clock(64)
    expected = dict.fromkeys(STAGES, 0.0)
    expected |= {"host": 33, "deduplication": 10, "rejection": 4, "training": 16}
    assert measured.seconds == expected
    assert measured.processor_seconds == {name: 2 * value for name, value in expected.items()}


def test_compilation_counts_as_such_wherever_it_happens():
    measured = Profile()
    with measured.measuring(), measured.stage("training"):
        jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((17, 17)))
    compiling = measured.seconds["compilation"]
    assert compiling > 0
    jax.jit(lambda x: jnp.cos(x) @ x)(jnp.ones((17, 17)))  # no longer measured
    assert measured.seconds["compilation"] == compiling


def test_the_table_shows_shares_of_all_but_compilation(clock):
    measured = Profile()
    with measured.measuring():
        with measured.stage("training"):
            clock(90)
        with measured.stage("compilation"):
            clock(1000)
        clock(10)
    measured.trained = 5
    described = measured.described()
    assert described["candidates_per_hour"] == 5 * 3600 / 100
    assert described["total_seconds"] == 1100
    lines = profile_table(described).splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == list(STAGES)
    assert "training           90.00    90.0%      180.00" in lines
    assert "compilation      1000.00" + 9 * " " + "     2000.00" in lines
    assert lines[-1].endswith("5 candidates trained in 100.0 s without compilation: 180 an hour")


def test_nothing_measured_has_no_rate():
    assert Profile().described()["candidates_per_hour"] is None
    assert "0 candidates" in profile_table(Profile().described())
    assert time.perf_counter() > 0
