/* Counts what is asked of malloc at once: to be preloaded, built by `cc -shared -fPIC -O2 malloc_peak.c -o malloc_peak.so`.

   `malloc_peak_begin()` starts anew from what is there, `malloc_peak()` gives the most since then above that, in bytes.
   Sizes are those that malloc can use for each allocation. */
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stddef.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static atomic_long now, most, first;

static void *counted(void *made) {
    if (made) {
        long size = (long)malloc_usable_size(made), total = atomic_fetch_add(&now, size) + size, seen = atomic_load(&most);
        while (total > seen && !atomic_compare_exchange_weak(&most, &seen, total)) {}
    }
    return made;
}

static void gone(void *there) {
    if (there) atomic_fetch_sub(&now, (long)malloc_usable_size(there));
}

void *malloc(size_t size) { return counted(__libc_malloc(size)); }
void *calloc(size_t count, size_t size) { return counted(__libc_calloc(count, size)); }
void *memalign(size_t alignment, size_t size) { return counted(__libc_memalign(alignment, size)); }
void *aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }

int posix_memalign(void **place, size_t alignment, size_t size) {
    void *made = memalign(alignment, size);
    if (!made) return ENOMEM;
    *place = made;
    return 0;
}

void *realloc(void *there, size_t size) {
    gone(there);
    void *made = __libc_realloc(there, size);
    if (!made && size) return counted(there), NULL;
    return counted(made);
}

void free(void *there) {
    gone(there);
    __libc_free(there);
}

void malloc_peak_begin(void) {
    atomic_store(&first, atomic_load(&now));
    atomic_store(&most, atomic_load(&now));
}

long malloc_peak(void) { return atomic_load(&most) - atomic_load(&first); }
