# SPDX-License-Identifier: GPL-2.0-only
cimport cython

from ..addr cimport u8, u32, u64, s64, gfn_t, gva_t

cdef int TR_LEVEL_SHIFT, TR_PIECE_SHIFT
cdef u64 ONE, TR_GLOBAL

cdef int _WORDS
cdef int _PCID_SHIFT
cdef int _SPACE_SHIFT
cdef u64 _GLOBAL_OWNER
cdef u64 _NR_CELLS

@cython.final
cdef class Tlb:
    cdef readonly bint keep_all     # entries stay in `kept` until a flush is demanded
    cdef dict kept                  # (level, page number, owner) -> (stamp, translation)
    cdef set kept_owners            # owners that `kept` ever had
    cdef Py_ssize_t sweep_at        # size of `kept` at which dead entries are swept out
    cdef object hit_key             # key of the last hit in `kept`
    cdef s64 hit_index              # index of the last hit in `slots`
    cdef u64[::1] slots             # entries of 4 words: page number, owner, stamp (0: empty), translation
    cdef int ways
    cdef u64 start[4]               # by level: first word of its entries
    cdef u64 set_mask[4]            # by level: sets - 1
    cdef u32 next_way[4]            # by level: way that made room last
    cdef u8 used[4]                 # by level: filled since the last flush_all()
    cdef bint used_pieces           # entries that are pieces of guest pages may exist
    cdef u64[::1] cells             # floors of pieces, hashed by guest page
    cdef readonly bint tracks_gfns  # keep `gfns`
    cdef dict gfns                  # (level, page number, owner) -> first guest frame; of dead entries too
    cdef dict kept_pieces           # (piece, guest page number, owner) -> keys of its pieces in `kept`
    cdef readonly u64 clock         # moves with each flush
    cdef u64 all_floor              # entries with a lower stamp are dead, whoever owns them
    cdef dict global_floors         # space -> floor of its global entries
    cdef dict local_floors          # space -> floor of its other entries
    cdef dict pcid_floors           # owner -> floor of one PCID
    # The current context.
    cdef readonly u32 space         # ASID, VPID: 0 for the host's own
    cdef readonly u32 pcid
    cdef u64 owner                  # space << 13 | pcid << 1
    cdef u64 global_owner           # space << 13 | 1
    cdef u64 floor                  # of `owner`
    cdef u64 global_floor           # of `global_owner`
    cdef readonly u64 hits
    cdef readonly u64 misses
    cdef readonly u64 evictions
    cdef readonly u64 flushes

    cpdef int switch(self, u32 space, u32 pcid) except -1
    @cython.locals(space=u64)
    cdef u64 _floor_of(self, u64 owner) except? 0x5A5A5A5A
    @cython.locals(level=int, index=s64)
    cpdef u64 find(self, gva_t gva) except? 0x5A5A5A5A
    @cython.locals(hits=u64, misses=u64, index=s64, translation=u64)
    cpdef u64 peek(self, gva_t gva) except? 0x5A5A5A5A
    @cython.locals(vpn=u64, index=s64, end=s64, owner=u64, stamp=u64, is_live=bint)
    cdef s64 _find_slot(self, int level, gva_t gva) noexcept
    @cython.locals(piece=int)
    cdef bint _is_cut(self, gva_t gva, s64 index) noexcept
    cpdef int drop(self) except -1
    @cython.locals(level=int, owner=u64, vpn=u64, index=s64)
    cpdef int fill(self, gva_t gva, u64 translation) except -1
    @cython.locals(first=s64, dead=s64, index=s64)
    cdef s64 _victim(self, int level, u64 vpn, u64 owner) noexcept
    @cython.locals(stamp=u64, owner=u64)
    cdef bint _is_dead(self, s64 index) noexcept
    @cython.locals(level=int, translation=u64)
    cdef u64 _find_kept(self, gva_t gva) except? 0x5A5A5A5A
    @cython.locals(found=tuple)
    cdef u64 _probe_kept(self, int level, gva_t gva, u64 owner, u64 floor) except? 0x5A5A5A5A
    @cython.locals(level=int, piece=int)
    cdef int _keep(self, gva_t gva, u64 owner, u64 translation) except -1
    cdef int _sweep(self) except -1
    @cython.locals(level=int, piece=int)
    cdef int _forget_kept(self, gva_t gva, u64 owner) except -1
    @cython.locals(level=int, owner=u64, size=u64)
    cpdef int note_gfn(self, gva_t gva, gfn_t gfn, u64 translation) except -1
    @cython.locals(level=int, vpn=u64, owner=u64, first=u64)
    cpdef int flush_gfns(self, gfn_t gfn, u64 nr_pages) except -1
    cpdef int flush_all(self) except -1
    cpdef int flush_space(self, u32 space) except -1
    cpdef int flush_non_global(self) except -1
    cpdef int flush_pcid(self, u32 pcid) except -1
    cpdef int flush_current(self) except -1
    cpdef int invlpg(self, gva_t gva) except -1
    cpdef int invlpg_pcid(self, u32 pcid, gva_t gva) except -1
    @cython.locals(piece=int, level=int)
    cpdef int invlpg_space(self, gva_t gva) except -1
    cdef int _tick(self) noexcept
    cdef int _refresh(self) except -1
    @cython.locals(piece=int, level=int)
    cdef int _forget(self, gva_t gva, u64 owner) except -1
    @cython.locals(vpn=u64, index=s64, end=s64)
    cdef int _forget_slot(self, int level, gva_t gva, u64 owner) noexcept
    @cython.locals(vpn=u64, index=s64, end=s64)
    cdef int _forget_slot_space(self, int level, gva_t gva) noexcept

cdef int _piece_shift(int piece) noexcept
cdef u64 _cell(int piece, gva_t gva) noexcept
