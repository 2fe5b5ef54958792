# SPDX-License-Identifier: GPL-2.0-only
"""``make`` on machines that lack something: what is said, what is installed, and that it never goes on regardless.

The machine is a directory that is the whole of PATH. Its python3, gcc and apt-get are scripts that know of packages as
files in a directory: apt-get makes such files, python3 and gcc work as far as theirs are there.
"""

from __future__ import annotations

import pathlib
import shutil
import subprocess

import pytest

import house

_TOOLS = ("sh", "mktemp", "rm", "grep", "head", "tail", "sed", "basename", "cp", "chmod", "touch")
_PYTHON = """#!/bin/sh
case "$2" in
    *version_info*) [ -z "$PYTHON_SAYS" ] || { echo "$PYTHON_SAYS" >&2; exit 1; }; echo "${PYTHON_IS-3.11}" ;;
    *ensurepip*) [ -e "$HAS/python3-venv" ] ;;
    *Python.h*) [ -e "$HAS/python3-dev" ] ;;
    *base_prefix*) [ -z "$PYTHON_IS_FOREIGN" ] ;;
    *'"CC"'*) echo gcc ;;
    *) exit 99 ;;
esac
"""
_GCC = """#!/bin/sh
case "$*" in *-shared*) [ -e "$HAS/libc6-dev" ] || { echo "stdlib.h: No such file" >&2; exit 1; } ;; esac
while [ "$1" != -o ]; do shift; done
echo made >"$2"
"""
_APT_GET = """#!/bin/sh
echo "$*" >>"$HAS/apt-get.log"
case "$APT:$1" in fails:*) echo "E: no route" >&2; exit 100 ;; lies:*) exit 0 ;; esac
if [ "$1" = update ]; then touch "$HAS/lists"; exit 0; fi
[ "$APT" != stale ] || [ -e "$HAS/lists" ] || exit 100
while [ $# -gt 0 ]; do
    case "$1" in
        install | -*) ;;
        *) touch "$HAS/$1"; [ ! -e "$HAS/../offered/$1" ] || cp "$HAS/../offered/$1" "$HAS/../bin/" ;;
    esac
    shift
done
"""


class Machine:
    """A machine with packages; ``check()`` is what ``make`` does first on it."""

    def __init__(self, where: pathlib.Path, *packages: str, user: int = 0) -> None:
        self.bin, self.has, self.offered = where / "bin", where / "has", where / "offered"
        for directory in (self.bin, self.has, self.offered):
            directory.mkdir()
        for tool in _TOOLS:
            found = shutil.which(tool)
            assert found is not None
            (self.bin / tool).symlink_to(found)
        self.script(self.bin / "id", f"#!/bin/sh\necho {user}\n")
        self.script(self.bin / "apt-get", _APT_GET)
        self.script(self.offered / "python3", _PYTHON)
        self.script(self.offered / "gcc", _GCC)
        for package in packages:
            (self.has / package).touch()
            if (self.offered / package).exists():
                shutil.copy(self.offered / package, self.bin)

    @staticmethod
    def script(path: pathlib.Path, text: str) -> None:
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def check(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(house.ROOT / "tools" / "check_machine.sh")],
            env={"PATH": str(self.bin), "HAS": str(self.has), **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def refuses(self, **environment: str) -> list[str]:
        """The lines that a check says which must fail, without ``kvmmu:``; standard output is for programs."""
        done = self.check(**environment)
        assert (done.returncode, done.stdout) == (1, "")
        return [line.removeprefix("kvmmu: ") for line in done.stderr.splitlines()]

    def asked_of_apt(self) -> list[str]:
        log = self.has / "apt-get.log"
        return log.read_text(encoding="utf-8").splitlines() if log.exists() else []


PYTHON = ("python3", "python3-venv", "python3-dev")
COMPILER = ("gcc", "libc6-dev")
INSTALL = "install -y -q --no-install-recommends"


def test_a_machine_that_has_everything_says_nothing(tmp_path: pathlib.Path) -> None:
    machine = Machine(tmp_path, *PYTHON, *COMPILER)
    done = machine.check()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert machine.asked_of_apt() == []


def test_root_installs_exactly_what_is_missing_and_says_so_in_one_line(tmp_path: pathlib.Path) -> None:
    machine = Machine(tmp_path, "python3", "python3-venv", *COMPILER)
    done = machine.check()
    assert done.returncode == 0
    assert done.stderr == "kvmmu: installing with apt-get: python3-dev (KVMMU_NO_APT=1 forbids it)\n"
    assert machine.asked_of_apt() == [f"{INSTALL} python3-dev"]


def test_a_bare_machine_gets_everything(tmp_path: pathlib.Path) -> None:
    machine = Machine(tmp_path)
    assert machine.check().returncode == 0
    assert machine.asked_of_apt() == [f"{INSTALL} {' '.join([*PYTHON, *COMPILER])}"]
    assert machine.check().stderr == ""


def test_the_interpreted_build_needs_neither_compiler_nor_headers(tmp_path: pathlib.Path) -> None:
    machine = Machine(tmp_path)
    assert machine.check(PURE="1").returncode == 0
    assert machine.asked_of_apt() == [f"{INSTALL} python3 python3-venv"]


def test_old_lists_of_packages_are_fetched_anew(tmp_path: pathlib.Path) -> None:
    machine = Machine(tmp_path, *PYTHON)
    assert machine.check(APT="stale").returncode == 0
    install = f"{INSTALL} gcc libc6-dev"
    assert machine.asked_of_apt() == [install, "update -q", install]


def test_a_failure_of_apt_get_is_a_failure(tmp_path: pathlib.Path) -> None:
    said = Machine(tmp_path, *PYTHON).refuses(APT="fails")
    assert "E: no route" in said
    assert said[-1] == "apt-get failed; not installed: gcc libc6-dev"


def test_what_apt_get_installed_is_looked_at(tmp_path: pathlib.Path) -> None:
    said = Machine(tmp_path, *PYTHON).refuses(APT="lies")
    assert said[-1] == "apt-get installed gcc libc6-dev, and gcc libc6-dev is still missing"


@pytest.mark.parametrize(
    ("user", "environment", "command"),
    [(1000, {}, "sudo apt-get install"), (0, {"KVMMU_NO_APT": "1"}, "apt-get install")],
)
def test_who_may_not_install_is_told_the_command(
    tmp_path: pathlib.Path, user: int, environment: dict[str, str], command: str
) -> None:
    machine = Machine(tmp_path, "python3", "python3-venv", user=user)
    assert machine.refuses(**environment) == [
        f"missing: python3-dev gcc libc6-dev; install it: {command} python3-dev gcc libc6-dev",
        "or build without a compiler, about 100 times slower: KVMMU_PURE=1 make",
    ]
    assert machine.asked_of_apt() == []


def test_without_python_the_interpreted_build_is_no_way_out(tmp_path: pathlib.Path) -> None:
    (said,) = Machine(tmp_path, *COMPILER, user=1000).refuses()
    assert said.endswith("install it: sudo apt-get install python3 python3-venv python3-dev")


def test_without_apt_get_the_names_are_told(tmp_path: pathlib.Path) -> None:
    machine = Machine(tmp_path, *PYTHON)
    (machine.bin / "apt-get").unlink()
    (said,) = machine.refuses()
    assert said.startswith("missing: gcc libc6-dev (Debian's names)")


def test_an_old_python_is_named_with_its_version(tmp_path: pathlib.Path) -> None:
    (said,) = Machine(tmp_path, *PYTHON, *COMPILER).refuses(PYTHON_IS="3.9")
    assert said.startswith("python3 is Python 3.9, and 3.11 is needed")


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.14"])
def test_a_newer_python_is_taken(tmp_path: pathlib.Path, version: str) -> None:
    assert Machine(tmp_path, *PYTHON, *COMPILER).check(PYTHON_IS=version).returncode == 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("Fatal Python error: no filesystem encoding\nmore", "Fatal Python error: no filesystem encoding"),
        ('Traceback (most recent call last):\n  File "x"\nImportError: no site', "ImportError: no site"),
    ],
)
def test_a_python_that_fails_is_not_called_old(tmp_path: pathlib.Path, words: str, reason: str) -> None:
    machine = Machine(tmp_path, *PYTHON, *COMPILER)
    assert machine.refuses(PYTHON_SAYS=words) == [f"python3 does not run: {reason}"]


def test_a_python_that_says_no_version_is_not_called_old(tmp_path: pathlib.Path) -> None:
    (said,) = Machine(tmp_path, *PYTHON, *COMPILER).refuses(PYTHON_IS="")
    assert said.startswith("python3 does not run")


def test_apt_get_is_not_asked_to_mend_a_python_that_is_not_its_own(tmp_path: pathlib.Path) -> None:
    machine = Machine(tmp_path, "python3", *COMPILER)
    (said,) = machine.refuses(PYTHON_IS_FOREIGN="1")
    assert said.startswith("python3 is not Debian's and lacks: ensurepip Python.h; name another")
    assert machine.asked_of_apt() == []


def test_a_python_that_was_named_and_is_not_there(tmp_path: pathlib.Path) -> None:
    assert Machine(tmp_path, *PYTHON, *COMPILER).refuses(PYTHON="python3.99") == ["PYTHON=python3.99: no such program"]


@pytest.mark.parametrize("code", ["exit 1", "exit 0"])
def test_a_compiler_that_makes_nothing_is_noticed(tmp_path: pathlib.Path, code: str) -> None:
    machine = Machine(tmp_path, *PYTHON, *COMPILER)
    machine.script(machine.bin / "broken", f"#!/bin/sh\n{code}\n")
    assert machine.refuses(CC="broken") == ["CC=broken does not compile: it says nothing"]
    assert machine.asked_of_apt() == []


def test_a_compiler_that_was_named_and_is_not_there(tmp_path: pathlib.Path) -> None:
    assert Machine(tmp_path, *PYTHON, *COMPILER).refuses(CC="no-such-cc -m64") == [
        "CC=no-such-cc -m64: no such program"
    ]


def test_a_compiler_without_its_library_lacks_the_library_only(tmp_path: pathlib.Path) -> None:
    machine = Machine(tmp_path, *PYTHON, "gcc")
    assert machine.check().returncode == 0
    assert machine.asked_of_apt() == [f"{INSTALL} libc6-dev"]
