# SPDX-License-Identifier: GPL-2.0-only
"""What words of a KVM host mean: sptes, roles, error codes and guest entries of any kernel, alone or in pasted text.

An outside party that needs no world: numbers and text go in, :class:`~kvmmu.decode.reading.Reading` come out. What
differs between kernels is one table, :mod:`~kvmmu.decode.layouts`.
"""
