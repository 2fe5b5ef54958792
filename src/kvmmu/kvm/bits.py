# SPDX-License-Identifier: GPL-2.0-only
"""Words of kvm outside its MMU: memslot flags, error addresses, requests, vCPU modes; all as in Linux 6.12."""

from __future__ import annotations

from ..addr import Gpa, Hva, Pfn

#: Buckets of the hash of shadow pages.
KVM_NUM_MMU_PAGES_BUCKETS = 4096
KVM_ADDRESS_SPACE_NUM = 2

#: Flags of a slot: log writes, refuse writes, and (internal) being deleted or moved.
KVM_MEM_LOG_DIRTY_PAGES = 1
KVM_MEM_READONLY = 2
KVM_MEMSLOT_INVALID = 1 << 16
#: What KVM_ENABLE_CAP can turn on.
KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 = 168
#: What it asks for: a log that reading does not clear; one that begins full.
KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE = 1
KVM_DIRTY_LOG_INITIALLY_SET = 2
#: Slots that user space may make; ids from here to KVM_MEM_SLOTS_NUM are KVM's own.
KVM_USER_MEM_SLOTS = 32764
KVM_MEM_SLOTS_NUM = 32767
KVM_MEM_MAX_NR_PAGES = (1 << 31) - 1
#: Bit of a generation: an update is in progress.
KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS = 1 << 63

#: First address that belongs to the host's kernel (4-level paging): no hva is here or above.
PAGE_OFFSET = 0xFFFF_8880_0000_0000
KVM_HVA_ERR_BAD = Hva(PAGE_OFFSET)
KVM_HVA_ERR_RO_BAD = Hva(PAGE_OFFSET + 4096)

#: What an operation of the hardware answers that it does not have: a negative errno.
EOPNOTSUPP = -95

#: No guest physical address.
INVALID_GPA = Gpa(0xFFFF_FFFF_FFFF_FFFF)

#: Words in place of a pfn.
KVM_PFN_ERR_MASK = 0x7FF << 52
KVM_PFN_ERR_NOSLOT_MASK = 0xFFF << 52
KVM_PFN_NOSLOT = Pfn(1 << 63)
KVM_PFN_ERR_FAULT = Pfn(KVM_PFN_ERR_MASK)
KVM_PFN_ERR_HWPOISON = KVM_PFN_ERR_MASK + 1
KVM_PFN_ERR_RO_FAULT = Pfn(KVM_PFN_ERR_MASK + 2)
KVM_PFN_ERR_SIGPENDING = KVM_PFN_ERR_MASK + 3

# Requests to a vCPU: numbers of bits of ``vcpu.requests``.
KVM_REQ_TLB_FLUSH = 0
KVM_REQ_TRIPLE_FAULT = 10
KVM_REQ_MMU_SYNC = 11
KVM_REQ_LOAD_MMU_PGD = 13
KVM_REQ_TLB_FLUSH_CURRENT = 34
KVM_REQ_TLB_FLUSH_GUEST = 35
KVM_REQ_MMU_FREE_OBSOLETE_ROOTS = 39
#: Requests, a bit each, whose sender waits until no vCPU can still act as if it had not been made.
KVM_REQ_WAIT = 1 << KVM_REQ_TLB_FLUSH | 1 << KVM_REQ_TLB_FLUSH_GUEST | 1 << KVM_REQ_MMU_FREE_OBSOLETE_ROOTS
#: Number -> name, for people.
KVM_REQ_NAMES = {
    KVM_REQ_TLB_FLUSH: "TLB_FLUSH",
    KVM_REQ_TRIPLE_FAULT: "TRIPLE_FAULT",
    KVM_REQ_MMU_SYNC: "MMU_SYNC",
    KVM_REQ_LOAD_MMU_PGD: "LOAD_MMU_PGD",
    KVM_REQ_TLB_FLUSH_CURRENT: "TLB_FLUSH_CURRENT",
    KVM_REQ_TLB_FLUSH_GUEST: "TLB_FLUSH_GUEST",
    KVM_REQ_MMU_FREE_OBSOLETE_ROOTS: "MMU_FREE_OBSOLETE_ROOTS",
}
#: All requests, a bit each.
KVM_REQ_ALL = sum(1 << req for req in KVM_REQ_NAMES)

#: ``Trace.vcpu_id`` while kvm works for no vCPU, but for the process: an ioctl of the VM, the notifier.
NO_VCPU = -1

# Where a vCPU is.
OUTSIDE_GUEST_MODE = 0
IN_GUEST_MODE = 1
EXITING_GUEST_MODE = 2
#: A lockless walk is under way: a remote flush, and with it the freeing of tables, waits for its end.
READING_SHADOW_PAGE_TABLES = 3

#: Register values after reset: paging off, caches as the architecture leaves them.
RESET_CR0 = 0x6000_0010

#: Exits for one access after which something is wrong with the model, not with the guest.
MAX_TRIES = 64

#: Beside the ACCESS_* bits of an access: the instruction is not of those that usually write page tables (it is a string
#: move, an xor ...), so kvm rather stops mirroring the table than emulates.
ACCESS_NOT_PT_INSN = 1 << 16
#: Where the local APIC's registers are by default.
APIC_DEFAULT_PHYS_BASE = 0xFEE0_0000

#: Kinds of kvm_mmio.
KVM_TRACE_MMIO_READ_UNSATISFIED = 0
KVM_TRACE_MMIO_READ = 1
KVM_TRACE_MMIO_WRITE = 2
#: Flags of kvm_emulate_insn: CR0.PE, EFLAGS.VM, CS.D, CS.L; the four modes that they make.
KVM_EMUL_INSN_REAL = 0
KVM_EMUL_INSN_PROT16 = 1
KVM_EMUL_INSN_PROT32 = 5
KVM_EMUL_INSN_PROT64 = 9
