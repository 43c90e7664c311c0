"""The cache of parsed text: the same data, and never stale or damaged data."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from autoloss_jax.data import letor_cache, load_letor, read_letor
from autoloss_jax.data.letor_cache import read_cached
from autoloss_jax.errors import AutolossError

PLAIN = "2 qid:1 1:0.5 2:1\n0 qid:1 1:3 2:-4e-06\n1 qid:\xe4 1:7 2:8\n"
LONG_AGO = 1_000_000_000


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """Files that were just written count as if they had been for long."""
    monkeypatch.setattr(letor_cache, "_SETTLED_SECONDS", -1.0)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text(PLAIN, encoding="utf-8")
    return path


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def parsed(monkeypatch):
    """The files that were parsed, not taken from the cache."""
    calls = []

    def parse(path):
        calls.append(path)
        return original(path)

    original = letor_cache.parse_letor
    monkeypatch.setattr(letor_cache, "parse_letor", parse)
    return calls


def entry_of(cache):
    (about,) = cache.glob("letor-2/*/about.json")
    return about.parent


def assert_same(cached, path):
    queries, expected = cached.to_queries(2, False), read_letor(path)
    for name in ("features", "labels", "offsets"):
        np.testing.assert_array_equal(getattr(queries, name), getattr(expected, name))
    assert queries.query_ids == expected.query_ids


def test_it_is_parsed_once_and_mapped_then(text, cache, parsed):
    for _ in range(3):
        found = read_cached(text, cache)
        assert isinstance(found.features, np.memmap)
        assert_same(found, text)
    assert parsed == [text]
    assert not list(cache.rglob("*.tmp"))


def test_facts_that_are_warned_of_are_kept(tmp_path, cache, caplog):
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("train", "vali", "test"):
        (folder / f"{name}.txt").write_text(f"0 qid:{name} 0:5 2:1\n1 qid:{name} 1:6 1:7\n")
    plain = load_letor(folder)
    warned = caplog.text
    for _ in range(2):
        caplog.clear()
        cached = load_letor(folder, cache=cache)
        assert cached.sha256 == plain.sha256
        assert caplog.text == warned and "the first is line 2" in warned
        np.testing.assert_array_equal(cached.folds[0].train.features, [[5, 0, 1], [0, 7, 0]])


def test_mapped_features_are_not_copied(tmp_path, cache):
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("train", "vali", "test"):
        (folder / f"{name}.txt").write_text(PLAIN.replace("qid:", f"qid:{name}"))
    train = load_letor(folder, cache=cache).folds[0].train
    base = train.features
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)


def test_a_changed_text_is_parsed_again(text, cache, parsed):
    read_cached(text, cache)
    text.write_text(PLAIN.replace("0.5", "0.7"))
    assert_same(read_cached(text, cache), text)
    assert len(parsed) == 2


def test_an_edit_that_hides_its_time_is_noticed(text, cache, parsed):
    """The same size and time of modification: the time of change tells."""
    os.utime(text, (LONG_AGO, LONG_AGO))
    read_cached(text, cache)
    text.write_text(PLAIN.replace("0.5", "0.7"))
    os.utime(text, (LONG_AGO, LONG_AGO))
    assert_same(read_cached(text, cache), text)
    assert len(parsed) == 2


def test_the_place_of_a_text_does_not_matter(text, cache, parsed, tmp_path):
    read_cached(text, cache)
    copy = tmp_path / "copy.txt"
    copy.write_bytes(text.read_bytes())
    os.utime(text)  # touched, not changed: hashed again and found
    for path in (copy, text):
        assert_same(read_cached(path, cache), path)
    assert parsed == [text]


def test_a_text_that_was_just_written_is_hashed_again(text, cache, monkeypatch):
    monkeypatch.setattr(letor_cache, "_SETTLED_SECONDS", 1e6)
    hashed = []
    original = letor_cache._hash
    monkeypatch.setattr(letor_cache, "_hash", lambda path: hashed.append(path) or original(path))
    for _ in range(2):
        read_cached(text, cache)
    assert hashed == [text]  # nothing was stamped; the first time it was hashed while parsed
    monkeypatch.setattr(letor_cache, "_SETTLED_SECONDS", -1.0)
    for _ in range(3):
        read_cached(text, cache)
    assert len(hashed) == 2  # hashed once more and stamped
    read_cached(text, cache, verify=True)
    assert len(hashed) == 6  # the text and three arrays


def damage_bytes(entry):
    path = entry / "features.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def damage_size(entry):
    (entry / "labels.npy").write_bytes(b"")


def damage_about(entry):
    path = entry / "about.json"
    path.write_text(path.read_text().replace('"highest": 2', '"highest": 3'))


def cut_about(entry):
    path = entry / "about.json"
    path.write_text(path.read_text()[:50])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_bytes, "features.npy has another hash than when it was written"),
        (damage_size, "labels.npy has 0 bytes, expected 140"),
        (damage_about, "about.json is not what was written"),
        (cut_about, "about.json is not what was written"),
        (lambda entry: (entry / "starts.npy").unlink(), "No such file"),
    ],
)
def test_a_damaged_entry_is_noticed_and_made_again(text, cache, parsed, caplog, damage, message):
    read_cached(text, cache)
    damage(entry_of(cache))
    with caplog.at_level(logging.WARNING):
        assert_same(read_cached(text, cache), text)
    assert message in caplog.text and "the text is parsed again" in caplog.text
    assert_same(read_cached(text, cache), text)
    assert len(parsed) == 2


def test_silent_damage_is_found_by_verifying(text, cache, parsed):
    """A bit that flips without a write leaves the times alone: only hashing finds it."""
    read_cached(text, cache)
    path = entry_of(cache) / "features.npy"
    before = path.stat()
    damage_bytes(path.parent)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    read_cached(text, cache)
    assert len(parsed) == 1
    assert_same(read_cached(text, cache, verify=True), text)
    assert len(parsed) == 2


def test_a_copied_cache_is_good(text, cache, parsed):
    read_cached(text, cache)
    for path in entry_of(cache).iterdir():
        os.utime(path, (LONG_AGO, LONG_AGO))
    assert_same(read_cached(text, cache), text)
    assert len(parsed) == 1


def test_a_cache_that_cannot_be_written_is_warned_of(text, tmp_path, caplog):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file")
    with caplog.at_level(logging.WARNING):
        assert_same(read_cached(text, blocked), text)
    assert "the parsed arrays are not cached" in caplog.text


def test_a_kill_while_storing_leaves_no_entry(text, cache, monkeypatch, parsed):
    original = Path.rename
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        read_cached(text, cache)
    assert not list(cache.rglob("*.npy"))
    monkeypatch.setattr(Path, "rename", original)
    assert_same(read_cached(text, cache), text)
    assert len(parsed) == 2


def test_what_a_killed_process_left_is_removed_after_a_day(text, cache):
    old, new = cache / "letor-2" / ".a.0.tmp", cache / "letor-2" / ".b.0.tmp"
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "features.npy").touch()
    os.utime(old, (LONG_AGO, LONG_AGO))
    read_cached(text, cache)
    assert not old.exists() and new.exists()


def test_bad_texts_are_refused_and_not_cached(text, cache, tmp_path):
    text.write_text("1 qid:1 1:x\n")
    for _ in range(2):
        with pytest.raises(AutolossError, match="file.txt:1: value of feature 1 is 'x'"):
            read_cached(text, cache)
    with pytest.raises(AutolossError, match="missing.txt: no such file"):
        read_cached(tmp_path / "missing.txt", cache)
    assert not list(cache.rglob("*.npy"))


def test_nothing_in_the_cache_can_run(text, cache):
    """Arrays without objects, JSON with its hash, no other file."""
    read_cached(text, cache)
    names = {path.name for path in entry_of(cache).iterdir()}
    assert names == {"features.npy", "labels.npy", "starts.npy", "about.json"}
    for path in entry_of(cache).glob("*.npy"):
        np.load(path, allow_pickle=False)
    json.loads((entry_of(cache) / "about.json").read_text())
