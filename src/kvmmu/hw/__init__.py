# SPDX-License-Identifier: GPL-2.0-only
"""Party 1: what silicon does. Memory, the page walker, the TLB, the CPU; never calls the hypervisor."""
