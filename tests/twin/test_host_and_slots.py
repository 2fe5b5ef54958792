# SPDX-License-Identifier: GPL-2.0-only
"""The host's address space and the memslots on it: one random program, both builds, equal words."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from twin.builds import Build, assert_twins_agree

FLAGS = (0, 0, 1, 2, 1 << 16)


def address_space(build: Build) -> Any:
    memory = build.room("hw.memory").PhysicalMemory(4096)
    return build.room("host.mm").Mm(build.room("host.frames").FrameAllocator(memory))


def tell(call: Any, *arguments: Any) -> Any:
    """A result as text, or the kind and text of what was raised."""
    try:
        return call.__name__, repr(call(*arguments))
    except Exception as error:  # noqa: BLE001 - any difference between the builds is a finding
        return call.__name__, type(error).__name__, str(error)


@pytest.mark.parametrize("seed", range(20))
def test_random_life_of_an_address_space(seed: int) -> None:
    def program(build: Build) -> list[Any]:
        rng, mm, told = random.Random(seed), address_space(build), []
        log = SimpleNamespace(
            invalidate_range_start=lambda start, end: told.append(("start", start, end)),
            invalidate_range_end=lambda start, end: told.append(("end", start, end)),
        )
        mm.chain.register(log)
        areas = [
            mm.mmap(rng.randrange(1, 1500) * 4096, rng.choice(["anonymous", "shared"]), level, align=0)
            for level in (1, 2, 2, 3)
        ]
        for _ in range(300):
            hva = rng.choice(areas) + rng.randrange(-2, 1500) * 4096 + rng.randrange(4096)
            page, nr = hva & ~4095, rng.choice([1, 2, 512, 700]) * 4096
            write = rng.random() < 0.5
            steps = [
                (mm.gup, hva, write), (mm.gup_fast, hva, write), (mm.user_access, hva, write), (mm.hpte, hva),
                (mm.mapping_level, hva), (mm.fault_in, hva, write), (mm.mprotect, page, nr, write), (mm.find_vma, hva),
                (mm.munmap, page, 4096),
            ]  # fmt: skip
            told.append(tell(*rng.choice(steps)))
            told.append((mm.frames.nr_free, repr(mm.vmas)))
        return told

    assert_twins_agree(program)


@pytest.mark.parametrize("seed", range(20))
def test_random_frames(seed: int) -> None:
    def program(build: Build) -> list[Any]:
        rng, frames, told = random.Random(seed), address_space(build).frames, []
        for _ in range(600):
            pfn = rng.choice([rng.randrange(5000), rng.randrange(4), 2**40])
            steps = [
                (frames.alloc,), (frames.alloc_zeroed,), (frames.alloc_block, 2), (frames.alloc_block, 3),
                (frames.get, pfn), (frames.put, pfn), (frames.flags_of, pfn), (frames.mark_dirty, pfn),
                (frames.nr_refs, pfn),
            ]  # fmt: skip
            told.append(tell(*rng.choice(steps)))
            told.append(frames.nr_free)
        return told

    assert_twins_agree(program)


@pytest.mark.parametrize("seed", range(20))
def test_random_slots_and_guest_memory(seed: int) -> None:
    def program(build: Build) -> list[Any]:
        rng, mm, told = random.Random(seed), address_space(build), []
        memslots, guestmem = build.room("kvm.memslots"), build.room("kvm.guestmem")
        hva, base, slots = mm.mmap(0x40_0000, page_level=2), 0, []
        for number in range(6):
            base += rng.choice([0, 1, 100, 511, 512])
            npages = rng.choice([1, 5, 64, 513, 1024])
            start = hva + rng.randrange(512) * 4096
            slots.append(memslots.Memslot(number, rng.choice(FLAGS), base, npages, start))
            slots[-1].alloc_lpage_info(build.room("host.frames").SmallArrays())
            if rng.random() < 0.5:
                slots[-1].alloc_dirty_bitmap()
                slots[-1].alloc_rmap()
            base += npages
        found = memslots.Memslots(0, 2, slots)
        vm = build.room("kvm.run").create_vm(mm, build.room("params").Params())
        vm.slots_arch_lock.lock()
        vm.publish_slots(found)
        vm.slots_arch_lock.unlock()
        for _ in range(300):
            gpa = rng.randrange((base + 10) * 4096)
            gfn, level, size = gpa >> 12, rng.randrange(1, 4), rng.randrange(6000)
            told.append(repr(found.find(gfn)))
            told.append((found.gfn_to_hva(gfn, level == 1), found.is_visible_gfn(gfn)))
            slot = found.search(gfn)
            if slot is not None:
                told.append((slot.index(gfn, level), slot.nr_lpages(level), slot.rmap_word(gfn, level)))
                told.append([slot.nr_disallowed(gfn, which) for which in (2, 3)])
                told.append((slot.gfn_to_hva_prot(gfn, level == 1), slot.is_visible(), slot.is_dirty_logged()))
                build.room("kvm.dirtylog").mark_page_dirty_in_slot(vm, None, slot, gfn)
            told.append(tell(guestmem.write_guest, vm, 0, gpa, rng.randbytes(size)))
            told.append(tell(guestmem.read_guest, vm, 0, gpa - gpa % 7, size))
            told.append(guestmem.gpa_to_hpa(found, mm, gpa, level == 2))
        told.append([list(slot.dirty_array) for slot in slots if slot.dirty_array is not None])
        return told

    assert_twins_agree(program)


def test_misuse_is_the_same_in_both() -> None:
    def program(build: Build) -> list[Any]:
        mm = address_space(build)
        small = build.room("hw.memory").PhysicalMemory(1)
        slot = build.room("kvm.memslots").Memslot(0, 0, 0, 4, 0)
        return [
            tell(mm.mmap, 4096, "anonymous", 7),
            tell(mm.munmap, 1, 2),
            tell(build.room("host.frames").FrameAllocator, small),
            tell(slot.index, 3, 1),
        ]

    assert_twins_agree(program)
