# SPDX-License-Identifier: GPL-2.0-only
"""Ground truth: transcripts of real KVM, played into the model.

``scenario`` and ``transcript`` read what was run and what came of it; ``faultreplay`` builds the machine and hands it
the recorded exits; ``comparison`` requires the recorded events, tables, counters and results. An
outside party: nothing inside imports it.
"""
