# SPDX-License-Identifier: GPL-2.0-only
"""The exception that a vCPU gets at its next entry: one at a time, two of the wrong kinds making a double fault.

Which kinds make one is the manuals' table of double-fault conditions (``kvm_multiple_exception``).
"""

from __future__ import annotations

from ..hw.bits import DF_VECTOR, GP_VECTOR, PF_VECTOR, TS_VECTOR
from .bits import KVM_REQ_TRIPLE_FAULT
from .requests import make_request
from .vcpu import Vcpu


def is_contributory(vector: int) -> bool:
    """Whether exception ``vector`` makes a ``#DF`` of a contributory one before it: DE, TS, NP, SS, GP."""
    return vector == 0 or (vector >= TS_VECTOR and vector <= GP_VECTOR)


def queue_exception(vcpu: Vcpu, vector: int, has_error: bool, error_code: int) -> int:
    """Queue exception ``vector`` for the next entry (``kvm_multiple_exception``); return the vector that is queued.

    While another one waits to be delivered, or is to be delivered again, two that are not benign make a ``#DF``; any
    other takes its place. After a ``#DF`` the guest shuts down at the next entry (KVM_REQ_TRIPLE_FAULT).
    """
    if vcpu.exception_pending or vcpu.exception_reinjected:
        before = vcpu.exception_vector
        if before == DF_VECTOR:
            make_request(vcpu, KVM_REQ_TRIPLE_FAULT)
            return before
        if is_contributory(vector) if is_contributory(before) else before == PF_VECTOR:
            if is_contributory(vector) or vector == PF_VECTOR:
                vector = DF_VECTOR
                has_error = True
                error_code = 0
    vcpu.exception_pending = True
    vcpu.exception_reinjected = False
    vcpu.exception_vector = vector
    vcpu.exception_has_error = has_error
    vcpu.exception_error_code = error_code
    return vector
