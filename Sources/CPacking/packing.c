#include "CPacking.h"

#include <limits.h>
#include <lz4.h>
#include <stdlib.h>
#include <xxhash.h>
#include <zstd.h>

struct cpacking_hash cpacking_hash(uintptr_t bytes, size_t count) {
    XXH128_hash_t hash = XXH3_128bits((const void *)bytes, count);
    return (struct cpacking_hash){hash.low64, hash.high64};
}

size_t cpacking_lz4_pack(uintptr_t from, size_t count, uintptr_t to, size_t room) {
    if (count > LZ4_MAX_INPUT_SIZE || room > INT_MAX) return 0;
    return (size_t)LZ4_compress_default((const char *)from, (char *)to, (int)count, (int)room);
}

int cpacking_lz4_unpack(uintptr_t from, size_t count, uintptr_t to, size_t room) {
    if (count > INT_MAX || room > INT_MAX) return 0;
    return LZ4_decompress_safe((const char *)from, (char *)to, (int)count, (int)room) == (int)room;
}

struct cpacking_zstd {
    ZSTD_CCtx *packing;
    ZSTD_DCtx *unpacking;
};

struct cpacking_zstd *cpacking_zstd_open(void) { return calloc(1, sizeof(struct cpacking_zstd)); }

void cpacking_zstd_close(struct cpacking_zstd *state) {
    ZSTD_freeCCtx(state->packing);
    ZSTD_freeDCtx(state->unpacking);
    free(state);
}

size_t cpacking_zstd_pack(
    struct cpacking_zstd *state, uintptr_t from, size_t count, uintptr_t to, size_t room, int level) {
    if (!state->packing && !(state->packing = ZSTD_createCCtx())) return 0;
    size_t done = ZSTD_compressCCtx(state->packing, (void *)to, room, (const void *)from, count, level);
    return ZSTD_isError(done) ? 0 : done;
}

int cpacking_zstd_unpack(struct cpacking_zstd *state, uintptr_t from, size_t count, uintptr_t to, size_t room) {
    if (!state->unpacking && !(state->unpacking = ZSTD_createDCtx())) return 0;
    size_t done = ZSTD_decompressDCtx(state->unpacking, (void *)to, room, (const void *)from, count);
    return !ZSTD_isError(done) && done == room;
}
