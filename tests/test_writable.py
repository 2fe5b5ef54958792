# SPDX-License-Identifier: GPL-2.0-only
"""Whatever is written to an attribute that can be reached from a world, the process lives on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import kvmmu
from kvmmu import Params, UserError, World
from kvmmu.kvm.vcpu import Vcpu

SCRIPT = Path(__file__).with_name("writable.py")


def outcomes(kind: str, pure: bool) -> dict[str, str]:
    env = {**os.environ, "KVMMU_PURE": "1" if pure else "", "KVMMU_TEST_SECONDS": "20"}
    if pure:
        env["KVMMU_REQUIRE_COMPILED"] = ""
    done = subprocess.run([sys.executable, str(SCRIPT), kind], env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["shadow", "npt"])
def test_no_attribute_that_is_set_to_nonsense_ends_the_process(kind: str) -> None:
    """Set to None, numbers, a text, another object, one at a time; then the machine is used."""
    found = outcomes(kind, not kvmmu.build_info().is_compiled)
    counts = Counter(found.values())
    assert {case: end for case, end in found.items() if end not in ("refused", "ran")} == {}
    # The crawl finds what it is for: vCPUs, MMUs, shadow pages, slots, locks, the process, the CPU.
    classes = {case.rpartition("(")[2].rstrip(")") for case in found}
    assert classes > {"World", "Vm", "Vcpu", "Mmu", "ShadowPage", "Memslot", "Memslots", "Mm", "Vma", "Cpu", "RwLock"}
    assert counts["ran"] > 300
    assert counts["refused"] > (1500 if kvmmu.build_info().is_compiled else 0)


def test_the_parts_of_a_world_stay() -> None:
    world = World(Params(npt=False), nr_frames=64)
    for name in ("vm", "mm", "memory", "frames", "params", "cpu", "_door"):
        with pytest.raises(AttributeError, match=f"^{name}: the parts of a world stay what they are"):
            setattr(world, name, None)
    world.note = "mine"  # type: ignore[attr-defined]


@pytest.mark.parametrize("wrong", [None, 5, "x"])
def test_a_runner_is_a_runner(wrong: object) -> None:
    vcpu: Vcpu = World(Params(npt=False), nr_frames=64).create_vcpu()
    with pytest.raises(UserError, match=r"^runner .*: must be a Runner"):
        vcpu.set_runner(wrong)  # type: ignore[arg-type]
