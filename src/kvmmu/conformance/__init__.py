# SPDX-License-Identifier: GPL-2.0-only
"""Ground truth: recordings of real KVM, played into the model.

``scenario`` and ``recording`` read what a recording consists of; ``faultreplay`` builds the scenario's machine, hands
it the recorded exits and requires the recorded events, tables, counters and results. An outside party: nothing inside
imports it.
"""
