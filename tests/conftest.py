# SPDX-License-Identifier: GPL-2.0-only
"""What every test shares: which build is under test, and Hypothesis's settings."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

import kvmmu

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("deep", parent=settings.get_profile("default"), max_examples=2000)
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))

# Comparing the interpreted build with itself shows nothing.
collect_ignore = [] if kvmmu.build_info().is_compiled else ["twin"]


def pytest_report_header() -> list[str]:
    """Which build the run is about, and what is left out for that."""
    lines = [f"kvmmu {kvmmu.__version__}, {kvmmu.build_info()}"]
    if collect_ignore:
        lines.append("tests/twin is left out: it compares the compiled build with the interpreted one")
    return lines
