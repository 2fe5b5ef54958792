# SPDX-License-Identifier: GPL-2.0-only
"""A recording through a world: every access translated, compared and counted by cause."""
