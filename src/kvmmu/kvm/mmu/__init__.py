# SPDX-License-Identifier: GPL-2.0-only
"""The MMU: what ``arch/x86/kvm/mmu`` is in Linux 6.12, a room for each of its ideas."""
