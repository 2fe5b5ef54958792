# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's text of events, written down by hand from its format files and from recordings of real KVM."""

from __future__ import annotations

from kvmmu.tracepoint import Event

#: Event -> its text, as the format files and recordings of Linux 6.12 have it.
EXAMPLES: list[tuple[Event, str]] = [
    (("kvm_mmu_pagetable_walk", 0x14000, 2), "addr 14000 pferr 2 W"),
    (("kvm_mmu_pagetable_walk", 0x4000, 0), "addr 4000 pferr 0 "),
    (("kvm_mmu_paging_element", 0x8000000000011027, 4), "pte 8000000000011027 level 4"),
    (("kvm_mmu_set_accessed_bit", 0x13028), "gpa 13028"),
    (("kvm_mmu_set_dirty_bit", 0x13028), "gpa 13028"),
    (("kvm_mmu_walker_error", 0x27), "pferr 27 P|W|U|0x20"),
    (("kvm_mmu_get_page", 0, 0x11, 0x1702, 0, False, True), "sp gen 0 gfn 11 l2 8-byte q0 wux nxe ad root 0 sync new"),
    (
        ("kvm_mmu_get_page", 1, 0x7D0, 0x10FD1, 1, True, False),
        "sp gen 1 gfn 7d0 l1 4-byte q2 direct wux invalid !nxe !ad root 1 unsync existing",
    ),
    (("kvm_mmu_sync_page", 0, 0x14, 0x1701, 0, True), "sp gen 0 gfn 14 l1 8-byte q0 wux nxe ad root 0 unsync"),
    (("kvm_mmu_unsync_page", 0, 0x14, 0x1101, 0, False), "sp gen 0 gfn 14 l1 8-byte q0 --x nxe ad root 0 sync"),
    (
        ("kvm_mmu_prepare_zap_page", 0, 0, 0x1784, 1, False),
        "sp gen 0 gfn 0 l4 8-byte q0 direct wux nxe ad root 1 sync",
    ),
    (("mark_mmio_spte", 0xAB85000, 0xE0000, 7, 0x4A), "sptep:000000000ab85000 gfn e0000 access 7 gen 4a"),
    (("handle_mmio_page_fault", 0, 0x404E, 6), "addr:0 gfn 404e access 6"),
    (
        ("fast_page_fault", 0, 0x4000000, 0x100000007, 0xAB85008, 0xE65, 0xE67, 5),
        "vcpu 0 gva 4000000 error_code P|W|U|0x100000000 sptep 000000000ab85008 old 0xe65 new e67 spurious 0 fixed 1",
    ),
    (
        ("fast_page_fault", 1, 0x4000000, 0, 0xAB85008, 0, 0, 6),
        "vcpu 1 gva 4000000 error_code  sptep 000000000ab85008 old 0x0 new 0 spurious 1 fixed 0",
    ),
    (("kvm_mmu_zap_all_fast", 1, 0x10), "kvm-mmu-valid-gen 1 used_pages 10"),
    (
        ("check_mmio_spte", 0x3C, 0x3C, 0x80000E00001E7),
        "spte 80000e00001e7 kvm_gen 3c spte-gen 3c valid 1",
    ),
    (("check_mmio_spte", 0x5C, 0x52, 0x80000E0000297), "spte 80000e0000297 kvm_gen 5c spte-gen 52 valid 0"),
    (
        ("kvm_mmu_set_spte", 1, 0x1E63, 0xAB85008, 1, True, True, 0),
        "gfn 1 spte 1e63 (rwx-) level 1 at ab85008",
    ),
    (
        ("kvm_mmu_set_spte", 0x200, 0x8000000000001E65, 0xAB85008, 2, True, False, 1),
        "gfn 200 spte 8000000000001e65 (r--u) level 2 at ab85008",
    ),
    (("kvm_mmu_set_spte", 1, 0, 8, 1, False, True, -1), "gfn 1 spte 0 (--x) level 1 at 8"),
    (("kvm_mmu_spte_requested", 0xE0000, 1 << 63, 1), "gfn e0000 pfn 8000000000000000 level 1"),
    (("kvm_entry", 0, 0x1000, False), "vcpu 0, rip 0x1000"),
    (("kvm_entry", 3, 0x1000, True), "vcpu 3, rip 0x1000[immediate exit]"),
    (
        ("kvm_exit", 0x4E, 0x1030, 2, 8, 0x50000010, 0, 0, 0),
        (
            "vcpu 0 reason PF excp rip 0x1030 info1 0x0000000000000008 info2 0x0000000050000010 intr_info 0x00000000"
            " error_code 0x00000000"
        ),
    ),
    (
        ("kvm_exit", 0x80000021, 0, 1, 0, 0, 0, 0, 1),
        (
            "vcpu 1 reason INVALID_STATE FAILED_VMENTRY rip 0x0 info1 0x0000000000000000 info2 0x0000000000000000"
            " intr_info 0x00000000 error_code 0x00000000"
        ),
    ),
    (
        ("kvm_page_fault", 0, 0x1063, 0x14000, 0x100000006),
        "vcpu 0 rip 0x1063 address 0x0000000000014000 error_code 0x100000006",
    ),
    (("kvm_inj_exception", 14, True, 7, False), "#PF (0x7)"),
    (("kvm_inj_exception", 14, True, 0, True), "#PF (0x0) [reinjected]"),
    (("kvm_inj_exception", 6, False, 0, False), "#UD"),
    (("kvm_inj_exception", 0x20, False, 0, False), "0x20"),
    (("kvm_cr", 1, 3, 0x10000), "cr_write 3 = 0x10000"),
    (("kvm_cr", 0, 0, 0x80010011), "cr_read 0 = 0x80010011"),
    (("kvm_msr", 1, 0xC0000080, 0xD00, 0), "msr_write c0000080 = 0xd00"),
    (("kvm_msr", 0, 0x10, 0, 1), "msr_read 10 = 0x0 (#GP)"),
    (("kvm_mmio", 0, 4, 0xE0000000, 0), "mmio unsatisfied-read len 4 gpa 0xe0000000 val 0x0"),
    (("kvm_mmio", 2, 8, 0xE0001004, 0xCAFE), "mmio write len 8 gpa 0xe0001004 val 0xcafe"),
    (("vcpu_match_mmio", 0x50001004, 0xE0001004, True, False), "gva 0x50001004 gpa 0xe0001004 Write GVA"),
    (("vcpu_match_mmio", 0, 0xE0000000, False, True), "gva 0x0 gpa 0xe0000000 Read GPA"),
    (("kvm_emulate_insn", 0x1089, 0, 3, b"\x0f\x01\x3e", 9, False), "0:1089:0f 01 3e (prot64)"),
    (("kvm_emulate_insn", 0x1037, 0xF0000, 2, b"\x8b\x06", 0, True), "f0000:1037:8b 06 (real) failed"),
    (("kvm_emulate_insn", 0x1037, 0, 0, b"", 2, False), "0:1037: (0x2)"),
    (
        ("kvm_unmap_hva_range", 0x7FFFF6C00000, 0x7FFFF6C01000),
        "mmu notifier unmap range: 0x007ffff6c00000 -- 0x007ffff6c01000",
    ),
    (
        ("kvm_age_hva", 0x7FFFF6C00000, 0x7FFFF6C01000),
        "mmu notifier age hva: 0x007ffff6c00000 -- 0x007ffff6c01000",
    ),
    (("kvm_test_age_hva", 0x7FFFF6C00000), "mmu notifier test age hva: 0x007ffff6c00000"),
    (
        ("kvm_tdp_mmu_spte_changed", 0x4001, 1 << 63, 0x8E67, 1, 0),
        "as id 0 gfn 4001 level 1 old_spte 8000000000000000 new_spte 8e67",
    ),
    (
        ("kvm_tdp_mmu_spte_changed", 0x200, 0x400EE7, 0x80000000000005A0, 2, 1),
        "as id 1 gfn 200 level 2 old_spte 400ee7 new_spte 80000000000005a0",
    ),
    (("kvm_mmu_split_huge_page", 0x8000, 0x600EE7, 2, 0), "gfn 8000 spte 600ee7 level 2 errno 0"),
    (("kvm_mmu_split_huge_page", 0x40000, 0x40000EE7, 3, -12), "gfn 40000 spte 40000ee7 level 3 errno -12"),
]
