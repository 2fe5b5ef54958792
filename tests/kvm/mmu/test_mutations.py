# SPDX-License-Identifier: GPL-2.0-only
"""The catalogue's tests can fail: each notices the code that was broken in KVM's history.

A mutated copy of the package runs, interpreted, the tests that the mutation names. So do small errors in the TDP MMU,
whose tests are their own rooms'.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import house
from kvm.mmu import tdp_mutations
from kvm.mmu.mutations import MUTATIONS, Mutation

#: Seconds for the tests of one mutation, which take a few on an idle machine; and for those that will not end.
TIME_LIMIT, HANG_LIMIT = 600, 60
TEST = pathlib.Path(__file__).with_name("test_catalogue.py")


def copy_package(place: pathlib.Path) -> pathlib.Path:
    """The sources of the package, without what a build made of them."""
    shutil.copytree(
        house.PACKAGE, place / "kvmmu", ignore=shutil.ignore_patterns("*.so", "*.c", "*.kmr", "__pycache__")
    )
    return place / "kvmmu"


def run_catalogue(source: pathlib.Path, names: str, limit: int) -> subprocess.CompletedProcess[str]:
    """The tests of the catalogue whose names begin so, on the package in ``source``."""
    return run_tests(source, ["-k", names, str(TEST)], limit)


def run_tests(source: pathlib.Path, arguments: list[str], limit: int) -> subprocess.CompletedProcess[str]:
    """Pytest with ``arguments``, up to the first failure, on the package in ``source``."""
    environment = os.environ | {"PYTHONPATH": str(source), "KVMMU_PURE": "1", "KVMMU_REQUIRE_COMPILED": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=house.ROOT, env=environment, capture_output=True, text=True, timeout=limit)


def apply(mutation: Mutation, package: pathlib.Path) -> None:
    for room, text, broken in mutation.edits:
        path = package / room
        source = path.read_text()
        assert source.count(text) == 1, f"{room} has {source.count(text)} times {text!r}"
        path.write_text(source.replace(text, broken))


@pytest.mark.deep
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_broken_code_of_history_is_noticed(mutation: Mutation, tmp_path: pathlib.Path) -> None:
    package = copy_package(tmp_path)
    apply(mutation, package)
    limit = HANG_LIMIT if mutation.hangs else TIME_LIMIT
    try:
        done = run_catalogue(tmp_path, mutation.test, limit)
    except subprocess.TimeoutExpired:
        assert mutation.hangs, f"{mutation.name}: no end after {limit} s, and it is not marked as hanging"
        return
    assert not mutation.hangs, f"{mutation.name}: marked as hanging, but it ended"
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert "KvmBug" in done.stdout or "AssertionError" in done.stdout or "assert " in done.stdout, done.stdout[-2000:]


@pytest.mark.deep
@pytest.mark.parametrize("mutation", tdp_mutations.MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_small_error_in_the_tdp_mmu_is_noticed(mutation: Mutation, tmp_path: pathlib.Path) -> None:
    apply(mutation, copy_package(tmp_path))
    files = [str(TEST.with_name(name)) for name in mutation.test.split()]
    try:
        done = run_tests(
            tmp_path, ["-m", "not deep and not slow", *files], HANG_LIMIT if mutation.hangs else TIME_LIMIT
        )
    except subprocess.TimeoutExpired:
        assert mutation.hangs, f"{mutation.name}: no end, and it is not marked as hanging"
        return
    assert not mutation.hangs, f"{mutation.name}: marked as hanging, but it ended"
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]


def test_every_mutation_still_fits_its_source(tmp_path: pathlib.Path) -> None:
    for number, mutation in enumerate([*MUTATIONS, *tdp_mutations.MUTATIONS]):
        apply(mutation, copy_package(tmp_path / str(number)))
