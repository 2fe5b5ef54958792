# SPDX-License-Identifier: GPL-2.0-only
"""How a page fault ends (RET_PF_*), what it was about (CAUSE_*), and what its exit asks for (EMULTYPE_*).

Reference: "Page-fault pipeline", result codes.
"""

from __future__ import annotations

#: Go on with the next stage.
RET_PF_CONTINUE = 0
#: Let the guest fault again: something moved meanwhile, or the guest was given an exception.
RET_PF_RETRY = 1
#: Emulate the instruction: MMIO.
RET_PF_EMULATE = 2
#: The gfn holds a guest table that must not be written behind kvm's back: emulate, or unprotect and retry.
RET_PF_WRITE_PROTECTED = 3
#: The fast paths cannot tell: take the slow one.
RET_PF_INVALID = 4
#: An spte was installed or changed.
RET_PF_FIXED = 5
#: The spte allowed the access already.
RET_PF_SPURIOUS = 6
#: Verdict -> name.
VERDICTS = ("CONTINUE", "RETRY", "EMULATE", "WRITE_PROTECTED", "INVALID", "FIXED", "SPURIOUS")
# What a fault was about: a closed list, one per fault (docs/fault-path.md tells them apart).
CAUSE_NONE = 0
CAUSE_GUEST = 1
CAUSE_TABLE = 2
CAUSE_MAP = 3
CAUSE_REMAP = 4
CAUSE_PERMISSION = 5
CAUSE_UNSYNC = 6
CAUSE_WRITE_PROTECTED = 7
CAUSE_MMIO_INSTALL = 8
CAUSE_MMIO_CACHED = 9
CAUSE_MMIO_UNCACHED = 10
CAUSE_FAST = 11
CAUSE_SPURIOUS = 12
CAUSE_RETRY = 13
CAUSE_ERROR = 14
#: Cause -> the word that reports use.
CAUSES = (
    "none",
    "guest",
    "table",
    "map",
    "remap",
    "permission",
    "unsync",
    "write-protected",
    "mmio-install",
    "mmio-cached",
    "mmio-uncached",
    "fast",
    "spurious",
    "retry",
    "error",
)

# Why a fault maps no larger page: a closed list (docs/fault-path.md tells them apart). LIMIT_MAPPING is for
# ``fault.limit_of()`` to look into.
LIMIT_NONE = 0
LIMIT_GUEST_PAGE = 1
LIMIT_UNPAGED = 2
LIMIT_NO_SLOT = 3
LIMIT_DIRTY_LOG = 4
LIMIT_MAPPING = 5
LIMIT_CPU = 6
LIMIT_SLOT_END = 7
LIMIT_MISALIGNED = 8
LIMIT_WRITE_TRACKED = 9
LIMIT_SYNCED_TABLE = 10
LIMIT_HOST = 11
LIMIT_NX = 12
LIMIT_NX_TABLE = 13
#: Limit -> the word that reports use.
LIMITS = (
    "none",
    "guest-page",
    "unpaged",
    "no-slot",
    "dirty-log",
    "mapping",
    "cpu",
    "slot-end",
    "misaligned",
    "write-tracked",
    "synced-table",
    "host",
    "nx",
    "nx-table",
)

#: What kvm must do after a page-fault exit, bits of ``vcpu.emultype``: emulate; unprotect and retry if the instruction
#: is no writer of page tables; not that, because the table maps itself.
EMULTYPE_PF = 1 << 6
EMULTYPE_ALLOW_RETRY_PF = 1 << 3
EMULTYPE_WRITE_PF_TO_SP = 1 << 8
