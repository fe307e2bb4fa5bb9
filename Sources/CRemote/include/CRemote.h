// Position-independent code that runs inside other tasks. It is written in assembly, one folder per architecture,
// and only its bytes are used here: nothing in this process ever jumps to it.
#pragma once
#include <stdint.h>

// The loop over records that a puppet (a task being restored) runs; ends in a breakpoint.
extern const uint8_t brumate_loop_start[], brumate_loop_end[];

// The server that a live task runs, see server.S: the entry of the leader, of a further thread, and the two blocks
// of saved state.
extern const uint8_t brumate_server_start[], brumate_server_thread[], brumate_server_leader_state[],
    brumate_server_thread_state[], brumate_server_end[];

// A seed: a whole ELF executable that pauses for ever and never uses its stack.
extern const uint8_t brumate_seed_start[], brumate_seed_end[];

// Swift can't import arrays of unknown length, so it asks for the addresses.
static inline const uint8_t *cremote_loop_start(void) { return brumate_loop_start; }
static inline const uint8_t *cremote_loop_end(void) { return brumate_loop_end; }
static inline const uint8_t *cremote_seed_start(void) { return brumate_seed_start; }
static inline const uint8_t *cremote_seed_end(void) { return brumate_seed_end; }
static inline const uint8_t *cremote_server_start(void) { return brumate_server_start; }
static inline const uint8_t *cremote_server_thread(void) { return brumate_server_thread; }
static inline const uint8_t *cremote_server_leader_state(void) { return brumate_server_leader_state; }
static inline const uint8_t *cremote_server_thread_state(void) { return brumate_server_thread_state; }
static inline const uint8_t *cremote_server_end(void) { return brumate_server_end; }
