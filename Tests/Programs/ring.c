// A program with an io_uring of any kind. It answers questions like the Python programs of the scenario tests.
//
// ring WORK ENTRIES FLAGS REQUESTS [files] [buffers] [eventfd] [unfetched] [timeout] [poll] [messages] [handle]
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef IORING_SETUP_NO_SQARRAY
#define IORING_SETUP_NO_SQARRAY (1U << 16)
#endif

static struct io_uring_params params;
static int ring, data, event = -1, extra;
static char *rings, *requests;
static unsigned *request_head, *request_tail, *request_flags, *array, *completion_head, *completion_tail;
static unsigned submitted, fetched;
static char *buffer;
static char reason[256];
static int with(int count, char **words, const char *word) {
    for (int index = 5; index < count; index++) if (!strcmp(words[index], word)) return 1;
    return 0;
}

static size_t request_size(void) { return params.flags & IORING_SETUP_SQE128 ? 128 : 64; }
static size_t completion_size(void) { return params.flags & IORING_SETUP_CQE32 ? 32 : 16; }

static struct io_uring_sqe *next(unsigned char opcode, uint64_t user) {
    unsigned index = submitted & (params.sq_entries - 1);
    struct io_uring_sqe *sqe = (void *)(requests + index * request_size());
    memset(sqe, 0, request_size());
    sqe->opcode = opcode;
    sqe->user_data = user;
    if (!(params.flags & IORING_SETUP_NO_SQARRAY)) array[index] = index;
    submitted++;
    return sqe;
}

static int submit(unsigned wait) {
    unsigned count = submitted - __atomic_load_n(request_head, __ATOMIC_ACQUIRE);
    __atomic_store_n(request_tail, submitted, __ATOMIC_RELEASE);
    unsigned flags = wait || params.flags & IORING_SETUP_DEFER_TASKRUN ? IORING_ENTER_GETEVENTS : 0;
    if (params.flags & IORING_SETUP_SQPOLL) flags |= IORING_ENTER_SQ_WAKEUP | IORING_ENTER_SQ_WAIT;
    int result;
    do result = syscall(SYS_io_uring_enter, ring, count, wait, flags, NULL, 0);
    while (result < 0 && errno == EINTR);
    return result;
}

static struct io_uring_cqe *peek(void) {
    if (fetched == __atomic_load_n(completion_tail, __ATOMIC_ACQUIRE)) return NULL;
    return (void *)(rings + params.cq_off.cqes + (fetched & (params.cq_entries - 1)) * completion_size());
}

static void seen(void) { __atomic_store_n(completion_head, ++fetched, __ATOMIC_RELEASE); }

static int fail(const char *format, ...) {
    va_list words;
    va_start(words, format);
    vsnprintf(reason, sizeof reason, format, words);
    va_end(words);
    return 1;
}

static int run(unsigned char opcode, uint64_t user, void (*fill)(struct io_uring_sqe *), int expected) {
    struct io_uring_sqe *sqe = next(opcode, user);
    if (fill) fill(sqe);
    int result = submit(1);
    if (result < 0) return fail("io_uring_enter: %s", strerror(errno));
    struct io_uring_cqe *cqe = peek();
    if (!cqe) return fail("no completion of operation %d", opcode);
    if (cqe->user_data != user) return fail("completion of %llx instead of %llx", cqe->user_data, (unsigned long long)user);
    if (cqe->res != expected) return fail("operation %d: %d instead of %d", opcode, cqe->res, expected);
    seen();
    return 0;
}

static void read_plain(struct io_uring_sqe *sqe) {
    sqe->fd = data; sqe->addr = (uintptr_t)buffer; sqe->len = 5; sqe->off = 0;
}
static void read_file(struct io_uring_sqe *sqe) { read_plain(sqe); sqe->fd = 2; sqe->flags = IOSQE_FIXED_FILE; }
static void read_buffer(struct io_uring_sqe *sqe) { read_plain(sqe); sqe->buf_index = 1; sqe->addr += 4096; }

static int unfetched;
static int check(int count, char **words) {
    if (__atomic_load_n(request_head, __ATOMIC_ACQUIRE) != submitted) return fail("the head of the requests moved");
    if (*completion_head != fetched) return fail("the head of the completions moved");
    for (int index = 0; index < unfetched; index++) {
        struct io_uring_cqe *cqe = peek();
        if (!cqe || cqe->user_data != 0x1000u + index) return fail("an old completion is lost");
        seen();
    }
    unfetched = 0;
    if (peek()) return fail("an unknown completion");
    for (int round = 0; round < 3 * (int)params.sq_entries; round++)
        if (run(IORING_OP_NOP, 0x700000000 + round, NULL, 0)) return 1;
    if (params.flags & IORING_SETUP_IOPOLL) return 0;
    memset(buffer, 0, 8192);
    if (run(IORING_OP_READ, 77, read_plain, 5) || memcmp(buffer, "hello", 5)) return reason[0] ? 1 : fail("wrong data");
    if (with(count, words, "files") && (run(IORING_OP_READ, 78, read_file, 5))) return 1;
    if (with(count, words, "buffers") && (run(IORING_OP_READ_FIXED, 79, read_buffer, 5) || memcmp(buffer + 4096, "hello", 5)))
        return reason[0] ? 1 : fail("wrong data in the buffer");
    if (event >= 0) {
        uint64_t number;
        while (read(event, &number, 8) == 8) {}
        if (run(IORING_OP_NOP, 80, NULL, 0)) return 1;
        if (read(event, &number, 8) != 8) return fail("the eventfd is silent");
    }
    if (with(count, words, "handle")) {
        if (syscall(SYS_io_uring_enter, 3, 0, 0, IORING_ENTER_REGISTERED_RING | IORING_ENTER_GETEVENTS, NULL, 0) < 0)
            return fail("the registered ring: %s", strerror(errno));
    }
    return 0;
}

static void answer(const char *work, const char *text) {
    char path[4096];
    snprintf(path, sizeof path, "%s/answer", work);
    int file = open(path, O_WRONLY | O_CLOEXEC);
    if (write(file, text, strlen(text)) < 0) exit(1);
    close(file);
}

int main(int count, char **words) {
    char path[4096];
    snprintf(path, sizeof path, "%s/request", words[1]);
    for (int number = 3; number < 64; number++) close(number);
    params.flags = strtoul(words[3], NULL, 0);
    ring = syscall(SYS_io_uring_setup, atoi(words[2]), &params);
    if (ring < 0) { perror("io_uring_setup"); return 1; }
    size_t length = params.cq_off.cqes + params.cq_entries * completion_size();
    if (!(params.flags & IORING_SETUP_NO_SQARRAY)) length = params.sq_off.array + params.sq_entries * 4;
    rings = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
    requests = mmap(NULL, params.sq_entries * request_size(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring,
                    IORING_OFF_SQES);
    if (rings == MAP_FAILED || requests == MAP_FAILED) { perror("mmap"); return 1; }
    request_head = (void *)(rings + params.sq_off.head);
    request_tail = (void *)(rings + params.sq_off.tail);
    request_flags = (void *)(rings + params.sq_off.flags);
    array = (void *)(rings + params.sq_off.array);
    completion_head = (void *)(rings + params.cq_off.head);
    completion_tail = (void *)(rings + params.cq_off.tail);
    buffer = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char file[4096];
    snprintf(file, sizeof file, "%s/data of the ring", words[1]);
    data = open(file, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (write(data, "hello", 5) != 5) return 1;
    extra = open("/dev/zero", O_RDWR | O_CLOEXEC);
    if (with(count, words, "files")) {
        int numbers[4] = {-1, extra, data, -1};
        if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_FILES, numbers, 4) < 0) { perror("files"); return 1; }
    }
    if (with(count, words, "buffers")) {
        struct iovec vectors[3] = {{NULL, 0}, {buffer + 4096, 4096}, {buffer + 8192, 100}};
        if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, vectors, 3) < 0) { perror("buffers"); return 1; }
    }
    if (with(count, words, "eventfd")) {
        event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_EVENTFD, &event, 1) < 0) { perror("eventfd"); return 1; }
    }
    if (with(count, words, "handle")) {
        struct io_uring_rsrc_update update = {.offset = 3, .data = ring};
        if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_RING_FDS, &update, 1) < 0) { perror("handle"); return 1; }
    }
    for (long index = 0; index < atol(words[4]); index++) if (run(IORING_OP_NOP, index, NULL, 0)) { puts(reason); return 1; }
    if (with(count, words, "messages")) {
        for (int index = 0; index < 5; index++) {
            struct io_uring_sqe *sqe = next(IORING_OP_MSG_RING, 9);
            sqe->fd = ring; sqe->len = 0; sqe->off = 8;
            if (submit(2) < 0) { perror("message"); return 1; }
            while (peek()) seen();
        }
    }
    if (with(count, words, "unfetched")) {
        unfetched = params.cq_entries - 1;
        for (int index = 0; index < unfetched; index++) { next(IORING_OP_NOP, 0x1000 + index); submit(0); }
    }
    if (with(count, words, "timeout")) {
        static struct { long long seconds, nanoseconds; } forever = {1000000, 0};
        struct io_uring_sqe *sqe = next(IORING_OP_TIMEOUT, 1);
        sqe->addr = (uintptr_t)&forever; sqe->len = 1;
        submit(0);
    }
    if (with(count, words, "poll")) {
        int ends[2];
        if (pipe(ends)) return 1;
        struct io_uring_sqe *sqe = next(IORING_OP_POLL_ADD, 1);
        sqe->fd = ends[0]; sqe->poll32_events = 1;
        submit(0);
    }
    int questions = open(path, O_RDWR | O_CLOEXEC);
    answer(words[1], "ready");
    for (;;) {
        char byte;
        if (read(questions, &byte, 1) != 1) continue;
        reason[0] = 0;
        answer(words[1], check(count, words) ? reason : "ok");
    }
}
