# SPDX-License-Identifier: GPL-2.0-only

cdef class Trace:
    cdef public bint on             # anybody listens: test this before building an event
    cdef readonly tuple sinks       # each is called with one event, in this order
    cdef readonly object sink       # hands one event to all of them; None: there is none
    cdef public int vcpu_id         # in whose context kvm works now; -1: in no vCPU's
