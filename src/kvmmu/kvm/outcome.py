# SPDX-License-Identifier: GPL-2.0-only
"""How an access and its emulation end, as numbers.

Not to be taken for one another: HW_* (``hw/bits``) is what the CPU says of one access, RUN_* what became of it after
all exits, X86EMUL_* how an access that kvm makes itself ends, RET_PF_* (``mmu/verdict``) how one page fault does.
"""

from __future__ import annotations

#: How an access ends: it was made (``vcpu.cpu.hpa``); the guest got an exception (``vcpu.exception_*``, ``vcpu.cr2``);
#: kvm must emulate it (``emulate``); KVM_RUN fails with ``vcpu.run_errno``; the guest is gone after a triple fault.
RUN_HIT = 0
RUN_FAULT = 1
RUN_EMULATE = 2
RUN_ERROR = 3
RUN_SHUTDOWN = 4

#: How an emulated access ends: done in RAM; a device's, at ``vcpu.mmio_gpa``; an exception for the guest; not emulated
#: after all, because the table is no longer mirrored and the guest may try again.
X86EMUL_CONTINUE = 0
X86EMUL_IO_NEEDED = 1
X86EMUL_PROPAGATE_FAULT = 2
X86EMUL_RETRY_INSTR = 3
#: Kvm gives up: the supervisor's instruction lies in a device.
X86EMUL_UNHANDLEABLE = 4
