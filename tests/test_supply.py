"""What the package stands on: tested ranges, and licences that go with its own."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

_REQUIREMENT = re.compile(r"([\w.-]+?)>=([\d.]+)(?:,<([\d.]+))?")

# Licences whose code may be depended on by a program under Apache 2.0: permissive ones, and weak
# copyleft by file, which asks nothing of who imports it.
COMPATIBLE = {
    "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "HPND", "ISC", "MIT", "MIT-0",
    "MPL-2.0", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib", "0BSD", "BSL-1.0",
}  # fmt: skip
WITH_EXCEPTION = {"GPL-3.0-or-later WITH GCC-exception-3.1", "GCC-exception-3.1"}
"""Of compiler runtimes inside wheels: the exception is for exactly this use."""
_NAMES = {
    "apache 2.0": "Apache-2.0", "apache-2.0": "Apache-2.0", "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0", "apache software license": "Apache-2.0",
    "apache": "Apache-2.0", "bsd": "BSD-3-Clause", "bsd license": "BSD-3-Clause",
    "bsd-3-clause": "BSD-3-Clause", "3-clause bsd license": "BSD-3-Clause",
    "bsd 3-clause license": "BSD-3-Clause", "mit": "MIT", "mit license": "MIT",
    "isc license (iscl)": "ISC", "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0", "psf": "PSF-2.0",
}  # fmt: skip


def closure(name: str) -> dict[str, metadata.Distribution]:
    """The installed distributions that one needs, and those need, with the extras asked for."""
    found: dict[str, metadata.Distribution] = {}
    seen, pending = set(), [Requirement(name)]
    while pending:
        requirement = pending.pop()
        name, extras = canonicalize_name(requirement.name), {"", *requirement.extras}
        if (name, *sorted(extras)) in seen:
            continue
        seen.add((name, *sorted(extras)))
        found[name] = metadata.distribution(name)
        for wanted in map(Requirement, found[name].requires or ()):
            if not wanted.marker or any(wanted.marker.evaluate({"extra": e}) for e in extras):
                pending.append(wanted)
    return found


def licence(distribution: metadata.Distribution) -> str:
    """An SPDX expression, by what a distribution says of itself; otherwise its words."""
    about = distribution.metadata
    if about.get("License-Expression"):
        return about.get("License-Expression")
    classified = [
        _NAMES.get(c.rpartition(" :: ")[2].lower(), "")
        for c in about.get_all("Classifier", [])
        if c.startswith("License ::") and not c.endswith("OSI Approved")
    ]
    if classified and all(classified):
        return " AND ".join(classified)
    text = (about.get("License") or "").strip()
    return _NAMES.get(text.lower(), text)


def is_compatible(expression: str) -> bool:
    """Whether every part of an SPDX expression that binds, and one of each choice, is allowed."""
    if not expression:
        return False
    expression = expression.replace("(", " ").replace(")", " ")
    for part in re.split(r"\s+AND\s+", expression.strip()):
        choices = [choice.strip() for choice in re.split(r"\s+OR\s+", part)]
        if not any(choice in COMPATIBLE | WITH_EXCEPTION for choice in choices):
            return False
    return True


def test_every_dependency_has_a_licence_that_goes_with_ours():
    found = closure("autoloss_jax")
    assert {"jax", "jaxlib", "flax", "numpy", "scipy", "optax", "msgpack"} <= found.keys()
    stated = {name: licence(distribution) for name, distribution in found.items()}
    assert {name: text for name, text in stated.items() if not is_compatible(text)} == {}


@pytest.mark.parametrize(
    "expression, answer",
    [
        ("MIT", True),
        ("Apache-2.0 AND BSD-2-Clause", True),
        ("GPL-3.0-only OR MIT", True),
        ("BSD-3-Clause AND GPL-3.0-or-later WITH GCC-exception-3.1", True),
        ("GPL-3.0-only", False),
        ("MIT AND AGPL-3.0-or-later", False),
        ("LGPL-3.0-only", False),
        ("", False),
    ],
)
def test_a_licence_that_binds_us_is_found(expression, answer):
    assert is_compatible(expression) == answer


def test_our_own_licence_is_apache():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert PROJECT["license"] == "Apache-2.0"
    assert PROJECT["license-files"] == ["LICENSE"]
    # No file of another's: a NOTICE would have to be passed on, and there is none to pass on.
    assert not (ROOT / "NOTICE").exists()
    for path in sorted((ROOT / "autoloss_jax").rglob("*.py")):
        assert not re.search(r"Copyright|SPDX-License-Identifier: (?!Apache-2.0)", path.read_text())


def pinned(text: str) -> dict[str, str]:
    lines = (line.strip() for line in text.splitlines())
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def numbers(version: str) -> tuple[int, ...]:
    parts = [int(part) for part in version.split(".")]
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def test_the_oldest_versions_are_the_lower_bounds():
    bounds = {}
    for requirement in PROJECT["dependencies"]:
        match = _REQUIREMENT.fullmatch(requirement)
        assert match, f"{requirement}: expected a lower bound, and an upper one only if need be"
        bounds[match[1]] = match[2]
    oldest = pinned((ROOT / "tests" / "oldest.txt").read_text())
    assert oldest.keys() == bounds.keys()
    for name, version in oldest.items():
        assert numbers(version) == numbers(bounds[name]), name


def test_what_is_installed_lies_in_the_tested_ranges():
    for requirement in PROJECT["dependencies"]:
        name, low, high = _REQUIREMENT.fullmatch(requirement).groups()
        installed = numbers(re.match(r"[\d.]+", metadata.version(name))[0].strip("."))
        assert installed >= numbers(low), requirement
        assert high is None or installed < numbers(high), requirement


def test_pythons_are_named_as_they_are_required():
    named = {c.rpartition(" ")[2] for c in PROJECT["classifiers"] if "Python :: 3." in c}
    assert PROJECT["requires-python"] == ">=3.11,<3.14"
    assert named == {"3.11", "3.12", "3.13"}
