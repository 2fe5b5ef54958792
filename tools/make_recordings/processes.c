// SPDX-License-Identifier: GPL-2.0-only
/*
 * The first process of a guest that lives from processes: fork and copy-on-write, mmap, mprotect and munmap, exec,
 * pipes with a context switch for every byte. At the end it switches the machine off.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, SHARED_PAGES = 96, HEAP_PAGES = 128, CHILDREN = 48, PLAYERS = 6, ROUNDS = 60, TOUCHED = 160 };

static volatile char shared[SHARED_PAGES][PAGE];

static void touch(volatile char *base, int pages, int step)
{
    for (int k = 0; k < pages; k += step)
        base[k * PAGE + (k * 64) % PAGE]++;
}

/* A child: writes to pages that it shares with its parent, maps, protects and unmaps memory. Every third one becomes
 * another program. */
static void child(int number, char **argv)
{
    touch(shared[0], SHARED_PAGES, 1 + number % 3);
    char *heap = mmap(NULL, HEAP_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    touch(heap, HEAP_PAGES, 1);
    munmap(heap + PAGE * 32, PAGE * 32);
    mprotect(heap, PAGE * 16, PROT_READ);
    for (int k = 0; k < 16; k++)
        (void)*(volatile char *)(heap + k * PAGE);
    touch(heap + PAGE * 64, 64, 1);
    if (number % 3 == 0) {
        char text[16];
        snprintf(text, sizeof text, "%d", number);
        execl("/init", argv[0], "again", text, NULL);
        _exit(1);
    }
    munmap(heap, HEAP_PAGES * PAGE);
    _exit(number & 127);
}

/* What a program does that was started by exec: read-only mappings of its own file, and a child of its own. */
static int again(int number)
{
    int fd = open("/init", O_RDONLY);
    volatile char *file = mmap(NULL, 64 * PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
    int sum = 0;
    for (int k = 0; k < 64; k++)
        sum += file[k * PAGE];
    if (fork() == 0) {
        touch(shared[0], SHARED_PAGES, 4);
        _exit(0);
    }
    wait(NULL);
    return (sum + number) & 127;
}

/* A ring of processes that pass one byte around; whoever has it works on memory of its own and on memory that all
 * share. */
static void player(int number, int in, int out, volatile char *board)
{
    char byte;
    volatile char *own = mmap(NULL, TOUCHED * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int round = 0; round < ROUNDS; round++) {
        if (read(in, &byte, 1) != 1)
            break;
        touch(own, TOUCHED, 1);
        touch(board, 64, 1 + number % 2);
        if (write(out, &byte, 1) != 1)
            break;
    }
    _exit(0);
}

static void ring(void)
{
    int pipes[PLAYERS][2];
    char byte = 1;
    volatile char *board = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int k = 0; k < PLAYERS; k++)
        if (pipe(pipes[k]))
            return;
    for (int k = 0; k < PLAYERS; k++)
        if (fork() == 0)
            player(k, pipes[k][0], pipes[(k + 1) % PLAYERS][1], board);
    if (write(pipes[0][1], &byte, 1) != 1)
        return;
    for (int k = 0; k < PLAYERS; k++)
        wait(NULL);
}

int main(int argc, char **argv)
{
    if (argc > 2 && !strcmp(argv[1], "again"))
        return again(atoi(argv[2]));
    touch(shared[0], SHARED_PAGES, 1);
    for (int k = 0; k < CHILDREN; k++) {
        if (fork() == 0)
            child(k, argv);
        if (k % 4 == 3)
            while (waitpid(-1, NULL, WNOHANG) > 0)
                ;
    }
    while (wait(NULL) > 0)
        ;
    ring();
    sync();
    reboot(RB_POWER_OFF);
    return 0;
}
