# SPDX-License-Identifier: GPL-2.0-only
"""An API that says no: nonsense is one error of ours, changes nothing, and both builds say the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import kvmmu
import refusals
from kvmmu.errors import GuestMisuse, KvmIoctlError, OutOfFrames, UserError
from kvmmu.guest.tables import ControlRegisters
from kvmmu.kvm.vcpu import Vcpu
from kvmmu.params import Params
from kvmmu.tracepoint import Event
from kvmmu.world import World

MIB = 1 << 20
NPT = pytest.mark.parametrize("npt", [False, True], ids=["shadow", "npt"])
SCRIPT = Path(__file__).with_name("refusals.py")
ROOT = Path(__file__).parents[1]


def machine(*, npt: bool = False, nr_frames: int = 1 << 14) -> tuple[World, Vcpu]:
    world = World(Params(npt=npt), nr_frames)
    world.add_slot(0, 0, 16 * MIB)
    vcpu = world.create_vcpu()
    tables = world.tables("4-level", 0x10000)
    tables.map_range(0x40_0000, 0x20_0000, 64 * 4096)
    world.load_registers(vcpu, tables.registers())
    return world, vcpu


def write_pages(world: World, vcpu: Vcpu, gvas: Iterable[int]) -> None:
    for gva in gvas:
        world.write(vcpu, gva, b"stored")


def outcomes(*, pure: bool) -> dict[str, str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(kvmmu.__file__).parents[1])}
    environment.pop("KVMMU_REQUIRE_COMPILED", None)
    environment["KVMMU_PURE"] = "1" if pure else ""
    child = subprocess.run([sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, check=False)
    assert child.returncode == 0, f"{child.returncode}: {child.stderr[-2000:]}"
    found: dict[str, str] = json.loads(child.stdout)
    return found


@pytest.fixture(scope="module")
def told() -> dict[str, str]:
    return outcomes(pure=not kvmmu.build_info().is_compiled)


#: What needs no world.
OUTSIDE = {
    "World",
    "nr_frames_for",
    "UserMemoryRegion",
    "TablePages",
    "TablePages.take",
    "GuestTables",
    "registers",
    "is_leaf",
    "level_of",
    "ranges",
    "Params",
    "Params.with_settings",
    "CpuFeatures",
    "CpuFeatures.with_settings",
    "bundled",
}
#: What a sink may call: docs/python-api.md lists it.
LOOKING = {
    "tables",
    "on_event",
    "walk",
    "mappings",
    "shadow_pages",
    "counters",
    "digest",
    "mm.find_vma",
    "mm.hpte",
    "mm.mapping_level",
}
#: What both are told.
AT_WORK = {
    "sink": "GuestMisuse: the world is at work: an event sink (or whatever runs inside a call) may look but not"
    " call back into it; keep the event and act after the call",
    "thread": "GuestMisuse: the world is at work in another thread: it is bound to one thread at a time; call it"
    " from one thread, or hold a lock of yours around each call",
}


# ---- arguments


def test_every_public_call_is_tried(told: dict[str, str]) -> None:
    """Each method of each class that a world leads to, and each public name, or a reason why not (``INTERNAL``)."""
    assert (told["uncovered"], told["stale"]) == ("", "")
    assert len(told) > 1900
    assert sum(name.startswith("mm.") for name in told) > 350


def test_examples_of_the_documents_call_what_is_tried() -> None:
    """What they call on a world, its vCPUs or parts is in the table; so nobody is invited to an unchecked door."""
    tried = {name.rpartition(".")[2] for name in refusals.Rig().calls}
    called: set[tuple[str, str]] = set()
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            found = re.findall(r"\b(world|vm|vcpu|mm|tables|logged|paged|small)((?:\.\w+|\[\w+\])*)\.(\w+)\(", block)
            called |= {(root + way, name) for root, way, name in found}
    assert {name for root, name in called if name not in tried} == set()
    # Beyond a world itself, its process and its tables there is nothing to call.
    assert {root for root, _ in called} >= {"world", "tables", "paged.mm"}
    assert {root for root, _ in called if "." in root} == {"paged.mm"}


def test_nonsense_is_an_error_of_ours_and_changes_nothing(told: dict[str, str]) -> None:
    refused = {
        name: text for name, text in told.items() if not name.startswith(("accepted", "closed", "wrmsr", "mov", "inv"))
    }
    del refused["uncovered"], refused["stale"], refused["repr of a closed world"]
    refused = {name: text for name, text in refused.items() if not name.startswith(("sink ", "thread "))}
    # The name of no recording is the last: a text, where a text is due.
    kinds = ("GuestMisuse: ", "UserError: ", "ConfigError: ", "KvmIoctlError: ", "RecordingError: 4096: neither a file")
    assert {name: text for name, text in refused.items() if not text.startswith(kinds)} == {}


def test_each_error_is_one_line_with_the_value_and_a_rule(told: dict[str, str]) -> None:
    errors = {name: text for name, text in told.items() if re.match(r"\w+(Error|Misuse): ", text)}
    assert {name: text for name, text in errors.items() if "\n" in text or len(text) > 400} == {}
    assert told["peek(size=negative)"] == "GuestMisuse: gpa 0x5000: size -0x1: must be from 0 to 0xffffffffffffffff"
    assert told["mov_cr3(value=fraction)"] == "GuestMisuse: value 1.5: must be a whole number, an int"
    assert told["read(vcpu=none)"] == (
        "GuestMisuse: vcpu None: a world runs its own vCPUs only; use what its create_vcpu() returned"
    )
    assert told["read(vcpu=stranger)"].startswith("GuestMisuse: vcpu 0 of another world: ")
    assert told["poke across the end"] == (
        "GuestMisuse: gpa 0xfffffc: no memslot there for 0x8 bytes; the first page without one is at"
        " 0x1000000; add_slot()"
    )


@pytest.mark.skipif(not kvmmu.build_info().is_compiled, reason="there is one build only")
def test_both_builds_say_the_same(told: dict[str, str]) -> None:
    pure = outcomes(pure=True)
    assert {name: (text, pure.get(name)) for name, text in told.items() if pure.get(name) != text} == {}
    assert pure.keys() == told.keys()


def test_a_closed_world_refuses_all_but_reprs(told: dict[str, str]) -> None:
    answers = {name.removeprefix("closed "): text for name, text in told.items() if name.startswith("closed ")}
    assert {name for name, text in answers.items() if text == "done"} == OUTSIDE
    rest = {text for name, text in answers.items() if name not in OUTSIDE | {"run"}}
    assert rest == {"GuestMisuse: this world is closed: build another one"}
    assert told["repr of a closed world"].startswith("<World closed <Vm shadow vcpus 0")


# ---- registers


def test_set_sregs_refuses_what_no_cpu_accepts(told: dict[str, str]) -> None:
    refused = {name: text for name, text in told.items() if name.startswith("sregs ") and "=" not in name}
    assert len(refused) == 31
    begin = "KvmIoctlError: [Errno 22] EINVAL: KVM_SET_SREGS, "
    assert {name for name, text in refused.items() if not text.startswith(begin)} == set()
    assert "LMA" in refused["sregs lma-without-pg"]
    assert "PAE" in refused["sregs lme-pg-without-pae"]
    assert "PE (1)" in refused["sregs pg-without-pe"]
    assert "CD" in refused["sregs nw-without-cd"]
    assert "46 bits" in refused["sregs lme-pg-cr3-too-wide"]


def test_set_sregs_accepts_reserved_bits_of_cr0_below_32(told: dict[str, str]) -> None:
    assert "cr0 0x1ff8ffd1" in told["accepted cr0-reserved"]
    assert sum(name.startswith("accepted") for name in told) == 6


def test_wrmsr_efer_gets_gp_for_reserved_bits_and_changes_nothing(told: dict[str, str]) -> None:
    answers = {bit: told[f"wrmsr efer bit {bit}"] for bit in range(64)}
    # Bit 8, LME, cannot change while paging; bit 10, LMA, is the CPU's own.
    assert [bit for bit, text in answers.items() if text.startswith("True")] == [0, 10, 11, 12, 13, 14]
    efer = 0xD00
    for bit, text in answers.items():
        efer ^= 1 << bit if bit in (0, 11, 12, 13, 14) else 0
        assert text.endswith(f" {efer:#x}"), bit


def test_mov_cr0_ignores_reserved_bits_below_32_and_refuses_those_above(told: dict[str, str]) -> None:
    assert [bit for bit in range(64) if told[f"mov cr0 bit {bit}"].startswith("False")] == [29, *range(32, 64)]
    assert told["mov cr0 bit 28"] == "True 0x80010011"
    assert told["mov cr0 bit 3"] == "True 0x80010019"


def test_mov_cr4_refuses_what_cpuid_lacks(told: dict[str, str]) -> None:
    taken = [bit for bit in range(64) if told[f"mov cr4 bit {bit}"].startswith("True")]
    # Neither PAE (5) nor LA57 (12) changes in long mode; PKE (22) needs nested paging.
    assert taken == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 16, 17, 18, 20, 21]


def test_a_refusal_of_kvms_is_the_callers_mistake_and_has_an_errno() -> None:
    world, vcpu = machine()
    with pytest.raises(UserError) as caught:
        world.load_registers(vcpu, ControlRegisters(0x8000_0000, 0, 0, 0))
    assert isinstance(caught.value, KvmIoctlError)
    assert caught.value.errno == 22


# ---- sinks and threads


def calls_of(world: World, vcpu: Vcpu) -> list[Callable[[], object]]:
    return [
        lambda: world.read(vcpu, 0x40_0000),
        lambda: world.write(vcpu, 0x40_0000, 1),
        lambda: world.poke(0, 1),
        lambda: world.peek(0),
        lambda: world.add_slot(1, 32 * MIB, 4096),
        lambda: world.delete_slot(0),
        lambda: world.mov_cr3(vcpu, 0x10000),
        lambda: world.invlpg(vcpu, 0),
        world.create_vcpu,
        world.audit,
        world.close,
    ]


@NPT
@pytest.mark.parametrize("number", range(11))
def test_a_sink_that_calls_back_is_told_so_and_the_world_goes_on(number: int, npt: bool) -> None:
    world, vcpu = machine(npt=npt)
    seen: list[Event] = []
    off = world.on_event(lambda event: (seen.append(event), calls_of(world, vcpu)[number]()))
    with pytest.raises(GuestMisuse, match=r"an event sink .* may look but not call back into it; keep the event"):
        world.write(vcpu, 0x40_1000, b"stored")
    off()
    # The access was made to its end, events and all.
    assert len(seen) > 8
    assert world.peek(0x20_1000, 6) == b"stored"
    assert world.audit().problems == []


@NPT
def test_a_sink_may_look(npt: bool) -> None:
    world, vcpu = machine(npt=npt)
    seen = []
    world.on_event(lambda _: seen.append((world.counters(), world.shadow_pages(), world.walk(vcpu, 0x40_0000))))
    world.on_event(lambda _: seen.append((world.digest(), repr(world), repr(world.vm))))
    assert world.write(vcpu, 0x40_1000, b"x").kind == "done"
    assert len(seen) > 16


@NPT
@pytest.mark.parametrize("number", range(16))
def test_what_a_sink_raises_comes_out_when_the_call_has_ended(number: int, npt: bool) -> None:
    world, vcpu = machine(npt=npt)
    left = [number]

    def sink(event: Event) -> None:
        left[0] -= 1
        if left[0] == -1:
            raise RuntimeError("of the sink")

    world.on_event(sink)
    with pytest.raises(RuntimeError, match="of the sink"):
        write_pages(world, vcpu, (0x40_1000, 0x41_1000))
    assert world.peek(0x20_1000, 6) == b"stored"
    assert world.audit().problems == []
    assert world.write(vcpu, 0x42_0000, 1).kind == "done"


@pytest.mark.parametrize("number", range(11))
def test_a_second_thread_is_refused_while_a_call_works(number: int) -> None:
    world, vcpu = machine()
    errors: list[BaseException] = []

    def other() -> None:
        try:
            calls_of(world, vcpu)[number]()
        except GuestMisuse as error:
            errors.append(error)

    def sink(event: Event) -> None:
        if not errors:
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()

    world.on_event(sink)
    assert world.write(vcpu, 0x40_1000, b"x").kind == "done"
    assert [str(error).partition(";")[0] for error in errors] == [
        "the world is at work in another thread: it is bound to one thread at a time"
    ]
    assert world.audit().problems == []


def test_a_sink_may_look_and_nothing_else_and_a_second_thread_nothing(told: dict[str, str]) -> None:
    for what, allowed in (("sink", OUTSIDE | LOOKING), ("thread", OUTSIDE)):
        answers = {name.removeprefix(f"{what} "): text for name, text in told.items() if name.startswith(f"{what} ")}
        assert answers.pop("changed") == "False"
        # There is no such recording.
        assert answers.pop("run").startswith("RecordingError: none such: neither a file")
        assert {name for name, text in answers.items() if text == "done"} == allowed
        refused = {text for name, text in answers.items() if name not in allowed}
        assert refused == {AT_WORK[what]}


def test_a_closed_world_does_not_show_its_process_either() -> None:
    world, _ = machine()
    assert len(world.mm.vmas) == 1
    assert repr(world.mm) == "<Process ranges 1 of 0x1000000 bytes>"
    world.close()
    with pytest.raises(GuestMisuse, match=r"^this world is closed"):
        world.mm.vmas  # noqa: B018 (a property that passes the door)
    assert repr(world.mm) == "<Process ranges 1 of 0x1000000 bytes>"


def test_between_two_calls_a_world_may_change_its_thread() -> None:
    world, vcpu = machine()
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(world.write(vcpu, 0x40_0000, b"x").kind))
    thread.start()
    thread.join()
    assert found == ["done"]
    assert world.read(vcpu, 0x40_0000, 1).data == b"x"


# ---- memory that ends


@NPT
def test_memory_that_ends_inside_a_fault_names_nr_frames_and_leaves_the_machine_whole(npt: bool) -> None:
    world, vcpu = machine(npt=npt, nr_frames=100)
    with pytest.raises(OutOfFrames, match=r"no free frame left of nr_frames=100 \(0 MB\): give World\(\) more"):
        write_pages(world, vcpu, range(0x40_0000, 0x44_0000, 4096))
    assert world.audit().problems == []
    with pytest.raises(OutOfFrames, match="nr_frames=100"):
        world.write(vcpu, 0x43_F000, b"x")
    assert world.read(vcpu, 0x40_0000, 6).data == b"stored"


# ---- reprs


def test_reprs_say_what_there_is() -> None:
    world, vcpu = machine()
    assert re.fullmatch(
        r"<World <Vm shadow vcpus 1 slots 1 shadow pages 0 of \d+> frames 0x\w+ of 0x4000>", repr(world)
    )
    assert repr(world.vm.stat) == "<VmStat>"
    assert repr(vcpu.stat) == "<VcpuStat>"
    world.write(vcpu, 0x40_0000, b"x")
    assert repr(world.vm.stat) == "<VmStat mmu_cache_miss 4 pages_4k 1>"
    assert repr(vcpu.stat).startswith("<VcpuStat pf_taken 1 pf_fixed 1 ")
    assert repr(world.vm.memslots[0]) == (
        "<Memslots 0 generation 0x2 slots 1 <Memslot 0:0 gfn 0x0-0x1000 hva 0x7f0000000000>>"
    )
    for slot in range(1, 6):
        world.add_slot(slot, (16 + slot) * MIB, 4096)
    assert repr(world.vm.memslots[0]).endswith(" and 2 more>")
    assert repr(world.vm.trace) == "<Trace off sinks 0>"
    world.on_event(lambda _: None)
    assert repr(world.vm.trace) == "<Trace on sinks 1>"
