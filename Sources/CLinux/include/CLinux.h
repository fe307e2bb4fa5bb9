// The kernel's interface as Swift sees it: raw system calls, call numbers, and the structures and
// constants that are newer than the system's headers. Headers and static inline functions only.
#pragma once
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include <asm/unistd.h>
#include <linux/aio_abi.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/kcmp.h>
#include <linux/openat2.h>
#include <linux/ptrace.h>
#include <linux/sched.h>
#include <linux/stat.h>
#include <malloc.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/user.h>

// A raw system call: the result, or minus the error number. Touches no errno.
static inline long clinux_syscall(long number, long a, long b, long c, long d, long e, long f) {
    long result;
#if defined(__x86_64__)
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc 0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory");
    result = x0;
#else
#error "no system call instruction for this architecture"
#endif
    return result;
}

// Numbers newer than Debian 12's headers.
#ifndef __NR_futex_waitv
#define __NR_futex_waitv 449
#endif
#define CLINUX_NR_statmount 457
#define CLINUX_NR_listmount 458

// One record of a batch: the loop makes the call, stores the result, and copies it to `*forward` if that
// address is not zero. `stop` bit 0: an error (-4095...-1) ends the batch.
struct clinux_call {
    int64_t number;
    int64_t argument[6];
    int64_t result;
    uint64_t forward;
    uint64_t stop;
};

struct clinux_clone_args {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};

struct clinux_mm_map {
    uint64_t start_code, end_code, start_data, end_data, start_brk, brk, start_stack;
    uint64_t arg_start, arg_end, env_start, env_end, auxv;
    uint32_t auxv_size;
    int32_t exe_fd;
};

struct clinux_page_region {
    uint64_t start, end, categories;
};

struct clinux_pm_scan_arg {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};

struct clinux_siginfo {
    int32_t signo, error, code, pad;
    uint8_t fields[112];
};

struct clinux_peeksiginfo_args {
    uint64_t offset;
    uint32_t flags;
    int32_t count;
};

struct clinux_rseq_configuration {
    uint64_t address;
    uint32_t size, signature, flags, pad;
};

struct clinux_sigaction {
    uint64_t handler, flags, restorer, mask;
};

struct clinux_sched_attr {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
    uint32_t util_min, util_max;
};

struct clinux_iovec {
    uint64_t base, length;
};

struct clinux_fown_ex {
    int32_t type, pid;
};

struct clinux_itimerval {
    int64_t interval_seconds, interval_microseconds, value_seconds, value_microseconds;
};

struct clinux_itimerspec {
    int64_t interval_seconds, interval_nanoseconds, value_seconds, value_nanoseconds;
};

struct clinux_altstack {
    uint64_t sp;
    int32_t flags, pad;
    uint64_t size;
};

struct clinux_linux_dirent64 {
    uint64_t inode;
    int64_t offset;
    uint16_t length;
    uint8_t type;
};

struct clinux_uffdio_api {
    uint64_t api, features, ioctls;
};
struct clinux_uffdio_register {
    uint64_t start, length, mode, ioctls;
};
struct clinux_uffdio_copy {
    uint64_t destination, source, length, mode;
    int64_t copied;
};
struct clinux_uffdio_zeropage {
    uint64_t start, length, mode;
    int64_t zeroed;
};

// Words shared with other tasks.
static inline uint32_t clinux_load32(const void *word) { return __atomic_load_n((const uint32_t *)word, __ATOMIC_ACQUIRE); }
static inline void clinux_store32(void *word, uint32_t value) { __atomic_store_n((uint32_t *)word, value, __ATOMIC_SEQ_CST); }
static inline uint32_t clinux_or32(void *word, uint32_t bits) { return __atomic_fetch_or((uint32_t *)word, bits, __ATOMIC_SEQ_CST); }
static inline void clinux_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    __asm__ volatile("yield");
#endif
}

// Starts the ELF file behind `executable` in a new process made by clone3 with `arguments`, as vfork does: the
// caller waits until the exec has happened. Returns the pid, or minus the error number of clone3 or execveat
// (then *failed_exec is 1 and the child is a zombie of the caller or its parent). The child runs nothing but
// the two raw calls, so no fork handler, lock or Swift code is involved.
// Preconditions: arguments->flags holds CLONE_VM | CLONE_VFORK, and arguments->stack is 0.
__attribute__((noinline)) static long clinux_spawn(struct clinux_clone_args *arguments, int executable,
                                                   const char *name, int *failed_exec) {
    static const char empty[1] = "";
    volatile long outcome = 0;
    const char *argv[2] = {name, 0};
    const char *envp[1] = {0};
    long pid;
#if defined(__x86_64__)
    // One block: the child shares our stack, so between the two calls nothing may be spilled to it.
    register long file __asm__("r12") = executable;
    register const char **words __asm__("r13") = argv;
    register const char **environment __asm__("r14") = envp;
    register volatile long *answer __asm__("r15") = &outcome;
    __asm__ volatile(
        "syscall\n"
        "test %%rax, %%rax\n"
        "jnz 1f\n"
        "mov %[execveat], %%eax\n"
        "mov %%r12, %%rdi\n"
        "mov %%rbx, %%rsi\n"
        "mov %%r13, %%rdx\n"
        "mov %%r14, %%r10\n"
        "mov $0x1000, %%r8d\n"  // AT_EMPTY_PATH
        "syscall\n"
        "mov %%rax, (%%r15)\n"
        "mov %[exit], %%eax\n"
        "mov $127, %%edi\n"
        "syscall\n"
        "1:\n"
        : "=a"(pid)
        : "0"((long)__NR_clone3), "D"(arguments), "S"(sizeof *arguments), "b"(empty), "r"(file), "r"(words),
          "r"(environment), "r"(answer), [execveat] "i"(__NR_execveat), [exit] "i"(__NR_exit_group)
        : "rcx", "r11", "r8", "r10", "rdx", "memory");
#else
#error "clinux_spawn is not written for this architecture"
#endif
    *failed_exec = outcome < 0;
    return outcome < 0 ? outcome : pid;
}

// Locks a robust, process-shared mutex laid out at `word`, whose first 32 bits are the kernel's robust futex word, and
// marks it as waited for: when this thread dies by whatever death, the kernel sets FUTEX_OWNER_DIED there and wakes
// a waiter. Returns 0 or an error number.
static inline int clinux_robust_lock(void *word) {
    pthread_mutexattr_t attributes;
    pthread_mutex_t *mutex = (pthread_mutex_t *)word;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    int error = pthread_mutex_init(mutex, &attributes);
    if (!error) error = pthread_mutex_lock(mutex);
    if (!error) clinux_or32(word, 0x80000000u);
    return error;
}
// Ends what clinux_robust_lock began. Nobody may wait any more.
static inline void clinux_robust_unlock(void *word) { pthread_mutex_unlock((pthread_mutex_t *)word); }

// Whether two stretches of memory hold the same bytes.
static inline int clinux_equal(const void *a, const void *b, size_t count) { return __builtin_memcmp(a, b, count) == 0; }

#if defined(__x86_64__)
#include <cpuid.h>
// One leaf of CPUID into four words: eax, ebx, ecx, edx. All zero if the CPU has no such leaf.
static inline void clinux_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t *words) {
    words[0] = words[1] = words[2] = words[3] = 0;
    __get_cpuid_count(leaf, subleaf, &words[0], &words[1], &words[2], &words[3]);
}
#endif

// CRC-32C of bytes that follow others whose checksum is `crc`; 0 if there are none.
static inline uint32_t clinux_crc32c(uint32_t crc, const void *bytes, size_t count) {
    const uint8_t *at = (const uint8_t *)bytes;
    crc = ~crc;
#if defined(__x86_64__)
    uint32_t words[4];
    clinux_cpuid(1, 0, words);
    if (words[2] >> 20 & 1) {  // SSE 4.2
        uint64_t wide = crc;
        for (; count >= 8; at += 8, count -= 8) {
            uint64_t word;
            __builtin_memcpy(&word, at, 8);
            __asm__("crc32q %1, %0" : "+r"(wide) : "r"(word));
        }
        crc = (uint32_t)wide;
        for (; count > 0; at++, count--) __asm__("crc32b %1, %0" : "+r"(crc) : "r"(*at));
        return ~crc;
    }
#endif
    for (; count > 0; at++, count--) {
        crc ^= *at;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78 : 0);
    }
    return ~crc;
}
