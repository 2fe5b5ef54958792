# SPDX-License-Identifier: GPL-2.0-only
"""Observation: events of the model as text, normalised lines, rings, data frames and files.

An outside party: it reads events (``kvmmu.tracepoint``) and is never imported by the machine that makes them.
"""
