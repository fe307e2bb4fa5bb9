// Compression by LZ4 and Zstandard, and hashes by XXH3, of memory given by its address.
#pragma once
#include <stddef.h>
#include <stdint.h>

// XXH3, 128 bits.
struct cpacking_hash {
    uint64_t low, high;
};
struct cpacking_hash cpacking_hash(uintptr_t bytes, size_t count);

// Bytes written, 0 if the result would not fit into `room`.
size_t cpacking_lz4_pack(uintptr_t from, size_t count, uintptr_t to, size_t room);
// Whether exactly `room` bytes came out.
int cpacking_lz4_unpack(uintptr_t from, size_t count, uintptr_t to, size_t room);

// What one thread keeps from one call of Zstandard to the next. Null without memory.
struct cpacking_zstd *cpacking_zstd_open(void);
void cpacking_zstd_close(struct cpacking_zstd *state);
size_t cpacking_zstd_pack(
    struct cpacking_zstd *state, uintptr_t from, size_t count, uintptr_t to, size_t room, int level);
int cpacking_zstd_unpack(struct cpacking_zstd *state, uintptr_t from, size_t count, uintptr_t to, size_t room);
