# Memory of the engine, counted: at the end of every engine the count is where it was, and a test looks.

cdef extern from * nogil:
    """
    #include <stdlib.h>
    static long blocks_count;
    static void *take_block(size_t size) {
        void *block = calloc(1, size);
        if (block) __atomic_add_fetch(&blocks_count, 1, __ATOMIC_RELAXED);
        return block;
    }
    static void give_block(void *block) {
        if (block) __atomic_sub_fetch(&blocks_count, 1, __ATOMIC_RELAXED);
        free(block);
    }
    """
    long blocks_count
    void *take_block(size_t size)       # zeroed; NULL: there is none
    void give_block(void *block)        # NULL is no block
