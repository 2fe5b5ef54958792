# SPDX-License-Identifier: GPL-2.0-only
"""What x86 does with one memory access: a slow model written from the manuals, to test the walkers with.

It shares nothing with the package: no import, no constant, and another way of going about it (formats by name as the
manual's tables have them, access rights as the manual's sentences). Sources: Intel SDM volume 3, "Paging" ("Paging
Modes", "Access Rights", "Page-Fault Exceptions", "Protection Keys", "Accessed and Dirty Flags"); AMD APM volume 2,
"Nested Paging".

Where the manuals leave a choice, the walkers' documented one is taken: an access that faults sets no A bit in the
tables whose walk faulted; bit 8 of upper directory entries is ignored (Intel), in nested tables it is reserved (AMD);
a gpa wider than the nested table translates is not present.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Ram:
    """Physical memory as 32-bit words; all ones behind ``size``."""

    size: int
    words: dict[int, int] = field(default_factory=dict)

    def load(self, address: int, width: int) -> int:
        if address >= self.size:
            return (1 << (8 * width)) - 1
        value = self.words.get(address, 0)
        if width == 8:
            value += self.words.get(address + 4, 0) << 32
        return value

    def store(self, address: int, width: int, value: int) -> None:
        if address < self.size:
            self.words[address] = value % 2**32
            if width == 8:
                self.words[address + 4] = value >> 32


@dataclass
class Machine:
    """The state that an access depends on. ``paging``: "off", "32", "pae", "4" or "5"."""

    ram: Ram
    paging: str
    cr3: int = 0
    pdptes: tuple[int, int, int, int] = (0, 0, 0, 0)
    wp: bool = False
    pse: bool = False
    smep: bool = False
    smap: bool = False
    pke: bool = False
    nxe: bool = False
    pkru: int = 0
    width: int = 46
    gigabyte_pages: bool = True
    #: Nested paging: root and number of levels of the nested table.
    nested_root: int | None = None
    nested_levels: int = 4


@dataclass
class Access:
    """One access: what, by whom. ``implicit``: a supervisor access that the CPU makes by itself."""

    write: bool = False
    user: bool = False
    fetch: bool = False
    ac: bool = False
    implicit: bool = False


#: ("ok", hpa) or ("pf", error code) or ("npf", gpa, error code)
Outcome = tuple[str, int] | tuple[str, int, int]


class _PageFault(Exception):
    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


class _NestedPageFault(Exception):
    def __init__(self, gpa: int, code: int) -> None:
        super().__init__()
        self.gpa = gpa
        self.code = code


# The structures of each mode: name of the entry, lowest address bit that its index comes from, index bits.
_STRUCTURES = {
    "32": [("PDE32", 22, 10), ("PTE32", 12, 10)],
    "pae": [("PDPTE-PAE", 30, 2), ("PDE-PAE", 21, 9), ("PTE-PAE", 12, 9)],
    "4": [("PML4E", 39, 9), ("PDPTE", 30, 9), ("PDE", 21, 9), ("PTE", 12, 9)],
    "5": [("PML5E", 48, 9), ("PML4E", 39, 9), ("PDPTE", 30, 9), ("PDE", 21, 9), ("PTE", 12, 9)],
}


def _field(value: int, low: int, high: int) -> int:
    return (value >> low) % 2 ** (high - low + 1) if high >= low else 0


def _is_set(value: int, bit: int) -> bool:
    return (value >> bit) % 2 == 1


def _maps_page(machine: Machine, name: str, entry: int) -> bool:
    """Whether this entry maps a page rather than pointing at the next structure."""
    if name in ("PTE", "PTE-PAE", "PTE32"):
        return True
    if name == "PDE32":
        return machine.pse and _is_set(entry, 7)
    if name == "PDPTE":
        return machine.gigabyte_pages and _is_set(entry, 7)
    return name in ("PDE", "PDE-PAE") and _is_set(entry, 7)


def _has_reserved(machine: Machine, name: str, entry: int) -> bool:
    """Whether a present entry has a reserved bit set, format by format."""
    width = machine.width
    if name == "PTE32":
        return False
    if name == "PDE32":
        address_bits = 40 if width > 40 else width
        return machine.pse and _is_set(entry, 7) and _field(entry, address_bits - 19, 21) != 0
    if name == "PDPTE-PAE":
        return bool(_field(entry, 1, 2) or _field(entry, 5, 8) or _field(entry, width, 63))
    if _is_set(entry, 63) and not machine.nxe:
        return True
    if _field(entry, width, 62 if name in ("PDE-PAE", "PTE-PAE") else 51):
        return True
    if name in ("PML5E", "PML4E"):
        return _is_set(entry, 7)
    if name == "PDPTE" and _is_set(entry, 7):
        return not machine.gigabyte_pages or _field(entry, 13, 29) != 0
    if name in ("PDE", "PDE-PAE") and _is_set(entry, 7):
        return _field(entry, 13, 20) != 0
    return False


def _page_address(name: str, entry: int, low_bit: int, linear: int) -> int:
    """Physical address of ``linear`` in the page that ``entry`` maps."""
    base = _field(entry, low_bit, 51) << low_bit
    if name == "PDE32":
        base = (_field(entry, 22, 31) << 22) + (_field(entry, 13, 20) << 32)
    return base + linear % 2**low_bit


def _rights(machine: Machine, access: Access, entries: list[int], key: int) -> tuple[bool, bool]:
    """(allowed, the protection key has its part in a refusal), after the section on access rights."""
    is_user_address = all(_is_set(entry, 2) for entry in entries)
    is_writable = all(_is_set(entry, 1) for entry in entries)
    is_xd = any(_is_set(entry, 63) for entry in entries) and machine.paging != "32"
    is_user_access = access.user and not access.implicit
    refused_by_key = False
    if machine.pke and machine.paging in ("4", "5") and is_user_address and not access.fetch:
        access_disable = _is_set(machine.pkru, 2 * key)
        write_disable = _is_set(machine.pkru, 2 * key + 1)
        refused_by_key = access_disable or (write_disable and access.write and (is_user_access or machine.wp))
    if is_user_access:
        allowed = is_user_address
        if access.write and not is_writable:
            allowed = False
        if access.fetch and is_xd:
            allowed = False
    elif access.fetch:
        allowed = not is_xd
        if is_user_address and machine.smep:
            allowed = False
    else:
        allowed = True
        if is_user_address and machine.smap and (access.implicit or not access.ac):
            allowed = False
        if access.write and machine.wp and not is_writable:
            allowed = False
    return allowed and not refused_by_key, refused_by_key


def _error_code(machine: Machine, access: Access, present: bool, reserved: bool, key: bool) -> int:
    code = 1 if present else 0
    if access.write:
        code += 2
    if access.user and not access.implicit:
        code += 4
    if reserved:
        code += 8
    if access.fetch and (machine.smep or (machine.paging in ("pae", "4", "5") and machine.nxe)):
        code += 16
    if key:
        code += 32
    return code


def _linear_to_physical(machine: Machine, linear: int, access: Access) -> int:
    """Walk the guest's own tables; set their A and D; return the guest physical address."""
    if machine.paging in ("off", "32", "pae"):
        linear %= 2**32
    if machine.paging == "off":
        return linear
    width = 4 if machine.paging == "32" else 8
    table = _field(machine.cr3, 12, min(machine.width, 52 if width == 8 else 32) - 1) << 12
    read: list[tuple[int, int]] = []
    rights: list[int] = []
    name, entry, low_bit = "", 0, 0
    for name, low_bit, bits in _STRUCTURES[machine.paging]:
        index = _field(linear, low_bit, low_bit + bits - 1)
        if name == "PDPTE-PAE" and machine.nested_root is None:
            entry = machine.pdptes[index]
        else:
            if name == "PDPTE-PAE":
                table = _field(machine.cr3, 5, 31) << 5
            place = _physical_to_host(machine, table + index * width, table_access=True)
            entry = machine.ram.load(place, width)
        if not _is_set(entry, 0):
            raise _PageFault(_error_code(machine, access, False, False, False))
        if _has_reserved(machine, name, entry):
            raise _PageFault(_error_code(machine, access, True, True, False))
        if name != "PDPTE-PAE":
            read.append((place, entry))
            rights.append(entry)
        if _maps_page(machine, name, entry):
            break
        table = _field(entry, 12, 51) << 12
    allowed, key = _rights(machine, access, rights, _field(entry, 59, 62))
    if not allowed:
        raise _PageFault(_error_code(machine, access, True, False, key))
    for place, value in read:
        is_leaf = (place, value) == read[-1]
        machine.ram.store(place, width, value | 0x20 | (0x40 if is_leaf and access.write else 0))
    return _page_address(name, entry, low_bit, linear)


def _physical_to_host(machine: Machine, gpa: int, table_access: bool, write: bool = False, fetch: bool = False) -> int:
    """Translate through the nested table; each access is a user's, one to a guest table also a write."""
    if machine.nested_root is None:
        return gpa
    write = write or table_access
    code = 4 + (2 if write else 0) + (16 if fetch else 0) + (2**33 if table_access else 2**32)
    structures = _STRUCTURES[str(machine.nested_levels)]
    if gpa >= 2 ** (structures[0][1] + 9):
        raise _NestedPageFault(gpa, code)
    host = Machine(
        machine.ram, str(machine.nested_levels), nxe=True, width=machine.width, gigabyte_pages=machine.gigabyte_pages
    )
    table = machine.nested_root
    read: list[tuple[int, int]] = []
    name, entry, low_bit = "", 0, 0
    for name, low_bit, bits in structures:
        place = table + 8 * _field(gpa, low_bit, low_bit + bits - 1)
        entry = machine.ram.load(place, 8)
        if not _is_set(entry, 0):
            raise _NestedPageFault(gpa, code)
        if _has_reserved(host, name, entry) or (name in ("PML5E", "PML4E") and _is_set(entry, 8)):
            raise _NestedPageFault(gpa, code + 1 + 8)
        read.append((place, entry))
        if _maps_page(host, name, entry):
            break
        table = _field(entry, 12, 51) << 12
    for _, value in read:
        if not _is_set(value, 2) or (write and not _is_set(value, 1)) or (fetch and _is_set(value, 63)):
            raise _NestedPageFault(gpa, code + 1)
    for place, value in read:
        is_leaf = (place, value) == read[-1]
        machine.ram.store(place, 8, value | 0x20 | (0x40 if is_leaf and write else 0))
    return _page_address(name, entry, low_bit, gpa)


def predict(machine: Machine, linear: int, access: Access) -> Outcome:
    """Make the access: return its outcome and leave A and D bits in ``machine.ram``."""
    try:
        gpa = _linear_to_physical(machine, linear, access)
        return "ok", _physical_to_host(machine, gpa, False, access.write, access.fetch)
    except _PageFault as fault:
        return "pf", fault.code
    except _NestedPageFault as fault:
        return "npf", fault.gpa, fault.code
