# SPDX-License-Identifier: GPL-2.0-only
"""EmulationFailure: the exit that tells a VMM that kvm could not emulate an instruction.

Source: Linux 6.12 ``prepare_emulation_failure_exit``, ``svm_get_exit_info``; ``struct kvm_run`` of the KVM API.
"""

from __future__ import annotations

from dataclasses import dataclass

#: KVM_INTERNAL_ERROR_EMULATION: the suberror of an emulation failure.
KVM_INTERNAL_ERROR_EMULATION = 1
#: Flag of its data: the bytes of the instruction follow, as far as they could be fetched.
KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES = 1
#: Reasons of an SVM exit: ``#PF`` intercepted (shadow paging), and a nested page fault.
SVM_EXIT_EXCP_PF = 0x4E
SVM_EXIT_NPF = 0x400

#: Most bytes of an instruction; what could not be fetched of them is NOPs in struct kvm_run.
INSN_MAX = 15
_NOP = b"\x90"


@dataclass(frozen=True, slots=True)
class EmulationFailure:
    """KVM_EXIT_INTERNAL_ERROR with suberror 1: kvm could not emulate an instruction, and KVM_RUN ended.

    ``exit_reason``, ``exit_info1`` (the fault's error code) and ``exit_info2`` (its gva, or gpa under nested paging)
    are the CPU's exit; ``insn_bytes`` what could be fetched; ``ud_queued``: who runs on gives the guest ``#UD``.
    """

    exit_reason: int
    exit_info1: int
    exit_info2: int
    insn_bytes: bytes = b""
    ud_queued: bool = True
    suberror: int = KVM_INTERNAL_ERROR_EMULATION

    @property
    def flags(self) -> int:
        """The first word of the data."""
        return KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES if self.insn_bytes else 0

    @property
    def data(self) -> tuple[int, ...]:
        """``kvm_run.internal.data`` up to ``ndata``: flags, size and bytes of the instruction, the exit's five words.

        The last two, an event whose delivery the exit interrupted and its error code, are always 0 here.
        """
        insn: tuple[int, ...] = ()
        if self.insn_bytes:
            raw = bytes([len(self.insn_bytes)]) + self.insn_bytes.ljust(INSN_MAX, _NOP)
            insn = (int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little"))
        return (self.flags, *insn, self.exit_reason, self.exit_info1, self.exit_info2, 0, 0)
