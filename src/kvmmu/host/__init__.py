# SPDX-License-Identifier: GPL-2.0-only
"""The host: the process that owns the VM, its address space, and the frames behind it."""
