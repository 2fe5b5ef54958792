# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ..addr cimport u8, u32, s32, u64, pfn_t, pages_per_level, pfn_to_hpa
from ..hw.memory cimport PhysicalMemory

cdef u64 PG_ACCESSED, PG_BLOCK_1G, PG_BLOCK_2M, PG_DIRTY, PG_RESERVED

cdef u64 _MAX_FRAMES
cdef u8 _PG_BLOCK_MASK
cdef pfn_t _OWNERS_SHIFT, _OWNERS_MASK
cdef u64 SMALL_ARRAY_WORDS

@cython.final
cdef class SmallArrays:
    cdef u64[::1] longs             # those that parts are cut from now
    cdef u64 nr_longs               # of them given away
    cdef s32[::1] counts            # likewise
    cdef u64 nr_counts

    @cython.locals(first=u64)
    cdef u64[::1] take_words(self, u64 count)
    @cython.locals(first=u64)
    cdef s32[::1] take_counts(self, u64 count)

@cython.final
cdef class FrameAllocator:
    cdef readonly PhysicalMemory memory
    cdef s32[::1] refcount          # per frame; 0: free. A block's count is kept in its first frame
    cdef u8[::1] flags              # per frame: PG_DIRTY, PG_ACCESSED, PG_RESERVED, PG_BLOCK_2M, PG_BLOCK_1G
    cdef list owners       # per 512 frames: None, or a list of what each one's owner keeps (a ShadowPage)
    cdef readonly u64 nr_frames
    cdef readonly u64 nr_free
    cdef readonly pfn_t zero_pfn    # the shared zero page; reserved
    cdef u32[::1] free_frames       # stack of returned frames; its first nr_stacked elements are meant
    cdef u64 nr_stacked
    cdef pfn_t fresh_pfn            # [fresh_pfn, top_pfn) was never handed out, and so is still all zeros
    cdef pfn_t top_pfn
    cdef list free_blocks  # by level (2 and 3 used): first frames of returned blocks

    cpdef pfn_t alloc(self) except? 0xFFFFFFFFFFFFFFFF
    @cython.locals(pfn=pfn_t)
    cpdef pfn_t alloc_zeroed(self) except? 0xFFFFFFFFFFFFFFFF
    @cython.locals(pfn=pfn_t)
    cpdef pfn_t alloc_block(self, int level) except? 0xFFFFFFFFFFFFFFFF
    @cython.locals(fresh=bint, pfn=pfn_t)
    cpdef pfn_t alloc_block_zeroed(self, int level) except? 0xFFFFFFFFFFFFFFFF
    cpdef pfn_t head(self, pfn_t pfn) noexcept
    cpdef int get(self, pfn_t pfn) except -1
    cpdef int get_many(self, pfn_t pfn, int nr) except -1
    @cython.locals(count=s32)
    cpdef int put(self, pfn_t pfn) except -1
    cpdef int nr_refs(self, pfn_t pfn) except -1
    cpdef int flags_of(self, pfn_t pfn) except -1
    @cython.locals(owners=list)
    cpdef object owner(self, pfn_t pfn)
    @cython.locals(owners=list)
    cpdef int set_owner(self, pfn_t pfn, object owner) except -1
    cpdef list all_owners(self)
    cpdef int mark_dirty(self, pfn_t pfn) except -1
    cpdef int mark_accessed(self, pfn_t pfn) except -1
    @cython.locals(pfn=pfn_t, i=u64)
    cdef pfn_t _alloc_slow(self) except? 0xFFFFFFFFFFFFFFFF
    @cython.locals(nr=u64, first=pfn_t)
    cdef pfn_t _carve(self, int level) except? 0xFFFFFFFFFFFFFFFF
    @cython.locals(block=pfn_t)
    cdef int _break_down(self, pfn_t pfn, pfn_t end) except -1
    @cython.locals(i=u64)
    cdef int _own_block(self, pfn_t pfn, int level) except -1
    @cython.locals(i=u64, level=int)
    cdef int _free(self, pfn_t pfn) except -1
    cdef int _must_be_in_use(self, pfn_t pfn) except -1
