# SPDX-License-Identifier: GPL-2.0-only
"""ShadowPage: one table of 512 sptes with what kvm knows about it (``struct kvm_mmu_page``).

The table itself and, for indirect pages up to level 3, the translations that it mirrors lie in physical memory, one
frame each; this object is the header. Which pages exist, and in which order, is the business of ``pages``.
Reference: "Data structures", kvm_mmu_page.
"""

from __future__ import annotations

from ...addr import Gfn, Hpa
from ...page_types import NOTHING, ONE
from .bits import NO_PAGE
from .role import describe_role


class ShadowPage:
    """A table page of kvm, of the legacy MMU or (``is_tdp``) of the TDP MMU. All fields are protected by ``mmu_lock``.

    A TDP page's list is that of the roots, its users as a root include the TDP MMU itself until it is invalid.
    """

    __slots__ = (
        "gfn",
        "hash_next",
        "hash_prev",
        "link_next",
        "link_prev",
        "is_tdp",
        "mmu_valid_gen",
        "nx_huge_page_disallowed",
        "nx_next",
        "nx_prev",
        "parent_ptes",
        "ptep",
        "role",
        "root_count",
        "scheduled_to_zap",
        "shadowed_translation",
        "spt",
        "unsync",
        "unsync_child_bitmap",
        "unsync_children",
        "write_flooding_count",
    )

    def __init__(self, gfn: Gfn, role: int, spt: Hpa) -> None:
        self.begin(gfn, role, spt)

    def begin(self, gfn: Gfn, role: int, spt: Hpa) -> int:
        """Do what ``__init__`` does, without boxed arguments (compiled rooms make objects with it)."""
        self.gfn = gfn
        self.role = role
        self.spt = spt
        self.shadowed_translation: Hpa = NOTHING
        self.mmu_valid_gen = 0
        self.root_count = 0
        self.parent_ptes = 0
        self.write_flooding_count = 0
        self.unsync = False
        self.unsync_children = 0
        self.unsync_child_bitmap = [0] * 8
        self.hash_next: ShadowPage | None = None
        self.hash_prev: ShadowPage | None = None
        self.link_next: ShadowPage = NO_PAGE
        self.link_prev: ShadowPage = NO_PAGE
        self.is_tdp = False
        self.ptep: Hpa = NOTHING
        self.scheduled_to_zap = False
        self.nx_huge_page_disallowed = False
        self.nx_next: ShadowPage | None = None
        self.nx_prev: ShadowPage = NO_PAGE
        return 0

    def is_unsync_child(self, index: int) -> bool:
        """Whether the spte at ``index`` leads to an unsync page."""
        return (self.unsync_child_bitmap[index >> 6] >> (index & 63)) & ONE != 0

    def set_unsync_child(self, index: int) -> None:
        """Set the bit of ``index``; the caller keeps the count."""
        self.unsync_child_bitmap[index >> 6] |= ONE << (index & 63)

    def clear_unsync_child(self, index: int) -> None:
        """Clear the bit of ``index``; the caller keeps the count."""
        self.unsync_child_bitmap[index >> 6] &= ~(ONE << (index & 63))

    def next_unsync_child(self, index: int) -> int:
        """First set bit at ``index`` or above; 512 when there is none."""
        while index < 512:
            word = self.unsync_child_bitmap[index >> 6] >> (index & 63)
            if word == 0:
                index = (index | 63) + 1
                continue
            while word & ONE == 0:
                word >>= 1
                index += 1
            return index
        return 512

    def unsync_words(self) -> list[int]:
        """The bits of all indices, 64 in a word, for who compares them."""
        return [self.unsync_child_bitmap[i] for i in range(8)]

    def __repr__(self) -> str:
        state = "unsync" if self.unsync else "sync"
        return (
            f"<ShadowPage gfn {self.gfn:#x} {describe_role(self.role)} spt {self.spt:#x}"
            f" root {self.root_count} {state} unsync_children {self.unsync_children}>"
        )


def make_page(gfn: Gfn, role: int, spt: Hpa) -> ShadowPage:
    """ShadowPage() for compiled rooms."""
    sp = ShadowPage.__new__(ShadowPage)
    sp.begin(gfn, role, spt)
    return sp
