# SPDX-License-Identifier: GPL-2.0-only
"""Words of the host's memory manager: flags of frames, entries of the process's page table, results of lookups."""

from __future__ import annotations

from ..addr import Hpa, Hva, Pfn

# Flags of a frame, as of ``struct page``.
#: Written to since it was handed out (``SetPageDirty``).
PG_DIRTY = 1
#: Used since it was handed out (``mark_page_accessed``).
PG_ACCESSED = 2
#: Not the allocator's to hand out: frame 0 and the zero page.
PG_RESERVED = 4
#: Part of a 2M block.
PG_BLOCK_2M = 8
#: Part of a 1G block.
PG_BLOCK_1G = 16
#: No frame: the result of lookups that found none.
NO_PFN = Pfn(0xFFFF_FFFF_FFFF_FFFF)

# An entry of the process's page table: one word for each 4K page, whatever the size of the mapping.
HPTE_PRESENT = 1
HPTE_WRITABLE = 2
HPTE_LEVEL_SHIFT = 3
HPTE_LEVEL_MASK = 0x18
HPTE_PFN_MASK = 0x000F_FFFF_FFFF_F000

#: Where mmap() begins to hand out addresses.
MMAP_BASE = Hva(0x7F00_0000_0000)
#: Where what does not fit there goes: upwards from here to MMAP_BASE.
MMAP_LOW_BASE = Hva(0x1000_0000_0000)
#: End of the addresses that a process may use, on a host with 4-level paging (``TASK_SIZE_MAX``).
USER_END = Hva(0x7FFF_FFFF_F000)

#: user_access() found no way to that byte.
NO_HPA = Hpa(0xFFFF_FFFF_FFFF_FFFF)
#: gup(): no range holds the address (the kernel's -EFAULT).
GUP_NO_VMA = Pfn(0xFFFF_FFFF_FFFF_FFF2)
#: gup(): a write to a range without write permission (also -EFAULT in the kernel).
GUP_READ_ONLY = Pfn(0xFFFF_FFFF_FFFF_FFF3)
#: Results of gup() from here on are no frames.
GUP_ERRORS = 0xFFFF_FFFF_FFFF_F000

#: Results of fault_in().
VM_FAULT_OK = 0
VM_FAULT_NO_VMA = 1
VM_FAULT_READ_ONLY = 2

#: The longest array that ``SmallArrays`` gives.
SMALL_ARRAY_WORDS = 512
