// SPDX-License-Identifier: GPL-2.0-only
// A guest of a few hundred bytes for tools/record_smoke.sh: a multiboot kernel that turns on 4-level paging, does one
// of everything that a recording knows, and switches the machine off.
//
// Memory: 2M pages at 0 (code) and 0x200000 (tables), 4K pages at 0x400000 (the table at 0x203000), the local APIC.

        .code32
        .globl _start
_start:
        jmp     begin
        .balign 4
header: .long   0x1badb002, 0x10000, -(0x1badb002 + 0x10000)
        .long   header, _start, image_end, image_end, _start

begin:  cli
        mov     $0x90000, %esp
        xor     %eax, %eax
        mov     $0x200000, %edi
        mov     $(6 * 1024), %ecx
        rep stosl
        movl    $0x201003, 0x200000             // level 4
        movl    $0x202003, 0x201000             // level 3: 0 to 1G
        movl    $0x204003, 0x201018             // level 3: 3G to 4G
        movl    $0x000083, 0x202000             // level 2: 2M pages
        movl    $0x200083, 0x202008
        movl    $0x203003, 0x202010             // level 2: a table of 4K pages
        movl    $0xfee0009b, 0x204fb8           // level 2: the local APIC
        movl    $0x300003, 0x203000             // level 1
        movl    $0x301003, 0x203008
        mov     %cr4, %eax
        or      $0x20, %eax
        mov     %eax, %cr4
        mov     $0x200000, %eax
        mov     %eax, %cr3
        mov     $0xc0000080, %ecx
        rdmsr
        or      $0x100, %eax
        wrmsr
        mov     %cr0, %eax
        or      $0x80010001, %eax
        mov     %eax, %cr0
        lgdt    gdtr
        ljmp    $8, $long_mode

        .code64
long_mode:
        mov     $0x400000, %rdi
        movq    $0x1111, (%rdi)                 // A and D of the first page
        movl    $0x2222, 0xffe(%rdi)            // crosses into the second
        movl    $0x302003, 0x203000             // the first page moves: a store to a table that walks have used
        invlpg  0x123(%rdi)
        movq    $0x3333, (%rdi)
        lock cmpxchgq %rax, 8(%rdi)
        mov     %cr3, %rax
        mov     %rax, %cr3                      // a flush, though the value stays
        mov     (%rdi), %rbx
        mov     0xfee00020, %eax                // MMIO
        mov     $0x604, %dx                     // ACPI: power off
        mov     $0x2000, %ax
        outw    %ax, %dx
1:      hlt
        jmp     1b

        .balign 8
gdt:    .quad   0, 0x00209a0000000000, 0x0000920000000000
gdtr:   .word   gdtr - gdt - 1
        .long   gdt
image_end:
