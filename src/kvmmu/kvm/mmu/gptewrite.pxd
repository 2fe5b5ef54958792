# SPDX-License-Identifier: GPL-2.0-only
cimport cython
from ...addr cimport u64, gfn_t, gpa_t, hpa_t, gpa_to_gfn, page_offset
from ..vcpu cimport Vcpu
from ..vm cimport Vm
from .page cimport ShadowPage
from .pages cimport count_flood, first_gfn_sp, next_gfn_sp
from .role cimport role_direct, role_has_4_byte_gpte, role_level, role_quadrant
from .spte cimport is_shadow_present
from .track cimport is_anything_shadowed
from .walker cimport gpte_place, gva_to_gpa, read_gpte
from .zap cimport commit_zap, flush_or_zap, prepare_zap, zap_pte

cdef u64 CR4_PAE, INVALID_GPA, NOTHING, NO_HPA, PFERR_WRITE

cdef u64 _FLOOD_LIMIT

@cython.locals(offset=u64, mask=u64)
cpdef bint is_misaligned(ShadowPage sp, gpa_t gpa, u64 nr_bytes) noexcept
cpdef bint is_flood(Vm vm, ShadowPage sp) except -1
@cython.locals(offset=u64)
cpdef hpa_t written_sptep(ShadowPage sp, gpa_t gpa) noexcept
cpdef int nr_written(ShadowPage sp) noexcept
@cython.locals(place=hpa_t)
cpdef u64 written_gpte(Vcpu vcpu, gpa_t gpa, u64 nr_bytes) except? 0x5A5A5A5A5A
@cython.locals(vm=Vm, sptep=hpa_t, i=int, flush=bint)
cpdef bint zap_written(Vcpu vcpu, ShadowPage sp, gpa_t gpa, u64 gpte) except -1
@cython.locals(vm=Vm, gfn=gfn_t, gpte=u64, flush=bint, sp=ShadowPage)
cpdef int track_write(Vcpu vcpu, gpa_t gpa, u64 nr_bytes) except -1
@cython.locals(sp=ShadowPage, done=bint)
cpdef bint unprotect_gfn(Vm vm, gfn_t gfn) except -1
@cython.locals(vm=Vm, gpa=gpa_t, done=bint)
cpdef bint unprotect_and_retry(Vcpu vcpu, u64 addr, bint always) except -1
