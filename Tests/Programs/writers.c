// Processes that write to shared memory without a pause, each to pages of its own, in an order that can be recalculated: so
// what a snapshot holds is known exactly. Each also counts its writes in private memory.
//
// writers WORK KIND MEBIBYTES PROCESSES [read] [fork] [remap] [drop]
//
// Kinds: anonymous, huge, private-huge, memfd (nobody has it open), open (somebody has), sealed, sysv. As soon as there is a
// file WORK/stop, all check their pages and stand still; a question to the first process collects what they found.
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <unistd.h>

static size_t size, pages, processes;
static char *memory;
static volatile uint64_t *written;
static int pipes[2], verdicts[2], words;
static char **word, stop[4096];

static int with(const char *name) {
    for (int index = 5; index < words; index++) if (!strcmp(word[index], name)) return 1;
    return 0;
}

static void *map(const char *kind) {
    int flags = MAP_SHARED | MAP_ANONYMOUS, file = -1;
    if (!strcmp(kind, "sysv")) {
        int segment = shmget(IPC_PRIVATE, size, 0600);
        void *found = shmat(segment, NULL, 0);
        shmctl(segment, IPC_RMID, NULL);
        return found;
    }
    if (!strcmp(kind, "huge")) flags |= MAP_HUGETLB;
    if (!strcmp(kind, "private-huge")) flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB;
    if (!strcmp(kind, "memfd") || !strcmp(kind, "open")) {
        flags = MAP_SHARED;
        file = memfd_create("writers", MFD_ALLOW_SEALING | MFD_CLOEXEC);
        if (ftruncate(file, size)) exit(3);
    }
    void *found = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, file, 0);
    if (!strcmp(kind, "memfd")) close(file);
    return found;
}

// Where a process writes to the next time.
static volatile uint64_t *place(size_t process, uint64_t number) {
    size_t own = pages / processes, page = process + processes * (number * 7919 % own);
    return (volatile uint64_t *)(memory + page * 4096 + page % 512 * 8);
}

// Whether the memory holds the first writes of a process, of which the last may not be counted yet.
static int is_right(size_t process) {
    size_t own = pages / processes;
    uint64_t last = *written;
    if (*place(process, last + 1) == last + 1) last++;
    for (uint64_t number = last; number > 0 && number + own > last; number--)
        if (*place(process, number) != number) {
            dprintf(2, "process %zu has %lu of %lu, last %lu\n", process, *place(process, number), number, last);
            return 0;
        }
    return 1;
}

static void put(size_t process, uint64_t number) {
    if (with("read") && number % 7 == 0) {
        if (write(pipes[1], &number, 8) != 8 || read(pipes[0], (void *)place(process, number), 8) != 8) exit(4);
    } else if (with("fork") && number % 1009 == 0) {
        pid_t child = fork();
        if (!child) {
            *place(process, number) = number;
            _exit(0);
        }
        waitpid(child, NULL, 0);
    } else *place(process, number) = number;
    if (with("remap") && number % 5003 == 0) {
        memory = mremap(memory, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, memory + (number % 2 ? -1 : 1) * (2L << 30));
        if (memory == MAP_FAILED) exit(5);
    }
    if (with("drop") && number % 101 == 0 && madvise(memory, 4096 * 4, MADV_DONTNEED)) exit(6);
}

static void work(size_t process) {
    written = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pipe(pipes)) exit(2);
    for (uint64_t number = 1;; number++) {
        if (number > pages / processes && (number == pages / processes + 1 || !access(stop, F_OK))) {
            int right = is_right(process);
            if (write(verdicts[1], right ? "y" : "n", 1) != 1) exit(2);
            // The first time only tells that the memory is full.
            while (!access(stop, F_OK)) pause();
        }
        put(process, number);
        *written = number;
    }
}

static void answer(const char *text) {
    char path[4096];
    snprintf(path, sizeof path, "%s/answer", word[1]);
    int file = open(path, O_WRONLY);
    if (write(file, text, strlen(text)) < 0) exit(2);
    close(file);
}

static int all_right(void) {
    char verdict;
    int right = 1;
    for (size_t process = 0; process < processes; process++) if (read(verdicts[0], &verdict, 1) != 1 || verdict != 'y') right = 0;
    return right;
}

int main(int count, char **arguments) {
    if (count < 5) return 2;
    words = count;
    word = arguments;
    size = strtoul(word[3], NULL, 10) << 20;
    pages = size / 4096;
    processes = strtoul(word[4], NULL, 10);
    snprintf(stop, sizeof stop, "%s/stop", word[1]);
    char path[4096];
    snprintf(path, sizeof path, "%s/request", word[1]);
    int questions = open(path, O_RDWR);
    int sealed = -1;
    if (!strcmp(word[2], "sealed")) {
        // Nobody writes to it any more; the writers have private memory.
        sealed = memfd_create("sealed", MFD_ALLOW_SEALING);
        if (ftruncate(sealed, size)) return 3;
        void *filled = mmap(NULL, size, PROT_WRITE, MAP_SHARED, sealed, 0);
        memset(filled, 7, size);
        munmap(filled, size);
        if (fcntl(sealed, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK)) return 3;
        size = 1 << 20;
        pages = 256;
    }
    memory = map(sealed < 0 ? word[2] : "anonymous");
    if (memory == MAP_FAILED || memory == (void *)-1) {
        answer("no memory");
        return 3;
    }
    if (pipe(verdicts)) return 2;
    for (size_t process = 0; process < processes; process++) if (!fork()) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        work(process);
    }
    answer(all_right() ? "ready" : "wrong from the beginning");
    for (char question; read(questions, &question, 1) == 1;) answer(all_right() ? "ok" : "wrong");
}
