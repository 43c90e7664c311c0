"""A run folder with damaged files, on a full disk, or in use: what is said, and what is lost."""

import contextlib
import errno
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from autoloss_jax import convergence, files, fold_tests, interruption, runs
from autoloss_jax.cli import commands, main
from autoloss_jax.files import read_json, read_ledger
from autoloss_jax.proxy import ProxyTraining
from autoloss_jax.runs import RunFolder

ROOT = Path(__file__).parents[2]
RESULTS = ("finalists.json", "effectiveness.json", "per_query.npz", "best_loss.py")


def call(*arguments):
    return main(["autoloss", *map(str, arguments)])


def results(folder):
    """All of a run, wall-clock fields aside."""
    records = read_ledger(folder / "ledger.jsonl")
    assert records
    for record in records:
        del record["seconds"]
    return records, {name: (folder / name).read_bytes() for name in RESULTS}


SYNCS: list[tuple[str, ...]] = []
"""What was synced and renamed in the run of `finished`, in order."""


@pytest.fixture(scope="module")
def finished(tiny_run, tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    fsync, replace = os.fsync, os.replace

    def synced(descriptor):
        SYNCS.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def renamed(source, target):
        SYNCS.append(("rename", str(source), str(target)))
        replace(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", synced)
        patch.setattr(os, "replace", renamed)
        assert call(*tiny_run, f"--out={folder}") == 0
    return folder


@pytest.fixture
def again(finished, tmp_path):
    """A copy of it, to be damaged."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    return folder


# --- a run that is finished ---


@pytest.mark.slow
def test_a_finished_run_is_not_run_again(tiny_run, finished, again, capsys):
    before = {name: (again / name).stat().st_mtime_ns for name in RESULTS[:3]}
    (again / "report.html").unlink()
    assert call(*tiny_run, f"--out={again}") == 0
    assert "Best found loss" in capsys.readouterr().out
    assert {name: (again / name).stat().st_mtime_ns for name in before} == before
    assert results(again) == results(finished)
    assert (again / "report.html").exists()


@pytest.mark.slow
def test_every_file_is_synced_before_its_rename_and_its_folder_after(finished):
    written = {path for path in finished.rglob("*") if path.is_file()}
    grown = {finished / name for name in ("ledger.jsonl", "lock", "run.log")}
    assert written - grown > {finished / name for name in (*RESULTS, "report.html", "config.json")}
    for path in written - grown:
        place = next(k for k, event in enumerate(SYNCS) if event[2:] == (str(path),))
        assert SYNCS[place - 1] == ("sync", SYNCS[place][1])
        assert SYNCS[place + 1] == ("sync", str(path.parent))
    assert ("sync", str(finished / "ledger.jsonl")) in SYNCS


# --- damaged files ---

DAMAGES = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "garbage": lambda content: b"\x00\xff" * 40,
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize(
    "name, advice",
    [
        ("config.json", "put back a copy of it, or begin in another folder"),
        ("finalists.json", "remove it and give the command again"),
        ("effectiveness.json", "remove it and give the command again"),
        ("per_query.npz", "remove it and effectiveness.json and give the command again"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(tiny_run, again, capsys, name, advice, damage):
    path = again / name
    path.write_bytes(damage(path.read_bytes()))
    before = {p: p.read_bytes() for p in again.rglob("*") if p.is_file() and p.name != "run.log"}
    for command in ([*tiny_run, f"--out={again}"], ["report", again], ["export", "--from", again]):
        assert call(*command) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert f"{path} is damaged" in said
        assert advice in said
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [["effectiveness.json"], ["per_query.npz", "effectiveness.json"], ["finalists.json"]]
)
def test_what_is_removed_as_advised_comes_again(tiny_run, finished, again, names):
    for name in names:
        (again / name).unlink()
    assert call(*tiny_run, f"--out={again}") == 0
    assert results(again) == results(finished)


@pytest.mark.slow
def test_a_damaged_line_of_the_ledger_is_named_and_the_search_can_be_done_again(
    tiny_run, finished, again, capsys
):
    ledger = again / "ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join([lines[0], "x" + lines[1][1:], *lines[2:]]))
    assert call(*tiny_run, f"--out={again}") == 2
    said = capsys.readouterr().err
    assert f"{ledger}, line 2 is damaged" in said
    assert "remove it, finalists.json and checkpoints/search, and give the command again" in said
    for path in (ledger, again / "finalists.json"):
        path.unlink()
    assert call(*tiny_run, f"--out={again}") == 2  # checkpoints know of records that are gone
    assert "holds 0 records: expected at least" in capsys.readouterr().err
    shutil.rmtree(again / "checkpoints" / "search")
    assert call(*tiny_run, f"--out={again}") == 0
    assert results(again) == results(finished)


# --- stopped ---

STOPS = [  # what is called for the which time when the signal comes
    (ProxyTraining, "run", 2, signal.SIGTERM),
    (convergence, "_plan", 4, signal.SIGINT),
    (fold_tests, "_read_test", 3, signal.SIGTERM),
    (commands, "write_report", 1, signal.SIGINT),
]


@pytest.mark.slow
def test_stopped_by_signals_in_both_phases_it_goes_on(
    tiny_run, finished, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(interruption, "SECONDS", 0.0)
    monkeypatch.setattr(interruption, "SHARE", float("inf"))
    out = tmp_path / "run"
    for owner, name, count, number in STOPS:
        left = [count]
        function = getattr(owner, name)

        def stopping(*arguments, left=left, function=function, number=number, **settings):
            left[0] -= 1
            if left[0] == 0:
                signal.raise_signal(number)
            return function(*arguments, **settings)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stopping)
            assert call(*tiny_run, f"--out={out}") == 128 + number
        said = capsys.readouterr().err.splitlines()[-1]
        assert f"stopped by {number.name}; to go on: autoloss run" in said
        assert f"--out={out}" in said
        if name == "_plan":
            saved = (out / "checkpoints" / interruption.TRAINING).iterdir()
            assert sorted(path.stem for path in saved) == ["00000001", "00000002", "00000003"]
    assert call(*tiny_run, f"--out={out}") == 0
    assert "the test is finished already" in capsys.readouterr().err
    assert results(out) == results(finished)


@pytest.mark.slow
def test_another_environment_is_warned_of(tiny_run, finished, again, capsys):
    for name in ("finalists.json", "effectiveness.json"):  # both phases go on
        (again / name).unlink()
    stored = read_json(again / "config.json")
    stored["fingerprint"]["versions"]["jax"] = "0.0.1"
    files.write_json(again / "config.json", stored)
    assert call(*tiny_run, f"--out={again}") == 0
    said = capsys.readouterr().err
    assert "was begun in another environment, so its last digits may differ" in said
    assert 'versions.jax: stored "0.0.1", now' in said
    assert len(read_json(again / "config.json")["resumed_with"]) == 1
    assert results(again) == results(finished)


# --- a folder in use ---


@pytest.mark.slow
def test_a_folder_in_use_is_refused_and_may_be_read(tiny_run, again, capsys):
    config = read_json(again / "config.json")["config"]
    (again / "effectiveness.json").unlink()  # as if the other run were testing
    with RunFolder.open(again, config):
        began = time.monotonic()
        assert call(*tiny_run, f"--out={again}") == 2
        said = capsys.readouterr().err
        assert re.search(rf"in use by another run \(process {os.getpid()} on \S+, since \d", said)
        assert time.monotonic() - began < 30  # it does not wait
        for command in (["report", again], ["export", "--from", again],
                        ["explain", "--from", again], ["losses"]):  # fmt: skip
            assert call(*command) == 0
            assert capsys.readouterr().out


# --- a full disk ---


def test_a_log_on_a_full_disk_says_so_once_and_stops_nothing(capsys):
    with runs.attach_log("/dev/full"):
        runs.logging.warning("one")
        runs.logging.warning("two")
    said = capsys.readouterr().err
    assert said.count("/dev/full is not complete: [Errno 28] No space left on device") == 1
    assert "Traceback" not in said


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("write", [
    lambda path: files.write_atomic(path, b"new"),
    lambda path: files.append_ledger(path, [{"index": 1}]),
])  # fmt: skip
def test_a_write_that_fails_names_its_file(tmp_path, monkeypatch, write, code):
    path = tmp_path / "file"
    path.write_bytes(b"{}\n")

    def fail(*_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", fail)
        with pytest.raises(OSError, match=re.escape(os.strerror(code))) as failed:
            write(path)
    assert str(failed.value) == f"[Errno {code}] {os.strerror(code)}: {str(path)!r}"
    assert files.read_ledger(path)[0] == {}
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("code, kind", [(errno.ENOSPC, OSError), (errno.EACCES, Exception)])
def test_a_folder_that_cannot_be_opened(tmp_path, monkeypatch, code, kind):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(kind, match=re.escape(os.strerror(code))):
        RunFolder.open(tmp_path / "run", {})


@pytest.mark.slow
def test_writes_that_fail_stop_the_run_and_lose_nothing(
    tiny_run, finished, tmp_path, capsys, monkeypatch
):
    """In every start the tenth sync fails, until no more are needed."""
    fsync, out = os.fsync, tmp_path / "run"
    for failures in range(20):  # noqa: B007, counted
        left = [10]

        def failing(descriptor, left=left):
            left[0] -= 1
            if left[0] == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing)
            status = call(*tiny_run, f"--out={out}")
        if not status:
            break
        said = capsys.readouterr().err.splitlines()[-1]
        assert status == 1
        assert said.startswith("autoloss: [Errno 28] No space left on device: ")
        assert str(out) in said and "to go on, once that is mended: autoloss run" in said
    assert failures >= 3
    assert results(out) == results(finished)


@contextlib.contextmanager
def small_disk(folder, size):
    """A file system of so many bytes in the memory, mounted at a folder."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("to mount a small disk takes root")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder, left):
    """Fills the disk of a folder but for so many bytes."""
    with (folder / "filler").open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        file.truncate(max(0, file.tell() - left))


@pytest.mark.slow
def test_a_full_disk_stops_the_run_which_goes_on_when_there_is_room(
    tiny_run, finished, tmp_path, capsys, request
):
    disk = tmp_path / "disk"
    disk.mkdir()
    stops = 0
    with small_disk(disk, "8m"):
        out = disk / "run"
        for left in (60_000, 110_000, 180_000):
            fill(disk, left)
            before = {p: p.read_bytes() for p in out.glob("*.json")} if out.exists() else {}
            status = call(*tiny_run, f"--out={out}")
            said = capsys.readouterr().err
            assert status in (0, 1), said
            if status == 1:
                stops += 1
                assert "No space left on device" in said
                assert "to go on, once that is mended: autoloss run" in said
                assert "Traceback" not in said and "Logging error" not in said
                for path, content in before.items():
                    assert path.read_bytes() == content, path
            (disk / "filler").unlink()
        assert stops >= 2
        assert call(*tiny_run, f"--out={out}") == 0
        assert results(out) == results(finished)
