"""What a search does besides computing, as Python's audit hooks hear it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

AUDITED = """
import json, sys, traceback

EVENTS = {{"pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn",
          "os.spawn", "os.fork", "os.forkpty", "pty.spawn", "socket.connect", "socket.bind",
          "urllib.Request", "ftplib.connect", "webbrowser.open", "os.startfile"}}
heard = []


def audit(event, arguments):
    if event in EVENTS:
        where = [frame.filename for frame in traceback.extract_stack()[:-1]]
        heard.append([event, repr(arguments)[:200], where])


sys.addaudithook(audit)
from autoloss_jax.cli import main

status = main({arguments!r})
import pickle, os

before = len(heard)
pickle.loads(pickle.dumps(os.path.join))
assert len(heard) > before, "the hook hears nothing"
print(json.dumps([status, heard[:before]]))
"""

# What libraries do on their own account, by event and the part of a path it comes from.
ALLOWED: dict[str, tuple[str, ...]] = {
    # `platform.processor`, which jax and numpy may ask for, calls `uname -p`.
    "subprocess.Popen": ("platform.py",),
}


@pytest.mark.slow
def test_a_search_starts_no_process_and_unpacks_no_code(tmp_path):
    arguments = [
        "autoloss", "run", "--budget=2", "--proposals=8", "--proposer=random", "--model=linear",
        "--hall_of_fame=2", "--fresh_seeds=1", "--finalists=1", "--proxy_rung_steps=2",
        "--proxy_rungs=1", "--test_seeds=1", "--max_buckets=1", "--test_learning_rates=0.01",
        "--test_confirmation_seeds=2", "--test_max_steps=20", "--hand_designed=mse",
        f"--out={tmp_path / 'run'}",
        f"--compilation_cache={tmp_path / 'cache'}",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", AUDITED.format(arguments=arguments)],
        cwd=tmp_path, capture_output=True, text=True, timeout=900,
        env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin",
             "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    status, heard = json.loads(done.stdout.splitlines()[-1])
    assert status == 0
    unexpected = [
        (event, what, where[-3:])
        for event, what, where in heard
        if not any(path.endswith(where_from) for where_from in ALLOWED.get(event, ())
                   for path in where)
    ]  # fmt: skip
    assert unexpected == []
    ours = [what for _, what, where in heard if where and "autoloss_jax" in where[-1]]
    assert ours == []
