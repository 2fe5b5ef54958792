# SPDX-License-Identifier: GPL-2.0-only
"""Whatever is written to what can be reached from a world, attributes and items, the process lives on."""

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


#: Interpreted, a machine is slow, and Python itself keeps the process alive: one case in so many, for what hangs.
PURE_STEP = 5


def outcomes(kind: str, what: str, pure: bool) -> dict[str, str]:
    env = {**os.environ, "KVMMU_PURE": "1" if pure else "", "KVMMU_TEST_SECONDS": "20"}
    if pure:
        env["KVMMU_REQUIRE_COMPILED"] = ""
    command = [sys.executable, str(SCRIPT), kind, what, str(PURE_STEP if pure else 1)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def unwelcome(found: dict[str, str]) -> dict[str, str]:
    return {case: end for case, end in found.items() if end not in ("refused", "ran")}


IS_COMPILED = kvmmu.build_info().is_compiled


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["shadow", "npt"])
def test_no_attribute_that_is_set_to_nonsense_ends_the_process(kind: str) -> None:
    """Set to None, numbers, a text, another object, one at a time; then the machine is used."""
    found = outcomes(kind, "attributes", not IS_COMPILED)
    counts = Counter(found.values())
    assert unwelcome(found) == {}
    # The crawl finds what it is for: vCPUs, MMUs, shadow pages, slots, locks, the process, the CPU.
    classes = {case.rpartition("(")[2].rstrip(")") for case in found}
    assert classes > {"World", "Vm", "Vcpu", "Mmu", "ShadowPage", "Memslot", "Memslots", "Mm", "Vma", "Cpu", "RwLock"}
    assert counts["ran"] > 300
    assert counts["refused"] > (1500 if IS_COMPILED else 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["shadow", "npt"])
def test_no_item_that_is_changed_ends_the_process(kind: str) -> None:
    """Items of lists, arrays, dicts and sets: set, deleted, added, all gone; memory filled with nonsense."""
    found = outcomes(kind, "items", not IS_COMPILED)
    assert unwelcome(found) == {}
    places = {case.split()[1].rpartition(".")[2].partition("[")[0] for case in found}
    assert places > {"arena", "notifiers", "by_id", "pmd_tables", "pte_tables", "area", "lpage_array"}
    assert places & {"rmap_array", "dirty_array"}
    counts = Counter(found.values())
    assert counts["ran"] > (500 if IS_COMPILED else 150)
    assert counts["refused"] > (200 if IS_COMPILED else 30)


@pytest.mark.slow
@pytest.mark.skipif(not IS_COMPILED, reason="the tests above are of that build")
@pytest.mark.parametrize("what", ["attributes", "items"])
@pytest.mark.parametrize("kind", ["shadow", "npt"])
def test_interpreted_nothing_hangs_either(kind: str, what: str) -> None:
    found = outcomes(kind, what, True)
    assert unwelcome(found) == {}
    assert Counter(found.values())["ran"] > 150


@pytest.mark.skipif(not IS_COMPILED, reason="interpreted, each subscript is checked")
@pytest.mark.parametrize(
    ("owner", "name"),
    [("frames", "owners"), ("frames", "free_blocks"), ("vm", "mmu_page_hash")],
)
def test_what_compiled_code_subscripts_unchecked_is_its_own(owner: str, name: str) -> None:
    world = World(Params(npt=False), nr_frames=64)
    assert not hasattr(getattr(world, owner), name)


def test_what_is_looked_at_is_not_what_kvm_uses() -> None:
    world = World(Params(npt=False), nr_frames=256)
    vcpu = world.create_vcpu()
    assert world.vm.vcpus == (vcpu,)
    assert isinstance(world.vm.memslots, tuple)
    heads = world.vm.hash_heads()
    assert heads == [None] * 4096
    heads.clear()
    assert len(world.vm.hash_heads()) == 4096


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
