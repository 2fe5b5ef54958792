# SPDX-License-Identifier: GPL-2.0-only
"""A build goes on where the last one ended: it compiles what changed, what was interrupted, and nothing else.

Three rooms of the package are built in a copy, by a compiler that writes down what it compiles.
"""

from __future__ import annotations

import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time

import pytest

import house

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("build_again")]

# Of these, hw/floors uses the header of addr.
ROOMS = ["addr", "hw/floors", "tracepoint"]
_SETUP = f"import build_ext; build_ext.COMPILED[:] = {ROOMS}; import setup"
_CC = """#!/bin/sh
for word; do case "$word" in build/cython/*.c) echo "$word" >>"$LOG" ;; esac; done
case "$*" in *"-c build"*"$HANG.c"*) echo hanging >>"$LOG"; sleep 60 ;; esac
exec {compiler} "$@"
"""


class Tree:
    """A copy of the package that is built."""

    def __init__(self, where: pathlib.Path) -> None:
        self.where = where
        self.log = where / "compiled.log"
        for name in ("build_ext.py", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(house.ROOT / name, where)
        leave = shutil.ignore_patterns("*.so", "*.c", "__pycache__", "recordings")
        shutil.copytree(house.PACKAGE, where / "src" / "kvmmu", ignore=leave)
        compiler = where / "cc"
        compiler.write_text(_CC.format(compiler=sysconfig.get_config_var("CC") or "gcc"), encoding="utf-8")
        compiler.chmod(0o755)

    def start(self, *, hang: str = "nothing", flags: str = "-O0", inplace: bool = True) -> subprocess.Popen[str]:
        keep = {name: value for name, value in os.environ.items() if not name.startswith("KVMMU_")}
        settings = {"CC": str(self.where / "cc"), "LOG": str(self.log), "HANG": hang, "KVMMU_CFLAGS": flags}
        return subprocess.Popen(
            # Started in the background, a test ignores interrupts, and so would what it starts.
            [
                "env",
                "--default-signal=INT",
                sys.executable,
                "-c",
                _SETUP,
                "-q",
                "build_ext",
                *(["--inplace"] if inplace else []),
            ],
            cwd=self.where,
            env=keep | settings | {"KVMMU_REQUIRE_COMPILED": "1"},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def build(self, *, flags: str = "-O0", inplace: bool = True) -> tuple[set[str], str]:
        """What a build compiled, and the last line that it said."""
        self.log.unlink(missing_ok=True)
        _, said = (running := self.start(flags=flags, inplace=inplace)).communicate()
        assert running.returncode == 0, said
        return self.compiled(), said.splitlines()[-1].rpartition(",")[0]

    def compiled(self) -> set[str]:
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        return {line.removeprefix("build/cython/src/kvmmu/").removesuffix(".c") for line in lines}

    def change(self, name: str) -> None:
        with (self.where / "src" / "kvmmu" / name).open("a", encoding="utf-8") as file:
            file.write("\n# Changed.\n")

    def extensions(self) -> set[str]:
        package = self.where / "src" / "kvmmu"
        return {str(path.relative_to(package)).partition(".")[0] for path in package.rglob("*.so")}


EVERYTHING = {*ROOMS, "_cyutility"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A tree that has been built once."""
    made = Tree(tmp_path_factory.mktemp("tree"))
    assert made.build() == (EVERYTHING, "kvmmu: compiled 3 of 3 rooms")
    return made


def test_all_rooms_and_the_helpers_that_they_share_lie_beside_the_sources(tree: Tree) -> None:
    assert tree.extensions() == EVERYTHING
    program = "import sys, kvmmu.addr, kvmmu.hw.floors; print(sys.modules['kvmmu._cyutility'].__file__[-3:])"
    search = os.environ | {"PYTHONPATH": str(tree.where / "src"), "KVMMU_PURE": "0", "KVMMU_REQUIRE_COMPILED": "0"}
    done = subprocess.run([sys.executable, "-c", program], env=search, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (".so\n", "")


def test_nothing_is_compiled_again(tree: Tree) -> None:
    assert tree.build() == (set(), "kvmmu: all 3 rooms were compiled already")


def test_a_build_outside_of_the_sources_compiles_nothing_again(tree: Tree) -> None:
    # As a wheel's, which takes what lies in build/lib.
    assert tree.build(inplace=False) == (set(), "kvmmu: all 3 rooms were compiled already")


def test_an_extension_of_a_room_that_is_gone_or_of_another_python_goes(tree: Tree) -> None:
    package = tree.where / "src" / "kvmmu"
    stale = [
        package / f"errors{sysconfig.get_config_var('EXT_SUFFIX')}",
        package / "addr.cpython-310-x86_64-linux-gnu.so",
    ]
    for path in stale:
        path.touch()
    assert tree.build()[0] == set()
    assert [path for path in stale if path.exists()] == []
    assert tree.extensions() == EVERYTHING


def test_a_changed_room_is_compiled_alone(tree: Tree) -> None:
    tree.change("addr.py")
    assert tree.build() == ({"addr"}, "kvmmu: compiled 1 of 3 rooms")


def test_a_changed_header_compiles_those_who_use_it(tree: Tree) -> None:
    tree.change("addr.pxd")
    assert tree.build()[0] == {"addr", "hw/floors"}


def test_other_settings_compile_everything(tree: Tree) -> None:
    assert tree.build(flags="-O0 -DOTHER")[0] == EVERYTHING
    assert tree.build(flags="-O0 -DOTHER")[0] == set()
    assert tree.build()[0] == EVERYTHING


def test_a_room_in_which_a_build_was_interrupted_is_made_again(tree: Tree) -> None:
    tree.change("tracepoint.py")
    tree.log.unlink(missing_ok=True)
    running = tree.start(hang="tracepoint")
    deadline = time.monotonic() + 60
    while "hanging" not in tree.compiled() and time.monotonic() < deadline:
        time.sleep(0.05)
    # As the terminal does it: to make, Python and compiler alike.
    os.killpg(running.pid, signal.SIGINT)
    start = time.monotonic()
    _, said = running.communicate()
    assert running.returncode not in (0, None)
    assert time.monotonic() - start < 30
    assert "Traceback" not in said, said
    assert tree.build()[0] == {"tracepoint"}
    assert tree.build()[0] == set()


def test_a_translation_that_was_cut_short_is_made_again(tree: Tree) -> None:
    # As a killed Cython leaves it: half a file, newer than its source, and no stamp.
    translated = tree.where / "build" / "cython" / "src" / "kvmmu" / "addr.c"
    whole = translated.read_text(encoding="utf-8")
    translated.write_text(whole[: len(whole) // 2], encoding="utf-8")
    (tree.where / "build" / "cython" / "kvmmu.addr.made").unlink()
    assert tree.build()[0] == {"addr"}
    assert translated.read_text(encoding="utf-8") == whole


def test_a_room_that_cython_refuses_is_told_in_its_last_line(tree: Tree) -> None:
    room = tree.where / "src" / "kvmmu" / "tracepoint.py"
    good = room.read_text(encoding="utf-8")
    room.write_text(good + "\ndef broken(:\n", encoding="utf-8")
    _, said = (running := tree.start()).communicate()
    room.write_text(good, encoding="utf-8")
    assert running.returncode != 0
    assert "Traceback" not in said
    assert said.splitlines()[-1].endswith("src/kvmmu/tracepoint.py: Cython refuses it, for the reason above")
    assert tree.build()[0] == {"tracepoint"}


def test_an_interpreted_build_takes_the_extensions_away(tree: Tree) -> None:
    program = [sys.executable, "-c", _SETUP, "-q", "build_ext", "--inplace"]
    env = {name: value for name, value in os.environ.items() if name != "KVMMU_REQUIRE_COMPILED"} | {"KVMMU_PURE": "1"}
    assert subprocess.run(program, cwd=tree.where, env=env, check=False).returncode == 0
    assert tree.extensions() == set()
    assert shlex.split("built with KVMMU_PURE") == (tree.where / "src/kvmmu/_build_note.txt").read_text().split()
