// Processes that share memory, and have some of their own, and do at random what changes mappings: they give pages back, take
// them out, move, double, cut and grow mappings, fork. Each knows what every page of its own, and every shared page that only it
// writes to, must hold.
//
// remapper WORK MIB PROCESSES STEPS SEED [huge]: says "ready", starts when WORK/go is there, then answers by "ok" or what was wrong.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static size_t unit, inGroup, units, groups, processes, me;
// What the pages hold: 0 for zeros, or a number that changes with each write.
static uint8_t *shared_numbers, *own_numbers;
// Where groups of pages are mapped.
static char **shared_places, **own_places;
static unsigned seed;
static int verdicts[2], huge_flag;
static const char *work;

static size_t any(size_t most) { return rand_r(&seed) % most; }

static void fail(const char *format, ...) {
    char text[200];
    va_list words;
    va_start(words, format);
    int length = vsnprintf(text, sizeof text, format, words);
    if (write(verdicts[1], text, length) < 0) _exit(2);
    _exit(1);
}

static uint64_t word(size_t number, uint8_t what) { return what ? number * 0x9e3779b97f4a7c15UL + what : 0; }
static char *shared_page(size_t number) { return shared_places[number / inGroup] + number % inGroup * unit; }
static char *own_page(size_t number) { return own_places[number / inGroup] + number % inGroup * unit; }

static void put(char *at, size_t number, uint8_t what) {
    for (size_t index = 0; index < unit / 8; index++) ((uint64_t *)at)[index] = word(number, what);
}

static void expect(const char *where, char *at, size_t number, uint8_t what) {
    volatile uint64_t *words = (uint64_t *)at;
    size_t places[] = {any(unit / 8), 0, unit / 8 - 1};
    for (int index = 0; index < 3; index++)
        if (words[places[index]] != word(number, what))
            fail("process %zu, %s: page %zu has %lx instead of %d", me, where, number, words[places[index]], what);
}

static void expect_shared(size_t number) { expect("shared", shared_page(number), number, shared_numbers[number]); }
static void expect_own(size_t number) { expect("own", own_page(number), number, own_numbers[number]); }

static char *moved(char *from, size_t old, size_t new) {
    char *to = mremap(from, old, new, MREMAP_MAYMOVE);
    if (to == MAP_FAILED) fail("mremap failed: %m");
    return to;
}

// Moves a mapping to another place.
static char *elsewhere(char *from, size_t length) {
    char *room = mmap(NULL, length + unit, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    char *to = (char *)(((uintptr_t)room + unit - 1) / unit * unit);
    if (mremap(from, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED) fail("mremap failed: %m");
    return to;
}

static void advise(char *at, size_t length, int advice) {
    if (madvise(at, length, advice)) fail("madvise(%d) failed: %m", advice);
}

static void child(void) {
    for (int index = 0; index < 20; index++) {
        expect_shared(any(units / processes) * processes + me);
        expect_own(any(units));
    }
    size_t number = any(units);
    advise(own_page(number), unit, MADV_DONTNEED);
    expect("a child's", own_page(number), number, 0);
    _exit(0);
}

static void step(void) {
    size_t mine = any(units / processes) * processes + me, number = any(units), group = any(groups), length = inGroup * unit;
    int status;
    switch (any(40)) {
    case 0:
        advise(shared_page(mine), unit, MADV_REMOVE);
        shared_numbers[mine] = 0;
        break;
    case 1: advise(shared_places[group], (1 + any(inGroup)) * unit, MADV_DONTNEED); break;
    case 2: shared_places[group] = elsewhere(shared_places[group], length); break;
    case 3:
        if (huge_flag) break;  // Huge pages can't be doubled or grow.
        char *other = moved(shared_places[group], 0, length);
        munmap(shared_places[group], length);
        shared_places[group] = other;
        break;
    case 4:
        if (huge_flag) break;
        munmap(shared_places[group] + length / 2, length / 2);
        shared_places[group] = moved(shared_places[group], length / 2, length);
        break;
    case 5:
        advise(own_page(number), unit, MADV_DONTNEED);
        own_numbers[number] = 0;
        break;
    case 6:
        if (huge_flag) break;  // Linux forgets to give back what was promised to such a mapping.
        own_places[group] = elsewhere(own_places[group], length);
        break;
    case 7:
        if (any(8)) break;
        pid_t pid = fork();
        if (!pid) child();
        if (waitpid(pid, &status, 0) != pid || status) fail("a child ended with %d", status);
        break;
    case 8 ... 12:
        shared_numbers[mine] = shared_numbers[mine] % 250 + 1;
        put(shared_page(mine), mine, shared_numbers[mine]);
        break;
    case 13 ... 16:
        own_numbers[number] = own_numbers[number] % 250 + 1;
        put(own_page(number), number, own_numbers[number]);
        break;
    case 17 ... 28: expect_shared(mine); break;
    default: expect_own(number);
    }
}

static void begin(int steps) {
    char go[4096];
    snprintf(go, sizeof go, "%s/go", work);
    while (access(go, F_OK)) continue;
    seed += me;
    while (steps--) step();
    for (size_t number = me; number < units; number += processes) expect_shared(number);
    for (size_t number = 0; number < units; number++) expect_own(number);
    if (write(verdicts[1], "ok", 2) != 2) _exit(2);
}

static void *map(size_t length, int flags) {
    void *found = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | flags, -1, 0);
    if (found == MAP_FAILED) exit(3);
    return found;
}

static void answer(const char *text) {
    char path[4096];
    snprintf(path, sizeof path, "%s/answer", work);
    int file = open(path, O_WRONLY);
    if (write(file, text, strlen(text)) < 0) exit(2);
    close(file);
}

int main(int count, char **arguments) {
    if (count < 6) return 2;
    work = arguments[1];
    huge_flag = count > 6 ? MAP_HUGETLB : 0;
    unit = huge_flag ? 2 << 20 : 4096;
    inGroup = huge_flag ? 2 : 16;
    processes = atoi(arguments[3]);
    groups = (strtoul(arguments[2], NULL, 10) << 20) / unit / inGroup;
    units = groups * inGroup / processes * processes;
    seed = atoi(arguments[5]);
    char *shared = map(groups * inGroup * unit, MAP_SHARED | huge_flag), *own = map(groups * inGroup * unit, MAP_PRIVATE | huge_flag);
    shared_numbers = map(units, MAP_SHARED);
    own_numbers = malloc(units);
    shared_places = malloc(groups * sizeof *shared_places);
    own_places = malloc(groups * sizeof *own_places);
    for (size_t group = 0; group < groups; group++) {
        shared_places[group] = shared + group * inGroup * unit;
        own_places[group] = own + group * inGroup * unit;
    }
    for (size_t number = 0; number < units; number++) {
        if (number % 7) put(shared_page(number), number, shared_numbers[number] = 1 + number % 200);
        own_numbers[number] = number % 5 ? 1 + number % 190 : 0;
        if (own_numbers[number]) put(own_page(number), number, own_numbers[number]);
    }
    char path[4096], found[256], byte;
    snprintf(path, sizeof path, "%s/request", work);
    int questions = open(path, O_RDWR);
    if (pipe(verdicts)) return 2;
    answer("ready");
    for (size_t process = 1; process < processes; process++)
        if (!fork()) {
            me = process;
            begin(atoi(arguments[4]));
            for (;;) pause();
        }
    if (!fork()) {
        begin(atoi(arguments[4]));
        for (;;) pause();
    }
    for (size_t length = 0; read(questions, &byte, 1) == 1;) {
        while (length < 2 * processes && (length < 2 || !memcmp(found, "okokokokokokokok", length))) {
            ssize_t more = read(verdicts[0], found + length, sizeof found - 1 - length);
            if (more <= 0) return 2;
            length += more;
        }
        found[length] = 0;
        answer(length == 2 * processes && !memcmp(found, "okokokokokokokok", length) ? "ok" : found);
    }
    return 0;
}
