# SPDX-License-Identifier: GPL-2.0-only
"""Every call of the API with every kind of wrong argument; a script, so that a crash is its own process's.

It prints one JSON object: the call, the parameter and the wrong value, and what came of it: the kind of the error and
its text, or ``"done"``. After each call the machine must be what it was: if not, the outcome begins with ``CHANGED``.
Run it in both builds and compare (``test_refusals``).
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import kvmmu
import writable
from kvmmu import (
    Access,
    BuildInfo,
    ControlRegisters,
    CpuFeatures,
    EmulationFailure,
    GuestTables,
    KvmmuError,
    Params,
    TablePages,
    UserMemoryRegion,
    World,
    bundled,
    run,
)
from kvmmu.guest import program
from kvmmu.guest.tables import WIDEST_LIMITS
from kvmmu.world import nr_frames_for

MIB = 1 << 20
#: Values that the package makes, or that are looked at where they are handed in.
RECORDS = (Access, BuildInfo, EmulationFailure, ControlRegisters)

#: Wrong where a number is due. Numbers here fit no field of 64 bits.
NO_NUMBERS: dict[str, Any] = {
    "none": None,
    "true": True,
    "fraction": 1.5,
    "whole-float": 4096.0,
    "text": "4096",
    "bytes": b"\0\x10",
    "list": [1],
    "negative": -1,
    "negative-page": -4096,
    "wide": 1 << 64,
    "wider": 1 << 200,
}
NO_VCPUS: dict[str, Any] = {"none": None, "number": 0, "text": "vcpu", "list": []}
NO_FLAGS: dict[str, Any] = {"none": None, "number": 1, "text": "yes"}
NO_TEXTS: dict[str, Any] = {"none": None, "number": 4, "list": ["4-level"], "unknown": "6-level"}
NO_FUNCTIONS: dict[str, Any] = {"none": None, "number": 1, "text": "print"}
NO_RECORDS: dict[str, Any] = {"none": None, "number": 1, "text": "x", "tuple": (0, 0, 0, 0), "type": int}
NO_DATA: dict[str, Any] = {
    "none": None,
    "true": True,
    "fraction": 1.5,
    "text": "x",
    "list": [1],
    "negative": -1,
    "wide": 1 << 64,
}
#: Of a parameter by its name; the others are numbers.
WRONG: dict[str, dict[str, Any]] = {
    "vcpu": NO_VCPUS,
    "user": NO_FLAGS,
    "populate": NO_FLAGS,
    "writable": NO_FLAGS,
    "full": NO_FLAGS,
    "write": NO_FLAGS,
    "nx": NO_FLAGS,
    "mode": NO_TEXTS,
    "backing": NO_TEXTS,
    "sink": NO_FUNCTIONS,
    "load": NO_FUNCTIONS,
    "store": NO_FUNCTIONS,
    "new_table": NO_FUNCTIONS,
    "registers": NO_RECORDS,
    "region": NO_RECORDS,
    "cpu": NO_RECORDS,
    "data": NO_DATA,
    "bitmap": {"none": None, "number": 1, "text": "x", "list": [1], "bytearray": bytearray(8)},
    **dict.fromkeys(("npt", "gbpages", "has_cpuid"), NO_FLAGS),
    "host_page": NO_TEXTS,
    "settings": {"none": None, "number": 5, "text": "npt=on", "numbers": [5], "unknown": ["x=1"], "value": ["npt=x"]},
    "params": {name: value for name, value in NO_RECORDS.items() if name != "none"},
}
#: Where None is an answer: "as the host", "the leaf", "from outside".
OPTIONAL = {
    ("create_vcpu", "cpu"),
    ("World", "cpu"),
    ("set_bits", "level"),
    ("clear_bits", "level"),
    ("tables", "vcpu"),
    ("CpuFeatures", "maxphyaddr"),
    ("run", "until"),
    ("run", "interval"),
    ("run", "cpu"),
}


#: Calls of the process that take a range.
MM_RANGES = (
    "mmap_fixed",
    "munmap",
    "mprotect",
    "dontneed",
    "allow_huge",
    "populate",
    "clear_flush_young",
    "clear_young",
)


class Rig:
    """One small machine, and every call with arguments that are right."""

    def __init__(self) -> None:
        self.world = World(Params(npt=False), nr_frames=1 << 14)
        hva = self.hva = self.world.add_slot(0, 0, 16 * MIB, flags=1)
        self.vcpu = self.world.create_vcpu()
        self.tables = self.world.tables("4-level", 0x10000)
        self.tables.map_range(0x40_0000, 0x20_0000, 0x8000)
        self.world.load_registers(self.vcpu, self.tables.registers())
        self.world.write(self.vcpu, 0x40_0000, b"hello")
        stranger = World(Params(npt=False), nr_frames=1 << 12)
        self.stranger = stranger.create_vcpu()
        world, vcpu, tables, mm = self.world, self.vcpu, self.tables, self.world.mm
        # Behind what add_slot() mapped, and not touched.
        there = {"start": hva + 4 * MIB, "nr_bytes": 0x2000}
        self.calls: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
            "World": (World, {"params": None, "nr_frames": 4096, "cpu": None}),
            "add_slot": (
                world.add_slot,
                {"slot": 1, "gpa": 32 * MIB, "size": 4096, "flags": 0, "backing": "anonymous", "populate": False},
            ),
            "set_region": (world.set_region, {"region": None}),
            "delete_slot": (world.delete_slot, {"slot": 5}),
            "dirty_log": (world.dirty_log, {"slot": 5}),
            "clear_dirty_log": (
                world.clear_dirty_log,
                {"slot": 5, "first_page": 0, "num_pages": 64, "bitmap": bytes(8)},
            ),
            "recover_nx_huge_pages": (world.recover_nx_huge_pages, {}),
            "enable_cap": (world.enable_cap, {"cap": 168, "argument": 0, "flags": 0}),
            "create_vcpu": (world.create_vcpu, {"cpu": CpuFeatures(40)}),
            "set_cpuid": (world.set_cpuid, {"vcpu": vcpu, "cpu": CpuFeatures()}),
            "poke": (world.poke, {"gpa": 0x5000, "data": 1, "size": 8}),
            "kvm_write_guest": (world.kvm_write_guest, {"gpa": 0x5000, "data": 1, "size": 8}),
            "translate": (world.translate, {"vcpu": vcpu, "gva": 0x40_0000}),
            "peek": (world.peek, {"gpa": 0x5000, "size": 8}),
            "tables": (
                world.tables,
                {"mode": "4-level", "root": 0x10000, "nr_bytes": MIB, "vcpu": vcpu, "window": 0},
            ),
            "load_registers": (world.load_registers, {"vcpu": vcpu, "registers": tables.registers()}),
            **{
                name: (getattr(world, name), {"vcpu": vcpu, "value": 0})
                for name in ("mov_cr0", "mov_cr3", "mov_cr4", "wrmsr_efer", "wrpkru")
            },
            "invlpg": (world.invlpg, {"vcpu": vcpu, "gva": 0x1000}),
            "invpcid": (world.invpcid, {"vcpu": vcpu, "kind": 2, "pcid": 0, "gva": 0}),
            "read": (world.read, {"vcpu": vcpu, "gva": 0x40_0000, "size": 8, "user": False}),
            "fetch": (world.fetch, {"vcpu": vcpu, "gva": 0x40_0000, "size": 1, "user": False}),
            "write": (world.write, {"vcpu": vcpu, "gva": 0x40_0000, "data": 1, "size": 8, "user": False}),
            "on_event": (world.on_event, {"sink": str}),
            "walk": (world.walk, {"vcpu": vcpu, "address": 0x40_0000}),
            "mappings": (world.mappings, {"vcpu": vcpu}),
            "shadow_pages": (world.shadow_pages, {}),
            "counters": (world.counters, {}),
            "audit": (world.audit, {"full": False}),
            "digest": (world.digest, {}),
            "close": (world.close, {}),
            "mm.mmap": (
                mm.mmap,
                {"nr_bytes": 0x2000, "backing": "shared", "page_level": 1, "populate": False, "align": 0x1000},
            ),
            "mm.mprotect": (mm.mprotect, {**there, "writable": False}),
            "mm.allow_huge": (mm.allow_huge, {**there, "page_level": 2}),
            **{
                f"mm.{name}": (getattr(mm, name), there)
                for name in ("mmap_fixed", "munmap", "dontneed", "populate", "clear_flush_young", "clear_young")
            },
            **{f"mm.{name}": (getattr(mm, name), {"hva": hva}) for name in ("test_young", "find_vma", "hpte")},
            "mm.mapping_level": (mm.mapping_level, {"hva": hva}),
            **{f"mm.{name}": (getattr(mm, name), {"hva": hva, "write": False}) for name in ("fault_in", "user_access")},
            "Params": (Params, {"npt": False, "host_page": "4k", "host_maxphyaddr": 46}),
            "Params.with_settings": (Params().with_settings, {"settings": ["npt=off"]}),
            "CpuFeatures": (CpuFeatures, {"maxphyaddr": 40, "gbpages": True, "has_cpuid": True}),
            "CpuFeatures.with_settings": (CpuFeatures().with_settings, {"settings": ["nx=off"]}),
            "bundled": (bundled, {}),
            "run": (
                run,
                {"recording": "none such", "mmu": "shadow", "first": 0, "until": 1, "interval": 1, "cpu": "nx=off"},
            ),
            "nr_frames_for": (nr_frames_for, {"nr_bytes": MIB}),
            "UserMemoryRegion": (
                UserMemoryRegion,
                {"slot": 1, "flags": 0, "guest_phys_addr": 0, "memory_size": 0, "userspace_addr": 0},
            ),
            "TablePages.take": (TablePages(0x1000, 0x2000).take, {}),
            "TablePages": (TablePages, {"start": 0x1000, "end": 0x2000}),
            "GuestTables": (
                GuestTables,
                {"mode": "pae", "load": max, "store": max, "root": 0x1000, "new_table": max},
            ),
            "registers": (tables.registers, {"cr0": 0, "cr4": 0, "nx": True}),
            "map": (
                tables.map,
                {"gva": 0x50_0000, "gpa": 0x30_0000, "size": 4096, "flags": 7, "table_flags": 7},
            ),
            "map_range": (
                tables.map_range,
                {"gva": 0x50_0000, "gpa": 0x30_0000, "nr_bytes": 0x2000, "size": 4096, "flags": 7},
            ),
            "unmap": (tables.unmap, {"gva": 0x50_0000}),
            "set_entry": (tables.set_entry, {"gva": 0x40_0000, "level": 1, "entry": 0}),
            "set_bits": (tables.set_bits, {"gva": 0x40_0000, "bits": 2, "level": 1}),
            "clear_bits": (tables.clear_bits, {"gva": 0x40_0000, "bits": 2, "level": 1}),
            "walk_tables": (tables.walk, {"gva": 0x40_0000}),
            "entry_gpa": (tables.entry_gpa, {"gva": 0x40_0000, "level": 1}),
            "entry": (tables.entry, {"gva": 0x40_0000, "level": 1}),
            "ranges": (tables.ranges, {"limits": WIDEST_LIMITS}),
            "table_words": (tables.table_words, {"table": 0x10000, "count": 4}),
            "is_leaf": (tables.is_leaf, {"entry": 1, "level": 1}),
            "level_of": (tables.level_of, {"size": 4096}),
        }

    def state(self) -> str:
        """Everything that a refused call must leave alone."""
        world = self.world
        places = [repr(world.mm.vmas), repr(world.vm.memslots), repr(world.vm.trace), repr(world)]
        return world.digest() + "".join(places) + world.peek(0x10000, 0x8000).hex() + world.peek(0x5000, 4096).hex()

    def outcome(self, call: Callable[..., Any], arguments: dict[str, Any]) -> str:
        """What came of one call, in one line."""
        before = self.state()
        try:
            call(**arguments)
            text = "done"
        except Exception as error:  # noqa: BLE001 - what is not an error of the package is the finding
            known = "" if isinstance(error, KvmmuError) else "FOREIGN "
            text = f"{known}{type(error).__name__}: {error}"
        return text if self.state() == before else f"CHANGED {text}"


def wrong_values(rig: Rig, name: str, parameter: str) -> dict[str, Any]:
    """The wrong values of one parameter by their kind."""
    values = dict(WRONG.get(parameter, NO_NUMBERS))
    if parameter == "vcpu":
        values["stranger"] = rig.stranger
    if (name, parameter) in OPTIONAL:
        del values["none"]
    if name == "run":
        # Record numbers are as large as one likes: the end comes before.
        values = {kind: value for kind, value in values.items() if not kind.startswith("wide")}
    return values


def mm_cases(rig: Rig) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Ranges that no system call of the process takes."""
    mm, hva, size = rig.world.mm, rig.hva, 16 * MIB
    ranges = {
        "unaligned start": (hva + 8, 0x1000),
        "unaligned length": (hva, 0x1001),
        "no length": (hva, 0),
        "beyond user addresses": (0x7FFF_FFFF_E000, 0x2000),
        "beyond 2**64": ((1 << 64) - 0x1000, 0x2000),
        "very long": (hva, (1 << 64) - 0x1000),
    }
    all_mapped = {"over its end": (hva + size - 0x1000, 0x2000), "where nothing is": (hva + 2 * size, 0x1000)}
    more: dict[str, dict[str, Any]] = {"mprotect": {"writable": False}, "allow_huge": {"page_level": 2}}
    out: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {}
    for name in MM_RANGES:
        wrong = dict(ranges)
        if name not in ("mmap_fixed", "allow_huge"):
            wrong["where nothing is"] = all_mapped["where nothing is"]
        if name not in ("mmap_fixed", "allow_huge", "munmap"):
            wrong |= all_mapped
        for kind, (start, nr_bytes) in wrong.items():
            out[f"mm.{name} {kind}"] = (getattr(mm, name), {"start": start, "nr_bytes": nr_bytes, **more.get(name, {})})
    sizes = {"nothing": 0, "unaligned": 0x1001, "user space": 1 << 47, "too much": 0x7FFF_FFFF_F000}
    out |= {f"mm.mmap {kind}": (mm.mmap, {"nr_bytes": nr_bytes}) for kind, nr_bytes in sizes.items()}
    for align in (1, 0x800, 0x1800, 1 << 47, 1 << 63):
        out[f"mm.mmap align {align:#x}"] = (mm.mmap, {"nr_bytes": 0x1000, "align": align})
    for level in (0, 4):
        out[f"mm.mmap page_level {level}"] = (mm.mmap, {"nr_bytes": 0x1000, "page_level": level})
    for level in (0, 3):
        wrong_level = {"start": hva, "nr_bytes": 0x1000, "page_level": level}
        out[f"mm.allow_huge page_level {level}"] = (mm.allow_huge, wrong_level)
    return out


#: Registers that KVM_SET_SREGS refuses: cr0, cr3, cr4, efer.
REGISTERS = {
    "lme-pg-without-pae": (0x8000_0011, 0x10000, 0, 0x500),
    "lme-pg-without-lma": (0x8000_0011, 0x10000, 0x20, 0x100),
    "lme-pg-cr3-too-wide": (0x8000_0011, 1 << 46, 0x20, 0x500),
    "lma-without-pg": (0x11, 0x10000, 0x20, 0x500),
    "lma-without-lme": (0x8000_0011, 0x10000, 0x20, 0x400),
    "pg-without-pe": (0x8000_0010, 0x10000, 0, 0),
    "nw-without-cd": (0x2000_0011, 0, 0, 0),
    "cr0-high": (0x1_0000_0011, 0, 0, 0),
    **{f"cr4-bit-{bit}": (0x11, 0, 1 << bit, 0) for bit in (13, 14, 15, 19, 22, 23, 24, 25, 28, 31, 32, 63)},
    **{f"efer-bit-{bit}": (0x11, 0, 0, 1 << bit) for bit in (1, 7, 9, 15, 16, 17, 18, 20, 21, 32, 63)},
}
#: Registers that it accepts, reserved bits of CR0 among them.
ACCEPTED = {
    "reset": (0x6000_0010, 0, 0, 0),
    "cr0-reserved": (0x1FF8_FFD1, 0, 0, 0),
    "lme-without-pg": (0x11, 0, 0x20, 0x100),
    "cr3-wide-without-long-mode": (0x11, 1 << 60, 0, 0),
    "cr4-all": (0x11, 0, 0x37_1FFF & ~0x1_0000, 0),
    "efer-known": (0x11, 0, 0, 0x7901),
}


def cases(rig: Rig) -> dict[str, str]:
    """Every case by name, with its outcome."""
    out = {}
    for name, (call, right) in rig.calls.items():
        for parameter in right:
            for kind, value in wrong_values(rig, name, parameter).items():
                out[f"{name}({parameter}={kind})"] = rig.outcome(call, {**right, parameter: value})
    world, vcpu, tables = rig.world, rig.vcpu, rig.tables
    for kind, words in REGISTERS.items():
        out[f"sregs {kind}"] = rig.outcome(world.load_registers, {"vcpu": vcpu, "registers": ControlRegisters(*words)})
    for position, field in enumerate(("cr0", "cr3", "cr4", "efer")):
        for kind, value in NO_NUMBERS.items():
            words = [0x11, 0, 0, 0]
            words[position] = value
            registers = ControlRegisters(*words)
            out[f"sregs {field}={kind}"] = rig.outcome(world.load_registers, {"vcpu": vcpu, "registers": registers})
    end = 16 * MIB
    more: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "poke across the end": (world.poke, {"gpa": end - 4, "data": bytes(8)}),
        "poke many pages across the end": (world.poke, {"gpa": end - 8192 - 4, "data": b"x" * 12288}),
        "poke at the end of addresses": (world.poke, {"gpa": (1 << 64) - 4, "data": bytes(8)}),
        "poke beyond": (world.poke, {"gpa": end, "data": bytes(8)}),
        "poke size 0": (world.poke, {"gpa": 0, "data": 0, "size": 0}),
        "poke does not fit": (world.poke, {"gpa": 0, "data": 256, "size": 1}),
        "peek across the end": (world.peek, {"gpa": end - 4, "size": 8}),
        "peek at the end of addresses": (world.peek, {"gpa": (1 << 64) - 4, "size": 8}),
        "map_range into the hole": (tables.map_range, {"gva": (1 << 47) - 4096, "gpa": 0, "nr_bytes": 8192}),
        "map_range over the hole": (
            tables.map_range,
            {"gva": 0, "gpa": 0, "nr_bytes": (1 << 64) - (1 << 30), "size": 1 << 30},
        ),
        "map_range of gpas too wide": (tables.map_range, {"gva": 0, "gpa": (1 << 52) - 4096, "nr_bytes": 8192}),
        "clear_dirty_log of 33 bits": (
            world.clear_dirty_log,
            {"slot": 0, "first_page": 0, "num_pages": 1 << 32, "bitmap": bytes(8)},
        ),
        "clear_dirty_log far away": (
            world.clear_dirty_log,
            {"slot": 0, "first_page": (1 << 64) - 64, "num_pages": 64, "bitmap": bytes(8)},
        ),
        "clear_dirty_log without bytes": (
            world.clear_dirty_log,
            {"slot": 0, "first_page": 0, "num_pages": 64, "bitmap": b""},
        ),
        "enable_cap unknown": (world.enable_cap, {"cap": 1}),
        "enable_cap options": (world.enable_cap, {"cap": 168, "argument": 2}),
        "enable_cap flags": (world.enable_cap, {"cap": 168, "argument": 1, "flags": 1}),
        "wrpkru 33 bits": (world.wrpkru, {"vcpu": vcpu, "value": 1 << 32}),
        **mm_cases(rig),
        "no such parameter": (Params().with_settings, {"settings": ["x=1"]}),
        "program kind": (
            program.Access("jump", 0).run,
            {"machine": world, "vcpu": vcpu, "tables": tables},
        ),
        "program vcpu": (program.Access("read", 0).run, {"machine": world, "vcpu": None, "tables": tables}),
        "program gva": (program.Access("read", -1).run, {"machine": world, "vcpu": vcpu, "tables": tables}),
    }
    for name, (call, arguments) in more.items():
        out[name] = rig.outcome(call, arguments)
    return out


def accepted() -> dict[str, str]:
    """What is accepted, or #GP: the registers then."""
    out = {}
    for kind, words in ACCEPTED.items():
        rig = Rig()
        rig.world.load_registers(rig.vcpu, ControlRegisters(*words))
        out[f"accepted {kind}"] = repr(rig.vcpu)
    rig = Rig()
    for bit in range(64):
        value = rig.vcpu.efer ^ (1 << bit)
        out[f"wrmsr efer bit {bit}"] = f"{rig.world.wrmsr_efer(rig.vcpu, value)} {rig.vcpu.efer:#x}"
    for bit in range(64):
        rig = Rig()
        out[f"mov cr4 bit {bit}"] = f"{rig.world.mov_cr4(rig.vcpu, rig.vcpu.cr4 ^ (1 << bit))} {rig.vcpu.cr4:#x}"
        out[f"mov cr0 bit {bit}"] = f"{rig.world.mov_cr0(rig.vcpu, rig.vcpu.cr0 | (1 << bit))} {rig.vcpu.cr0:#x}"
    for kind in (3, 4, 1 << 31, 1 << 32, (1 << 64) - 1):
        out[f"invpcid {kind:#x}"] = str(rig.world.invpcid(rig.vcpu, kind))
    return out


def closed() -> dict[str, str]:
    """Every call on a closed world."""
    rig = Rig()
    rig.world.close()
    out = {"repr of a closed world": repr(rig.world)}
    for name, (call, right) in rig.calls.items():
        try:
            call(**right)
            out[f"closed {name}"] = "done"
        except KvmmuError as error:
            out[f"closed {name}"] = f"{type(error).__name__}: {error}"
    return out


def during(rig: Rig, act: Callable[[Callable[[], None]], None], what: str) -> dict[str, str]:
    """Every call while the world is at work: from its sink, as ``act`` runs it; each is answered, and changes nothing.

    A call that only looks may answer: "done".
    """
    out: dict[str, str] = {}

    def all_calls() -> None:
        for name, (call, right) in rig.calls.items():
            try:
                answer = call(**right)
                out[f"{what} {name}"] = "done"
                if name == "on_event":
                    answer()
            except KvmmuError as error:
                out[f"{what} {name}"] = f"{type(error).__name__}: {error}"

    def sink(_: object) -> None:
        if not out:
            act(all_calls)

    off = rig.world.on_event(sink)
    rig.world.read(rig.vcpu, 0x40_1000)
    off()
    # What the access itself did is the same without a sink.
    twin = Rig()
    twin.world.read(twin.vcpu, 0x40_1000)
    out[f"{what} changed"] = str(twin.state() != rig.state())
    return out


def in_a_thread(work: Callable[[], None]) -> None:
    """``work()`` in another thread, to its end."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def of_call(call: Callable[..., Any]) -> tuple[str, str]:
    """The class and the name of what is called."""
    owner = getattr(call, "__self__", None)
    name = getattr(call, "__name__", "")
    return (type(owner).__name__, name) if owner is not None else ("", name)


def public_methods(kind: type) -> list[str]:
    """Of a class, compiled or not."""
    return [name for name in dir(kind) if not name.startswith("_") and callable(getattr(kind, name))]


#: Classes that a world leads to and whose methods are nobody's to call: why, by the package they are in.
INTERNAL = {
    "kvm": "what kvm does inside its calls, under its locks; to be looked at: fields, reprs",
    "host": "the address space and the frames behind World.mm, which checks",
    "hw": "the hardware below the vCPUs; what a guest executes are World's instructions",
    "sync": "locks and the seam of a scheduler",
    "door": "what World's calls pass",
    "intervaltree": "an index of memslots and ranges",
    "tracepoint": "World.on_event() attaches sinks",
}
#: Classes of the package that come without a machine; their methods are in the table or take no argument of a user's.
PLAIN = {("CpuFeatures", "none"), ("CpuFeatures", "limits")}


def surface() -> Iterator[tuple[type, str]]:
    """Every class that a world leads to, or that is public, with each of its public methods."""
    kinds: set[type] = {GuestTables, TablePages}
    for npt in (False, True):
        kinds |= {type(value) for value in writable.crawl(writable.Rig(npt).world).values()}
    for kind in kinds:
        for name in public_methods(kind):
            yield kind, name


def uncovered(rig: Rig) -> list[str]:
    """Public methods that the table does not call, and whose class is not internal; names of ``kvmmu`` likewise."""
    covered = {of_call(call) for call, _ in rig.calls.values()}
    found = []
    for kind, name in surface():
        room = kind.__module__.split(".")[1]
        if (room not in INTERNAL or kind is CpuFeatures) and (kind.__name__, name) not in covered | PLAIN:
            found.append(f"{kind.__name__}.{name}")
    for name in kvmmu.__all__:
        value = getattr(kvmmu, name)
        is_made = isinstance(value, type) and issubclass(value, (Exception, *RECORDS))
        if callable(value) and not is_made and ("", name) not in covered | {("", "build_info")}:
            found.append(name)
    return sorted(found)


def stale() -> list[str]:
    """Reasons that are of nothing."""
    rooms = {kind.__module__.split(".")[1] for kind, _ in surface()}
    return sorted(set(INTERNAL) - rooms)


def main() -> None:
    """Print all outcomes."""
    rig = Rig()
    out = {"uncovered": " ".join(uncovered(rig)), "stale": " ".join(stale()), **cases(rig), **accepted(), **closed()}
    out |= during(Rig(), lambda work: work(), "sink")
    out |= during(Rig(), in_a_thread, "thread")
    json.dump(out, sys.stdout)


if __name__ == "__main__":
    main()
