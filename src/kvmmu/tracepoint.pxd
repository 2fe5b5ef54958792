# SPDX-License-Identifier: GPL-2.0-only

cdef class Trace:
    cdef public bint on             # anybody listens: test this before building an event
    cdef public object sink         # called with one event, a tuple (name, field, field ...)
