# SPDX-License-Identifier: GPL-2.0-only
# Address kinds. The NewTypes of addr.py are these words; conversions live in addr.py alone.

ctypedef unsigned long long u64
ctypedef unsigned int u32
ctypedef unsigned short u16
ctypedef unsigned char u8
ctypedef long long s64
ctypedef int s32

ctypedef u64 gva_t      # guest virtual address
ctypedef u64 gpa_t      # guest physical address
ctypedef u64 gfn_t      # guest frame number, gpa / 4096
ctypedef u64 hva_t      # address in the process that owns the VM
ctypedef u64 hpa_t      # host physical address
ctypedef u64 pfn_t      # host frame number, hpa / 4096

cdef int LEVEL_BITS
cdef u64 ONE, PAGE_MASK, PAGE_SHIFT, U64

cpdef gfn_t gpa_to_gfn(gpa_t gpa) noexcept
cpdef gpa_t gfn_to_gpa(gfn_t gfn) noexcept
cpdef pfn_t hpa_to_pfn(hpa_t hpa) noexcept
cpdef hpa_t pfn_to_hpa(pfn_t pfn) noexcept
cpdef u64 page_offset(u64 address) noexcept
cpdef u64 pages_per_level(int level) noexcept
cpdef gfn_t round_gfn(gfn_t gfn, int level) noexcept
