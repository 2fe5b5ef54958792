# SPDX-License-Identifier: GPL-2.0-only
"""ShadowPage: a fresh header, and its bits for unsync children, asked one by one."""

from __future__ import annotations

from kvmmu.kvm.mmu.page import ShadowPage, make_page


def test_a_fresh_page_has_no_users_and_is_in_no_list() -> None:
    for sp in (ShadowPage(0x123, 0x701, 0x5000), make_page(0x123, 0x701, 0x5000)):
        assert (sp.gfn, sp.role, sp.spt) == (0x123, 0x701, 0x5000)
        assert (sp.shadowed_translation, sp.mmu_valid_gen, sp.root_count, sp.parent_ptes) == (0, 0, 0, 0)
        assert (sp.write_flooding_count, sp.unsync, sp.unsync_children) == (0, False, 0)
        assert [sp.hash_next, sp.hash_prev, sp.link_next, sp.link_prev] == [None] * 4
        assert not any(sp.is_unsync_child(index) for index in range(512))


def test_two_fresh_pages_share_nothing() -> None:
    one, two = make_page(1, 1, 0x1000), make_page(2, 1, 0x2000)
    one.unsync, one.root_count = True, 3
    assert (two.unsync, two.root_count) == (False, 0)


def test_the_text_names_gfn_role_and_state() -> None:
    sp = make_page(0x123, 4 | 7 << 8 | 1 << 11, 0x5000)
    assert repr(sp) == (
        "<ShadowPage gfn 0x123 level 4 quadrant 0 access wux smm 0 invalid spt 0x5000 root 0 sync unsync_children 0>"
    )
    sp.unsync, sp.root_count, sp.unsync_children = True, 2, 5
    assert " root 2 unsync unsync_children 5>" in repr(sp)
