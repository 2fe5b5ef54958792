# SPDX-License-Identifier: GPL-2.0-only
"""One seam, and all of it: a shared word is touched by its owner alone, and the owner passes the gate.

The arena's views belong to ``hw/memory``. Each other word that two actors can touch is an attribute with an owner, a
room whose functions announce what they do. What lies outside kvm looks when nothing runs: reports, digests, the audit.
"""

from __future__ import annotations

import ast

import pytest

import house

#: The views of the arena that ``PhysicalMemory`` holds.
VIEWS = {"words", "halves", "bytes_"}

#: Attribute -> the rooms that may touch it: its owner, and the class that holds it.
OWNERS = {
    "seq": {"kvm.invalidation"},
    "in_progress": {"kvm.invalidation"},
    "range_start": {"kvm.invalidation"},
    "range_end": {"kvm.invalidation"},
    "active": {"kvm.invalidation"},
    "mode": {"kvm.mode", "kvm.vcpu"},
    "requests": {"kvm.requests", "kvm.vcpu"},
    "memslots": {"kvm.vm", "kvm.vcpu"},
    "has_shadow_roots": {"kvm.vm"},
    "generation": {"kvm.memslots"},
    "dirty_bitmap": {"kvm.dirtylog", "kvm.memslots"},
    "gfn_write_track": {"kvm.mmu.track", "kvm.memslots"},
    "indirect_shadow_pages": {"kvm.mmu.track", "kvm.vm"},
    "unsync": {"kvm.mmu.unsync", "kvm.mmu.page"},
    "unsync_children": {"kvm.mmu.unsync", "kvm.mmu.page"},
    "write_flooding_count": {"kvm.mmu.pages", "kvm.mmu.page"},
    "hptes": {"host.pagetable", "host.vma"},
    "pmd_tables": {"host.pagetable"},
    "pte_tables": {"host.pagetable"},
    "mmu_valid_gen": {"kvm.mmu.pages", "kvm.mmu.page", "kvm.vm"},
}

#: Places that may look past the owner, each with its reason: (module, function, attribute).
EXCUSED = {
    # The branch before is the closed gate: nobody else can have changed them since the vCPU itself did.
    ("kvm.run", "access", "mode"),
    ("kvm.run", "access", "requests"),
    # Before the page, the event or the walk can be seen by anybody else.
    ("kvm.mmu.mmutrace", "*", "unsync"),
    ("kvm.mmu.mmutrace", "*", "mmu_valid_gen"),
    ("kvm.mmu.zap", "zap_all_fast", "mmu_valid_gen"),
    # Under mmu_lock, which every writer holds exclusively; nothing is decided by it that a lockless reader undoes.
    ("kvm.mmu.zap", "zap_unsync_children", "unsync_children"),
    ("kvm.mmu.resync", "sync_children", "unsync_children"),
    ("kvm.mmu.resync", "invalidate_root", "unsync_children"),
    ("kvm.mmu.shadow", "fetch_tables", "unsync_children"),
}

#: Where a word gets its first value, before anybody else can see its holder.
NEW = {
    ("kvm.mmu.page", "begin"),
    ("kvm.memslots", "start_update"),
    ("host.vma", "piece"),
    ("kvm.memslots", "_bind"),
    ("kvm.mmu.pages", "alloc_page"),
}

SHARING = [
    name for name in house.modules() if name.split(".")[0] in ("host", "kvm") and not name.startswith("kvm.mmu.audit")
]


def raw_accesses(source: str) -> list[int]:
    """Lines that subscript a view of an object."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr in VIEWS
    ]


def bypasses(module: str, source: str) -> list[str]:
    """Places where ``module`` touches a shared word that it does not own, or owns and reaches past the gate."""
    found = []
    for function in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)):
        for node in ast.walk(function):
            if not isinstance(node, ast.Attribute) or node.attr not in OWNERS:
                continue
            is_called = any(isinstance(call, ast.Call) and call.func is node for call in ast.walk(function))
            excused = {(module, function.name, node.attr), (module, "*", node.attr)} & EXCUSED
            if not is_called and module not in OWNERS[node.attr] and not excused:
                found.append(f"{node.lineno}: {function.name}() touches {ast.unparse(node)}")
    return sorted(set(found))


def silent_owners(module: str, source: str) -> list[str]:
    """Functions of an owner that store a shared word without announcing it."""
    owned = {word for word, rooms in OWNERS.items() if module == next(iter(rooms)) or module in rooms}
    found = []
    for function in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)):
        if (module, function.name) in NEW or function.name == "__init__":
            continue
        stored = {
            target.attr if isinstance(target, ast.Attribute) else target.value.attr  # type: ignore[union-attr]
            for node in ast.walk(function)
            if isinstance(node, (ast.Assign, ast.AugAssign))
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Attribute)
            or (isinstance(target, ast.Subscript) and isinstance(target.value, ast.Attribute))
        }
        text = ast.unparse(function)
        if stored & owned and ".announce(" not in text and ".lock()" not in text:
            found.append(f"{function.name}: {sorted(stored & owned)}")
    return found


@pytest.mark.parametrize(
    "module", [name for name in house.modules() if name.split(".")[0] in ("hw", "host", "kvm", "guest")]
)
def test_only_memory_touches_its_words(module: str) -> None:
    found = raw_accesses(house.modules()[module].read_text(encoding="utf-8"))
    assert found == [] or module == "hw.memory"


@pytest.mark.parametrize("module", SHARING)
def test_a_shared_word_is_touched_by_its_owner_alone(module: str) -> None:
    assert bypasses(module, house.modules()[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("module", sorted({room for rooms in OWNERS.values() for room in rooms}))
def test_an_owner_announces_what_it_stores(module: str) -> None:
    assert silent_owners(module, house.modules()[module].read_text(encoding="utf-8")) == []


def test_a_raw_access_is_found() -> None:
    assert raw_accesses("def f(memory, index):\n    return memory.words[index]\n") == [2]
    assert raw_accesses("def f(memory, hpa):\n    return memory.read_once(hpa)\n") == []


@pytest.mark.parametrize(
    "line",
    [
        "vm.invalidation.seq",
        "sp.unsync",
        "vcpu.requests | 1",
        "slot.dirty_bitmap[0]",
        "vm.memslots[0].generation",
        "vm.mm.find_vma(hva).hptes[0]",
        "table.pmd_tables.add(hva >> 30)",
    ],
)
def test_a_bypass_is_found(line: str) -> None:
    source = f"def f(vm, sp, vcpu, slot, table, hva):\n    return {line}\n"
    assert bypasses("kvm.mmu.leaf", source)
    assert bypasses("host.mm", source)


def test_a_store_that_nobody_hears_of_is_found() -> None:
    silent = "def set_it(vm, sp):\n    sp.unsync = True\n"
    assert silent_owners("kvm.mmu.unsync", silent) == ["set_it: ['unsync']"]
    heard = silent.replace(":\n", ":\n    vm.gate.announce('write', sp, 'unsync')\n")
    assert silent_owners("kvm.mmu.unsync", heard) == []
