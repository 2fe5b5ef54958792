# SPDX-License-Identifier: GPL-2.0-only
"""PageFault: what the error code says, what a fresh fault knows, and the one cause of its end."""

from __future__ import annotations

import pytest

from kvmmu.kvm.mmu.fault import PageFault, cause_of, make_fault
from kvmmu.kvm.mmu.verdict import CAUSES, VERDICTS

NONE, GUEST, TABLE, MAP, REMAP, PERMISSION, UNSYNC = range(7)
CONTINUE, RETRY, EMULATE, WRITE_PROTECTED, INVALID, FIXED, SPURIOUS = range(7)


@pytest.mark.parametrize(
    ("bit", "name"), [(1, "present"), (2, "write"), (4, "user"), (8, "rsvd"), (16, "exec"), (32, ""), (1 << 33, "")]
)
def test_each_bit_of_the_error_code_is_one_question(bit: int, name: str) -> None:
    for fault in (PageFault(0x1234, bit), make_fault(0x1234, bit)):
        asked = {key: getattr(fault, key) for key in ("present", "write", "user", "rsvd", "exec")}
        assert asked == {key: key == name for key in asked}
        assert (fault.addr, fault.error_code) == (0x1234, bit)


def test_a_fresh_fault_knows_no_page_and_wants_any_size() -> None:
    for fault in (PageFault(1 << 63, 0), make_fault(1 << 63, 0)):
        assert (fault.max_level, fault.req_level, fault.goal_level) == (3, 1, 1)
        assert (fault.slot, fault.pfn, fault.hva) == (None, 0x7FF << 52, 0xFFFF_8880_0000_0000)
        assert (fault.map_writable, fault.prefetch, fault.validate_direct) == (False, False, True)
        assert (fault.nr_linked, fault.cause, fault.write_fault_to_shadow_pgtable) == (0, NONE, False)
    assert PageFault(0, 0, True).prefetch


@pytest.mark.parametrize(
    ("verdict", "noted", "linked", "cause"),
    [
        (-14, NONE, 0, "error"),
        (-28, MAP, 3, "error"),
        (WRITE_PROTECTED, NONE, 0, "write-protected"),
        (WRITE_PROTECTED, MAP, 1, "write-protected"),
        (EMULATE, NONE, 0, "mmio-uncached"),
        (EMULATE, MAP, 1, "mmio-install"),
        (SPURIOUS, NONE, 0, "spurious"),
        (SPURIOUS, PERMISSION, 0, "spurious"),
        (RETRY, NONE, 0, "retry"),
        (RETRY, GUEST, 0, "guest"),
        (FIXED, NONE, 0, "fast"),
        (FIXED, MAP, 0, "map"),
        (FIXED, MAP, 1, "table"),
        (FIXED, REMAP, 1, "remap"),
        (FIXED, PERMISSION, 2, "permission"),
        (FIXED, UNSYNC, 1, "unsync"),
    ],
)
def test_the_cause_is_the_stages_word_or_follows_from_the_verdict(
    verdict: int, noted: int, linked: int, cause: str
) -> None:
    fault = PageFault(0, 0)
    fault.cause, fault.nr_linked = noted, linked
    assert CAUSES[cause_of(fault, verdict)] == cause


def test_the_verdicts_have_the_kernels_numbers() -> None:
    assert VERDICTS == ("CONTINUE", "RETRY", "EMULATE", "WRITE_PROTECTED", "INVALID", "FIXED", "SPURIOUS")
    assert len(CAUSES) == 15


def test_the_text_tells_address_code_page_and_levels() -> None:
    fault = PageFault(0x5000, 6)
    fault.gfn, fault.pfn, fault.req_level = 0x77, 0x99, 2
    assert repr(fault) == (
        "<PageFault addr 0x5000 error_code 0x6 gfn 0x77 slot None pfn 0x99 levels max 3 req 2 goal 1 limit none>"
    )
