# SPDX-License-Identifier: GPL-2.0-only
"""Every example runs by itself, as a user runs it, and its output mentions what it is there to show."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

import house
import kvmmu

EXAMPLES = sorted((house.ROOT / "examples").glob("*.py"))
#: What the output of each example must mention. A new example gets a row.
SHOWN = {
    "first_fault.py": (
        "event   kvm_page_fault: vcpu 0 rip 0x0 address 0x0000000000400000 error_code 0x2",
        "event   kvm_mmu_set_spte: gfn 200",
        "access  <Access done >",
        "memory  b'hello'",
        "guest   <Element level 4 at 0x10000: 0x11027",
        "guest   <Element level 1 at 0x13000: 0x200067",
        "shadow  <SpteElement level 1",
        "page    <ShadowPage gfn 0x13 level 1",
        "'pf_taken': 1, 'pf_fixed': 1",
    ),
}


def run(path: pathlib.Path, directory: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """The example as its own process, on the build of the package that this run is about, warnings being errors."""
    command = [sys.executable, "-W", "error", str(path)]
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(kvmmu.__file__).resolve().parent.parent)}
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=300)


def not_shown(name: str, output: str) -> list[str]:
    """What ``output`` lacks of what example ``name`` shows."""
    return [text for text in SHOWN[name] if text not in output]


def test_every_example_is_told_what_it_shows() -> None:
    assert [path.name for path in EXAMPLES] == sorted(SHOWN)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_shows_what_it_is_for(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    done = run(path, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert not_shown(path.name, done.stdout) == []
    # It leaves nothing behind where it is run.
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_says_what_it_is_and_how_it_is_run(path: pathlib.Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert f"python examples/{path.name}" in text


def test_an_example_that_shows_something_else_is_found() -> None:
    assert not_shown("first_fault.py", "access  <Access done >\n")[0].startswith("event   kvm_page_fault")
