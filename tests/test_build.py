# SPDX-License-Identifier: GPL-2.0-only
"""A build cannot be mistaken for the other."""

from __future__ import annotations

import importlib
import importlib.machinery
import io
import itertools
import os
import pathlib
import subprocess
import sys
import types

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
    [({"KVMMU_PURE": "1"}, "KVMMU_PURE"), ({"CC": "no-such-compiler"}, "no-such-compiler"), ({"CC": "false"}, "false")],
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


def test_every_room_and_what_they_share_has_an_extension_where_nothing_is_missing() -> None:
    program = "import build_ext; print(len(build_ext.extensions()), 1 + len(build_ext.COMPILED))"
    done = run_python("-c", program, PYTHONPATH=str(house.ROOT), KVMMU_REQUIRE_COMPILED="1")
    assert done.returncode == 0, done.stderr
    made, listed = done.stdout.split()
    assert made == listed


def progress_of(rooms: int, *, is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a build of so many new rooms says."""
    said = io.StringIO()
    said.isatty = lambda: is_terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", said)
    clock = itertools.count(step=4.0)
    settings = house.build_settings()
    monkeypatch.setattr(settings, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    progress = settings._Progress(rooms)
    for _ in range(rooms):
        progress.note(was_compiled=True)
    progress.end()
    return said.getvalue()


def test_a_count_is_kept_in_one_line_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, rest = progress_of(2, is_terminal=True, monkeypatch=monkeypatch).split("\r")[1:]
    assert (first, second) == ("kvmmu: 1 of 2 rooms are compiled", "kvmmu: 2 of 2 rooms are compiled")
    assert rest.removeprefix("\x1b[K").startswith("kvmmu: compiled 2 of 2 rooms, ")
    assert rest.endswith("s\n")


def test_a_count_is_a_few_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    said = progress_of(54, is_terminal=False, monkeypatch=monkeypatch)
    assert "\r" not in said
    # Every ten seconds of a clock that goes on by four at each look.
    assert 5 < len(said.splitlines()) < 27
    assert said.splitlines()[-1].startswith("kvmmu: compiled 54 of 54 rooms, ")


def test_rooms_that_are_optimised_otherwise_are_compiled_rooms() -> None:
    settings = house.build_settings()
    listed = [*settings.OFTEN, *settings.SELDOM]
    assert len(listed) == len(set(listed))
    assert set(listed) <= set(settings.COMPILED)


def test_own_flags_replace_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = house.build_settings()
    flags = {tuple(settings._compiler_settings(step)["extra_compile_args"]) for step in ("-O1", "-O3")}
    assert len(flags) == 2
    monkeypatch.setenv("KVMMU_CFLAGS", "-O0 -g")
    assert settings._compiler_settings("-O3") == {"extra_compile_args": ["-O0", "-g", *settings.FLAGS]}
