# SPDX-License-Identifier: GPL-2.0-only
"""When x86 refuses an access to a page that is there, said rule by rule.

Written from the manual's "Determination of Access Rights" and "Protection Keys", without tables, bit indices or any
help from the package.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """The register bits that access rights depend on."""

    wp: bool
    smep: bool
    smap: bool
    nx: bool
    ac: bool
    #: Protection keys are active, and what PKRU says of the page's key.
    pke: bool = False
    access_disable: bool = False
    write_disable: bool = False


@dataclass(frozen=True)
class Access:
    """What is done: by whom, and whether the processor does it by itself (``implicit``, always as supervisor)."""

    write: bool
    user: bool
    fetch: bool
    implicit: bool = False


@dataclass(frozen=True)
class Page:
    """What all levels of the guest's tables together allow."""

    user: bool
    writable: bool
    executable: bool


def is_refused_by_rights(machine: Machine, access: Access, page: Page) -> bool:
    """Whether the page tables, WP, NX, SMEP or SMAP refuse the access."""
    return any(
        (
            # User code sees user pages only.
            access.user and not page.user,
            # Read-only pages hold back user code always, and the supervisor if WP is set.
            access.write and not page.writable and (access.user or machine.wp),
            # Execute-disable exists with EFER.NX only.
            access.fetch and not page.executable and machine.nx,
            # SMEP: the supervisor does not run user code.
            access.fetch and page.user and not access.user and machine.smep,
            # SMAP: the supervisor does not touch user data unless AC is set and it asks for the data itself.
            not access.fetch and page.user and not access.user and machine.smap and (access.implicit or not machine.ac),
        )
    )


def is_refused_by_key(machine: Machine, access: Access, page: Page) -> bool:
    """Whether the page's protection key refuses the access."""
    if not machine.pke or not page.user or access.fetch:
        return False
    if machine.access_disable:
        return True
    return machine.write_disable and access.write and (access.user or machine.wp)


def error_code(machine: Machine, access: Access, page: Page) -> int:
    """The P and PK bits of the fault, or 0 if there is none."""
    by_key = is_refused_by_key(machine, access, page)
    if not by_key and not is_refused_by_rights(machine, access, page):
        return 0
    return 1 | (0x20 if by_key else 0)
