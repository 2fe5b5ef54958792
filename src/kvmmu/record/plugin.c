// SPDX-License-Identifier: GPL-2.0-only
/*
 * The recorder inside QEMU (>= 10, plugin API 4): watch every access of a guest under TCG and write down what an MMU
 * must know.
 *
 * Arguments: memory=FILE (the guest's memory-backend-file, then those of memory that may be plugged in later),
 * out=FD (the stream of records), control=FD (answers of the driver), and what begins the recording: start=firmware |
 * entry | user | port, with lo=GPA,hi=GPA (entry) or port=N.
 *
 * How it stays small: a filter per vCPU remembers the pages that were accessed since the last flush, and only the
 * first access passes.
 *
 * How it stays complete: before an access is written, the guest's tables are walked in the mapped RAM file, and each
 * table page of the walk is written as a snapshot when it is new; from then on every store to it is a record. A page
 * that changed by other means (a device, the CPU's own stores when it delivers an interrupt) is found by comparing each
 * entry that a walk reads with a copy, and written again.
 *
 * How it loses nothing: callbacks stop while the guest halts, so a thread of its own writes out what waits in the
 * buffer four times a second, with the counts so far. The same thread ends QEMU when nobody reads the stream any more.
 *
 * SMM is a machine of its own here: another view of memory, its own tables, records that are marked.
 *
 * plugin_decode.h reads instructions; everything else is here, because all of it works on the state below.
 *
 * Threads: -accel tcg,thread=single runs all vCPUs in one thread. The buffer of the stream is shared with the thread
 * that writes it out and with QEMU's main thread at its end, and has a lock; nothing else is locked.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <link.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "plugin_api.h"
#include "plugin_decode.h"

__attribute__((visibility("default"))) int qemu_plugin_version = 4;

/* ---- Words shared with format.py and recorder.py. ---- */

enum { K_ACCESS = 1, K_STORE, K_PAGE, K_REGS, K_INVLPG, K_INVPCID, K_MMIO, K_MAP };
enum { C_HELLO = 64, C_START, C_SYNC, C_END, C_COUNTS };
enum { A_WRITE = 2, A_USER = 4, A_FETCH = 16, A_AC = 256, A_IMPLICIT = 512 };
enum { W_NONE, W_CR0, W_CR3, W_CR4, W_EFER, W_PKRU, W_INIT };
enum { MAP_IO, MAP_RAM, MAP_ROM };
enum { MEMORY_RAM = 0, MEMORY_UNKNOWN = 255, SMM_MARK = 128 };

/* Why an access was left out; LEFT_OUT of format.py has the names. */
enum { L_STALE, L_TABLE_ROM, L_TABLE_DEVICE, L_TABLE_UNKNOWN, L_UNPLACED, NR_LEFT_OUT };
/* What the counts hold beside them. */
enum { N_SEEN = NR_LEFT_OUT, N_SMM, NR_COUNTS };

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
#define CR4_SMEP (1ull << 20)
#define CR4_SMAP (1ull << 21)
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
/* Linear address of the first instruction after a reset. */
#define RESET 0xfffffff0
/* Where an SMI begins, and its save area, from the CS base on: the revision, and the SMBASE of CPUs with long mode and
 * of others. */
#define SMI_RIP 0x8000
#define SMM_REVISION 0xfefc
#define SMM_BASE_64 0xff00
#define SMM_BASE_32 0xfef8
#define SMM_REVISION_64 0x20064
#define SMM_REVISION_32 0x20000
/* Set by the CPU's own walks. */
#define PTE_AD 0x60ull

/* Stores to a tracked page since a walk last used it: beyond this the page is data now, and a later walk takes a new
 * snapshot. */
#define FLOOD 64
#define FILTER 4096
#define CODE_FILTER 1024
/* Guest frames that can be tables: as many as the format has, in chunks that are made when they are first asked for. */
#define MAX_FRAMES (1ull << 28)
#define CHUNK 512
#define NR_CHUNKS (MAX_FRAMES / CHUNK)
#define NR_MEMORIES 32
/* Milliseconds between two writings of what waits, and until QEMU is left when it does not end. */
#define TICK_MS 250
#define PATIENCE_MS 3000

/* ---- State. ---- */

/* A filter entry lives as long as `gen` is its vCPU's generation. Generations are never reused: a truncated one would
 * wrap, revive dead entries and lose events. */
struct entry {
    uint64_t key, gen, frame;
    unsigned shift; /* log2 of the guest's page */
};

struct vcpu {
    unsigned number;
    bool smm, leaving; /* in system management mode; RSM was its last instruction */
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
    unsigned memory; /* what holds it, MEMORY_UNKNOWN: no memory that is mapped here */
    uint64_t offset; /* of its first byte in there */
    uint64_t stamp;  /* generation in which it was recorded */
    uint16_t access; /* A_USER, A_AC */
    uint8_t bits;    /* 16, 32, 64 */
    bool smm;        /* QEMU shares no block between SMM and the rest either */
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
    int kind, memory; /* as MAP records have them */
    unsigned mapped;  /* index of `memories`, MEMORY_UNKNOWN: none of them */
};
/* A file that is guest memory: mapped once more here, and where QEMU itself has mapped it (0: not seen yet). */
struct memory {
    const char *path;
    uint8_t *at;
    uint64_t size, in_qemu;
    dev_t device;
    ino_t inode;
};
/* What is known of CHUNK guest frames. */
struct chunk {
    uint8_t meaning[CHUNK];
    uint8_t tracked[CHUNK];
    uint16_t flood[CHUNK];
    uint8_t *copies[CHUNK]; /* what the recording says a tracked page holds */
};
struct walk {
    bool ok, user, writable, executable;
    unsigned shift;
    uint64_t gpa;
};

static int out_fd = -1;
static FILE *control;
static pthread_mutex_t out_lock = PTHREAD_MUTEX_INITIALIZER; /* of the four below and of writes to out_fd */
static uint8_t out_buffer[1 << 20];
static size_t out_used;
static bool broken; /* the driver went away */
static bool ended;  /* the last record was written */

static struct memory memories[NR_MEMORIES]; /* the first one is the guest's RAM */
static unsigned nr_memories;
static bool found_in_qemu;

static struct region regions[256];
static unsigned nr_regions;
static uint64_t low_end;                         /* guest RAM lies at its own offset up to here */
static unsigned phys_bits = 52;
static struct chunk **views[2];                  /* by chunk: as seen outside and in SMM */
static uint64_t far_said[4096];                  /* frames above that are not as the map says, and what: a hash set */
static struct { uint64_t gpa; unsigned size; } stored; /* the store in hand, which memory holds already */
static int reason;                               /* why the last walk could not read a table, */
static uint64_t unreadable;                      /* and which */

static struct vcpu *vcpus[4096];
/* The main program's thread-local storage in the thread that runs all vCPUs, and copies of it from when each vCPU was
 * current. */
static uint64_t *tls, *tls_of[4096];
static size_t tls_words;
static const volatile uint64_t *current_word; /* QEMU's own pointer to the vCPU that runs */
static unsigned nr_vcpus;
static uint64_t last_gen, counts[NR_COUNTS];
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

/* Write out what waits; with out_lock. */
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

/* Put a record and its body; with out_lock. */
static void put(const struct record *r, const void *body)
{
    if (ended)
        return;
    if (out_used + sizeof *r + r->length > sizeof out_buffer)
        flush_out();
    memcpy(out_buffer + out_used, r, sizeof *r);
    memcpy(out_buffer + out_used + sizeof *r, body, r->length);
    out_used += sizeof *r + r->length;
}

static void emit(const struct record *r, const void *body)
{
    pthread_mutex_lock(&out_lock);
    put(r, body);
    pthread_mutex_unlock(&out_lock);
}

/* A record of what `v` did. */
static struct record new_record(const struct vcpu *v, int kind, int what)
{ return (struct record){.kind = kind, .what = what | (v->smm ? SMM_MARK : 0), .cpu = v->number}; }

static void put_counts(int kind)
{
    struct record r = {
        .kind = kind, .access = last_port, .length = sizeof counts, .value = last_port_value};
    put(&r, counts);
}

static void leave_out(int why)
{ counts[why]++; }

/* The thread that writes out what waits. Nobody reads any more: the recorder is gone, and QEMU ends, too. */
static void *write_out(void *unused)
{
    struct pollfd reader = {.fd = out_fd};
    for (int alone = 0;; alone += broken ? TICK_MS : 0) {
        struct timespec tick = {.tv_nsec = TICK_MS * 1000000l};
        nanosleep(&tick, NULL);
        pthread_mutex_lock(&out_lock);
        if (!ended && recording)
            put_counts(C_COUNTS);
        flush_out();
        if (poll(&reader, 1, 0) == 1 && reader.revents & POLLERR)
            broken = true;
        pthread_mutex_unlock(&out_lock);
        if (broken && !alone)
            kill(getpid(), SIGTERM);
        if (alone > PATIENCE_MS)
            _exit(1);
    }
    return unused;
}

/* ---- Guest physical memory. ---- */

static const struct region *region_of(uint64_t gpa)
{
    for (unsigned k = 0; k < nr_regions; k++)
        if (gpa - regions[k].gpa < regions[k].size)
            return &regions[k];
    return NULL;
}

/* The byte at a guest physical address, NULL where this plugin cannot look. `smm`: as seen in SMM, where the RAM below
 * a device shows. */
static uint8_t *memory_at(uint64_t gpa, bool smm)
{
    const struct region *r = region_of(gpa);
    /* Before the recording begins nobody has told the map. Firmware lives in low memory, which is the file's beginning.
     */
    if (!nr_regions)
        return gpa < memories[0].size && (smm || gpa < 1ull << 20 || gpa < memories[0].size / 2) ? memories[0].at + gpa
                                                                                                  : NULL;
    if (r && r->mapped < nr_memories && r->offset + (gpa - r->gpa) < memories[r->mapped].size)
        return memories[r->mapped].at + r->offset + (gpa - r->gpa);
    return smm && gpa < low_end ? memories[0].at + gpa : NULL;
}

/* Why memory_at() knows no byte there. */
static int why_unreadable(uint64_t gpa)
{
    const struct region *r = region_of(gpa);
    return !r ? L_TABLE_DEVICE : r->kind == MAP_ROM ? L_TABLE_ROM : L_TABLE_UNKNOWN;
}

/* Guest physical address of a byte of a memory, NONE if the map does not show it. */
static uint64_t gpa_of(unsigned memory, uint64_t offset)
{
    for (unsigned k = 0; k < nr_regions; k++)
        if (regions[k].mapped == memory && offset - regions[k].offset < regions[k].size)
            return regions[k].gpa + (offset - regions[k].offset);
    return NONE;
}

static void set_meanings(struct chunk *chunk, uint64_t first, const struct region *r)
{
    uint64_t from = r->gpa / PAGE, to = (r->gpa + r->size) / PAGE;
    from = from > first ? from : first;
    to = to < first + CHUNK ? to : first + CHUNK;
    for (uint64_t frame = from; frame < to; frame++)
        chunk->meaning[frame - first] = r->kind;
}

/* What is known of the chunk of frames with `frame`; NULL: the format has no such frame. */
static struct chunk *chunk_of(bool smm, uint64_t frame)
{
    if (frame >= MAX_FRAMES)
        return NULL;
    struct chunk **slot = &views[smm][frame / CHUNK];
    if (!*slot) {
        *slot = calloc(1, sizeof **slot);
        for (unsigned k = 0; k < nr_regions; k++)
            set_meanings(*slot, frame / CHUNK * CHUNK, &regions[k]);
    }
    return *slot;
}

/* A MAP record for each 4 GiB: a reader takes no more at once. */
static void emit_map(struct vcpu *v, uint64_t gpa, uint64_t size, int kind, int memory, uint64_t offset)
{
    for (uint64_t done = 0; done < size; done += 1ull << 32) {
        struct record r = new_record(v, K_MAP, kind);
        r.access = memory, r.gva = kind == MAP_IO ? 0 : offset + done, r.gpa = gpa + done;
        r.value = size - done < 1ull << 32 ? size - done : 1ull << 32;
        emit(&r, NULL);
    }
}

/* What an access found at `gpa` against the map. */
static bool differs_from_map(struct vcpu *v, uint64_t gpa, bool io)
{
    uint64_t frame = gpa / PAGE;
    struct chunk *chunk = chunk_of(v->smm, frame);
    const struct region *r = chunk ? NULL : region_of(gpa);
    if (!chunk)
        return far_said[frame % 4096] != (frame << 1 | io) && (r ? io && r->kind == MAP_RAM : !io);
    return chunk->meaning[frame % CHUNK] == (io ? MAP_RAM : MAP_IO);
}

static void ask(struct vcpu *v, int kind, uint64_t where);

/* Hold what the access found at `gpa` against the map; a difference is an event (memory that was plugged in, a device's
 * RAM that moved, the legacy VGA window, SMRAM). QEMU is asked first; what it does not explain is one page's matter. */
static void check_meaning(struct vcpu *v, uint64_t gpa, bool io)
{
    uint64_t frame = gpa / PAGE, start_of = frame * PAGE;
    if (!differs_from_map(v, gpa, io))
        return;
    if (!v->smm) {
        ask(v, C_SYNC, 0);
        if (!differs_from_map(v, gpa, io))
            return;
    }
    struct chunk *chunk = chunk_of(v->smm, frame);
    if (chunk)
        chunk->meaning[frame % CHUNK] = io ? MAP_IO : MAP_RAM;
    else
        far_said[frame % 4096] = frame << 1 | io;
    /* What hides RAM below it (SMRAM, TSEG) gives the RAM of the same address free. */
    bool below = !io && start_of < low_end;
    emit_map(v, start_of, PAGE, io ? MAP_IO : MAP_RAM, below ? MEMORY_RAM : MEMORY_UNKNOWN, below ? start_of : 0);
}

/* A change of the map, to what is known of its frames. */
static void change_meanings(const struct region *r)
{
    for (uint64_t n = r->gpa / PAGE / CHUNK; n < NR_CHUNKS && n * CHUNK * PAGE < r->gpa + r->size; n++)
        for (int smm = 0; smm < 2; smm++)
            if (views[smm][n])
                set_meanings(views[smm][n], n * CHUNK, r);
    if (r->gpa + r->size > MAX_FRAMES * PAGE)
        memset(far_said, 0, sizeof far_said);
}

/* Where the guest's RAM stops to lie at its own offset. */
static void find_low_end(void)
{
    low_end = memories[0].size;
    for (unsigned k = 0; k < nr_regions; k++)
        if (regions[k].mapped == 0 && regions[k].offset != regions[k].gpa && regions[k].gpa >= 1ull << 32 &&
            regions[k].offset < low_end)
            low_end = regions[k].offset;
}

/* Read the driver's answer, lines of "m|c gpa size kind memory offset mapped" in hex, "b bits", and "." at the end: the
 * memory map as it is now (m), what changed since the last answer (c), the guest's physical address bits. */
static void read_map(struct vcpu *v)
{
    char line[256], which;
    struct region r;
    nr_regions = 0;
    while (fgets(line, sizeof line, control) && line[0] != '.') {
        if (sscanf(line, "b %x", &phys_bits) == 1)
            continue;
        if (sscanf(line, "%c %lx %lx %x %x %lx %x", &which, &r.gpa, &r.size, &r.kind, &r.memory, &r.offset,
                   &r.mapped) != 7)
            continue;
        if (which == 'm' && nr_regions < sizeof regions / sizeof *regions)
            regions[nr_regions++] = r;
        if (which == 'c') {
            emit_map(v, r.gpa, r.size, r.kind, r.memory, r.offset);
            change_meanings(&r);
        }
    }
    find_low_end();
}

/* Tell the driver something and wait for its answer. */
static void ask(struct vcpu *v, int kind, uint64_t where)
{
    struct record r = {.kind = kind, .cpu = v->number, .gpa = where};
    pthread_mutex_lock(&out_lock);
    put(&r, NULL);
    flush_out();
    pthread_mutex_unlock(&out_lock);
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

static void snapshot(struct vcpu *v, struct chunk *chunk, uint64_t frame, const uint8_t *page)
{
    struct record r = new_record(v, K_PAGE, 0);
    unsigned n = frame % CHUNK;
    r.length = PAGE, r.gpa = frame * PAGE;
    if (!chunk->copies[n])
        chunk->copies[n] = malloc(PAGE);
    memcpy(chunk->copies[n], page, PAGE);
    emit(&r, chunk->copies[n]);
    if (!chunk->tracked[n]) {
        chunk->tracked[n] = 1;
        unhide_stores(frame);
    }
}

/* Of an entry that the store in hand overwrote: what was there, through which the CPU went. */
static void undo_store(uint64_t gpa, int size, const uint8_t *copy, uint8_t *entry)
{
    for (int k = 0; k < size; k++)
        if (gpa + k - stored.gpa < stored.size)
            entry[k] = copy[k];
}

/* Read a table entry for a walk, and see to it that the recording holds what is read. False, and `reason`: the table is
 * in no memory that can be looked at. */
static bool read_entry(struct vcpu *v, uint64_t gpa, int size, bool record, uint64_t *entry)
{
    uint8_t *at = memory_at(gpa, v->smm);
    uint64_t frame = gpa / PAGE, copy = 0;
    struct chunk *chunk = record ? chunk_of(v->smm, frame) : NULL;
    *entry = 0;
    if (!at || (record && !chunk)) {
        reason = why_unreadable(gpa);
        unreadable = gpa;
        return false;
    }
    memcpy(entry, at, size);
    if (!record)
        return true;
    chunk->flood[frame % CHUNK] = 0;
    if (chunk->tracked[frame % CHUNK]) {
        const uint8_t *held = chunk->copies[frame % CHUNK] + gpa % PAGE;
        memcpy(&copy, held, size);
        undo_store(gpa, size, held, (uint8_t *)entry);
    }
    if (!chunk->tracked[frame % CHUNK] || (*entry ^ copy) & ~PTE_AD)
        snapshot(v, chunk, frame, at - gpa % PAGE);
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
        w.ok = !(entry & 1 << 21);
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

/* Bits of an entry at `level` that must be 0; `leaf`: it maps a page of more than 4K. QEMU does not look at the low
 * ones of PAE's top level. */
static uint64_t reserved_bits(const struct vcpu *v, int level, bool leaf, bool pae)
{
    uint64_t bits = ADDRESS & ~((1ull << phys_bits) - 1);
    if (!(v->efer & EFER_NXE) || (pae && level == 3))
        bits |= PTE_NX;
    if (pae)
        bits |= 0x7ff0000000000000;
    if (level > 3)
        bits |= PTE_PS;
    return leaf ? bits | (((1ull << (12 + 9 * (level - 1))) - 1) & ~0x1fffull) : bits;
}

/* Walk the guest's tables for `va` as the CPU does; `record`: write down each table that is used. Not ok: `reason` is
 * why. */
static struct walk walk(struct vcpu *v, uint64_t va, bool record)
{
    struct walk w = {.user = true, .writable = true, .executable = true, .shift = 12};
    reason = L_STALE;
    if (!(v->cr0 & CR0_PG))
        return (struct walk){.ok = true, .user = true, .writable = true, .executable = true, .shift = 12, .gpa = va};
    if (!(v->cr4 & CR4_PAE))
        return walk_32(v, va, record);
    bool pae = is_pae_32(v);
    uint64_t table = pae ? v->cr3 & 0xffffffe0 : v->cr3 & ADDRESS;
    for (int level = pae ? 3 : v->cr4 & CR4_LA57 ? 5 : 4; level >= 1; level--) {
        int shift = 12 + 9 * (level - 1);
        bool top = pae && level == 3;
        uint64_t entry, in_page = (1ull << shift) - 1;
        if (!read_entry(v, table + (va >> shift & (top ? 3 : 511)) * 8, 8, record, &entry) || !(entry & PTE_P))
            return w;
        bool large = !top && (level == 2 || level == 3) && entry & PTE_PS;
        if (entry & reserved_bits(v, level, large, pae))
            return w;
        if (!top) {
            w.user &= !!(entry & PTE_U);
            w.writable &= !!(entry & PTE_W);
            w.executable &= !(entry & PTE_NX && v->efer & EFER_NXE);
        }
        if (level == 1 || large) {
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
    now.smm = running()->smm;
    now.cr0 = reg(CR0), now.cr3 = reg(CR3), now.cr4 = reg(CR4), now.efer = reg(EFER);
    for (size_t done = 0; done < size;) {
        size_t piece = PAGE - (va + done) % PAGE;
        struct walk w = walk(&now, va + done, false);
        uint8_t *at = w.ok ? memory_at(w.gpa, now.smm) : NULL;
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
    struct record r = new_record(v, K_REGS, what);
    uint64_t entry;
    r.length = sizeof words;
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

/* ---- System management mode. ---- */

/* Whether an SMI has just come: the registers that it sets, a CS base of its own, and there the area in which it saved
 * the others. A block at that address is translated in SMM or outside, and is not shared. */
static bool is_smi(const struct vcpu *v, uint64_t cs_base)
{
    uint32_t revision, base;
    uint8_t *area = memory_at(cs_base, true);
    bool low = reg(RIP) == SMI_RIP && !(reg(CR0) & (CR0_PE | CR0_PG)) && !(cs_base % PAGE);
    if (!low || !area || !memory_at(cs_base + SMM_BASE_64, true))
        return false;
    memcpy(&revision, area + SMM_REVISION, sizeof revision);
    memcpy(&base, area + (revision == SMM_REVISION_64 ? SMM_BASE_64 : SMM_BASE_32), sizeof base);
    return (revision == SMM_REVISION_64 || revision == SMM_REVISION_32) && base == cs_base;
}

/* The vCPU entered SMM, or left it. It brings its own GDT and takes it along with RSM; what the last instruction was
 * about to change is in the save area, and comes back with the other registers. */
static void change_smm(struct vcpu *v, bool smm)
{
    if (smm) {
        v->saved_gdt = v->gdt;
        v->saved_gdt_known = v->gdt_known;
        if (v->pending == W_PKRU)
            v->pkru = v->intended;
    } else {
        v->gdt = v->saved_gdt;
        v->gdt_known = v->saved_gdt_known;
    }
    v->smm = smm;
    v->leaving = false;
    v->pending = W_NONE;
    if (recording)
        observe(v, W_INIT, true);
}

/* ---- Beginning. ---- */

static void begin(struct vcpu *v, uint64_t where)
{
    recording = true;
    memset(counts, 0, sizeof counts);
    ask(v, C_START, where);
    observe(v, W_INIT, true);
}

/* Where a block lies, before and after the map is known. */
static uint64_t where_is(const struct block *b)
{
    if (b->memory == MEMORY_UNKNOWN || (b->memory && !nr_regions))
        return NONE;
    return nr_regions ? gpa_of(b->memory, b->offset) : b->offset;
}

static uint64_t block_address(const struct block *b)
{ return reg(RIP) + b->cs_base; }

static bool begins_here(struct vcpu *v, const struct block *b)
{
    if (v->smm)
        return false;
    switch (start) {
    case START_FIRMWARE: return true;
    case START_ENTRY: return b->memory == 0 && b->offset - start_lo < start_hi - start_lo;
    case START_USER: return b->access & A_USER;
    default: return false;
    }
}

/* ---- Accesses. ---- */

static struct entry *filter_slot(struct entry *filter, unsigned slots, uint64_t key)
{ return &filter[(key * 0x9e3779b97f4a7c15ull) >> 40 & (slots - 1)]; }

/* Whether the tables allow what the machine did. */
static bool allows(const struct vcpu *v, const struct walk *w, uint16_t access)
{
    if (access & A_USER && !w->user)
        return false;
    if (access & A_WRITE && !w->writable && (access & A_USER || v->cr0 & CR0_WP))
        return false;
    if (access & A_FETCH)
        return w->executable && (access & A_USER || !w->user || !(v->cr4 & CR4_SMEP) || !(v->cr0 & CR0_PG));
    return access & A_USER || !w->user || !(v->cr4 & CR4_SMAP) || !(v->cr0 & CR0_PG) ||
           (access & A_AC && !(access & A_IMPLICIT));
}

/* Whether nobody asked yet for the memory map because of a table near `gpa`: it may lie in memory that was plugged in.
 */
static bool is_news(uint64_t gpa)
{
    static uint64_t asked[256];
    uint64_t chunk = gpa / PAGE / CHUNK + 1, *slot = &asked[chunk % 256];
    bool news = *slot != chunk;
    *slot = chunk;
    return news;
}

/* Check an access against the tables and the map; 0: it is left out, else log2 of the guest's page. `*access` learns
 * whether it was implicit. */
static unsigned place(struct vcpu *v, uint64_t va, uint64_t *gpa, bool io, uint16_t *access)
{
    struct walk w = walk(v, va, true);
    if (!w.ok && reason == L_TABLE_DEVICE && !v->smm && is_news(unreadable)) {
        ask(v, C_SYNC, 0);
        w = walk(v, va, true);
    }
    if (*gpa == NONE && w.ok)
        *gpa = w.gpa;
    if (*access & A_USER && w.ok && !w.user)
        *access = (*access & ~A_USER) | A_IMPLICIT;
    if (!w.ok || w.gpa != *gpa || !allows(v, &w, *access)) {
        /* The machine used a TLB entry that the tables no longer back, as it may until the guest flushes. Nobody knows
         * where a block's second page is but the tables. */
        leave_out(w.ok ? L_STALE : reason == L_STALE && *gpa == NONE ? L_UNPLACED : reason);
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
    if (store && h && !io) {
        stored.gpa = gpa;
        stored.size = size;
    }
    unsigned shift = place(v, va, &gpa, io, &access);
    stored.size = 0;
    if (!shift)
        return;
    struct record r = new_record(v, K_ACCESS, 0);
    uint64_t frame = gpa / PAGE;
    struct chunk *chunk = store && !io ? chunk_of(v->smm, frame) : NULL;
    r.access = access, r.gva = va, r.gpa = gpa;
    if (io) {
        uint8_t bytes[16];
        value_bytes(info, bytes);
        r.kind = K_MMIO;
        r.length = size;
        emit(&r, bytes + skip);
        return;
    }
    if (chunk && chunk->tracked[frame % CHUNK]) {
        uint8_t *at = memory_at(gpa, v->smm);
        if (at && ++chunk->flood[frame % CHUNK] <= FLOOD) {
            /* The callback runs after the store, so memory has what is there now: the result of a compare-and-exchange
             * that failed, and all bytes of a wide store. */
            memcpy(chunk->copies[frame % CHUNK] + gpa % PAGE, at, size);
            r.kind = K_STORE;
            r.length = size;
            emit(&r, at);
            return;
        }
        chunk->tracked[frame % CHUNK] = 0;
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
    struct vcpu *v = running();
    counts[N_SEEN]++;
    counts[N_SMM] += v->smm;
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
    struct record r = new_record(v, K_ACCESS, 0);
    r.access = access, r.gva = va, r.gpa = gpa;
    emit(&r, NULL);
    *e = (struct entry){key, v->gen, gpa / PAGE, shift};
}

/* A block is entered. Blocks are position-independent: where it runs is in the register, not in the block. */
static void on_block(unsigned cpu, void *udata)
{
    struct block *b = udata;
    struct vcpu *v = running();
    if (v->smm != b->smm)
        change_smm(v, b->smm);
    if (v->pending)
        settle(v, b);
    if (!recording) {
        if (broken || !begins_here(v, b))
            return;
        begin(v, where_is(b));
    }
    if (b->stamp == v->gen)
        return;
    observe(v, W_INIT, false);
    uint64_t va = block_address(b);
    if (b->bits != 64)
        va = (uint32_t)va;
    b->stamp = v->gen;
    one_fetch(v, b, va, where_is(b));
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

/* RSM leaves SMM; elsewhere it is undefined. The next block is the interrupted program's. */
static void on_rsm(unsigned cpu, void *udata)
{ running()->leaving = running()->smm; }

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
    struct record r = new_record(v, K_INVLPG, 0);
    r.gva = linear_operand(v, s);
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
    struct record r = new_record(v, K_INVPCID, type);
    r.gva = descriptor[1], r.value = descriptor[0] & 0xfff;
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
    if (!recording && start == START_PORT && port == start_port && !broken && !running()->smm)
        begin(running(), where_is(s->block));
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

/* Where QEMU has mapped the memories: lines of this process's maps with their files; this plugin's own mappings of
 * them are others. Memory that is plugged in later is there from the start, as a backend. */
static void find_in_qemu(void)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[4352];
    while (maps && fgets(line, sizeof line, maps)) {
        uint64_t begin_at, end_at, offset, inode;
        unsigned major_, minor_;
        if (sscanf(line, "%lx-%lx %*s %lx %x:%x %lu", &begin_at, &end_at, &offset, &major_, &minor_, &inode) != 6)
            continue;
        for (unsigned k = 0; k < nr_memories; k++)
            if (memories[k].at && !memories[k].in_qemu && inode == memories[k].inode &&
                makedev(major_, minor_) == memories[k].device &&
                begin_at - (uint64_t)memories[k].at >= memories[k].size)
                memories[k].in_qemu = begin_at - offset;
    }
    if (maps)
        fclose(maps);
    found_in_qemu = memories[0].in_qemu;
}

/* Find the memory with QEMU's address `at`. */
static void find_memory(struct block *b, uint64_t at)
{
    b->memory = MEMORY_UNKNOWN;
    for (unsigned k = 0; k < nr_memories && at; k++)
        if (memories[k].in_qemu && at - memories[k].in_qemu < memories[k].size) {
            b->memory = k;
            b->offset = at - memories[k].in_qemu;
        }
}

static struct block *new_block(struct vcpu *v, const struct tb *tb)
{
    struct insn *first = qemu_plugin_tb_get_insn(tb, 0);
    struct insn *last = qemu_plugin_tb_get_insn(tb, qemu_plugin_tb_n_insns(tb) - 1);
    struct block *b = calloc(1, sizeof *b);
    uint64_t cs = reg(CS), flags = reg(EFLAGS), cr0 = reg(CR0);
    bool user = cr0 & CR0_PE && (flags & FLAG_VM || (cs & 3) == 3);
    b->vaddr = qemu_plugin_insn_vaddr(first);
    b->bits = code_bits(v, cr0, cs, flags);
    b->cs_base = b->bits == 64 ? 0 : (uint32_t)(b->vaddr - reg(RIP));
    find_memory(b, (uint64_t)qemu_plugin_insn_haddr(first));
    /* A CPU that was reset is in SMM no more. */
    b->smm = ((v->smm && !v->leaving) || is_smi(v, b->cs_base)) && b->vaddr != RESET;
    v->leaving = false;
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
    if (!found_in_qemu) {
        find_in_qemu();
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
}

static void on_exit_of_qemu(plugin_id id, void *udata)
{
    pthread_mutex_lock(&out_lock);
    recording = false;
    put_counts(C_END);
    ended = true;
    flush_out();
    pthread_mutex_unlock(&out_lock);
}

static bool parse(const char *argument)
{
    if (!strncmp(argument, "memory=", 7) && nr_memories < NR_MEMORIES)
        memories[nr_memories++].path = strdup(argument + 7);
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

/* Map a memory; false: its file cannot be used. */
static bool map_memory(struct memory *m)
{
    struct stat status;
    int fd = open(m->path, O_RDONLY);
    if (fd < 0 || fstat(fd, &status)) {
        close(fd);
        return false;
    }
    m->size = status.st_size;
    m->device = status.st_dev;
    m->inode = status.st_ino;
    m->at = mmap(NULL, m->size, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, 0);
    close(fd);
    if (m->at == MAP_FAILED)
        m->at = NULL;
    return m->at;
}

/* Begin the thread that writes out. QEMU takes its signals in threads of its own. */
static bool begin_thread(void)
{
    pthread_t thread;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    bool made = !pthread_create(&thread, NULL, write_out, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return made;
}

__attribute__((visibility("default"))) int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    for (int k = 0; k < argc; k++)
        if (!parse(argv[k]))
            return fail(argv[k]);
    const char *target = *(const char *const *)info; /* QEMU's facts begin with the target's name */
    if (strcmp(target, "x86_64") && strcmp(target, "i386"))
        return fail("only x86 guests can be recorded");
    if (!nr_memories || !control || out_fd < 0)
        return fail("memory=FILE, out=FD and control=FD are needed");
    for (unsigned k = 0; k < nr_memories; k++)
        if (!map_memory(&memories[k]))
            return fail("cannot map a memory's file");
    for (int smm = 0; smm < 2; smm++)
        views[smm] = mmap(NULL, NR_CHUNKS * sizeof **views, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (views[0] == MAP_FAILED || views[1] == MAP_FAILED)
        return fail("no memory");
    /* When the recorder dies, QEMU ends; the thread sees to it if QEMU was started through another program. */
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (!begin_thread())
        return fail("cannot begin a thread");
    qemu_plugin_register_vcpu_init_cb(id, on_vcpu_init);
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
    qemu_plugin_register_atexit_cb(id, on_exit_of_qemu, NULL);
    return 0;
}
