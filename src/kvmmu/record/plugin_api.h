// SPDX-License-Identifier: GPL-2.0-only
/* QEMU's plugin ABI, version 4: what the recorder uses of it and of GLib's arrays, declared by hand so that it builds
 * without QEMU's headers. The symbols are in the QEMU that loads the plugin. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint64_t plugin_id;
typedef uint32_t meminfo;
struct tb;
struct insn;
struct hwaddr;
struct garray {
    char *data;
    unsigned len;
};
struct gbytes {
    uint8_t *data;
    unsigned len;
};
struct reg_descriptor {
    void *handle;
    const char *name;
    const char *feature;
};
struct mem_value {
    int type; /* log2 of the size: 0 to 4 */
    union {
        uint8_t u8;
        uint16_t u16;
        uint32_t u32;
        uint64_t u64;
        struct {
            uint64_t low, high;
        } u128;
    } data;
};
enum { CB_R_REGS = 1, MEM_RW = 3 };

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct tb *));
void qemu_plugin_register_vcpu_init_cb(plugin_id, void (*)(plugin_id, unsigned));
void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);
void qemu_plugin_register_vcpu_mem_cb(struct insn *, void (*)(unsigned, meminfo, uint64_t, void *), int, int, void *);
void qemu_plugin_register_vcpu_insn_exec_cb(struct insn *, void (*)(unsigned, void *), int, void *);
size_t qemu_plugin_tb_n_insns(const struct tb *);
struct insn *qemu_plugin_tb_get_insn(const struct tb *, size_t);
size_t qemu_plugin_insn_data(const struct insn *, void *, size_t);
size_t qemu_plugin_insn_size(const struct insn *);
uint64_t qemu_plugin_insn_vaddr(const struct insn *);
void *qemu_plugin_insn_haddr(const struct insn *);
struct hwaddr *qemu_plugin_get_hwaddr(meminfo, uint64_t);
bool qemu_plugin_hwaddr_is_io(const struct hwaddr *);
uint64_t qemu_plugin_hwaddr_phys_addr(const struct hwaddr *);
bool qemu_plugin_mem_is_store(meminfo);
unsigned qemu_plugin_mem_size_shift(meminfo);
struct mem_value qemu_plugin_mem_get_value(meminfo);
struct garray *qemu_plugin_get_registers(void);
int qemu_plugin_read_register(void *, struct gbytes *);
struct gbytes *g_byte_array_new(void);
struct gbytes *g_byte_array_set_size(struct gbytes *, unsigned);
