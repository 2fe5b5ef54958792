# SPDX-License-Identifier: GPL-2.0-only
"""What the guest does: its accesses, and the instructions that change paging."""

from __future__ import annotations

from . import arguments, guard
from .access import Access, guest_access
from .addr import Gva
from .calls import working
from .hw.bits import ACCESS_FETCH, ACCESS_WRITE, INSN_DONE
from .kvm import insn
from .kvm.vcpu import Vcpu
from .parts import Parts

# A type of INVPCID that does not exist.
_NO_KIND = 4


class Instructions(Parts):
    """The guest's calls.

    Those for registers and the TLB return whether the instruction was executed; False: the guest gets ``#GP`` and
    nothing changed.
    """

    # Accesses. SMAP looks at EFLAGS.AC in ``vcpu.rflags``.

    def read(self, vcpu: Vcpu, gva: Gva | int, size: int = 8, *, user: bool = False) -> Access:
        """A load of ``size`` bytes at ``gva``."""
        kind = 0 if user is False else guard.user_bit(user)
        return guest_access(self._door, self.vm, vcpu, gva, kind, None, size)

    def fetch(self, vcpu: Vcpu, gva: Gva | int, size: int = 1, *, user: bool = False) -> Access:
        """An instruction fetch of ``size`` bytes at ``gva``."""
        kind = ACCESS_FETCH if user is False else ACCESS_FETCH | guard.user_bit(user)
        return guest_access(self._door, self.vm, vcpu, gva, kind, None, size)

    def write(self, vcpu: Vcpu, gva: Gva | int, data: bytes | int, size: int = 8, *, user: bool = False) -> Access:
        """A store of ``data`` (an int is ``size`` bytes, little endian) at ``gva``."""
        raw = data if type(data) is bytes else arguments.data_bytes(data, size)
        kind = ACCESS_WRITE if user is False else ACCESS_WRITE | guard.user_bit(user)
        return guest_access(self._door, self.vm, vcpu, gva, kind, raw, len(raw))

    # Registers and the TLB.

    @working
    def mov_cr0(self, vcpu: Vcpu, value: int) -> bool:
        """MOV to CR0."""
        guard.operands(self.vm, vcpu, value=value)
        return insn.mov_cr0(vcpu, value) == INSN_DONE

    @working
    def mov_cr3(self, vcpu: Vcpu, value: int) -> bool:
        """MOV to CR3; with CR4.PCIDE, bit 63 keeps the translations of the new PCID."""
        guard.operands(self.vm, vcpu, value=value)
        return insn.mov_cr3(vcpu, value) == INSN_DONE

    @working
    def mov_cr4(self, vcpu: Vcpu, value: int) -> bool:
        """MOV to CR4."""
        guard.operands(self.vm, vcpu, value=value)
        return insn.mov_cr4(vcpu, value) == INSN_DONE

    @working
    def wrmsr_efer(self, vcpu: Vcpu, value: int) -> bool:
        """WRMSR to EFER."""
        guard.operands(self.vm, vcpu, value=value)
        return insn.wrmsr_efer(vcpu, value) == INSN_DONE

    @working
    def wrpkru(self, vcpu: Vcpu, value: int) -> bool:
        """WRPKRU."""
        guard.own_vcpu(self.vm, vcpu)
        arguments.number("value", value, (1 << 32) - 1)
        return insn.wrpkru(vcpu, value) == INSN_DONE

    @working
    def invlpg(self, vcpu: Vcpu, gva: Gva | int) -> bool:
        """INVLPG."""
        guard.operands(self.vm, vcpu, gva=gva)
        return insn.insn_invlpg(vcpu, Gva(gva)) == INSN_DONE

    @working
    def invpcid(self, vcpu: Vcpu, kind: int, pcid: int = 0, gva: Gva | int = 0) -> bool:
        """INVPCID of type ``kind``: 0 one address of one PCID, 1 one PCID, 2 all, 3 all but global pages."""
        guard.operands(self.vm, vcpu, kind=kind, pcid=pcid, gva=gva)
        return insn.insn_invpcid(vcpu, min(kind, _NO_KIND), pcid, Gva(gva)) == INSN_DONE
