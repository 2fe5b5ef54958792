// SPDX-License-Identifier: GPL-2.0-only
/*
 * The recorder inside QEMU (>= 10, plugin API 4): watch every access of a guest under TCG and write down what an MMU
 * must know.
 *
 * Arguments: ram=FILE (the guest's memory-backend-file), out=FD (the stream of records), control=FD (answers of the
 * driver), and what begins the recording: start=firmware | entry | user | port, with lo=GPA,hi=GPA (entry) or port=N.
 *
 * How it stays small: a filter per vCPU remembers the pages that were accessed since the last flush, and only the
 * first access passes.
 *
 * How it stays complete: before an access is written, the guest's tables are walked in the mapped RAM file, and each
 * table page of the walk is written as a snapshot when it is new; from then on every store to it is a record. A page
 * that changed by other means (a device, the CPU's own stores when it delivers an interrupt) is found by comparing each
 * entry that a walk reads with a copy, and written again.
 *
 * plugin_decode.h reads instructions; everything else is here, because all of it works on the state below.
 *
 * Threads: -accel tcg,thread=single runs all vCPUs in one thread, so nothing here is locked.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <link.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "plugin_api.h"
#include "plugin_decode.h"

__attribute__((visibility("default"))) int qemu_plugin_version = 4;

/* ---- Words shared with format.py and recorder.py. ---- */

enum { K_ACCESS = 1, K_STORE, K_PAGE, K_REGS, K_INVLPG, K_INVPCID, K_MMIO, K_MAP };
enum { C_HELLO = 64, C_START, C_SYNC, C_END };
enum { A_WRITE = 2, A_USER = 4, A_FETCH = 16, A_AC = 256, A_IMPLICIT = 512 };
enum { W_NONE, W_CR0, W_CR3, W_CR4, W_EFER, W_PKRU, W_INIT };
enum { MAP_IO, MAP_RAM, MAP_ROM };
enum { MEMORY_RAM = 0, MEMORY_UNKNOWN = 255 };

struct record {
    uint8_t kind, what;
    uint16_t cpu, access, length;
    uint64_t gva, gpa, value;
};
_Static_assert(sizeof(struct record) == 32, "the stream's records have 32 bytes");

#define PAGE 4096ull
#define NONE (~0ull)
#define ADDRESS 0x000ffffffffff000ull
#define CR0_PE (1ull << 0)
#define CR0_WP (1ull << 16)
#define CR0_PG (1ull << 31)
#define CR4_PSE (1ull << 4)
#define CR4_PAE (1ull << 5)
#define CR4_LA57 (1ull << 12)
#define CR4_PKE (1ull << 22)
#define CR3_NOFLUSH (1ull << 63)
#define EFER_LMA (1ull << 10)
#define EFER_NXE (1ull << 11)
#define FLAG_VM (1ull << 17)
#define FLAG_AC (1ull << 18)
#define PTE_P 1ull
#define PTE_W 2ull
#define PTE_U 4ull
#define PTE_PS 128ull
#define PTE_NX (1ull << 63)
/* Set by the CPU's own walks. */
#define PTE_AD 0x60ull

/* Stores to a tracked page since a walk last used it: beyond this the page is data now, and a later walk takes a new
 * snapshot. */
#define FLOOD 64
#define FILTER 4096
#define CODE_FILTER 1024

/* ---- State. ---- */

/* A filter entry lives as long as `gen` is its vCPU's generation. Generations are never reused: a truncated one would
 * wrap, revive dead entries and lose events. */
struct entry {
    uint64_t key, gen, frame;
    unsigned shift; /* log2 of the guest's page */
};

struct vcpu {
    unsigned number;
    bool known; /* the registers below were read since the recording began */
    uint64_t gen;
    uint64_t cr0, cr3, cr4, efer;
    uint32_t pkru;             /* not among the registers that QEMU shows: followed from reset */
    int pending;               /* the register that the last instruction was about to change */
    uint64_t intended, resume; /* the value it would get; where the CPU goes on if it did not fault */
    bool gdt_known, saved_gdt_known;
    uint64_t gdt, saved_gdt; /* GDTR's base; the one from before SMM */
    struct entry data[FILTER], code[CODE_FILTER];
};

/* What is constant in one translated block: QEMU never shares a block between privilege levels, AC, or segment bases.
 */
struct block {
    uint64_t vaddr; /* at translation; only its page offset holds later */
    uint64_t cs_base;
    uint64_t offset; /* of its first byte in the RAM file, NONE: not RAM */
    uint64_t stamp;  /* generation in which it was recorded */
    uint16_t access; /* A_USER, A_AC */
    uint8_t bits;    /* 16, 32, 64 */
    bool crosses;    /* its last instruction reaches into the next page */
};

struct special {
    struct block *block;
    struct operand operand;
    uint64_t vaddr;
    uint8_t length, opcode, rex_r;
    bool data16;
};
struct region {
    uint64_t gpa, size, offset;
    int kind, memory;
};
struct walk {
    bool ok, user, writable, executable;
    unsigned shift;
    uint64_t gpa;
};

static int out_fd = -1;
static FILE *control;
static uint8_t out_buffer[1 << 20];
static size_t out_used;
static bool broken; /* the driver went away */

static const char *ram_path;
static uint8_t *ram;                   /* the guest's RAM file, mapped once more */
static uint64_t ram_size, ram_in_qemu; /* where QEMU itself has mapped it */

static struct region regions[64];
static unsigned nr_regions;
static uint64_t frames; /* length of the arrays by guest frame */
static uint8_t *meaning;
static uint8_t *tracked;
static uint16_t *flood;
static uint8_t **copies;       /* what the recording says a tracked page holds */
static uint64_t far_ram[4096]; /* frames above: RAM of devices, a hash set */

static struct vcpu *vcpus[4096];
/* The main program's thread-local storage in the thread that runs all vCPUs, and copies of it from when each vCPU was
 * current. */
static uint64_t *tls, *tls_of[4096];
static size_t tls_words;
static const volatile uint64_t *current_word; /* QEMU's own pointer to the vCPU that runs */
static unsigned nr_vcpus;
static uint64_t last_gen, seen, stale;
static bool recording, sync_map;
static enum { START_FIRMWARE, START_ENTRY, START_USER, START_PORT } start;
static uint64_t start_lo = 0x100000, start_hi = 0x2000000, start_port;
static uint64_t last_port, last_port_value, pci_address;

/*
 * Which vCPU runs. With thread=single QEMU 10 hands a callback the number of the vCPU that the block was *translated*
 * for, a constant in code that all vCPUs share, and translation does not say for which it is. QEMU knows better: the
 * thread that runs all vCPUs has a thread-local pointer to the current one. It has no exported name, but it is the
 * word of the program's thread-local storage that had another value in each vCPU's initialisation, which QEMU makes
 * with that vCPU current.
 */
static int find_tls(struct dl_phdr_info *program, size_t size, void *udata)
{
    for (int k = 0; k < program->dlpi_phnum; k++)
        if (program->dlpi_phdr[k].p_type == PT_TLS) {
            tls = program->dlpi_tls_data;
            tls_words = program->dlpi_phdr[k].p_memsz / sizeof *tls;
        }
    return 1; /* the first one is the program itself */
}

static void keep_tls(unsigned cpu)
{
    if (!tls)
        dl_iterate_phdr(find_tls, NULL);
    if (!tls || !(tls_of[cpu] = malloc(tls_words * sizeof *tls)))
        return;
    memcpy(tls_of[cpu], tls, tls_words * sizeof *tls);
}

static bool names_each_vcpu(size_t word)
{
    for (unsigned n = 0; n < nr_vcpus; n++) {
        if (!tls_of[n] || !tls_of[n][word] || tls_of[n][word] % 8)
            return false;
        for (unsigned m = 0; m < n; m++)
            if (tls_of[m][word] == tls_of[n][word])
                return false;
    }
    return true;
}

static void find_current_word(void)
{
    for (size_t word = 0; tls && word < tls_words && !current_word; word++)
        if (names_each_vcpu(word))
            current_word = tls + word;
}

static struct vcpu *running(void)
{
    static unsigned last;
    if (nr_vcpus == 1)
        return vcpus[0];
    size_t word = current_word - tls;
    if (tls_of[last][word] == *current_word)
        return vcpus[last];
    for (unsigned n = 0; n < nr_vcpus; n++)
        if (tls_of[n][word] == *current_word) {
            last = n;
            return vcpus[n];
        }
    return vcpus[last];
}

static const char *const reg_names[NR_REGS][2] = {
    {"rax", "eax"}, {"rcx", "ecx"}, {"rdx", "edx"}, {"rbx", "ebx"}, {"rsp", "esp"}, {"rbp", "ebp"},
    {"rsi", "esi"}, {"rdi", "edi"}, {"r8"},         {"r9"},         {"r10"},        {"r11"},
    {"r12"},        {"r13"},        {"r14"},        {"r15"},        {"rip", "eip"}, {"eflags"},
    {"cs"},         {"ss"},         {"ds"},         {"es"},         {"fs"},         {"gs"},
    {"fs_base"},    {"gs_base"},    {"cr0"},        {"cr3"},        {"cr4"},        {"efer"},
};
static void *handles[NR_REGS];
static struct gbytes *reg_buffer;

/* A register of the vCPU whose callback runs. */
static uint64_t reg(int which)
{
    uint64_t value = 0;
    if (!handles[which])
        return 0;
    g_byte_array_set_size(reg_buffer, 0);
    int length = qemu_plugin_read_register(handles[which], reg_buffer);
    if (length > 0)
        memcpy(&value, reg_buffer->data, length > 8 ? 8 : length);
    return value;
}

/* ---- The stream. ---- */

static void flush_out(void)
{
    size_t at = 0;
    while (at < out_used && !broken) {
        ssize_t n = write(out_fd, out_buffer + at, out_used - at);
        if (n > 0)
            at += n;
        else
            broken = true;
    }
    out_used = 0;
}

static void emit(const struct record *r, const void *body)
{
    if (out_used + sizeof *r + r->length > sizeof out_buffer)
        flush_out();
    memcpy(out_buffer + out_used, r, sizeof *r);
    memcpy(out_buffer + out_used + sizeof *r, body, r->length);
    out_used += sizeof *r + r->length;
}

/* ---- Guest physical memory. ---- */

/* Place of a guest physical address in the RAM file, NONE outside RAM. */
static uint64_t offset_of(uint64_t gpa)
{
    /* Before the recording begins nobody has told the map. Firmware lives in low memory, which is the file's beginning.
     */
    if (!nr_regions)
        return gpa < 1ull << 20 || gpa < ram_size / 2 ? gpa : NONE;
    for (unsigned k = 0; k < nr_regions; k++)
        if (gpa - regions[k].gpa < regions[k].size)
            return regions[k].memory == MEMORY_RAM ? regions[k].offset + (gpa - regions[k].gpa) : NONE;
    return NONE;
}

static uint64_t gpa_of(uint64_t offset)
{
    for (unsigned k = 0; k < nr_regions; k++)
        if (regions[k].memory == MEMORY_RAM && offset - regions[k].offset < regions[k].size)
            return regions[k].gpa + (offset - regions[k].offset);
    return NONE;
}

static uint8_t *ram_at(uint64_t gpa)
{
    uint64_t offset = offset_of(gpa);
    return offset < ram_size ? ram + offset : NULL;
}

static void emit_map(struct vcpu *v, uint64_t gpa, uint64_t size, int kind, int memory, uint64_t offset)
{
    struct record r = {
        .kind = K_MAP, .what = kind, .cpu = v->number, .access = memory, .gva = offset, .gpa = gpa, .value = size};
    emit(&r, NULL);
}

/* Hold what the access found at `gpa` against the map; a difference is an event (SMRAM, the legacy VGA window, a
 * device's RAM). */
static void check_meaning(struct vcpu *v, uint64_t gpa, bool io)
{
    uint64_t frame = gpa / PAGE, start_of = frame * PAGE;
    if (frame < frames) {
        if (io && meaning[frame] == MAP_RAM) {
            meaning[frame] = MAP_IO;
            emit_map(v, start_of, PAGE, MAP_IO, MEMORY_UNKNOWN, 0);
        } else if (!io && meaning[frame] == MAP_IO) {
            /* What hides RAM below it (SMRAM, TSEG) gives the RAM of the same address free. */
            bool below = start_of < ram_size;
            meaning[frame] = MAP_RAM;
            emit_map(v, start_of, PAGE, MAP_RAM, below ? MEMORY_RAM : MEMORY_UNKNOWN, below ? start_of : 0);
        }
        return;
    }
    uint64_t *slot = &far_ram[frame % 4096];
    if (io) {
        if (*slot == frame) {
            *slot = 0;
            emit_map(v, start_of, PAGE, MAP_IO, MEMORY_UNKNOWN, 0);
        }
    } else if (*slot != frame) {
        *slot = frame;
        emit_map(v, start_of, PAGE, MAP_RAM, MEMORY_UNKNOWN, 0);
    }
}

static void set_meanings(const struct region *r)
{
    for (uint64_t frame = r->gpa / PAGE; frame < (r->gpa + r->size) / PAGE && frame < frames; frame++)
        meaning[frame] = r->kind;
}

static void make_arrays(void)
{
    uint64_t top = 1ull << 32;
    for (unsigned k = 0; k < nr_regions; k++)
        if (regions[k].gpa + regions[k].size > top)
            top = regions[k].gpa + regions[k].size;
    frames = top / PAGE;
    meaning = calloc(frames, 1);
    tracked = calloc(frames, 1);
    flood = calloc(frames, sizeof *flood);
    copies = calloc(frames, sizeof *copies);
    for (unsigned k = 0; k < nr_regions; k++)
        set_meanings(&regions[k]);
}

/* Read the driver's answer, lines of "m|c gpa size kind memory offset" in hex and "." at the end: the memory map as it
 * is now (m), and what changed since the last answer (c). */
static void read_map(struct vcpu *v)
{
    char line[256], which;
    struct region r;
    nr_regions = 0;
    while (fgets(line, sizeof line, control) && line[0] != '.') {
        if (sscanf(line, "%c %lx %lx %x %x %lx", &which, &r.gpa, &r.size, &r.kind, &r.memory, &r.offset) != 6)
            continue;
        if (which == 'm' && nr_regions < sizeof regions / sizeof *regions)
            regions[nr_regions++] = r;
        if (which == 'c') {
            emit_map(v, r.gpa, r.size, r.kind, r.memory, r.offset);
            set_meanings(&r);
        }
    }
    if (!frames)
        make_arrays();
}

/* Tell the driver something and wait for its answer. */
static void ask(struct vcpu *v, int kind, uint64_t where)
{
    struct record r = {.kind = kind, .cpu = v->number, .gpa = where};
    emit(&r, NULL);
    flush_out();
    if (!broken)
        read_map(v);
}

/* ---- Tables. ---- */

/* Drop the filter entries that hide stores to a frame. */
static void unhide_stores(uint64_t frame)
{
    for (unsigned n = 0; n < nr_vcpus; n++)
        for (unsigned k = 0; vcpus[n] && k < FILTER; k++)
            if (vcpus[n]->data[k].frame == frame)
                vcpus[n]->data[k].gen = 0;
}

static void snapshot(struct vcpu *v, uint64_t frame, const uint8_t *page)
{
    struct record r = {.kind = K_PAGE, .cpu = v->number, .length = PAGE, .gpa = frame * PAGE};
    if (!copies[frame])
        copies[frame] = malloc(PAGE);
    memcpy(copies[frame], page, PAGE);
    emit(&r, copies[frame]);
    if (!tracked[frame]) {
        tracked[frame] = 1;
        unhide_stores(frame);
    }
}

/* Read a table entry for a walk, and see to it that the recording holds what is read. False: the table is not in RAM.
 */
static bool read_entry(struct vcpu *v, uint64_t gpa, int size, bool record, uint64_t *entry)
{
    uint8_t *at = ram_at(gpa);
    uint64_t frame = gpa / PAGE, copy = 0;
    *entry = 0;
    if (!at)
        return false;
    memcpy(entry, at, size);
    if (!record)
        return true;
    if (frame >= frames)
        return false;
    flood[frame] = 0;
    if (tracked[frame])
        memcpy(&copy, copies[frame] + gpa % PAGE, size);
    if (!tracked[frame] || (*entry ^ copy) & ~PTE_AD)
        snapshot(v, frame, at - gpa % PAGE);
    return true;
}

static bool is_pae_32(const struct vcpu *v)
{ return v->cr0 & CR0_PG && v->cr4 & CR4_PAE && !(v->efer & EFER_LMA); }

static struct walk walk_32(struct vcpu *v, uint64_t va, bool record)
{
    struct walk w = {.user = true, .writable = true, .executable = true, .shift = 12};
    uint64_t entry, table = v->cr3 & 0xfffff000;
    if (!read_entry(v, table + (va >> 22 & 1023) * 4, 4, record, &entry) || !(entry & PTE_P))
        return w;
    w.user = entry & PTE_U;
    w.writable = entry & PTE_W;
    if (entry & PTE_PS && v->cr4 & CR4_PSE) {
        w.gpa = (entry & 0xffc00000) | (entry >> 13 & 0xff) << 32 | (va & 0x3fffff);
        w.shift = 22;
        w.ok = true;
        return w;
    }
    if (!read_entry(v, (entry & 0xfffff000) + (va >> 12 & 1023) * 4, 4, record, &entry) || !(entry & PTE_P))
        return w;
    w.user &= !!(entry & PTE_U);
    w.writable &= !!(entry & PTE_W);
    w.gpa = (entry & 0xfffff000) | (va & 0xfff);
    w.ok = true;
    return w;
}

/* Walk the guest's tables for `va` as the CPU does; `record`: write down each table that is used. */
static struct walk walk(struct vcpu *v, uint64_t va, bool record)
{
    struct walk w = {.user = true, .writable = true, .executable = true, .shift = 12};
    if (!(v->cr0 & CR0_PG))
        return (struct walk){.ok = true, .user = true, .writable = true, .executable = true, .shift = 12, .gpa = va};
    if (!(v->cr4 & CR4_PAE))
        return walk_32(v, va, record);
    bool pae = is_pae_32(v);
    uint64_t table = pae ? v->cr3 & 0xffffffe0 : v->cr3 & ADDRESS;
    for (int level = pae ? 3 : v->cr4 & CR4_LA57 ? 5 : 4; level >= 1; level--) {
        int shift = 12 + 9 * (level - 1);
        uint64_t entry, in_page = (1ull << shift) - 1;
        if (!read_entry(v, table + (va >> shift & (pae && level == 3 ? 3 : 511)) * 8, 8, record, &entry) ||
            !(entry & PTE_P))
            return w;
        if (!(pae && level == 3)) {
            w.user &= !!(entry & PTE_U);
            w.writable &= !!(entry & PTE_W);
            w.executable &= !(entry & PTE_NX && v->efer & EFER_NXE);
        }
        if (level == 1 || (level <= 3 && entry & PTE_PS && !(pae && level == 3))) {
            w.gpa = (entry & ADDRESS & ~in_page) | (va & in_page);
            w.shift = shift;
            w.ok = true;
            return w;
        }
        table = entry & ADDRESS;
    }
    return w;
}

/* Read guest memory at a linear address, with the registers as they are now; false when it is not mapped RAM. */
static bool read_linear(uint64_t va, void *to, size_t size)
{
    static struct vcpu now;
    now.cr0 = reg(CR0), now.cr3 = reg(CR3), now.cr4 = reg(CR4), now.efer = reg(EFER);
    for (size_t done = 0; done < size;) {
        size_t piece = PAGE - (va + done) % PAGE;
        struct walk w = walk(&now, va + done, false);
        uint8_t *at = w.ok ? ram_at(w.gpa) : NULL;
        if (!at)
            return false;
        piece = piece > size - done ? size - done : piece;
        memcpy((uint8_t *)to + done, at, piece);
        done += piece;
    }
    return true;
}

/* ---- Registers. ---- */

static void new_generation(struct vcpu *v)
{ v->gen = ++last_gen; }

static void emit_regs(struct vcpu *v, int what)
{
    uint64_t words[5] = {v->cr0, v->cr3, v->cr4, v->efer, v->pkru};
    struct record r = {.kind = K_REGS, .what = what, .cpu = v->number, .length = sizeof words};
    uint64_t entry;
    /* The CPU loads its page-directory pointers with these registers: the recording must hold them first. */
    if (is_pae_32(v))
        for (int k = 0; k < 4; k++)
            read_entry(v, (v->cr3 & 0xffffffe0) + k * 8, 8, true, &entry);
    emit(&r, words);
    new_generation(v);
}

/* Read the registers; a change (or `force`) becomes a record with the cause `what`. */
static void observe(struct vcpu *v, int what, bool force)
{
    uint64_t cr0 = reg(CR0), cr3 = reg(CR3), cr4 = reg(CR4), efer = reg(EFER);
    bool changed = cr0 != v->cr0 || cr3 != v->cr3 || cr4 != v->cr4 || efer != v->efer;
    if (!v->known || changed) {
        /* Paging went away and no instruction did it: SMM, which brings its own GDT and takes it along with RSM. */
        if (v->known && what == W_INIT && v->cr0 & CR0_PE && !(cr0 & CR0_PE)) {
            v->saved_gdt = v->gdt;
            v->saved_gdt_known = v->gdt_known;
        }
        what = v->known ? what : W_INIT;
        force = true;
    }
    if (!force || !recording)
        return;
    v->known = true;
    v->cr0 = cr0, v->cr3 = cr3, v->cr4 = cr4, v->efer = efer;
    emit_regs(v, what);
}

/* The instruction that was about to change a register has run, or has faulted. */
static void settle(struct vcpu *v, const struct block *b)
{
    int what = v->pending;
    v->pending = W_NONE;
    if (what == W_PKRU) {
        if (reg(RIP) + b->cs_base == v->resume && v->pkru != v->intended) {
            v->pkru = v->intended;
            if (recording)
                observe(v, W_PKRU, true);
        }
        return;
    }
    if (!recording)
        return;
    /* Loading CR3 with the value that it has is a flush, and an event; a load that faulted is none. */
    bool flush = what == W_CR3 && !((reg(CR3) ^ v->intended) & ~CR3_NOFLUSH);
    observe(v, what, flush);
    new_generation(v);
}

/* ---- Beginning. ---- */

static void begin(struct vcpu *v, uint64_t where)
{
    recording = true;
    seen = 0;
    ask(v, C_START, where);
    observe(v, W_INIT, true);
}

static uint64_t block_address(const struct block *b)
{ return reg(RIP) + b->cs_base; }

static bool begins_here(struct vcpu *v, const struct block *b)
{
    switch (start) {
    case START_FIRMWARE: return true;
    case START_ENTRY: return b->offset - start_lo < start_hi - start_lo;
    case START_USER: return b->access & A_USER;
    default: return false;
    }
}

/* ---- Accesses. ---- */

static struct entry *filter_slot(struct entry *filter, unsigned slots, uint64_t key)
{ return &filter[(key * 0x9e3779b97f4a7c15ull) >> 40 & (slots - 1)]; }

/* Whether the tables allow what the machine did, as far as a later change of theirs can take it away. */
static bool allows(const struct vcpu *v, const struct walk *w, uint16_t access)
{
    if (access & A_WRITE && !w->writable && (access & A_USER || v->cr0 & CR0_WP))
        return false;
    return !(access & A_FETCH) || w->executable;
}

/* Check an access against the tables and the map; 0: it is left out, else log2 of the guest's page. `*access` learns
 * whether it was implicit. */
static unsigned place(struct vcpu *v, uint64_t va, uint64_t *gpa, bool io, uint16_t *access)
{
    struct walk w = walk(v, va, true);
    if (*gpa == NONE && w.ok)
        *gpa = w.gpa;
    /* Nobody knows where a block's second page is but the tables, and they may have forgotten it since. */
    if (*gpa == NONE && !w.ok)
        return 0;
    if (*access & A_USER && !w.user)
        *access = (*access & ~A_USER) | A_IMPLICIT;
    if (!w.ok || w.gpa != *gpa || !allows(v, &w, *access)) {
        /* The machine used a TLB entry that the tables no longer back, as it may until the guest flushes. */
        stale++;
        return 0;
    }
    check_meaning(v, *gpa, io);
    return w.shift;
}

static void value_bytes(meminfo info, uint8_t *to)
{
    struct mem_value value = qemu_plugin_mem_get_value(info);
    switch (value.type) {
    case 0: memcpy(to, &value.data.u8, 1); break;
    case 1: memcpy(to, &value.data.u16, 2); break;
    case 2: memcpy(to, &value.data.u32, 4); break;
    case 3: memcpy(to, &value.data.u64, 8); break;
    default: memcpy(to, &value.data.u128, 16); break;
    }
}

/* One access, or the part of one that lies in one page: `size` bytes at `va`, `skip` bytes into the value. */
static void one_access(struct vcpu *v, const struct block *b, meminfo info, uint64_t va, unsigned size, unsigned skip)
{
    bool store = qemu_plugin_mem_is_store(info);
    uint16_t access = b->access | (store ? A_WRITE : 0);
    uint64_t key = (va / PAGE) << 3 | store | (access & A_USER) >> 1 | (access & A_AC) >> 6;
    struct entry *e = filter_slot(v->data, FILTER, key);
    if (e->key == key && e->gen == v->gen)
        return;
    observe(v, W_INIT, false);
    if (sync_map) {
        sync_map = false;
        ask(v, C_SYNC, 0);
    }
    struct hwaddr *h = qemu_plugin_get_hwaddr(info, va);
    uint64_t gpa = h ? qemu_plugin_hwaddr_phys_addr(h) : NONE;
    bool io = h && qemu_plugin_hwaddr_is_io(h);
    unsigned shift = place(v, va, &gpa, io, &access);
    if (!shift)
        return;
    struct record r = {.kind = K_ACCESS, .cpu = v->number, .access = access, .gva = va, .gpa = gpa};
    uint64_t frame = gpa / PAGE;
    if (io) {
        uint8_t bytes[16];
        value_bytes(info, bytes);
        r.kind = K_MMIO;
        r.length = size;
        emit(&r, bytes + skip);
        return;
    }
    if (store && frame < frames && tracked[frame]) {
        uint8_t *at = ram_at(gpa);
        if (at && ++flood[frame] <= FLOOD) {
            /* The callback runs after the store, so memory has what is there now: the result of a compare-and-exchange
             * that failed, and all bytes of a wide store. */
            memcpy(copies[frame] + gpa % PAGE, at, size);
            r.kind = K_STORE;
            r.length = size;
            emit(&r, at);
            return;
        }
        tracked[frame] = 0;
    }
    *e = (struct entry){key, v->gen, frame, shift};
    emit(&r, NULL);
}

static void on_access(unsigned cpu, meminfo info, uint64_t va, void *udata)
{
    const struct block *b = udata;
    unsigned in_page = va % PAGE;
    if (!recording)
        return;
    seen++;
    struct vcpu *v = running();
    unsigned size = 1u << qemu_plugin_mem_size_shift(info), first = PAGE - in_page;
    if (size <= first) {
        one_access(v, b, info, va, size, 0);
    } else {
        one_access(v, b, info, va, first, 0);
        one_access(v, b, info, b->bits == 64 ? va + first : (uint32_t)(va + first), size - first, first);
    }
}

/* A fetch from the page of `va`; `gpa` NONE where only the tables know it. */
static void one_fetch(struct vcpu *v, const struct block *b, uint64_t va, uint64_t gpa)
{
    uint16_t access = (b->access & A_USER) | A_FETCH;
    uint64_t key = (va / PAGE) << 3 | (access & A_USER) >> 1 | 1;
    struct entry *e = filter_slot(v->code, CODE_FILTER, key);
    if (e->key == key && e->gen == v->gen)
        return;
    unsigned shift = place(v, va, &gpa, false, &access);
    if (!shift)
        return;
    struct record r = {.kind = K_ACCESS, .cpu = v->number, .access = access, .gva = va, .gpa = gpa};
    emit(&r, NULL);
    *e = (struct entry){key, v->gen, gpa / PAGE, shift};
}

/* A block is entered. Blocks are position-independent: where it runs is in the register, not in the block. */
static void on_block(unsigned cpu, void *udata)
{
    struct block *b = udata;
    struct vcpu *v = running();
    if (v->pending)
        settle(v, b);
    if (!recording) {
        if (broken || !begins_here(v, b))
            return;
        begin(v, b->offset);
    }
    if (b->stamp == v->gen)
        return;
    observe(v, W_INIT, false);
    uint64_t va = block_address(b);
    if (b->bits != 64)
        va = (uint32_t)va;
    b->stamp = v->gen;
    one_fetch(v, b, va, b->offset == NONE ? NONE : gpa_of(b->offset));
    if (b->crosses)
        one_fetch(v, b, b->bits == 64 ? (va | 4095) + 1 : (uint32_t)((va | 4095) + 1), NONE);
}

/* ---- Instructions that change what a walk obeys. ---- */

static uint64_t segment_base(struct vcpu *v, const struct block *b, int segment)
{
    uint64_t descriptor;
    if (segment == FS || segment == GS)
        return reg(segment == FS ? FS_BASE : GS_BASE);
    if (b->bits == 64)
        return 0;
    if (segment == CS)
        return b->cs_base;
    uint64_t selector = reg(segment);
    if (!(reg(CR0) & CR0_PE) || reg(EFLAGS) & FLAG_VM)
        return selector << 4;
    if (!v->gdt_known || selector & 4 || !read_linear(v->gdt + (selector & 0xfff8), &descriptor, 8))
        return 0;
    return (descriptor >> 16 & 0xffffff) | (descriptor >> 56) << 24;
}

/* Linear address of an instruction's memory operand. */
static uint64_t linear_operand(struct vcpu *v, const struct special *s)
{
    const struct operand *o = &s->operand;
    uint64_t address = (int64_t)o->displacement;
    if (o->base >= 0)
        address += reg(o->base);
    if (o->index >= 0)
        address += reg(o->index) << o->scale;
    if (o->rip_relative)
        /* Inside a block the register may lag behind, but not by a page. */
        address += ((block_address(s->block) & ~4095ull) | (s->vaddr & 4095)) + s->length;
    if (o->size == 16)
        address = (uint16_t)address;
    else if (o->size == 32)
        address = (uint32_t)address;
    address += segment_base(v, s->block, o->segment);
    return s->block->bits == 64 ? address : (uint32_t)address;
}

static void expect(struct vcpu *v, const struct special *s, int what, uint64_t value)
{
    v->pending = what;
    v->intended = value;
    v->resume = ((block_address(s->block) & ~4095ull) | (s->vaddr & 4095)) + s->length;
}

static void on_cr(unsigned cpu, void *udata)
{
    const struct special *s = udata;
    static const int causes[16] = {[0] = W_CR0, [3] = W_CR3, [4] = W_CR4};
    int cause = causes[(s->operand.reg + s->rex_r) & 15];
    if (cause)
        expect(running(), s, cause, s->block->bits == 64 ? reg(s->operand.base) : (uint32_t)reg(s->operand.base));
}

static void on_cr0_part(unsigned cpu, void *udata)
{ expect(running(), udata, W_CR0, 0); }

static void on_wrmsr(unsigned cpu, void *udata)
{
    if ((uint32_t)reg(RCX) == 0xc0000080)
        expect(running(), udata, W_EFER, 0);
}

static void on_rsm(unsigned cpu, void *udata)
{
    struct vcpu *v = running();
    v->gdt = v->saved_gdt;
    v->gdt_known = v->saved_gdt_known;
    expect(v, udata, W_INIT, 0);
}

/* Forget what was seen of the page that an INVLPG flushes. Blocks remember their generation only, so a page of code
 * ends it. */
static void forget_page(struct vcpu *v, uint64_t va)
{
    for (unsigned k = 0; k < CODE_FILTER; k++) {
        struct entry *e = &v->code[k];
        if (e->gen == v->gen && ((e->key >> 3 << 12) ^ va) >> e->shift == 0) {
            new_generation(v);
            return;
        }
    }
    for (unsigned k = 0; k < FILTER; k++) {
        struct entry *e = &v->data[k];
        if (e->gen == v->gen && ((e->key >> 3 << 12) ^ va) >> e->shift == 0)
            e->gen = 0;
    }
}

static void on_invlpg(unsigned cpu, void *udata)
{
    struct special *s = udata;
    struct vcpu *v = running();
    if (!recording || s->block->access & A_USER)
        return;
    observe(v, W_INIT, false);
    struct record r = {.kind = K_INVLPG, .cpu = v->number, .gva = linear_operand(v, s)};
    emit(&r, NULL);
    forget_page(v, r.gva);
}

static void on_invpcid(unsigned cpu, void *udata)
{
    struct special *s = udata;
    struct vcpu *v = running();
    uint64_t descriptor[2], type = reg(s->operand.reg + s->rex_r);
    if (!recording || s->block->access & A_USER || type > 3)
        return;
    observe(v, W_INIT, false);
    if (!read_linear(linear_operand(v, s), descriptor, sizeof descriptor))
        return;
    struct record r = {
        .kind = K_INVPCID, .what = type, .cpu = v->number, .gva = descriptor[1], .value = descriptor[0] & 0xfff};
    emit(&r, NULL);
    new_generation(v);
}

static void on_lgdt(unsigned cpu, void *udata)
{
    struct special *s = udata;
    struct vcpu *v = running();
    uint8_t bytes[10] = {0};
    uint64_t base = 0;
    bool narrow = s->block->bits != 64 && (s->block->bits == 16) != s->data16;
    v->gdt_known = read_linear(linear_operand(v, s), bytes, s->block->bits == 64 ? 10 : 6);
    memcpy(&base, bytes + 2, s->block->bits == 64 ? 8 : 4);
    v->gdt = narrow ? base & 0xffffff : base;
}

static void on_wrpkru(unsigned cpu, void *udata)
{ expect(running(), udata, W_PKRU, (uint32_t)reg(RAX)); }

/* XRSTOR loads PKRU when bit 9 is asked for: from the area's component (at its standard place), or with zero when the
 * area says that the component is in its initial state. */
static void on_xrstor(unsigned cpu, void *udata)
{
    struct special *s = udata;
    struct vcpu *v = running();
    uint64_t present;
    uint32_t value = 0;
    if (!(reg(RAX) & 1 << 9) || !(reg(CR4) & CR4_PKE))
        return;
    uint64_t area = linear_operand(v, s);
    if (!read_linear(area + 512, &present, 8))
        return;
    if (!(present & 1 << 9) || read_linear(area + 2688, &value, 4))
        expect(v, s, W_PKRU, value);
}

/* Ports tell: where a recording begins, how the machine was reset, and that the host bridge may have changed the memory
 * map (PAM, SMRAM). */
static void on_out(unsigned cpu, void *udata)
{
    const struct special *s = udata;
    uint16_t port = s->opcode < 0xe8 ? (uint8_t)s->operand.displacement : (uint16_t)reg(RDX);
    uint64_t value = (uint32_t)reg(RAX);
    last_port = port;
    last_port_value = value;
    if (port == 0xcf8 && s->opcode & 1)
        pci_address = value;
    if (port >= 0xcfc && port <= 0xcff && (pci_address & 0x80ffff00) == 0x80000000)
        sync_map = recording;
    if (!recording && start == START_PORT && port == start_port && !broken)
        begin(running(), s->block->offset);
}

/* ---- Translation. ---- */

/* 16, 32 or 64: from the code segment's descriptor where the GDT can be read, else by the mode. */
static int code_bits(struct vcpu *v, uint64_t cr0, uint64_t cs, uint64_t flags)
{
    uint64_t descriptor;
    if (!(cr0 & CR0_PE) || flags & FLAG_VM)
        return 16;
    bool lma = reg(EFER) & EFER_LMA;
    if (v->gdt_known && !(cs & 4)) {
        if (read_linear(v->gdt + (cs & 0xfff8), &descriptor, 8) && (descriptor >> 43 & 3) == 3 && descriptor >> 47 & 1)
            return lma && descriptor >> 53 & 1 ? 64 : descriptor >> 54 & 1 ? 32 : 16;
    }
    return lma ? 64 : 32;
}

/* Which callback an instruction needs, NULL for nearly all. `s` gets its operand. */
typedef void (*callback_t)(unsigned, void *);
static callback_t special_callback(const uint8_t *b, size_t length, int bits, struct special *s)
{
    struct prefixes p;
    size_t at = skip_prefixes(b, length, bits, &p);
    int size = bits == 64 ? (p.address ? 32 : 64) : (bits == 32) != p.address ? 32 : 16;
    int rex = p.rex | (bits == 64 ? 0x100 : 0);
    if (at >= length)
        return NULL;
    s->opcode = b[at];
    s->data16 = p.operand;
    s->operand = (struct operand){.segment = p.segment};
    s->rex_r = (p.rex & 4) << 1;
    if (b[at] == 0xe6 || b[at] == 0xe7) {
        s->operand.displacement = at + 1 < length ? b[at + 1] : 0;
        return on_out;
    }
    if (b[at] == 0xee || b[at] == 0xef)
        return on_out;
    if (b[at] != 0x0f || at + 1 >= length)
        return NULL;
    uint8_t second = b[at + 1];
    if (second == 0x06)
        return on_cr0_part;
    if (second == 0x30)
        return on_wrmsr;
    if (second == 0xaa)
        return on_rsm;
    bool third = second == 0x38;
    if (third && (at + 2 >= length || b[at + 2] != 0x82))
        return NULL;
    if (second != 0x01 && second != 0x22 && second != 0xae && second != 0xc7 && !third)
        return NULL;
    at += third ? 3 : 2;
    if (!decode_operand(b + at, length - at, size, rex, &s->operand))
        return NULL;
    int group = s->operand.reg;
    bool memory = s->operand.memory;
    if (second == 0x22) {
        /* The operand of MOV to CR is a register whatever mod says. */
        s->operand.base = (b[at] & 7) | (p.rex & 1) << 3;
        return on_cr;
    }
    if (third)
        return memory ? on_invpcid : NULL;
    if (second == 0xae)
        return memory && group == 5 ? on_xrstor : NULL;
    if (second == 0xc7)
        return memory && group == 3 ? on_xrstor : NULL;
    if (b[at] == 0xef)
        return on_wrpkru;
    if (group == 6)
        return on_cr0_part;
    if (memory && group == 7)
        return on_invlpg;
    return memory && group == 2 ? on_lgdt : NULL;
}

/* Where QEMU has mapped the RAM file; this plugin's own mapping of it is another. */
static void find_ram_in_qemu(void)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[4352];
    while (maps && !ram_in_qemu && fgets(line, sizeof line, maps)) {
        uint64_t begin_at, end_at, offset;
        if (strstr(line, ram_path) && sscanf(line, "%lx-%lx %*s %lx", &begin_at, &end_at, &offset) == 3 &&
            begin_at != (uint64_t)ram)
            ram_in_qemu = begin_at - offset;
    }
    if (maps)
        fclose(maps);
}

static struct block *new_block(struct vcpu *v, const struct tb *tb)
{
    struct insn *first = qemu_plugin_tb_get_insn(tb, 0);
    struct insn *last = qemu_plugin_tb_get_insn(tb, qemu_plugin_tb_n_insns(tb) - 1);
    struct block *b = calloc(1, sizeof *b);
    uint64_t cs = reg(CS), flags = reg(EFLAGS), cr0 = reg(CR0);
    uint64_t at = (uint64_t)qemu_plugin_insn_haddr(first) - ram_in_qemu;
    bool user = cr0 & CR0_PE && (flags & FLAG_VM || (cs & 3) == 3);
    b->vaddr = qemu_plugin_insn_vaddr(first);
    b->bits = code_bits(v, cr0, cs, flags);
    b->cs_base = b->bits == 64 ? 0 : (uint32_t)(b->vaddr - reg(RIP));
    b->offset = ram_in_qemu && qemu_plugin_insn_haddr(first) && at < ram_size ? at : NONE;
    /* AC matters to supervisor accesses only. */
    b->access = user ? A_USER : flags & FLAG_AC ? A_AC : 0;
    b->crosses = (qemu_plugin_insn_vaddr(last) + qemu_plugin_insn_size(last) - 1) / PAGE != b->vaddr / PAGE;
    return b;
}

/* Nothing can be recorded: leave QEMU, the driver sees the end of the stream. */
static void give_up(const char *why)
{
    fprintf(stderr, "kvmmu's plugin: %s\n", why);
    exit(1);
}

static void on_translate(plugin_id id, struct tb *tb)
{
    if (!ram_in_qemu) {
        find_ram_in_qemu();
        find_current_word();
        if (nr_vcpus > 1 && !current_word)
            give_up("cannot tell this QEMU's vCPUs apart; record with -smp 1");
    }
    struct block *b = new_block(running(), tb);
    for (size_t k = 0; k < qemu_plugin_tb_n_insns(tb); k++) {
        struct insn *insn = qemu_plugin_tb_get_insn(tb, k);
        uint8_t bytes[16];
        size_t length = qemu_plugin_insn_data(insn, bytes, sizeof bytes);
        struct special s = {.block = b, .vaddr = qemu_plugin_insn_vaddr(insn), .length = length};
        callback_t callback = special_callback(bytes, length, b->bits, &s);
        if (k == 0)
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_block, CB_R_REGS, b);
        if (callback) {
            struct special *kept = malloc(sizeof *kept);
            *kept = s;
            qemu_plugin_register_vcpu_insn_exec_cb(insn, callback, CB_R_REGS, kept);
        }
        qemu_plugin_register_vcpu_mem_cb(insn, on_access, CB_R_REGS, MEM_RW, b);
    }
}

/* ---- Life. ---- */

static void on_vcpu_init(plugin_id id, unsigned cpu)
{
    struct vcpu *v = calloc(1, sizeof *v);
    struct garray *registers = qemu_plugin_get_registers();
    v->number = cpu;
    new_generation(v);
    vcpus[cpu] = v;
    if (cpu >= nr_vcpus)
        nr_vcpus = cpu + 1;
    keep_tls(cpu);
    if (!reg_buffer)
        reg_buffer = g_byte_array_new();
    for (unsigned k = 0; k < registers->len; k++) {
        struct reg_descriptor *d = (struct reg_descriptor *)(void *)registers->data + k;
        for (int which = 0; which < NR_REGS; which++)
            for (int n = 0; n < 2; n++)
                if (reg_names[which][n] && !strcmp(d->name, reg_names[which][n]))
                    handles[which] = d->handle;
    }
    struct record r = {.kind = C_HELLO, .cpu = cpu};
    emit(&r, NULL);
    flush_out();
}

static void on_exit_of_qemu(plugin_id id, void *udata)
{
    struct record r = {.kind = C_END, .access = last_port, .gva = seen, .gpa = stale, .value = last_port_value};
    recording = false;
    emit(&r, NULL);
    flush_out();
}

static bool parse(const char *argument)
{
    if (!strncmp(argument, "ram=", 4))
        ram_path = strdup(argument + 4);
    else if (!strncmp(argument, "out=", 4))
        out_fd = atoi(argument + 4);
    else if (!strncmp(argument, "control=", 8))
        control = fdopen(atoi(argument + 8), "r");
    else if (!strcmp(argument, "start=firmware"))
        start = START_FIRMWARE;
    else if (!strcmp(argument, "start=entry"))
        start = START_ENTRY;
    else if (!strcmp(argument, "start=user"))
        start = START_USER;
    else if (!strcmp(argument, "start=port"))
        start = START_PORT;
    else if (!strncmp(argument, "lo=", 3))
        start_lo = strtoull(argument + 3, NULL, 0);
    else if (!strncmp(argument, "hi=", 3))
        start_hi = strtoull(argument + 3, NULL, 0);
    else if (!strncmp(argument, "port=", 5))
        start_port = strtoull(argument + 5, NULL, 0);
    else
        return false;
    return true;
}

static int fail(const char *what)
{
    fprintf(stderr, "kvmmu's plugin: %s\n", what);
    return -1;
}

__attribute__((visibility("default"))) int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    struct stat status;
    for (int k = 0; k < argc; k++)
        if (!parse(argv[k]))
            return fail(argv[k]);
    const char *target = *(const char *const *)info; /* QEMU's facts begin with the target's name */
    if (strcmp(target, "x86_64") && strcmp(target, "i386"))
        return fail("only x86 guests can be recorded");
    int fd = ram_path ? open(ram_path, O_RDONLY) : -1;
    if (fd < 0 || fstat(fd, &status) || !control || out_fd < 0)
        return fail("ram=FILE, out=FD and control=FD are needed");
    ram_size = status.st_size;
    ram = mmap(NULL, ram_size, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (ram == MAP_FAILED)
        return fail("cannot map the RAM file");
    qemu_plugin_register_vcpu_init_cb(id, on_vcpu_init);
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
    qemu_plugin_register_atexit_cb(id, on_exit_of_qemu, NULL);
    return 0;
}
