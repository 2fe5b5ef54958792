# SPDX-License-Identifier: GPL-2.0-only
"""A function is there because something calls it: what only tests call is listed here, with its reason."""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterable, Iterator

import house

#: Functions and methods that no code of the package calls, and why they stay.
KEPT = {
    "for nested guests, which come later": {"init_ept_mmu"},
    "bits of words that the rooms to come read": {"role_guest_mode"},
    "what a livelier host, and its threads, will call": {
        "assert_reading",
        "clear_flush_young",
        "clear_young",
        "test_young",
        "zap_gfn_range",
    },
    "the Python API, in docs/": {
        "add_slot",
        "counters_frame",
        "debugfs_write",
        "enable_cap",
        "faults_frame",
        "intervals_frame",
        "kvm_write_guest",
        "map_range",
        "mappings",
        "mmu_rmaps_stat",
        "read_event_file",
        "read_lines",
        "recover_nx_huge_pages",
        "to_frame",
        "totals_frame",
    },
    "the checker's side of the gate (docs/locking.md)": {"disarm", "holds_any"},
    "what docs/formats.md and docs/kernel-map.md offer for words that one has in hand": {"describe_cpu_role"},
    "state that the model leaves behind: a frame's flags, a CPU's cached PDPTEs": {"flags_of", "pdptr"},
    "the other half of register()": {"unregister"},
    "for a CPU that is not ours (DESIGN, where later parts belong)": {"set_runner"},
    "called by Python or a library by this name": {"find_spec", "format_help", "list_commands", "parse_args"},
    "the result of a comparison, for whoever made it": {"dropped"},
}


def definitions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Every function of a module that has a name of its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("__"):
            yield node


def uses(tree: ast.AST) -> Iterator[str]:
    """Every name that is read, plain or as an attribute, as often as it is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def uncalled(sources: Iterable[str]) -> set[str]:
    """Functions whose name is read nowhere but in their own body."""
    outside: dict[str, int] = {}
    inside: dict[str, int] = {}
    for source in sources:
        tree = ast.parse(source)
        for name in uses(tree):
            outside[name] = outside.get(name, 0) + 1
        for function in definitions(tree):
            own = sum(name == function.name for name in uses(function))
            inside[function.name] = inside.get(function.name, 0) + own
    return {name for name, own in inside.items() if outside.get(name, 0) == own}


def package_sources() -> list[str]:
    paths: list[pathlib.Path] = list(house.modules().values())
    return [path.read_text(encoding="utf-8") for path in paths]


def test_every_function_has_a_caller_or_a_reason() -> None:
    kept = set().union(*KEPT.values())
    assert uncalled(package_sources()) - kept == set()


def test_no_reason_is_kept_for_a_function_that_is_called() -> None:
    kept = set().union(*KEPT.values())
    assert kept - uncalled(package_sources()) == set()


def test_an_uncalled_function_is_found() -> None:
    called = "def walk():\n    return 1\n\n\nclass Tlb:\n    def flush(self):\n        return walk()\n"
    assert uncalled([called]) == {"flush"}
    assert uncalled([called, "def run(tlb):\n    return tlb.flush()\n\n\nrun(0)\n"]) == set()
    assert uncalled(["def again(n):\n    return again(n - 1)\n"]) == {"again"}
