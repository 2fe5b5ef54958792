# SPDX-License-Identifier: GPL-2.0-only
"""Real machines in: the recorder (a QEMU plugin and its driver), the recording's format, its reader and writer."""
