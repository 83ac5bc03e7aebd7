/* A malloc whose large blocks are mappings of their own, so that the high-water mark of a process is what it writes.

   glibc's own threshold does not do that: what its heap has free is handed out first, whatever is asked for, and was
   resident before. Blocks of LEAST bytes, one page, and more are whole pages; a table remembers them by their page. */
#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

enum { LEAST = 4096, PAGE = 4096, PLACES = 1 << 20 };

static struct { uintptr_t block; size_t size; } table[PLACES];
static atomic_flag busy = ATOMIC_FLAG_INIT;
static const uintptr_t REMOVED = 1;

static size_t place_of(uintptr_t block) { return (block / PAGE * 2654435761u) % PLACES; }
static void lock(void) { while (atomic_flag_test_and_set_explicit(&busy, memory_order_acquire)) {} }
static void unlock(void) { atomic_flag_clear_explicit(&busy, memory_order_release); }

static void *mapped(size_t size) {
    void *block = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) return NULL;
    lock();
    size_t place = place_of((uintptr_t)block);
    while (table[place].block > REMOVED) place = (place + 1) % PLACES;
    table[place].block = (uintptr_t)block;
    table[place].size = size;
    unlock();
    return block;
}

/* The size of a mapped block, 0 of any other; forgotten where it is to be given back. */
static size_t size_of(void *block, int forget) {
    size_t size = 0;
    if ((uintptr_t)block % PAGE) return 0;
    lock();
    for (size_t place = place_of((uintptr_t)block); table[place].block; place = (place + 1) % PLACES)
        if (table[place].block == (uintptr_t)block) {
            size = table[place].size;
            if (forget) table[place].block = REMOVED;
            break;
        }
    unlock();
    return size;
}

void *malloc(size_t size) { return size < LEAST ? __libc_malloc(size) : mapped(size); }
void *calloc(size_t count, size_t size) {
    size_t all;
    if (__builtin_mul_overflow(count, size, &all)) return NULL;
    return all < LEAST ? __libc_calloc(count, size) : mapped(all);
}
void *memalign(size_t alignment, size_t size) {
    return size < LEAST || alignment > PAGE ? __libc_memalign(alignment, size) : mapped(size);
}
void *aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }
int posix_memalign(void **block, size_t alignment, size_t size) {
    *block = memalign(alignment, size);
    return *block ? 0 : ENOMEM;
}
void free(void *block) {
    size_t size = block ? size_of(block, 1) : 0;
    if (size) munmap(block, size);
    else __libc_free(block);
}
void *realloc(void *block, size_t size) {
    size_t before = block ? size_of(block, 0) : 0;
    if (!before && (size < LEAST || block)) return __libc_realloc(block, size);
    void *grown = malloc(size);
    if (grown && before) {
        memcpy(grown, block, before < size ? before : size);
        free(block);
    }
    return grown;
}
size_t malloc_usable_size(void *block) {
    size_t size = block ? size_of(block, 0) : 0;
    if (size || !block) return size;
    return ((size_t *)block)[-1] & ~(size_t)7 ? (((size_t *)block)[-1] & ~(size_t)7) - sizeof(size_t) : 0;
}
