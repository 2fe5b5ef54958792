# SPDX-License-Identifier: GPL-2.0-only
# ruff: noqa: E501 - a row is one change of one line of source
"""The broken code of KVM's history, as changes of this model's source: what a test of the catalogue must notice.

Each :class:`Mutation` names the entry, the tests that must fail, and replacements, each of a text that must occur in its
room exactly once.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """``edits``: (room, text, broken text); ``hangs``: the broken code makes no progress, which is how it is noticed."""

    name: str
    test: str
    edits: tuple[tuple[str, str, str], ...]
    hangs: bool = False


def one(name: str, test: str, room: str, text: str, broken: str, *, hangs: bool = False) -> Mutation:
    return Mutation(name, test, ((f"kvm/{room}.py", text, broken),), hangs)


MUTATIONS = [
    one(
        "1 inherited permissions",
        "test_1_",
        "mmu/shadow",
        "get_child(vcpu, sptep, gw.table_gfn[level], False, gw.pt_access[level])",
        "get_child(vcpu, sptep, gw.table_gfn[level], False, gw.pte_access)",
    ),
    one(
        "2 child reuse with wrong gfn",
        "test_2_",
        "mmu/shadow",
        "if child.gfn == gfn and child.role == role:",
        "if child.role == role:",
    ),
    one(
        "3 child reuse with wrong role",
        "test_3_",
        "mmu/shadow",
        "if child.gfn == gfn and child.role == role:",
        "if child.gfn == gfn:",
    ),
    one(
        "4 MMIO spte over a present one",
        "test_4_",
        "mmu/leaf",
        "    found = replace_present(vcpu, sp, sptep, leaf)\n",
        "    found = CAUSE_MAP\n    if leaf.pfn != KVM_PFN_NOSLOT:\n        found = replace_present(vcpu, sp, sptep, leaf)\n"
        "    else:\n        vm.memory.write_once(sptep, 1 << 63)\n",
    ),
    one(
        "5 stale test before reclaim",
        "test_5_",
        "mmu/pagefault",
        "        verdict = make_pages_available(vm)\n        if verdict == 0:\n            verdict = RET_PF_RETRY\n"
        "            if not is_stale(vcpu, fault):\n",
        "        is_old = is_stale(vcpu, fault)\n        verdict = make_pages_available(vm)\n        if verdict == 0:\n"
        "            verdict = RET_PF_RETRY\n            if not is_old:\n",
    ),
    one(
        "7 direct page keyed without leaf access",
        "test_7_",
        "mmu/shadow",
        "sp = get_child(vcpu, sptep, gfn, True, access)",
        "sp = get_child(vcpu, sptep, gfn, True, role_access(sptep_to_sp(vcpu.vm, sptep).role))",
    ),
    Mutation(
        "8 no validate_direct, and no comparison of roles, which since then does the same",
        "test_8_",
        (
            ("kvm/mmu/shadow.py", "if child.gfn == gfn and child.role == role:", "if child.gfn == gfn:"),
            ("kvm/mmu/shadow.py", "        if fault.validate_direct:\n", "        if False:\n"),
        ),
    ),
    one(
        "9 promotion after the children",
        "test_9_",
        "mmu/shadow",
        "step = fetch_direct_tables(vcpu, fault, leaf.access, step)",
        "step = fetch_direct_tables(vcpu, fault, gw.pte_access, step)",
    ),
    one(
        "10 NX of the guest in the role",
        "test_10_",
        "mmu/role",
        "role = (cpu_role & CPU_ROLE_BASE_MASK) | ROLE_EFER_NX",
        "role = cpu_role & CPU_ROLE_BASE_MASK",
    ),
    one(
        "11 NX of the guest in kvm's reserved bits",
        "test_11_",
        "mmu/setup",
        "    rules.nx = True\n",
        "    rules.nx = cpu_role_efer_nx(vcpu.mmu.cpu_role)\n",
    ),
    one("109 NX of the guest in the CPU", "test_11_", "svm", "efer = vcpu.efer | EFER_NX", "efer = vcpu.efer"),
    one("12 roles survive a new CPUID", "test_12_", "sregs", "    forget_roles(vcpu)\n", ""),
    one("15 SMAP toggle keeps the context", "test_15_", "sregs", "| CR4_SMEP | CR4_SMAP | CR4_PKE\n", "| CR4_SMEP\n"),
    one(
        "18 quadrant ignored",
        "test_18_",
        "mmu/gptewrite",
        "        if offset >> 12 != role_quadrant(sp.role):\n",
        "        if False:\n",
    ),
    one(
        "20 pgd of direct roots",
        "test_20_",
        "mmu/roots",
        "if not role_direct(mmu.root_role) and mmu.root_pgd != pgd:",
        "if mmu.root_pgd != pgd:",
    ),
    one("22 sync may unsync", "test_22_", "mmu/resync", "leaf.can_unsync = False", "leaf.can_unsync = True"),
    one(
        "23 link before sync",
        "test_23_",
        "mmu/shadow",
        "        if sp is not None and sp.unsync_children:\n            sync_children(vcpu, sp, False)\n",
        "",
    ),
    one(
        "24 dirtiness lost",
        "test_24_",
        "mmu/change",
        "        flush = True\n        vm.frames.mark_dirty(spte_to_pfn(old))\n    return flush",
        "        flush = True\n    return flush",
    ),
    one(
        "33 tracking in one space",
        "test_33_",
        "mmu/track",
        "for as_id in range(KVM_ADDRESS_SPACE_NUM):",
        "for as_id in range(1):",
    ),
    one(
        "36 level-1 tables do not forbid large pages", "test_36_", "mmu/track", "    count_lpage(slot, sp.gfn, 1)\n", ""
    ),
    one(
        "37 MMIO as write protection",
        "test_37_",
        "mmu/pagefault",
        "    if verdict == RET_PF_WRITE_PROTECTED:\n        verdict",
        "    if verdict in (RET_PF_WRITE_PROTECTED, RET_PF_EMULATE):\n        verdict",
    ),
    one(
        "38 only the current root",
        "test_38_",
        "mmu/roots",
        "        if is_obsolete_root(vm, mmu.prev_hpa[i]):",
        "        if is_obsolete_root(vm, mmu.root_hpa):",
    ),
    one(
        "41 nested paging in invalidate_pcid",
        "test_41_",
        "sregs",
        "    if vcpu.vm.tdp_enabled:\n        make_request(vcpu, KVM_REQ_TLB_FLUSH_GUEST)\n        return 0\n",
        "",
    ),
    one(
        "45 PCIDE keeps previous roots",
        "test_45_",
        "sregs",
        "    if not vcpu.vm.tdp_enabled and changed & cr4 & CR4_PCIDE:\n        unload(vcpu)\n",
        "",
    ),
    one(
        "46 changed PDPTEs keep the root",
        "test_46_",
        "sregs",
        "            free_roots(vcpu.vm, vcpu.mmu, 1)\n",
        "            pass\n",
    ),
    one(
        "49 generation without invalid",
        "test_49_",
        "mmu/pages",
        "    if role_invalid(sp.role):\n        return True\n",
        "",
    ),
    one(
        "50 newest first",
        "test_50_",
        "mmu/zap",
        "    sp = vm.active_mmu_pages.link_prev\n    while sp is not None and sp is not vm.active_mmu_pages:\n        older = sp.link_prev\n        if sp.root_count",
        "    sp = vm.active_mmu_pages.link_next\n    while sp is not None and sp is not vm.active_mmu_pages:\n        older = sp.link_next\n        if sp.root_count",
    ),
    one(
        "52 unstable list ignored",
        "test_52_",
        "mmu/zap",
        "        if is_unstable(sp, prepare_zap(vm, sp, invalid_list)):\n            older",
        "        if is_unstable(sp, prepare_zap(vm, sp, invalid_list)) and False:\n            older",
    ),
    one(
        "55 MMIO record without generation, gva",
        "test_55_",
        "mmu/mmio",
        "vcpu.mmio_gva == gva & PAGE_MASK and vcpu.mmio_gen == generation(vcpu)",
        "vcpu.mmio_gva == gva & PAGE_MASK",
    ),
    one(
        "55 MMIO record without generation, gpa",
        "test_55_",
        "mmu/mmio",
        "vcpu.mmio_gfn == gpa_to_gfn(gpa) and vcpu.mmio_gen == generation(vcpu)",
        "vcpu.mmio_gfn == gpa_to_gfn(gpa)",
    ),
    one(
        "58 wrap in space 0 only",
        "test_58_",
        "regions",
        "generation & MMIO_SPTE_GEN_MASK & ~(KVM_ADDRESS_SPACE_NUM - 1) == 0",
        "generation & MMIO_SPTE_GEN_MASK == 0",
    ),
    one(
        "60 overlapping generation",
        "test_60_",
        "mmu/spte",
        "(generation << MMIO_SPTE_GEN_HIGH_SHIFT) & MMIO_SPTE_GEN_HIGH_MASK",
        "(generation << (MMIO_SPTE_GEN_HIGH_SHIFT - 1)) & ((1 << 64) - (1 << 51))",
    ),
    one(
        "61 caching at 52 bits",
        "test_61_",
        "mmu/spte",
        "MMIO_MASK if host_maxphyaddr < MAX_HOST_MAXPHYADDR else 0",
        "MMIO_MASK",
    ),
    one(
        "64 read-only slot as for a write",
        "test_64_",
        "mmu/hugepage",
        "vm.mm.mapping_level(slot.gfn_to_hva(gfn))",
        "vm.mm.mapping_level(slot.gfn_to_hva_prot(gfn, True))",
    ),
    one(
        "89 a huge entry is final",
        "test_89_",
        "mmu/shadow",
        "        sp = get_child(vcpu, sptep, gfn, True, access)\n",
        "        if is_large(mem.read_once(sptep)):\n            return step\n        sp = get_child(vcpu, sptep, gfn, True, access)\n",
    ),
    one(
        "90 huge pages in the fast path",
        "test_90_",
        "mmu/fastpf",
        "        if level > 1 and fault.slot is not None",
        "        if False and fault.slot is not None",
    ),
    one("110 SMAP in real mode", "test_110_", "svm", "        cr4 &= ~_CR4_SMEP_SMAP\n", "        pass\n"),
    one(
        "114 error of the roots lost",
        "test_114_",
        "mmu/roots",
        "        ret = alloc_shadow_roots(vcpu)\n",
        "        alloc_shadow_roots(vcpu)\n        ret = 0\n",
        hangs=True,
    ),
    one(
        "120 dummy root survives",
        "test_120_",
        "mmu/roots",
        "return sp is None or is_obsolete(vm, sp)",
        "return sp is not None and is_obsolete(vm, sp)",
    ),
    one(
        "PGE toggle of one PCID only",
        "test_pge_",
        "sregs",
        "    if changed & CR4_PGE or changed & old & CR4_PCIDE:\n",
        "    if changed & old & CR4_PCIDE:\n",
    ),
    one(
        "PCIDs are not the CPU's",
        "test_a_kept_",
        "svm",
        "& ~(CR4_PKE | CR4_PGE | CR4_LA57)",
        "& ~(CR4_PKE | CR4_PGE | CR4_LA57 | CR4_PCIDE)",
    ),
]
