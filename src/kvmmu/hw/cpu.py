# SPDX-License-Identifier: GPL-2.0-only
"""One logical CPU: an access is a TLB lookup, else a walk and a fill.

Registers change through two doors. The ``write_*`` methods, :meth:`Cpu.invlpg` and :meth:`Cpu.invpcid` are the
guest's instructions, with the checks and the TLB effects of the manual; they answer INSN_DONE or INSN_GP, and
the latter changes nothing. :meth:`Cpu.load_guest`, :meth:`Cpu.set_nested` and the ``flush_*`` methods belong to a
hypervisor: the first two change what a world switch changes and flush nothing.

TLB effects (Intel SDM volume 3, "Operations that Invalidate TLBs"; AMD APM volume 2, "TLB Management"):

==========================================  =================================================
change                                      flushed, in the current address space
==========================================  =================================================
CR0.PG                                      all
CR4.PGE, CR4.PCIDE 1 to 0, CR4.LA57         all
CR4.PAE, CR4.PSE, CR4.SMEP 0 to 1           the current PCID and global entries
MOV to CR3                                  the new PCID, unless bit 63 (with CR4.PCIDE) keeps it
INVLPG                                      the page: current PCID and global entries
CR0.WP, CR4.SMAP, SMEP 1 to 0, PKE, PKRU,   nothing: a hit is judged by the rules in force
EFER.NX
==========================================  =================================================

A translation that does not allow an access, or a clean one that is written through, is dropped and walked anew.
"""

from __future__ import annotations

from ..addr import Address, Gfn, Gpa, Gva, Hpa
from ..page_types import PAGE_SHIFT
from .bits import (
    CR0_CD,
    CR0_NW,
    CR0_PE,
    CR0_PG,
    CR3_NOFLUSH,
    CR3_PCID,
    CR4_LA57,
    CR4_PAE,
    CR4_PCIDE,
    CR4_PGE,
    CR4_PSE,
    CR4_SMEP,
    EFER_LMA,
    EFER_LME,
    HW_HIT,
    HW_PAGE_FAULT,
    INSN_DONE,
    INSN_GP,
    INVPCID_ADDRESS,
    INVPCID_ALL,
    INVPCID_CONTEXT,
    INVPCID_NON_GLOBAL,
    PT_FRAME,
    PT_PRESENT,
    TR_LEVEL_SHIFT,
)
from .cpumodel import CpuModel
from .memory import PhysicalMemory
from .modes import MODE_PAE, bit_range
from .paging import Walk, page_walk
from .regs import Registers
from .runner import Runner
from .tlb import Tlb

_PDPTES = 0xFFFF_FFE0
_DEFAULTS = CpuModel()


class Cpu(Registers):
    """One logical CPU.

    :param number: its number, for people.
    :param memory: physical memory: its tables, and where accesses go.
    :param params: the CPU model.

    After :meth:`access`: ``hpa`` (HW_HIT), ``error_code`` (HW_PAGE_FAULT) or ``fault_gpa`` and ``fault_code``
    (HW_NESTED_FAULT). ``last_walk`` holds the elements of the last walk.
    """

    __slots__ = ("error_code", "fault_code", "fault_gpa", "hpa", "last_walk", "number", "offset_mask", "tlb")

    def __init__(self, number: int, memory: PhysicalMemory, params: CpuModel = _DEFAULTS) -> None:
        Registers.__init__(self, memory, params)
        self.number = number
        self.tlb = Tlb(params)
        self.last_walk = Walk()
        self.offset_mask = [0, 0xFFF, 0x1F_FFFF, 0x3FFF_FFFF]
        self.hpa = Hpa(0)
        self.error_code = 0
        self.fault_gpa = Gpa(0)
        self.fault_code = 0

    def __repr__(self) -> str:
        return f"Cpu({self.number}, cr0={self.cr0:#x} cr3={self.cr3:#x} cr4={self.cr4:#x} efer={self.efer:#x})"

    # Accesses.

    def access(self, gva: Gva, kind: int) -> int:
        """Make an access of ``kind`` (ACCESS_* bits) to the byte at ``gva``; return an HW_* word.

        ``gva`` must be canonical in long mode (else the caller raises #GP); outside it has 32 bits. An access that
        crosses pages is made page by page by the caller.
        """
        gva &= self.gva_mask
        translation = self.tlb.find(gva)
        if translation:
            # kind_index(), written out.
            index = ((kind >> 1) & 11) | ((kind >> 4) & 0x30)
            if (translation & self.mask[index]) == self.want[index] and not (
                self.pkru_active and self.is_pkru_denied(translation, index)
            ):
                offset = self.offset_mask[(translation >> TR_LEVEL_SHIFT) & 3]
                self.hpa = (translation & PT_FRAME) | (gva & offset)  # type: ignore[assignment]  # the frame is an hpa's, the offset a gva's
                return HW_HIT
            self.tlb.drop()
        return self._access_missed(gva, kind)

    def _access_missed(self, gva: Gva, kind: int) -> int:
        out = self.last_walk
        status = page_walk(self, gva, kind, out)
        if status == HW_HIT:
            self.hpa = out.hpa
            self.tlb.fill(gva, out.translation)
            if self.tlb.tracks_gfns:
                self.tlb.note_gfn(gva, out.gpa >> PAGE_SHIFT, out.translation)  # type: ignore[arg-type]  # gpa_to_gfn(), written out
        elif status == HW_PAGE_FAULT:
            self.error_code = out.error_code
        else:
            self.fault_gpa = out.fault_gpa
            self.fault_code = out.fault_code
        return status

    # The guest's instructions.

    def write_cr0(self, value: int) -> int:
        """MOV to CR0; sets and clears EFER.LMA with PG as LME asks. Return INSN_DONE or INSN_GP."""
        changed = self.cr0 ^ value
        efer = self.efer
        if value >> 32 or (value & CR0_PG and not value & CR0_PE) or (value & CR0_NW and not value & CR0_CD):
            return INSN_GP
        if changed & CR0_PG and value & CR0_PG and efer & EFER_LME:
            if not self.cr4 & CR4_PAE:
                return INSN_GP
            efer |= EFER_LMA
        if changed & CR0_PG and not value & CR0_PG:
            if self.cr4 & CR4_PCIDE:
                return INSN_GP
            efer = efer & ~EFER_LMA
        if not self._load_checked(value, self.cr4, efer, changed & (CR0_PG | CR0_CD | CR0_NW)):
            return INSN_GP
        if changed & CR0_PG:
            self.tlb.flush_space(self.tlb.space)
        return INSN_DONE

    def write_cr3(self, value: int) -> int:
        """MOV to CR3: switch the address space, flush it unless bit 63 (with PCIDE) says no; load PDPTEs in PAE mode.

        Return INSN_DONE, or INSN_GP for reserved bits or (PAE) a PDPTE with reserved bits.
        """
        is_kept = self.has_pcid and (value & CR3_NOFLUSH) != 0
        if is_kept:
            value = value & ~CR3_NOFLUSH
        if value >> self.maxphyaddr:
            return INSN_GP
        if self.mode == MODE_PAE and not self.nested and not self._load_pdptrs_from(value):
            return INSN_GP
        self.cr3 = value
        pcid = value & CR3_PCID if self.has_pcid else 0
        if pcid != self.tlb.pcid:
            self.tlb.switch(self.tlb.space, pcid)
        if not is_kept:
            self.tlb.flush_pcid(pcid)
        return INSN_DONE

    def write_cr4(self, value: int) -> int:
        """MOV to CR4 with its flushes; reloads PDPTEs where PAE paging is (or comes to be) in use.

        Return INSN_DONE, or INSN_GP for what long mode or PCID forbid.
        """
        changed = self.cr4 ^ value
        is_long = self.efer & EFER_LMA != 0
        if is_long and (changed & CR4_LA57 or not value & CR4_PAE):
            return INSN_GP
        if changed & value & CR4_PCIDE and (not is_long or self.cr3 & CR3_PCID):
            return INSN_GP
        if not self._load_checked(self.cr0, value, self.efer, changed & (CR4_PAE | CR4_PSE | CR4_PGE | CR4_SMEP)):
            return INSN_GP
        if changed & (CR4_PGE | CR4_LA57) or changed & CR4_PCIDE & ~value:
            self.tlb.flush_space(self.tlb.space)
            self.tlb.switch(self.tlb.space, self.cr3 & CR3_PCID if self.has_pcid else 0)
        elif changed & (CR4_PAE | CR4_PSE) or changed & value & CR4_SMEP:
            self.tlb.flush_current()
        return INSN_DONE

    def write_efer(self, value: int) -> int:
        """WRMSR to EFER; LMA is the CPU's own and kept. Return INSN_DONE, or INSN_GP if LME changes under PG."""
        if (self.efer ^ value) & EFER_LME and self.cr0 & CR0_PG:
            return INSN_GP
        self.load_registers(self.cr0, self.cr3, self.cr4, (value & ~EFER_LMA) | (self.efer & EFER_LMA))
        return INSN_DONE

    def write_pkru(self, value: int) -> int:
        """WRPKRU; takes effect on the next access. Return INSN_DONE."""
        self.load_pkru(value)
        return INSN_DONE

    def invlpg(self, gva: Gva) -> int:
        """INVLPG: flush the page of ``gva``, of whatever size. INSN_DONE (a non-canonical address is ignored)."""
        self.tlb.invlpg(gva & self.gva_mask)
        return INSN_DONE

    def invpcid(self, kind: int, pcid: int, gva: Gva) -> int:
        """INVPCID of type ``kind`` (INVPCID_*). Return INSN_DONE or INSN_GP (bad type, PCID or address)."""
        is_by_pcid = kind in (INVPCID_ADDRESS, INVPCID_CONTEXT)
        if not 0 <= kind <= INVPCID_NON_GLOBAL or pcid > CR3_PCID or (is_by_pcid and pcid and not self.has_pcid):
            return INSN_GP
        if kind == INVPCID_ADDRESS:
            if self.efer & EFER_LMA and not self.is_canonical(gva):
                return INSN_GP
            self.tlb.invlpg_pcid(pcid, gva & self.gva_mask)
        elif kind == INVPCID_CONTEXT:
            self.tlb.flush_pcid(pcid)
        elif kind == INVPCID_ALL:
            self.tlb.flush_space(self.tlb.space)
        else:
            self.tlb.flush_non_global()
        return INSN_DONE

    def is_canonical(self, gva: Gva) -> bool:
        """Whether ``gva`` can be used in this mode: a 48-bit (57-bit with LA57) number, sign-extended, in long mode."""
        if not self.efer & EFER_LMA:
            return True
        top = gva >> (56 if self.cr4 & CR4_LA57 else 47)
        return top == 0 or top == bit_range(0, 7 if self.cr4 & CR4_LA57 else 16)

    def load_pdptrs(self) -> bool:
        """Load the four PDPTE registers from the table at CR3; False, and nothing changed, if one has reserved bits."""
        return self._load_pdptrs_from(self.cr3)

    def _load_pdptrs_from(self, cr3: Address) -> bool:
        table = cr3 & _PDPTES
        loaded = [self.memory.read_once(table + 8 * i) for i in range(4)]
        for pdpte in loaded:
            if pdpte & PT_PRESENT and pdpte & self.rsvd[3]:
                return False
        self.pdptrs = loaded
        return True

    # Load CR0, CR4 and EFER; if what changed makes PAE paging reload its PDPTEs and one is bad, restore and say no.
    def _load_checked(self, cr0: int, cr4: int, efer: int, reloads: int) -> bool:
        old_cr0 = self.cr0
        old_cr4 = self.cr4
        old_efer = self.efer
        self.load_registers(cr0, self.cr3, cr4, efer)
        if reloads and self.mode == MODE_PAE and not self.nested and not self.load_pdptrs():
            self.load_registers(old_cr0, self.cr3, old_cr4, old_efer)
            return False
        return True

    # What a hypervisor does.

    def load_guest(self, cr0: int, cr3: int, cr4: int, efer: int) -> int:
        """Load a guest's control registers as VMRUN does: all at once, unchecked, and without any flush.

        PAE without a second stage loads the PDPTEs too. Return INSN_DONE, or INSN_GP (the entry fails) if one
        of them has reserved bits; the registers are loaded then, the PDPTEs are not.
        """
        self.load_registers(cr0, cr3, cr4, efer)
        pcid = cr3 & CR3_PCID if self.has_pcid else 0
        if pcid != self.tlb.pcid:
            self.tlb.switch(self.tlb.space, pcid)
        if self.mode == MODE_PAE and not self.nested and not self.load_pdptrs():
            return INSN_GP
        return INSN_DONE

    def set_nested(self, ncr3: Hpa, levels: int) -> int:
        """Turn the second stage on: the table at ``ncr3`` (4 or 5 levels); 0 levels turn it off. Flushes nothing.

        :raises ConfigError: no nested table has so many levels.
        """
        return self.load_nested(ncr3, levels)

    def set_space(self, space: int) -> int:
        """Use address-space tag ``space`` (an ASID or VPID) for translations from now on; return 0."""
        return self.tlb.switch(space, self.tlb.pcid)

    def flush_asid(self) -> int:
        """Flush everything that the current address-space tag owns; return 0."""
        return self.tlb.flush_space(self.tlb.space)

    def flush_gva(self, gva: Gva) -> int:
        """INVLPGA with the current address-space tag: the page of ``gva`` goes under every PCID of it; return 0."""
        return self.tlb.invlpg_space(gva & self.gva_mask)

    def flush_gfns(self, gfn: Gfn, nr_pages: int) -> int:
        """Flush what came through ``nr_pages`` guest frames from ``gfn`` on, whoever owns it; return 0.

        Only for a CPU whose model tracks guest frames.
        """
        return self.tlb.flush_gfns(gfn, nr_pages)

    def flush_all(self) -> int:
        """Flush every address space; return 0."""
        return self.tlb.flush_all()


class CpuRunner(Runner):
    """The logical CPU ``cpu`` as a runner."""

    __slots__ = ("cpu",)

    def __init__(self, cpu: Cpu) -> None:
        self.cpu = cpu

    def load_guest(self, cr0: int, cr3: int, cr4: int, efer: int) -> int:
        """See :meth:`Cpu.load_guest`."""
        return self.cpu.load_guest(cr0, cr3, cr4, efer)

    def set_nested(self, ncr3: Hpa, levels: int) -> int:
        """See :meth:`Cpu.set_nested`."""
        return self.cpu.set_nested(ncr3, levels)

    def flush_asid(self) -> int:
        """See :meth:`Cpu.flush_asid`."""
        return self.cpu.flush_asid()

    def flush_gva(self, gva: Gva) -> int:
        """See :meth:`Cpu.flush_gva`."""
        return self.cpu.flush_gva(gva)

    def flush_gfns(self, gfn: Gfn, nr_pages: int) -> int:
        """See :meth:`Cpu.flush_gfns`."""
        return self.cpu.flush_gfns(gfn, nr_pages)
