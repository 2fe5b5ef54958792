# SPDX-License-Identifier: GPL-2.0-only
"""Small errors in the model's source, each with a recording of real KVM that must notice it.

Each :class:`Mutation` replaces a text that must occur in its room exactly once; ``recording`` is one below ``data``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """One error."""

    name: str
    room: str
    text: str
    broken: str
    recording: str


MUTATIONS = [
    Mutation(
        "flood counts go on when a page is found for a new root",
        "kvm/mmu/shadow.py",
        "            clear_flood_count(vm, sp)\n            found = sp",
        "            found = sp",
        "6.12-witness/flood-root.shadow",
    ),
    Mutation(
        "an unsync page stays when it becomes an upper table",
        "kvm/mmu/shadow.py",
        "            if role_level(role) > 1 and is_unsync(vm, sp):\n                prepare_zap(vm, sp, invalid_list)",
        "            pass",
        "6.12-witness/unsync-upper.shadow",
    ),
    Mutation(
        "A and D updates are not in the dirty log",
        "kvm/mmu/walker.py",
        "    mark_page_dirty_in_slot(vm, vcpu, vcpu.gfn_to_memslot(gfn), gfn)\n",
        "",
        "6.12-witness/dirty-tables.shadow",
    ),
    Mutation(
        "emulated writes are not in the dirty log",
        "kvm/emulate.py",
        "    mark_page_dirty_in_slot(vcpu.vm, vcpu, slots.find(gpa_to_gfn(gpa)), gpa_to_gfn(gpa))\n",
        "",
        "6.12-witness/dirty-tables.shadow",
    ),
    Mutation(
        "new writable leaves are not in the dirty log",
        "kvm/mmu/leaf.py",
        "        mark_page_dirty_in_slot(vcpu.vm, vcpu, leaf.slot, leaf.gfn)",
        "        pass",
        "6.12-witness/dirty-tables.shadow",
    ),
    Mutation(
        "the log is read without write protection",
        "kvm/mmu/dirty.py",
        "        words.append(word)\n        if word:",
        "        words.append(word)\n        if False:",
        "6.12-witness/dirty-tables.shadow",
    ),
    Mutation(
        "an rmap may hold 100 entries more",
        "kvm/mmu/rmap.py",
        "    if count > RMAP_RECYCLE_THRESHOLD:",
        "    if count > RMAP_RECYCLE_THRESHOLD + 100:",
        "6.12-witness/rmap-limit.shadow",
    ),
    Mutation(
        "an rmap may hold one entry more",
        "kvm/mmu/rmap.py",
        "    if count > RMAP_RECYCLE_THRESHOLD:",
        "    if count > RMAP_RECYCLE_THRESHOLD + 1:",
        "6.12-witness/rmap-limit.shadow",
    ),
    Mutation(
        "a batch of unsync pages is one longer",
        "kvm/mmu/unsync.py",
        "        return len(self.pages) == KVM_PAGE_ARRAY_NR",
        "        return len(self.pages) == KVM_PAGE_ARRAY_NR + 1",
        "6.12-witness/unsync-array.shadow",
    ),
    Mutation(
        "the record of a device's page outlives INVLPG",
        "kvm/mmu/resync.py",
        "    clear_gva(vcpu, addr)\n    if roots & 1:",
        "    if roots & 1:",
        "6.12-witness/mmio-invlpg.shadow",
    ),
    Mutation(
        "PSE-36 bits are no address",
        "kvm/mmu/walker.py",
        "        gpa += (gpte & _PSE36_MASK) << _PSE36_SHIFT",
        "        pass",
        "6.12-witness/pse36.shadow",
    ),
    Mutation(
        "INVLPG leaves previous roots alone",
        "kvm/mmu/resync.py",
        "            invalidate_root(vcpu, addr, vcpu.mmu.prev_hpa[i])",
        "            pass",
        "6.12-witness/prev-roots.shadow",
    ),
    Mutation(
        "a root in use that was found counts as zapped",
        "kvm/mmu/gptewrite.py",
        "    done = len(invalid_list) != 0\n",
        "    done = True\n",
        "6.12-cases/rmw-pae.shadow",
    ),
]
