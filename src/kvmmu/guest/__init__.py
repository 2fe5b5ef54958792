# SPDX-License-Identifier: GPL-2.0-only
"""Party 4: the software inside: page tables in every mode, edited through guest physical addresses."""
