// SPDX-License-Identifier: GPL-2.0-only
/* Which registers and memory an x86 instruction names: prefixes, ModRM, SIB, displacement. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The registers that the recorder reads; the first sixteen are numbered as instructions number them. */
enum {
    RAX,
    RCX,
    RDX,
    RBX,
    RSP,
    RBP,
    RSI,
    RDI,
    R8,
    R15 = 15,
    RIP,
    EFLAGS,
    CS,
    SS,
    DS,
    ES,
    FS,
    GS,
    FS_BASE,
    GS_BASE,
    CR0,
    CR3,
    CR4,
    EFER,
    NR_REGS
};

/* A memory operand, or a register one (mod 3). */
struct operand {
    int8_t base, index, reg;
    uint8_t scale, segment, size;
    bool rip_relative, memory;
    int32_t displacement;
};

/* Decode the ModRM byte (and SIB, displacement) at `b`; `left` bytes are there. */
static bool decode_operand(const uint8_t *b, size_t left, int bits, int rex, struct operand *o)
{
    static const int8_t base16[8] = {RBX, RBX, RBP, RBP, RSI, RDI, RBP, RBX},
                        index16[8] = {RSI, RDI, RSI, RDI, -1, -1, -1, -1};
    if (left < 1)
        return false;
    int mod = b[0] >> 6, rm = b[0] & 7, at = 1, disp = mod == 1 ? 1 : mod == 2 ? (bits == 16 ? 2 : 4) : 0;
    bool forced = o->segment != DS;
    o->reg = b[0] >> 3 & 7;
    o->base = o->index = -1;
    o->size = bits;
    o->memory = mod != 3;
    if (mod == 3) {
        o->base = rm | (rex & 1) << 3;
        return true;
    }
    if (bits == 16) {
        if (mod == 0 && rm == 6) {
            disp = 2;
        } else {
            o->base = base16[rm];
            o->index = index16[rm];
        }
    } else {
        o->base = rm | (rex & 1) << 3;
        if (rm == 4) {
            if (left < 2)
                return false;
            uint8_t sib = b[at++];
            o->scale = sib >> 6;
            o->index = (sib >> 3 & 7) | (rex & 2) << 2;
            if (o->index == 4)
                o->index = -1;
            o->base = (sib & 7) | (rex & 1) << 3;
            if (mod == 0 && (sib & 7) == 5) {
                o->base = -1;
                disp = 4;
            }
        } else if (mod == 0 && rm == 5) {
            o->base = -1;
            o->rip_relative = rex & 0x100;
            disp = 4;
        }
    }
    if (!forced && (o->base == RBP || o->base == RSP))
        o->segment = SS;
    if (left < (size_t)(at + disp))
        return false;
    if (disp == 1)
        o->displacement = (int8_t)b[at];
    else if (disp == 2)
        o->displacement = (int16_t)(b[at] | b[at + 1] << 8);
    else if (disp == 4)
        o->displacement = (int32_t)((uint32_t)b[at] | b[at + 1] << 8 | b[at + 2] << 16 | (uint32_t)b[at + 3] << 24);
    return true;
}

struct prefixes {
    int rex, segment;
    bool operand, address, repeat;
};

static size_t skip_prefixes(const uint8_t *b, size_t length, int bits, struct prefixes *p)
{
    size_t at = 0;
    *p = (struct prefixes){.segment = DS};
    for (; at < length; at++) {
        switch (b[at]) {
        case 0x26: p->segment = ES; continue;
        case 0x2e: p->segment = CS; continue;
        case 0x36: p->segment = SS; continue;
        case 0x3e: p->segment = DS; continue;
        case 0x64: p->segment = FS; continue;
        case 0x65: p->segment = GS; continue;
        case 0x66: p->operand = true; continue;
        case 0x67: p->address = true; continue;
        case 0xf0:
        case 0xf2:
        case 0xf3: p->repeat = true; continue;
        }
        break;
    }
    if (bits == 64 && at < length && (b[at] & 0xf0) == 0x40)
        p->rex = b[at++] & 15;
    return at;
}
