// A program of a given shape that stands still, for measuring checkpoints: workload READY KIND COUNT.
#define _GNU_SOURCE
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// Sends back what one client sends.
static void echo(int listener) {
    char data[4096];
    for (int client = accept(listener, NULL, NULL);;) {
        ssize_t got = read(client, data, sizeof data);
        if (got <= 0 || write(client, data, got) != got) exit(1);
    }
}

static void *wait_for_ever(void *unused) {
    for (;;) pause();
    return unused;
}

static int is_huge(const char *kind) { return !strcmp(kind, "huge") || !strcmp(kind, "huge-writer") || !strcmp(kind, "bare-huge"); }
static int is_writer(const char *kind) { return !strcmp(kind, "writer") || !strcmp(kind, "huge-writer"); }

// Writes to about 100 MiB of pages in a second, one after the other.
static void keep_writing(char *memory, size_t size) {
    struct timespec rest = {.tv_nsec = 10000000};
    for (size_t page = 0;; page++) {
        ++*(size_t *)(memory + page * 4096 % size);
        if (page % 256 == 0) nanosleep(&rest, NULL);
    }
}

// Copies memory to a file or back by two threads, as no dump or restore that moves all of it can do faster.
static struct { char *memory; size_t size, next; int file, reads; } bare;

static void *copy_part(void *unused) {
    size_t part = 256 << 10, at;
    while ((at = __atomic_fetch_add(&bare.next, part, __ATOMIC_RELAXED)) < bare.size) {
        ssize_t done = bare.reads ? pread(bare.file, bare.memory + at, part, at) : pwrite(bare.file, bare.memory + at, part, at);
        if (done != (ssize_t)part) exit(1);
    }
    return unused;
}

static double milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

// In microseconds.
static int copy_in_parts(char *memory, size_t size, int file, int reads) {
    double start = milliseconds();
    bare.memory = memory, bare.size = size, bare.next = 0, bare.file = file, bare.reads = reads;
    struct statfs system;
    if (fstatfs(file, &system)) exit(1);
    if (!reads && system.f_type != 0x01021994 && fallocate(file, 0, 0, size)) exit(1);
    pthread_t thread;
    if (pthread_create(&thread, NULL, copy_part, NULL)) exit(1);
    copy_part(NULL);
    pthread_join(thread, NULL);
    return (milliseconds() - start) * 1000;
}

// Writes twice, as the benchmark dumps twice into a folder, and reads into fresh memory.
static void copy_barely(char *memory, size_t size, int is_huge, int *wrote, int *read) {
    int file = -1;
    for (int turn = 0; turn < 2; turn++) {
        if (file >= 0) close(file);
        file = open("bare-copy", O_CREAT | O_TRUNC | O_RDWR, 0600);
        if (file < 0) exit(1);
        *wrote = copy_in_parts(memory, size, file, 0);
    }
    munmap(memory, size);
    double start = milliseconds();
    memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (is_huge) madvise(memory, size, MADV_HUGEPAGE);
    copy_in_parts(memory, size, file, 1);
    *read = (milliseconds() - start) * 1000;
    unlink("bare-copy");
}

// A fork, as no snapshot by one can be faster; in microseconds.
static int fork_barely(void) {
    double start = milliseconds();
    pid_t child = fork();
    if (!child) _exit(0);
    int time = (milliseconds() - start) * 1000;
    waitpid(child, NULL, 0);
    return time;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    int is_bare = !strncmp(argv[2], "bare-", 5), more = 0;
    long count = atol(argv[3]);
    int listener = -1, port = 0;
    char *memory = NULL;
    size_t size = 0;
    char ready[4096];
    if (!realpath(".", ready)) return 2;
    int out = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC, 0600);
    setsid();
    int null = open("/dev/null", O_RDWR);
    for (int i = 0; i < 3; i++) dup2(null, i);
    dup2(out, 3);
    syscall(SYS_close_range, 4, ~0U, 0);
    if (!strcmp(argv[2], "processes")) {
        for (long i = 1; i < count; i++)
            if (fork() == 0) wait_for_ever(NULL);
    } else if (!strcmp(argv[2], "threads")) {
        pthread_attr_t small;
        pthread_attr_init(&small);
        pthread_attr_setstacksize(&small, 65536);
        for (long i = 1; i < count; i++) {
            pthread_t thread;
            if (pthread_create(&thread, &small, wait_for_ever, NULL)) return 1;
        }
    } else if (!strcmp(argv[2], "descriptors")) {
        struct rlimit limit = {20000, 20000};
        setrlimit(RLIMIT_NOFILE, &limit);
        for (long i = 0; i < count; i++)
            if (open("/dev/zero", O_RDONLY) < 0) return 1;
    } else if (!strcmp(argv[2], "eventfds")) {
        struct rlimit limit = {20000, 20000};
        setrlimit(RLIMIT_NOFILE, &limit);
        for (long i = 0; i < count; i++)
            if (eventfd(i, 0) < 0) return 1;
    } else if (!strcmp(argv[2], "epoll")) {
        struct rlimit limit = {20000, 20000};
        setrlimit(RLIMIT_NOFILE, &limit);
        int epoll = epoll_create1(0);
        for (long i = 0; i < count; i++) {
            int file = eventfd(0, 0);
            struct epoll_event event = {EPOLLIN, {.u64 = i}};
            if (file < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, file, &event)) return 1;
        }
    } else if (!strcmp(argv[2], "epoll-sockets")) {
        struct rlimit limit = {20000, 20000};
        setrlimit(RLIMIT_NOFILE, &limit);
        int epoll = epoll_create1(0), ends[2];
        for (long i = 0; i < count; i++) {
            struct epoll_event event = {EPOLLIN, {.u64 = i}};
            if (i % 2 == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) return 1;
            if (epoll_ctl(epoll, EPOLL_CTL_ADD, ends[i % 2], &event)) return 1;
        }
    } else if (!strcmp(argv[2], "ptys")) {
        struct rlimit limit = {20000, 20000};
        setrlimit(RLIMIT_NOFILE, &limit);
        for (long i = 0; i < count; i++) {
            int master = posix_openpt(O_RDWR | O_NOCTTY);
            if (master < 0 || grantpt(master) || unlockpt(master) || open(ptsname(master), O_RDWR | O_NOCTTY) < 0) return 1;
        }
    } else if (!strcmp(argv[2], "pairs")) {
        struct rlimit limit = {20000, 20000};
        setrlimit(RLIMIT_NOFILE, &limit);
        for (long i = 0; i < count; i++) {
            int ends[2];
            if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) return 1;
        }
    } else if (!strcmp(argv[2], "connections")) {
        struct rlimit limit = {20000, 20000};
        setrlimit(RLIMIT_NOFILE, &limit);
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t length = sizeof address;
        int server = socket(AF_INET, SOCK_STREAM, 0);
        if (bind(server, (struct sockaddr *)&address, length) || listen(server, 1)) return 1;
        getsockname(server, (struct sockaddr *)&address, &length);
        for (long i = 0; i < count; i++) {
            int end = socket(AF_INET, SOCK_STREAM, 0);
            if (end < 0 || connect(end, (struct sockaddr *)&address, length) || accept(server, NULL, NULL) < 0) return 1;
        }
    } else if (!strcmp(argv[2], "mappings")) {
        for (long i = 0; i < count; i++) {
            char *page = mmap(NULL, 8192, PROT_READ | (i & 1 ? PROT_WRITE : PROT_WRITE | PROT_EXEC), MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (page == MAP_FAILED) return 1;
            *page = 1;
        }
    } else if (!strcmp(argv[2], "memory") || !strcmp(argv[2], "echo") || is_bare || is_writer(argv[2]) || is_huge(argv[2])) {
        size = (size_t)count << 20;
        memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) return 1;
        if (is_huge(argv[2]) && madvise(memory, size, MADV_HUGEPAGE)) return 1;
        for (size_t i = 0; i < size; i += 8) *(size_t *)(memory + i) = i * 0x9e3779b97f4a7c15;
    }
    if (!strcmp(argv[2], "echo")) {
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t length = sizeof address;
        listener = socket(AF_INET, SOCK_STREAM, 0);
        if (bind(listener, (struct sockaddr *)&address, length) || listen(listener, 1)) return 1;
        getsockname(listener, (struct sockaddr *)&address, &length);
        port = ntohs(address.sin_port);
    }
    if (!strcmp(argv[2], "bare-fork")) port = fork_barely();
    else if (is_bare) copy_barely(memory, size, is_huge(argv[2]), &port, &more);
    char text[48];
    int length = snprintf(text, sizeof text, "%d %d %d\n", getpid(), port, more);
    if (write(3, text, length) != length) return 1;
    close(3);
    if (listener >= 0) echo(listener);
    if (is_writer(argv[2])) keep_writing(memory, size);
    wait_for_ever(NULL);
}
