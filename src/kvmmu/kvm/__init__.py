# SPDX-License-Identifier: GPL-2.0-only
"""Party 3: the hypervisor. Everything of Linux 6.12's ``virt/kvm`` and ``arch/x86/kvm/mmu`` that an MMU needs."""
