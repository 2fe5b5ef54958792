# SPDX-License-Identifier: GPL-2.0-only
"""One page fault under shadow paging, looked at from every side: run it with ``python examples/first_fault.py``."""

from kvmmu import Params, World
from kvmmu.trace.text import format_event

world = World(Params(npt=False))
world.add_slot(0, 0x0, 64 << 20)  # 64 MiB of guest memory as memslot 0
vcpu = world.create_vcpu()
tables = world.tables("4-level", root=0x10000)
tables.map(0x400000, 0x200000)  # the guest's own tables: gva 0x400000 is gpa 0x200000
world.load_registers(vcpu, tables.registers())
world.on_event(lambda event: print("event  ", format_event(event)))

print("access ", world.write(vcpu, 0x400000, b"hello"))
print("memory ", world.peek(0x200000, 5))
for guest, shadow in zip(tables.walk(0x400000), world.walk(vcpu, 0x400000), strict=True):
    print("guest  ", guest, "\nshadow ", shadow)
for sp in world.shadow_pages():
    print("page   ", sp)
print("counted", {name: count for name, count in world.counters().items() if count})
