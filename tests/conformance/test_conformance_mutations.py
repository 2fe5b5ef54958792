# SPDX-License-Identifier: GPL-2.0-only
"""The recordings can notice: each small error in the model makes one of them differ.

A mutated copy of the package plays the recording, interpreted.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import house
from conformance.mutations import MUTATIONS, Mutation
from kvm.mmu.test_mutations import copy_package

DATA = Path(__file__).parent / "data"
TIME_LIMIT = 600


def break_it(mutation: Mutation, package: Path) -> None:
    """Put the error into the copy."""
    path = package / mutation.room
    source = path.read_text()
    assert source.count(mutation.text) == 1, (
        f"{mutation.room} has {source.count(mutation.text)} times {mutation.text!r}"
    )
    path.write_text(source.replace(mutation.text, mutation.broken))


def play(source: Path, recording: str) -> subprocess.CompletedProcess[str]:
    """``kvmmu conformance`` of the package in ``source``."""
    environment = os.environ | {"PYTHONPATH": str(source), "KVMMU_PURE": "1", "KVMMU_REQUIRE_COMPILED": ""}
    command = [sys.executable, "-m", "kvmmu", "conformance", "--exact", str(DATA / f"{recording}.norm.xz")]
    return subprocess.run(
        command, cwd=house.ROOT, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT, check=False
    )


@pytest.mark.deep
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_recording_notices_the_error(mutation: Mutation, tmp_path: Path) -> None:
    break_it(mutation, copy_package(tmp_path))
    done = play(tmp_path, mutation.recording)
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert "DIFFERS" in done.stdout


def test_every_error_still_fits_its_source_and_its_recording_is_there(tmp_path: Path) -> None:
    for number, mutation in enumerate(MUTATIONS):
        break_it(mutation, copy_package(tmp_path / str(number)))
        assert (DATA / f"{mutation.recording}.norm.xz").exists(), mutation.recording
