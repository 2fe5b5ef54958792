# SPDX-License-Identifier: GPL-2.0-only
"""The order of locks, outer first: a lock may be taken only while none of its own rank or a deeper one is held.

``docs/locking.md`` says what each protects. Source: reference "Locks".
"""

from __future__ import annotations

#: ``slots_lock``.
RANK_SLOTS = 0
#: ``slots_arch_lock``.
RANK_SLOTS_ARCH = 1
#: ``mmu_lock``.
RANK_MMU = 2
#: Under ``mmu_lock``: ``mmu_unsync_pages_lock``.
RANK_UNDER_MMU = 3
#: Under any other: ``mn_invalidate_lock``.
RANK_LEAF = 4

#: Actors that a gate tells apart: each is a bit of a word.
MAX_ACTORS = 64
