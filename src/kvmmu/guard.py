# SPDX-License-Identifier: GPL-2.0-only
"""What a world refuses for reasons of its machine: a vCPU of another, an address that no instruction has, a hole.

:mod:`kvmmu.arguments` looks at values by themselves; here they are held against the VM that they are meant for.
"""

from __future__ import annotations

import errno

from . import arguments
from .addr import Gpa, gpa_to_gfn
from .errors import GuestMisuse, KvmIoctlError, OutOfFrames
from .guest.tables import ControlRegisters
from .hw.bits import ACCESS_USER, CR4_LA57, EFER_LMA
from .kvm.legal import broken_rule
from .kvm.vcpu import Vcpu
from .kvm.vm import Vm
from .page_types import PAGE_SIZE
from .params import Params


def host(params: object, nr_frames: object) -> None:
    """Nothing, if a world can be made of these."""
    if params is not None:
        arguments.instance("params", params, Params, "Params(npt=False), or None for the defaults")
    arguments.number("nr_frames", nr_frames, 1 << 32, 3)


def own_vcpu(vm: Vm, vcpu: object) -> None:
    """Nothing, if ``vcpu`` is one of ``vm``.

    :raises GuestMisuse: None, another object, or a vCPU of another world.
    """
    if isinstance(vcpu, Vcpu) and vcpu.vm is vm:
        return
    what = f"{vcpu.vcpu_id} of another world" if isinstance(vcpu, Vcpu) else arguments.describe(vcpu)
    raise GuestMisuse(f"vcpu {what}: a world runs its own vCPUs only; use what its create_vcpu() returned")


def operands(vm: Vm, vcpu: object, **values: object) -> None:
    """:func:`own_vcpu`, and each keyword a word of 64 bits: what an instruction is given."""
    own_vcpu(vm, vcpu)
    arguments.numbers(**values)


def access(vm: Vm, vcpu: object, gva: object, size: object) -> None:
    """:func:`own_vcpu`, and numbers where numbers are due; how large they may be is told by :func:`linear`."""
    own_vcpu(vm, vcpu)
    arguments.whole("gva", gva)
    arguments.whole("size", size)


def registers(vm: Vm, vcpu: Vcpu, values: object) -> None:
    """Nothing, if KVM_SET_SREGS of ``vcpu`` accepts the ControlRegisters ``values``.

    :raises UserError: another object, or a register that is no number of 64 bits.
    :raises KvmIoctlError: EINVAL, no CPU accepts them.
    """
    own_vcpu(vm, vcpu)
    if not isinstance(values, ControlRegisters):
        arguments.instance("registers", values, ControlRegisters, "GuestTables.registers() makes them")
        return
    arguments.numbers(cr0=values.cr0, cr3=values.cr3, cr4=values.cr4, efer=values.efer)
    broken = broken_rule(vcpu, values.cr0, values.cr3, values.cr4, values.efer)
    if broken:
        raise KvmIoctlError(errno.EINVAL, f"EINVAL: KVM_SET_SREGS, {broken}")


def user_bit(user: object) -> int:
    """What ``user`` adds to the kind of an access."""
    return ACCESS_USER if arguments.flag("user", user) else 0


def linear(vcpu: Vcpu, gva: int, size: int) -> None:
    """Nothing, if an instruction of ``vcpu`` can access ``size`` bytes at ``gva``.

    :raises GuestMisuse: too many bytes, or an address that is too wide or not canonical.
    """
    if not 1 <= size <= PAGE_SIZE:
        raise GuestMisuse(f"an access of {size} bytes: one instruction touches 1 to 4096")
    last = gva + size - 1
    if not vcpu.efer & EFER_LMA:
        if last >> 32:
            raise GuestMisuse(f"gva {gva:#x}: outside long mode, addresses have 32 bits and accesses do not wrap")
        return
    unused = 56 if vcpu.cr4 & CR4_LA57 else 47
    if gva >> unused not in (0, (1 << (64 - unused)) - 1) or last >> unused != gva >> unused:
        raise GuestMisuse(f"gva {gva:#x}: not canonical (bits 63 to {unused} must be equal); the guest gets #GP")


def run_error(vcpu: Vcpu, gva: int) -> OutOfFrames | KvmIoctlError:
    """Why KVM_RUN of ``vcpu`` ended at an access to ``gva``."""
    if vcpu.run_errno == -errno.ENOMEM:
        nr = vcpu.vm.frames.nr_frames
        return OutOfFrames(
            f"access at {gva:#x}: no free frame left of nr_frames={nr} ({nr >> 8} MB): give World() more"
        )
    return KvmIoctlError(-vcpu.run_errno, f"KVM_RUN: access at {gva:#x} cannot be resolved by the host")


def span(gpa: object, size: object) -> None:
    """Nothing, if ``size`` bytes at ``gpa`` are a range of addresses."""
    arguments.length("gpa", arguments.number("gpa", gpa), size)


def store(vm: Vm, gpa: object, nr_bytes: int) -> None:
    """Nothing, if slots hold all of ``nr_bytes`` at ``gpa``: a store must not stop half way.

    :raises UserError: ``gpa`` is no address, or a page without a slot.
    """
    first = arguments.number("gpa", gpa)
    arguments.length("gpa", first, nr_bytes)
    for page in range(first - first % PAGE_SIZE, first + nr_bytes, PAGE_SIZE):
        if vm.slots_of(0).find(gpa_to_gfn(Gpa(page))) is None:
            where = f"; the first page without one is at {page:#x}" if page > first else ""
            raise GuestMisuse(f"gpa {first:#x}: no memslot there for {nr_bytes:#x} bytes{where}; add_slot()")
