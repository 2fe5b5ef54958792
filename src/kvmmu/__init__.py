# SPDX-License-Identifier: GPL-2.0-only
"""The Linux KVM x86 MMU as a Python package."""

from ._build import VERSION, BuildInfo, build_info, choose_build

choose_build(__name__)

__version__ = VERSION

__all__ = ["BuildInfo", "__version__", "build_info"]
