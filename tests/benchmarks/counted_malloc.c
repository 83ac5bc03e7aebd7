/* Counts what a process has asked of malloc, for LD_PRELOAD on Linux with glibc: `cc -O2 -shared -fPIC`. */
#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stddef.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static atomic_long alive, highest;

static void *made(void *block) {
    long size = block ? malloc_usable_size(block) : 0, now = atomic_fetch_add(&alive, size) + size, before = highest;
    while (now > before && !atomic_compare_exchange_weak(&highest, &before, now)) continue;
    return block;
}
static void let_go(void *block) { atomic_fetch_sub(&alive, block ? malloc_usable_size(block) : 0); }

void *malloc(size_t size) { return made(__libc_malloc(size)); }
void *calloc(size_t count, size_t size) { return made(__libc_calloc(count, size)); }
void *memalign(size_t alignment, size_t size) { return made(__libc_memalign(alignment, size)); }
void *aligned_alloc(size_t alignment, size_t size) { return made(__libc_memalign(alignment, size)); }
void free(void *block) { let_go(block); __libc_free(block); }
void *realloc(void *block, size_t size) {
    let_go(block);
    void *moved = __libc_realloc(block, size);
    return made(moved || !size ? moved : block) == moved ? moved : NULL;
}
int posix_memalign(void **block, size_t alignment, size_t size) {
    void *aligned = made(__libc_memalign(alignment, size));
    if (aligned) *block = aligned;
    return aligned ? 0 : ENOMEM;
}

long counted_alive(void) { return alive; }
long counted_highest(void) { return highest; }
void counted_restart(void) { highest = alive; }
