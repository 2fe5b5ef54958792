# SPDX-License-Identifier: GPL-2.0-only
"""The tools that make recordings: the guest's bytes, the normaliser, the generator, the archive."""

from __future__ import annotations

import gzip
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from kvmmu.conformance.guestcode import BYTES, PLACES
from kvmmu.conformance.scenario import parse_scenario

TOOLS = Path(__file__).parents[2] / "tools" / "oracle"
pytestmark = pytest.mark.skipif(not TOOLS.exists(), reason="the tools are not in the archive")


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The tool that the parameter names, imported from its folder."""
    name = request.param
    monkeypatch.syspath_prepend(TOOLS)
    monkeypatch.delitem(sys.modules, name, raising=False)
    module = __import__(name)
    yield module
    sys.modules.pop(name, None)


def with_tool(name: str) -> pytest.MarkDecorator:
    """Give the test the tool ``name``."""
    return pytest.mark.parametrize("tool", [name], indirect=True)


@pytest.mark.skipif(not shutil.which("gcc") or not shutil.which("objcopy"), reason="no compiler")
@with_tool("code")
def test_the_guests_bytes_are_those_of_its_source(tool: ModuleType) -> None:
    scope: dict[str, object] = {}
    exec(tool.text(), scope)
    assert scope["BYTES"] == BYTES
    assert scope["PLACES"] == PLACES


@with_tool("scenarios")
def test_a_seed_gives_the_same_scenario_for_ever_and_it_can_be_read(tool: ModuleType, tmp_path: Path) -> None:
    for family, make in tool.FAMILIES.items():
        for mode in tool.MODES:
            one, other = make(mode, 3), make(mode, 3)
            assert one.lines == other.lines
            assert one.lines != make(mode, 4).lines
            one.save(tmp_path)
            text = (tmp_path / f"{family}-{mode}-3.scn").read_text()
            scenario = parse_scenario(text, one.name, "x")
            assert 200 < len(scenario.ops) <= tool.MAX_OPS


@with_tool("normalise")
def test_what_depends_on_the_host_is_left_out(tool: ModuleType) -> None:
    head = "labvmm-77 [000] ..... 1: "
    events = [
        "kvm_entry: vcpu 0",
        "tracing_mark_write: slot 1 gpa=4000000 size=2000 flags=0 hva=7f0000000000",
        "kvm_unmap_hva_range: mmu notifier unmap range: 0x00007f0000001000 -- 0x00007f0000009000",
        "kvm_unmap_hva_range: mmu notifier unmap range: 0x0000550000001000 -- 0x0000550000009000",
        "kvm_mmu_set_spte: gfn 1 spte 12345e67 (rwx-) level 1 at 7008",
        "kvm_mmu_spte_requested: gfn e0000 pfn 8000000000000000 level 1",
        "kvm_tdp_mmu_spte_changed: as id 0 gfn 1 level 1 old_spte 8000000000000000 new_spte 12345e67",
        "mark_mmio_spte: sptep:00000000abcde010 gfn e0000 access 7 gen 2",
        "kvm_exit: vcpu 0 reason interrupt rip 0x1 info1 0x0 info2 0x0 intr_info 0x0 error_code 0x0",
        "kvm_inj_exception: #PF (0x3) [reinjected]",
        "kvm_exit: vcpu 0 reason npf rip 0x1030 info1 0x4 info2 0x1000 intr_info 0x0 error_code 0x0",
        "kvm_inj_exception: #PF (0x3) [reinjected]",
    ]
    assert list(tool.normalise(head + event for event in events)) == [
        "== slot 1 gpa=4000000 size=2000 flags=0",
        "   kvm_unmap_hva_range slot1:gfn 4001-4002",
        "   set_spte gfn=1 spte=e67|PFN (rwx-) level=1 at=[1]",
        "   spte_requested gfn=e0000 pfn=8000000000000000 level=1",
        "   tdp_spte_changed as=0 gfn=1 level=1 old=8000000000000000|0 new=e67|PFN",
        "   mark_mmio_spte sptep=[2] gfn e0000 access 7 gen 2",
        "   exit npf rip=0x1030 info1=4 info2=1000 intr=0 err=0",
        "   kvm_inj_exception #PF (0x3) [reinjected]",
    ]


@with_tool("normalise")
def test_lost_events_are_no_recording(tool: ModuleType) -> None:
    with pytest.raises(SystemExit, match="events were lost"):
        list(tool.normalise(["CPU:0 [LOST 17 EVENTS]"]))


@with_tool("initramfs")
def test_an_archive_is_the_same_each_time(tool: ModuleType, tmp_path: Path) -> None:
    modules = tmp_path / "lib" / "modules" / "6.12"
    modules.mkdir(parents=True)
    (modules / "kvm-amd.ko").write_bytes(b"ELF\0license=GPL\0depends=kvm,ccp\0name=kvm_amd\0")
    (modules / "ccp.ko").write_bytes(b"ELF\0depends=\0")
    (modules / "kvm.ko").write_bytes(b"ELF\0depends=irqbypass\0")
    (modules / "irqbypass.ko").write_bytes(b"ELF\0depends=\0")
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"box")
    one = tool.build(tmp_path, busybox, {"init": b"#!"})
    assert one == tool.build(tmp_path, busybox, {"init": b"#!"})
    archive = gzip.decompress(one)
    assert archive.startswith(b"070701")
    assert b"irqbypass ccp" in archive
    assert all(name in archive for name in (b"mod/kvm.ko", b"mod/kvm-amd.ko", b"lab/scn", b"TRAILER!!!"))
