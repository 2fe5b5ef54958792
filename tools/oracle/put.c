/* SPDX-License-Identifier: GPL-2.0-only
 * put: send files to QEMU's isa-debugcon (port 0x5e9) as a stream of "FILE name size\n" + bytes. Synchronous => deterministic. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
static int port = 0x5e9;
static void out(const char *p, size_t n) { asm volatile("cld; rep outsb" : "+S"(p), "+c"(n) : "d"(port) : "memory"); }
int main(int argc, char **argv) {
    if (getenv("PUTPORT")) port = strtol(getenv("PUTPORT"), 0, 0);
    if (iopl(3)) { perror("iopl"); return 1; }
    for (int i = 1; i < argc; i++) {
        FILE *f = fopen(argv[i], "rb"); if (!f) { perror(argv[i]); continue; }
        fseek(f, 0, SEEK_END); long n = ftell(f); rewind(f); char *b = malloc(n + 1), h[300]; n = fread(b, 1, n, f);
        char *s = strrchr(argv[i], '/'); int k = snprintf(h, sizeof h, "FILE %s %ld\n", s ? s + 1 : argv[i], n);
        out(h, k); out(b, n); fclose(f); free(b);
    }
    return 0;
}
