# SPDX-License-Identifier: GPL-2.0-only
"""A build cannot be mistaken for the other."""

from __future__ import annotations

import importlib
import importlib.machinery
import os
import pathlib
import subprocess
import sys

import pytest

import house
import kvmmu

_EXTENSIONS = tuple(importlib.machinery.EXTENSION_SUFFIXES)


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A new interpreter on the package under test, with a build's variables and no others."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith("KVMMU_")}
    keep["PYTHONPATH"] = str(pathlib.Path(kvmmu.__file__).parent.parent)
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=keep | environment, check=False
    )


def loaded_from() -> dict[str, bool]:
    """For each compiled room, whether it was really loaded from an extension."""
    found = {}
    for room in house.compiled_rooms():
        module = importlib.import_module("kvmmu." + room.replace("/", "."))
        found[room] = str(module.__file__).endswith(_EXTENSIONS)
    return found


def test_every_room_is_of_the_build_that_was_asked_for() -> None:
    extensions = loaded_from()
    if os.environ.get("KVMMU_PURE", "0") not in ("", "0"):
        assert not any(extensions.values()), extensions
    elif os.environ.get("KVMMU_REQUIRE_COMPILED", "0") not in ("", "0"):
        assert all(extensions.values()), extensions
    else:
        assert len(set(extensions.values())) == 1, extensions


def test_build_info_tells_what_was_loaded() -> None:
    extensions = loaded_from()
    info = kvmmu.build_info()
    assert set(info.rooms) == set(extensions)
    assert set(info.compiled) == {room for room, is_extension in extensions.items() if is_extension}
    assert info.is_compiled == all(extensions.values())
    assert bool(info.reason) == (not info.is_compiled)


def test_an_extension_is_not_older_than_its_source() -> None:
    package = pathlib.Path(kvmmu.__file__).parent
    stale = []
    for room in kvmmu.build_info().compiled:
        built = importlib.import_module("kvmmu." + room.replace("/", ".")).__file__
        assert built is not None
        sources = [package / f"{room}{suffix}" for suffix in (".py", ".pxd")]
        if any(source.stat().st_mtime > pathlib.Path(built).stat().st_mtime for source in sources):
            stale.append(room)
    assert stale == []


def test_version_says_which_build_it_is() -> None:
    done = run_python("-m", "kvmmu", "--version", **{name: os.environ.get(name, "") for name in ("KVMMU_PURE",)})
    assert done.stdout == f"kvmmu {kvmmu.__version__}, {kvmmu.build_info()}\n"
    assert done.returncode == 0


def test_pure_is_interpreted_even_beside_extensions() -> None:
    program = "import kvmmu.addr as room, kvmmu; print(room.__file__.endswith('.py'), kvmmu.build_info().compiled)"
    done = run_python("-c", program, KVMMU_PURE="1")
    assert (done.stdout, done.stderr) == ("True ()\n", "")
    assert "interpreted: KVMMU_PURE is set" in run_python("-m", "kvmmu", "--version", KVMMU_PURE="1").stdout


def test_an_interpreted_build_is_refused_where_a_compiled_one_is_required() -> None:
    done = run_python("-c", "import kvmmu", KVMMU_PURE="1", KVMMU_REQUIRE_COMPILED="1")
    assert done.returncode != 0
    assert "KVMMU_REQUIRE_COMPILED is set, but this build is interpreted: KVMMU_PURE is set" in done.stderr


@pytest.mark.parametrize(
    ("environment", "named"),
    [({"KVMMU_PURE": "1"}, "KVMMU_PURE"), ({"CC": "no-such-compiler"}, "no-such-compiler")],
)
def test_building_says_why_it_falls_back(environment: dict[str, str], named: str) -> None:
    program = "import build_ext; print(build_ext.extensions())"
    search = {"PYTHONPATH": str(house.ROOT)}
    done = run_python("-c", program, **search, **environment)
    assert done.stdout == "[]\n"
    assert done.stderr.count("\n") == 1
    assert "building interpreted" in done.stderr
    assert named in done.stderr
    refused = run_python("-c", program, **search, **environment, KVMMU_REQUIRE_COMPILED="1")
    assert refused.returncode != 0
    assert named in refused.stderr


def test_every_room_has_an_extension_where_nothing_is_missing() -> None:
    program = "import build_ext; print(len(build_ext.extensions()), len(build_ext.COMPILED))"
    done = run_python("-c", program, PYTHONPATH=str(house.ROOT), KVMMU_REQUIRE_COMPILED="1")
    assert done.returncode == 0, done.stderr
    made, listed = done.stdout.split()
    assert made == listed
