# SPDX-License-Identifier: GPL-2.0-only
"""Sptes built from their meaning, written down from the kernels' own headers; shares nothing with ``kvmmu.decode``.

Sources: mmu/spte.h of Debian's linux 5.10.262, 6.1.192 and 6.12.117.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Leaf:
    """A present leaf: (host-writable, MMU-writable, W) as one of the four legal states."""

    pfn: int
    triple: tuple[int, int, int]
    user: bool
    executable: bool
    accessed: bool
    dirty: bool


def x86_leaf(kernel: str, leaf: Leaf, level: int) -> int:
    """A leaf of shadow or NPT format."""
    host, mmu, writable = leaf.triple
    word = leaf.pfn * 4096 + 1 + 2 * writable
    word += 4 * leaf.user + (0 if leaf.executable else 2**63) + 32 * leaf.accessed + 64 * leaf.dirty
    word += 128 if level > 1 else 0
    if kernel == "5.10":
        return word + 1024 * host + 2048 * mmu
    return word + 512 * host + 1024 * mmu + 2048


def ept_leaf(kernel: str, leaf: Leaf, level: int, memtype: int, ipat: bool) -> int:
    """A leaf of EPT format with A/D bits."""
    host, mmu, writable = leaf.triple
    word = leaf.pfn * 4096 + 1 + 2 * writable + 4 * leaf.executable + 8 * memtype + 64 * ipat
    word += 256 * leaf.accessed + 512 * leaf.dirty + (128 if level > 1 else 0)
    if kernel == "5.10":
        return word + 1024 * host + 2048 * mmu
    word += 2**57 * host + 2**58 * mmu + 2048
    return word + (2**63 if kernel == "6.12" else 0)


def mmio(kernel: str, gfn: int, generation: int, access: int, table: str, cache_bits: int | None = None) -> int:
    """An MMIO spte; ``access`` is W and U; ``cache_bits`` of a CPU with the L1TF bug."""
    if kernel == "5.10":
        word = generation % 512 * 8 + generation // 512 % 512 * 2**54 + 3 * 2**52
    else:
        word = generation % 256 * 8 + generation // 256 % 2048 * 2**52
    word += 6 if table == "ept" else 2**51 + 1 + access
    gpa = gfn * 4096
    if cache_bits is None:
        return word + gpa
    low = 2 ** (cache_bits - 5)
    moved = gpa // low % 32
    return word + gpa % low + 31 * low + moved * 2**cache_bits
