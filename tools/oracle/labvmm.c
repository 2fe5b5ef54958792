/* SPDX-License-Identifier: GPL-2.0-only
 * labvmm: tiny KVM VMM that plays a scenario file and annotates the ftrace buffer.
 * gcc -O1 -static labvmm.c guest.S -o labvmm          usage: labvmm SCENARIO > results.txt
 * Scenario lines (numbers are C literals; '#' comments):
 *   mode long|pae|pse32|prot|real            initial CPU mode
 *   reg  cr0|cr3|cr4|efer|pkru VALUE         override of the initial register
 *   cap  NAME ARG0                           KVM_ENABLE_CAP (manual_dirty, nx_huge...)
 *   nocpuid FEATURE                          clear one guest CPUID feature (gbpages, smep, smap, pku, nx, svm)
 *   slot ID GPA SIZE [log] [ro] [thp] [nothp] [pop]   memory slot with fresh anonymous memory
 *   mem8/mem4 GPA VALUE                      initial memory (host write, before the first run)
 *   op   NAME A B                            append a guest op
 *   host ACTION ARGS                         done by the VMM just before the next op runs; "!ACTION": when KVM_RUN fails with EFAULT
 * Environment: LAB_TIMES=1 prints a microsecond time at each op instead of tracing marks.            */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <stdint.h>
#include <stdarg.h>
#include <fcntl.h>
#include <unistd.h>
#include <errno.h>
#include <time.h>
#include <dirent.h>
#include <elf.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <linux/kvm.h>
typedef uint64_t u64; typedef uint32_t u32;
extern char g64_start[], g64_end[], g64_vec[], g64_ustart[], g64_uend[];
extern char g32_start[], g32_end[], g32_vec[], g32_ustart[], g32_uend[], g16_start[], g16_end[];
#define OPS 0x4000
#define MAXOP 2048
#define die(...) do { fprintf(stderr, __VA_ARGS__); fprintf(stderr, " errno=%d\n", errno); exit(2); } while (0)
static int kvm, vm, vcpu, marker = -1, tron = -1, quiet;
static struct kvm_run *run;
static struct slot { int used; u64 gpa, size; u32 flags; char *hva; } slots[64];
static struct { u64 op, a, b; } ops[MAXOP]; static int nops;
static struct { int at; char s[200]; } acts[MAXOP]; static int nacts;
static const char *opname[] = { [0]="end",[1]="r1",[2]="r4",[3]="r8",[4]="w1",[5]="w4",[6]="w8",[7]="x",[8]="invlpg",
 [9]="cr3",[10]="cr0",[11]="cr4",[12]="wrmsr",[13]="wrpkru",[14]="flags",[15]="wloop",[16]="rloop",[17]="rdcr3",[18]="vmrun",[19]="ptloop",[20]="add",
 [0x21]="ur1",[0x22]="ur4",[0x23]="ur8",[0x24]="uw1",[0x25]="uw4",[0x26]="uw8",[0x27]="ux",[0x34]="uadd" };
#define NOPN (int)(sizeof opname / sizeof *opname)
static void note(const char *f, ...) {           /* annotate both the result file and the trace */
    char b[300]; va_list v; va_start(v, f); int n = vsnprintf(b, sizeof b, f, v); va_end(v);
    printf("%s\n", b); if (marker >= 0 && !quiet) { if (write(marker, b, n) < 0) {} }
}
static char *gpa2hva(u64 gpa) {
    for (int i = 0; i < 64; i++) if (slots[i].used && gpa >= slots[i].gpa && gpa < slots[i].gpa + slots[i].size) return slots[i].hva + (gpa - slots[i].gpa);
    return NULL;
}
static void poke(u64 gpa, const void *p, int n) { char *h = gpa2hva(gpa); if (!h) die("poke %lx", gpa); memcpy(h, p, n); }
static void setslot(int id) {
    struct kvm_userspace_memory_region r = { id, slots[id].flags, slots[id].gpa, slots[id].used ? slots[id].size : 0, (u64)slots[id].hva };
    note("slot %d gpa=%llx size=%llx flags=%x hva=%llx", id, r.guest_phys_addr, r.memory_size, r.flags, r.userspace_addr);
    if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &r) < 0) note("slot %d failed errno=%d", id, errno);
}
static char *anon(u64 size, int fl) {             /* 2 MiB aligned so that THP can apply */
    char *p = mmap(NULL, size + (2 << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) die("mmap");
    p = (char *)(((u64)p + (2 << 20) - 1) & ~((2ull << 20) - 1));
    madvise(p, size, fl & 1 ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    if (fl & 2) for (u64 i = 0; i < size; i += 4096) ((volatile char *)p)[i] = 0;
    return p;
}
static u64 num(const char *s) { return s ? strtoull(s, NULL, 0) : 0; }
static void stats(void) {                         /* per-VM + per-vCPU debugfs counters, non-zero ones */
    DIR *d = opendir("/sys/kernel/debug/kvm"); struct dirent *e; char p[600], b[64], pre[32]; snprintf(pre, sizeof pre, "%d-", getpid());
    while (d && (e = readdir(d))) if (!strncmp(e->d_name, pre, strlen(pre))) for (int k = 0; k < 2; k++) {
        snprintf(p, sizeof p, "/sys/kernel/debug/kvm/%s%s", e->d_name, k ? "/vcpu0" : "");
        struct dirent **l; int n = scandir(p, &l, NULL, alphasort);
        for (int i = 0; i < n; i++) { char q[900]; snprintf(q, sizeof q, "%s/%s", p, l[i]->d_name);
            if (l[i]->d_type == DT_DIR || strstr(l[i]->d_name, "hist") || !strcmp(l[i]->d_name, "pid") || !strcmp(l[i]->d_name, "tsc-offset")) continue;
            if (!strcmp(l[i]->d_name, "mmu_rmaps_stat")) { FILE *f = fopen(q, "r"); char z[400]; while (f && fgets(z, sizeof z, f)) printf("rmaps %s", z); if (f) fclose(f); continue; }
            int fd = open(q, O_RDONLY), m = fd < 0 ? 0 : read(fd, b, sizeof b - 1); if (fd >= 0) close(fd);
            if (m > 0) { b[m] = 0; if (strtoll(b, 0, 10)) printf("stat %s%s %lld\n", k ? "vcpu0/" : "", l[i]->d_name, strtoll(b, 0, 10)); } }
    }
    if (d) closedir(d);
}
static void dirty(int id) {
    static unsigned char bm[1 << 16]; memset(bm, 0, sizeof bm);
    struct kvm_dirty_log l = { .slot = id, .dirty_bitmap = bm };
    if (ioctl(vm, KVM_GET_DIRTY_LOG, &l) < 0) { note("dirty slot=%d errno=%d", id, errno); return; }
    printf("dirty slot=%d:", id);
    for (u64 i = 0; i < slots[id].size / 4096 && i < sizeof bm * 8; i++) if (bm[i / 8] >> (i % 8) & 1) printf(" %lx", i);
    printf("\n");
}
/* State oracle: walk the live shadow/TDP tables through /proc/kcore.  The root comes from a kprobe on svm_load_mmu_pgd
 * kept in the trace instance "lab" (see record.job); needs nokaslr (fixed direct map). */
static int kc = -1, la57; static struct { u64 va, off, len; } kseg[64]; static int nkseg;
static void kread(u64 pa, void *b, int n) {
    if (kc < 0) { la57 = !system("grep -q la57 /proc/cpuinfo"); Elf64_Ehdr h; Elf64_Phdr p[64]; kc = open("/proc/kcore", O_RDONLY); if (kc < 0 || pread(kc, &h, sizeof h, 0) != sizeof h) die("kcore");
        int m = h.e_phnum < 64 ? h.e_phnum : 64; if (pread(kc, p, m * sizeof *p, h.e_phoff) < 0) die("kcore phdr");
        for (int i = 0; i < m; i++) if (p[i].p_type == PT_LOAD) { kseg[nkseg].va = p[i].p_vaddr; kseg[nkseg].off = p[i].p_offset; kseg[nkseg++].len = p[i].p_memsz; } }
    u64 va = (la57 ? 0xff11000000000000ull : 0xffff888000000000ull) + pa; memset(b, 0, n);
    for (int i = 0; i < nkseg; i++) if (va >= kseg[i].va && va < kseg[i].va + kseg[i].len) { if (pread(kc, b, n, kseg[i].off + va - kseg[i].va) < 0) {} return; }
}
static void walk(u64 pa, int level, u64 va, int pae) {
    u64 t[512]; kread(pa, t, 4096);
    for (int i = 0; i < (pae ? 4 : 512); i++) if (t[i]) { u64 v = va | (u64)i << (12 + 9 * (level - 1));
        printf("spt L%d %012lx %016lx at %lx\n", level, v, t[i], pa + 8 * i);
        if (level > 1 && !(t[i] & 128) && (pae ? t[i] & 1 : t[i] >> 11 & 1)) walk(t[i] & 0xffffffffff000ull, level - 1, v, 0); }
}
static void dumpspt(void) {
    char l[400], *q; u64 root = 0; int lv = 0; FILE *f = fopen("/sys/kernel/tracing/instances/lab/trace", "r");
    while (f && fgets(l, sizeof l, f)) if ((q = strstr(l, "root=0x"))) { root = strtoull(q + 5, 0, 16); if ((q = strstr(l, "level="))) lv = atoi(q + 6); }
    if (f) fclose(f);
    printf("spt root=%lx level=%d\n", root, lv); if (root && lv) walk(root, lv, 0, lv == 3);
}
static void sregs_set(const char *r, u64 v) {
    struct kvm_sregs s; ioctl(vcpu, KVM_GET_SREGS, &s);
    if (!strcmp(r, "cr0")) s.cr0 = v; else if (!strcmp(r, "cr3")) s.cr3 = v; else if (!strcmp(r, "cr4")) s.cr4 = v; else if (!strcmp(r, "efer")) s.efer = v;
    if (ioctl(vcpu, KVM_SET_SREGS, &s) < 0) note("set %s errno=%d", r, errno);
}
static void act(char *line) {
    char *a[8] = { 0 }; int n = 0; note("host %s", line);
    for (char *t = strtok(line, " "); t && n < 8; t = strtok(NULL, " ")) a[n++] = t;
    u64 x = num(a[1]), y = num(a[2]), z = num(a[3]); char *h = gpa2hva(x);
    int adv = !strcmp(a[0], "dontneed") ? MADV_DONTNEED : !strcmp(a[0], "free") ? MADV_FREE : !strcmp(a[0], "cold") ? MADV_COLD :
              !strcmp(a[0], "pageout") ? MADV_PAGEOUT : !strcmp(a[0], "collapse") ? 25 : !strcmp(a[0], "thp") ? MADV_HUGEPAGE : !strcmp(a[0], "nothp") ? MADV_NOHUGEPAGE : -1;
    if (adv >= 0) { if (madvise(h, y, adv)) note("madvise errno=%d", errno); }
    else if (!strcmp(a[0], "mprotect")) { if (mprotect(h, y, z)) note("mprotect errno=%d", errno); }
    else if (!strcmp(a[0], "remap")) { if (mmap(h, y, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED) note("remap errno=%d", errno); }
    else if (!strcmp(a[0], "munmap")) munmap(h, y);
    else if (!strcmp(a[0], "poke8")) poke(x, &y, 8);
    else if (!strcmp(a[0], "peek8")) note("peek8 %lx = %lx", x, *(u64 *)h);
    else if (!strcmp(a[0], "getdirty")) dirty(x);
    else if (!strcmp(a[0], "cleardirty")) { static unsigned char bm[8192]; memset(bm, 0xff, sizeof bm);   /* slot first npages */
        struct kvm_clear_dirty_log c = { .slot = x, .first_page = y, .num_pages = z, .dirty_bitmap = bm };
        if (ioctl(vm, KVM_CLEAR_DIRTY_LOG, &c) < 0) note("cleardirty errno=%d", errno); }
    else if (!strcmp(a[0], "setflags")) { slots[x].flags = y; setslot(x); }
    else if (!strcmp(a[0], "move")) { slots[x].gpa = y; setslot(x); }
    else if (!strcmp(a[0], "delete")) { slots[x].used = 0; setslot(x); }
    else if (!strcmp(a[0], "restore")) { slots[x].used = 1; setslot(x); }
    else if (!strcmp(a[0], "stats")) stats();
    else if (!strcmp(a[0], "nrmmu")) { if (ioctl(vm, KVM_SET_NR_MMU_PAGES, x)) note("nrmmu errno=%d", errno); }
    else if (!strcmp(a[0], "sh")) { char c[400] = ""; for (int i = 1; i < n; i++) { strcat(c, a[i]); strcat(c, " "); } note("sh -> %d", system(c)); }
    else if (!strcmp(a[0], "dumpspt")) dumpspt();
    else if (!strcmp(a[0], "sreg")) sregs_set(a[1], y);
    else if (!strcmp(a[0], "translate")) { struct kvm_translation t = { .linear_address = x }; ioctl(vcpu, KVM_TRANSLATE, &t); note("translate %lx -> valid=%d %llx", x, t.valid, t.physical_address); }
    else if (!strcmp(a[0], "quiet")) quiet = x;
    else if (!strcmp(a[0], "trace")) { if (tron >= 0 && write(tron, x ? "1" : "0", 1) < 0) {} }
    else note("unknown action");
}
static void seg(struct kvm_segment *s, int sel, int type, int sflag, int l, int db, int dpl) {
    *s = (struct kvm_segment){ .base = 0, .limit = 0xffffffff, .selector = sel, .type = type, .present = 1, .dpl = dpl, .db = db, .s = sflag, .l = l, .g = 1 };
}
int main(int argc, char **argv) {
    char line[300], mode[16] = "long"; u64 cr[4] = { ~0ull, ~0ull, ~0ull, ~0ull }; char nocpuid[200] = " ";
    FILE *f = fopen(argv[1], "r"); if (!f) die("open %s", argc > 1 ? argv[1] : "?");
    kvm = open("/dev/kvm", O_RDWR); if (kvm < 0) die("/dev/kvm");
    marker = open("/sys/kernel/tracing/trace_marker", O_WRONLY); tron = open("/sys/kernel/tracing/tracing_on", O_WRONLY);
    setvbuf(stdout, NULL, _IOFBF, 1 << 20);
    if (tron >= 0 && write(tron, "1", 1) < 0) {}
    vm = ioctl(kvm, KVM_CREATE_VM, 0); if (vm < 0) die("create vm");
    while (fgets(line, sizeof line, f)) {
        char copy[300], *a[10] = { 0 }; int n = 0; line[strcspn(line, "#\n")] = 0; strcpy(copy, line);
        for (char *t = strtok(line, " "); t && n < 10; t = strtok(NULL, " ")) a[n++] = t;
        if (!n) continue;
        if (!strcmp(a[0], "mode")) strcpy(mode, a[1]);
        else if (!strcmp(a[0], "reg")) cr[!strcmp(a[1], "cr0") ? 0 : !strcmp(a[1], "cr3") ? 1 : !strcmp(a[1], "cr4") ? 2 : 3] = num(a[2]);
        else if (!strcmp(a[0], "cap")) { struct kvm_enable_cap c = { .cap = !strcmp(a[1], "manual_dirty") ? KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 : num(a[1]), .args = { num(a[2]) } };
            if (ioctl(vm, KVM_ENABLE_CAP, &c) < 0) note("cap %s errno=%d", a[1], errno); }
        else if (!strcmp(a[0], "nocpuid")) { strcat(nocpuid, a[1]); strcat(nocpuid, " "); }
        else if (!strcmp(a[0], "slot")) { int id = num(a[1]), fl = 0; struct slot *s = &slots[id]; s->used = 1; s->gpa = num(a[2]); s->size = num(a[3]);
            for (int i = 4; i < n; i++) { if (!strcmp(a[i], "log")) s->flags |= KVM_MEM_LOG_DIRTY_PAGES; if (!strcmp(a[i], "ro")) s->flags |= KVM_MEM_READONLY;
                if (!strcmp(a[i], "thp")) fl |= 1; if (!strcmp(a[i], "pop")) fl |= 2; }
            s->hva = anon(s->size, fl); setslot(id); }
        else if (!strcmp(a[0], "mem8") || !strcmp(a[0], "mem4")) { u64 v = num(a[2]); poke(num(a[1]), &v, a[0][3] - '0'); }
        else if (!strcmp(a[0], "op")) { int o = 0; while (o < NOPN && !(opname[o] && !strcmp(opname[o], a[1]))) o++; if (o == NOPN || nops == MAXOP - 1) die("op %s", a[1]);
            ops[nops].op = o; ops[nops].a = num(a[2]); ops[nops++].b = num(a[3]); }
        else if (!strcmp(a[0], "host")) { acts[nacts].at = nops; strncpy(acts[nacts++].s, copy + 5, 199); }
        else die("line: %s", copy);
    }
    int m64 = !strcmp(mode, "long"), m16 = !strcmp(mode, "real"); char *vec = NULL;
    if (m64) { poke(0x1000, g64_start, g64_end - g64_start); poke(0x8000, g64_ustart, g64_uend - g64_ustart); vec = (char *)(0x1000 + (g64_vec - g64_start)); }
    else if (m16) poke(0x1000, g16_start, g16_end - g16_start);
    else { poke(0x1000, g32_start, g32_end - g32_start); poke(0x8000, g32_ustart, g32_uend - g32_ustart); vec = (char *)(0x1000 + (g32_vec - g32_start)); }
    u64 gdt[7] = { 0, m64 ? 0x00af9b000000ffff : 0x00cf9b000000ffff, 0x00cf93000000ffff, m64 ? 0x00affb000000ffff : 0x00cffb000000ffff, 0x00cff3000000ffff, 0x00008b0028000067, 0 };
    poke(0x2000, gdt, sizeof gdt);
    for (int i = 0; i < 32 && !m16; i++) { u64 h = (u64)vec + 16 * i, lo = (h & 0xffff) | 0x8ull << 16 | (i == 30 ? 0xee00ull : 0x8e00ull) << 32 | (h >> 16 & 0xffff) << 48, z = 0;
        if (m64) { poke(0x2400 + 16 * i, &lo, 8); poke(0x2408 + 16 * i, &z, 8); } else poke(0x2400 + 8 * i, &lo, 8); }
    if (m64) { u64 rsp0 = 0x3ff0; poke(0x2804, &rsp0, 8); } else { u32 t[2] = { 0x3ff0, 0x10 }; poke(0x2804, t, 8); }
    for (int i = 0; i <= nops; i++) poke(OPS + 32 * i, &ops[i], 24);
    int intel = !access("/sys/module/kvm_intel", F_OK);
    if (intel) { u64 im = 0xfffbc000; ioctl(vm, KVM_SET_IDENTITY_MAP_ADDR, &im); ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000); }   /* ept=0 / real mode */
    if ((vcpu = ioctl(vm, KVM_CREATE_VCPU, 0)) < 0) die("vcpu");
    run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    struct { struct kvm_cpuid2 h; struct kvm_cpuid_entry2 e[200]; } c = { .h.nent = 200 };
    if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &c) < 0) die("cpuid");
    for (u32 i = 0; i < c.h.nent; i++) { struct kvm_cpuid_entry2 *e = &c.e[i];
        if (e->function == 0x80000001) { if (strstr(nocpuid, " gbpages ")) e->edx &= ~(1u << 26); if (strstr(nocpuid, " nx ")) e->edx &= ~(1u << 20); if (strstr(nocpuid, " svm ")) e->ecx &= ~4u; }
        if (e->function == 7 && !e->index) { if (strstr(nocpuid, " smep ")) e->ebx &= ~(1u << 7); if (strstr(nocpuid, " smap ")) e->ebx &= ~(1u << 20); if (strstr(nocpuid, " pku ")) e->ecx &= ~8u; } }
    if (ioctl(vcpu, KVM_SET_CPUID2, &c) < 0) die("set cpuid");
    struct kvm_sregs s; ioctl(vcpu, KVM_GET_SREGS, &s);
    seg(&s.cs, 8, 11, 1, m64, !m64 && !m16, 0); seg(&s.ss, 0x10, 3, 1, 0, !m16, 0); seg(&s.ds, 0x23, 3, 1, 0, 1, 3); s.es = s.fs = s.gs = s.ds;
    if (m16) { s.cs.selector = s.ss.selector = s.ds.selector = s.es.selector = s.fs.selector = s.gs.selector = 0; s.ds.dpl = s.es.dpl = s.fs.dpl = s.gs.dpl = 0; }
    seg(&s.tr, 0x28, m64 || intel ? 11 : 9, 0, 0, 0, 0); /* QEMU 7.2 TCG aborts on a busy 32-bit TSS loaded by VMRUN */ s.tr.base = 0x2800; s.tr.limit = 0x67; s.tr.g = 0;
    s.gdt.base = 0x2000; s.gdt.limit = 55; s.idt.base = m16 ? 0 : 0x2400; s.idt.limit = 0x3ff;
    s.cr0 = m16 ? 0x10 : m64 || !strcmp(mode, "pae") || !strcmp(mode, "pse32") ? 0x80010011 : 0x11;   /* PG WP ET PE */
    s.cr4 = m64 || !strcmp(mode, "pae") ? 0x20 : !strcmp(mode, "pse32") ? 0x10 : 0; s.cr3 = 0x10000; s.efer = m64 ? 0xd00 : 0;
    if (cr[0] != ~0ull) s.cr0 = cr[0]; if (cr[1] != ~0ull) s.cr3 = cr[1]; if (cr[2] != ~0ull) s.cr4 = cr[2]; if (cr[3] != ~0ull) s.efer = cr[3];
    if (ioctl(vcpu, KVM_SET_SREGS, &s) < 0) die("sregs");
    struct kvm_regs r = { .rip = 0x1000, .rsp = 0x3ff0, .rbp = OPS, .rflags = 2 }; ioctl(vcpu, KVM_SET_REGS, &r);
    note("begin %s mode=%s cr0=%llx cr3=%llx cr4=%llx efer=%llx", strrchr(argv[1], '/') ? strrchr(argv[1], '/') + 1 : argv[1], mode, s.cr0, s.cr3, s.cr4, s.efer);
    int ai = 0, stop = 0, times = !!getenv("LAB_TIMES"); unsigned exits = 0;
    while (!stop) {
        int rc = ioctl(vcpu, KVM_RUN, 0), e = errno; exits++;
        if (rc < 0 && e != EINTR) { struct kvm_regs q; ioctl(vcpu, KVM_GET_REGS, &q); note("KVM_RUN errno=%d rip=%llx rbp=%llx", e, q.rip, q.rbp);
            if (e == EFAULT) { while (ai < nacts && acts[ai].s[0] == '!') { act(acts[ai++].s + 1); e = 0; } if (!e) continue; } break; }
        switch (run->exit_reason) {
        case KVM_EXIT_IO: { u32 v = *(u32 *)((char *)run + run->io.data_offset), i = (v - OPS) / 32; if (run->io.port != 0x10 || i > (u32)nops) { note("io port=%x", run->io.port); break; }
            while (ai < nacts && acts[ai].at <= (int)i && acts[ai].s[0] != '!') act(acts[ai++].s);
            if (times) { struct timespec ts; clock_gettime(CLOCK_MONOTONIC, &ts); printf("T %u %s %ld\n", i, opname[ops[i].op], ts.tv_sec * 1000000 + ts.tv_nsec / 1000); break; }
            if (!quiet) note("op %u %s %lx %lx", i, opname[ops[i].op], ops[i].a, ops[i].b); break; }
        case KVM_EXIT_MMIO: { u64 d = 0xa5a5a5a500000000ull | run->mmio.phys_addr; if (run->mmio.is_write) { d = 0; memcpy(&d, run->mmio.data, run->mmio.len); } else memcpy(run->mmio.data, &d, run->mmio.len);
            note("mmio %s %llx len=%d data=%lx", run->mmio.is_write ? "write" : "read", run->mmio.phys_addr, run->mmio.len, run->mmio.is_write ? d : 0); break; }
        case KVM_EXIT_HLT: note("hlt"); stop = 1; break;
        case KVM_EXIT_INTERNAL_ERROR: { struct kvm_regs q; ioctl(vcpu, KVM_GET_REGS, &q); note("internal error suberror=%d rip=%llx", run->internal.suberror, q.rip); stop = 1; break; }
        default: note("exit reason=%d", run->exit_reason); if (run->exit_reason != KVM_EXIT_INTR) stop = 1; }
    }
    dumpspt();
    while (ai < nacts) act(acts[ai].s + (acts[ai].s[0] == '!')), ai++;
    for (int i = 0; i < nops; i++) { u64 *p = (u64 *)gpa2hva(OPS + 32 * i); if (p) printf("res %d %s a=%lx b=%lx -> %s %lx\n", i, opname[ops[i].op], ops[i].a, ops[i].b,
        (p[3] >> 60) == 0xe ? "FAULT" : "ok", (p[3] >> 60) == 0xe ? p[3] : p[3]); if (p && p[3] >> 60 == 0xe) printf("    vec=%lu err=%lx cr2=%lx\n", p[3] >> 32 & 0xff, p[3] & 0xffffffff, p[2]); }
    stats(); printf("exits %u\n", exits); fflush(stdout);
    munmap(run, 4096 * 3); close(vcpu); close(vm);                 /* VM teardown is traced too */
    note("end"); if (tron >= 0 && write(tron, "0", 1) < 0) {}
    return 0;
}
