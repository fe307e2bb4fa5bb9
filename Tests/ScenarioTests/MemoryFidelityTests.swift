import Glibc
import Linux
import Testing

/// Address spaces, compared in everything that can be observed.
@Suite(.serialized, .enabled(if: geteuid() == 0, "checkpointing other processes needs root"))
struct `Memory comes back the same` {
    private static let areas = """
        import fcntl, zlib
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
        P, PRIVATE, SHARED, ANONYMOUS = 4096, 2, 1, 32
        areas, next_place = {}, [0x2000_0000_0000]
        def area(name, flags=PRIVATE | ANONYMOUS, protection=3, pages=8, file=-1, offset=0, at=None):
            next_place[0] += 1 << 24
            got = libc.mmap(at or next_place[0], pages * P, protection, flags, file, offset)
            if got == 2 ** 64 - 1: raise OSError(ctypes.get_errno(), name)
            areas[name] = got; return got
        def put(address, value=5, length=P): ctypes.memset(address, value, length); return address
        def advise(address, pages, advice): return call(28, address, pages * P, advice)
        def protect(address, pages, protection): must(call(10, address, pages * P, protection))
        def contents(ignored=()):
            out, memory, pages = [], os.open('/proc/self/mem', os.O_RDONLY), os.open('/proc/self/pagemap', os.O_RDONLY)
            for name, start in areas.items():
                if name in ignored: continue
                words = struct.unpack('8Q', os.pread(pages, 64, start // P * 8))
                for page in range(8):
                    try: sum = '%08x' % zlib.crc32(os.pread(memory, P, start + page * P))
                    except OSError as e: sum = 'error %d' % e.errno
                    out.append('%s %d: %s guard %d' % (name, page, sum, words[page] >> 58 & 1))
            os.close(memory); os.close(pages)
            return out

        """

    @Test(arguments: [[], ["--live"]]) func `with every attribute of a mapping`(options: [String]) throws {
        let program = try Program(
            probing: Self.areas + """
                for advice, name in ((1, 'random'), (2, 'sequential'), (10, 'not forked'), (12, 'mergeable'), (14, 'huge'),
                                     (15, 'not huge'), (16, 'not in cores'), (18, 'wiped on fork')):
                    advise(put(area(name)), 8, advice)
                for advice in (10, 16, 14): advise(areas['sequential'], 3, advice)
                put(area('grows down', 0x122, pages=4)); stack = put(area('grown', 0x122, pages=2)); put(stack - P, 7)
                guarded = put(area('guarded', pages=10), 6, 10 * P); advise(guarded + 2 * P, 2, 102); advise(guarded + 8 * P, 1, 102)
                open(work + '/mapped', 'wb').write(bytes(i & 255 for i in range(P * 8)))
                f = os.open(work + '/mapped', os.O_RDWR); r = os.open(work + '/mapped', os.O_RDONLY)
                for name, flags, file in (('guards in a file', PRIVATE, f), ('guards in a shared file', SHARED, f),
                                          ('guards in shared memory', SHARED | ANONYMOUS, -1)):
                    advise(put(area(name, flags, file=file)) + 2 * P, 1, 102)
                area('droppable', 0x28); put(area('unreserved', 0x4022)); area('inaccessible', 0x4022, 0)
                must(call(149, area('locked'), 8 * P)); must(call(325, area('locked on fault'), 8 * P, 1))
                call(149, area('locked but inaccessible', protection=0), 8 * P)
                must(call(149, area('locked file', PRIVATE, 1, file=r), 8 * P))
                call(462, put(area('sealed')), 8 * P, 0)
                half = put(area('half sealed')); protect(half, 8, 1); call(462, half, 4 * P, 0)
                call(462, area('sealed file', PRIVATE, 1, file=r), 8 * P, 0)
                given = [call(330, 0, 0) for _ in range(5)]
                if given[0] > 0:
                    call(331, given[1])
                    must(call(329, put(area('key')), 8 * P, 3, given[2])); must(call(329, put(area('read-only key')), 8 * P, 1, given[3]))
                    protect(put(area('executable only')), 8, 4)
                node = struct.pack('Q', 1)
                for mode, name in ((2, 'bound'), (3, 'interleaved'), (5, 'preferred'), (2 | 0x8000, 'bound to fixed nodes')):
                    call(237, put(area(name)), 8 * P, mode, node, 64, 0)
                call(237, area('bound shared memory', SHARED | ANONYMOUS), 8 * P, 2, node, 64, 0)
                call(237, area('local'), 8 * P, 4, 0, 0, 0)
                m = os.memfd_create('m'); os.ftruncate(m, 8 * P)
                put(area('memfd', SHARED, file=m) + P, 3); put(area('private memfd', PRIVATE, file=m) + 2 * P, 4)
                area('read-only memfd', SHARED, 1, file=os.open('/proc/self/fd/%d' % m, os.O_RDONLY))
                s = os.memfd_create('sealed', 2); os.ftruncate(s, 8 * P)
                put(area('mapped before the seal', SHARED, file=s)); fcntl.fcntl(s, 1033, 1 | 2 | 16)
                w = os.memfd_create('unwritable', 2); os.ftruncate(w, 8 * P); fcntl.fcntl(w, 1033, 8)
                area('sealed against writing', SHARED, 1, file=w)
                z = os.open('/dev/zero', os.O_RDWR); put(area('zero', SHARED, file=z), 8); put(area('private zero', PRIVATE, file=z), 9)
                area('read-only mapping', SHARED, 1, file=f); area('read-only file', SHARED, 1, file=r)
                area('never written', PRIVATE, 1, file=r); protect(put(area('relocated', PRIVATE, file=r)), 8, 1)
                put(area('beyond the end', PRIVATE, pages=4, file=f, offset=6 * P))
                g = os.open(work + '/gone', os.O_RDWR | os.O_CREAT); os.write(g, b'g' * P * 8); os.unlink(work + '/gone')
                put(area('unlinked', SHARED, file=g), 1); put(area('private unlinked', PRIVATE, file=g), 2); os.close(g)
                put(area('zeros'), 0, 8 * P); ctypes.string_at(area('read'), 8 * P)
                heap = call(12, 0); must(call(12, heap + 20 * P)); put(heap + P, 11)
                # A new title over the old arguments.
                ctypes.memmove(int(open('/proc/self/stat').read().rsplit(')')[-1].split()[45]), b'another title\\0', 14)
                def check():
                    sealed = [call(10, areas[name], P, 3) for name in ('sealed', 'half sealed', 'sealed file')]
                    out = mine() + process() + contents(('droppable', 'executable only')) + ['sealed: %s' % sealed]
                    return '\\n'.join(out)
                check(); serve(check)
                """)
        let changes = try program.differences(options)
        #expect(changes.isEmpty, "\(changes.joined(separator: "\n"))")
    }

    /// A live dump reads flags before the freeze and corrects them by those of the copy.
    @Test(arguments: [[], ["--track-mem"]])
    func `in a live dump too, with what changes until the freeze`(options: [String]) throws {
        let program = try Program(
            probing: Self.areas + """
                count = 60
                for n in range(count): put(area(n, pages=8 + n))
                pages = call(9, 0, 4096 * P, 3, 0x22, -1, 0)
                n = ctypes.c_uint64.from_address(put(area('count'), 0))
                def expected(index):
                    # How often each of three kinds of step came to this area.
                    times = [len(range(index + kind * count, n.value, 3 * count)) for kind in range(3)]
                    return ('dd' if times[0] % 2 else '') + ('rr' if times[1] % 2 else ''), bool(times[2] % 2)
                def step():
                    kind, index = n.value // count % 3, n.value % count
                    on = n.value // (3 * count) % 2 == 0
                    start, length = areas[index], (8 + index) * P
                    if kind < 2: must(libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), [(17, 16), (0, 1)][kind][on]))
                    elif on: must(libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(P), 102))
                    else: must(libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(P), 103))
                    ctypes.c_uint64.from_address(pages + n.value % 4096 * P).value = n.value
                    n.value += 1
                stopped = threading.Event()
                def run():
                    while not os.path.exists(work + '/stop'): step()
                    stopped.set()
                threading.Thread(target=run, daemon=True).start()
                def check():
                    if not os.path.exists(work + '/stop'): return '%d steps' % n.value
                    stopped.wait()
                    found = {}
                    for line in open('/proc/self/smaps'):
                        words = line.split()
                        if '-' in words[0] and words[0][0] in '0123456789abcdef': start = int(words[0].split('-')[0], 16)
                        if words[0] == 'VmFlags:': found[start] = words
                    pagemap = os.open('/proc/self/pagemap', os.O_RDONLY)
                    out = []
                    for index in range(count):
                        flags = ''.join(flag for flag in ('dd', 'rr') if flag in found[areas[index]])
                        guard = struct.unpack('Q', os.pread(pagemap, 8, areas[index] // P * 8))[0] >> 58 & 1 == 1
                        if (flags, guard) != expected(index): out.append('area %d after %d steps: %s' % (index, n.value, (flags, guard)))
                    os.close(pagemap)
                    for page in range(4096):
                        last = n.value - 1 - (n.value - 1 - page) % 4096
                        got = ctypes.c_uint64.from_address(pages + page * P).value
                        if got != max(last, 0): out.append('page %d after %d steps: %d' % (page, n.value, got))
                    return ', '.join(out[:5]) or 'ok'
                serve(check)
                """)
        for round in 1...2 {
            let before = program.ask()
            #expect(before.hasSuffix(" steps"))
            try #require(try program.dump(["--live"] + options) == 0, "\(program.lastLine("dump.log"))")
            while program.ask() == before { sched_yield() }
            program.finish()
            // What is restored stops at once: it must be what it was at the freeze.
            try #require(close(open(program.work + "/stop", O_CREAT | O_WRONLY, 0o600)) == 0)
            try #require(try program.restore() == 0, "\(program.lastLine("restore.log"))")
            let after = program.ask()
            #expect(after == "ok")
            guard round == 1 else { break }
            program.finish()
            try #require(unlink(program.work + "/stop") == 0)
            try #require(try program.restore() == 0, "\(program.lastLine("restore.log"))")
        }
    }

    @Test(arguments: [0, 4]) func `and all future memory stays locked`(onFault: Int) throws {
        let program = try Program(
            probing: """
                must(call(151, 2 | \(onFault)))
                def check():
                    fresh = mmap.mmap(-1, 4 * 4096); start = ctypes.addressof(ctypes.c_char.from_buffer(fresh))
                    there = room(4); call(27, start, 4 * 4096, there)
                    return 'there: %s, may be dropped: %d' % (there.raw.hex(), call(28, start, 4096, 4))
                serve(check)
                """)
        let before = program.ask()
        #expect(before == "there: \(onFault == 0 ? "01010101" : "00000000"), may be dropped: -22")
        let after = try program.cycle()
        #expect(after == before)
    }

    private static let hasHugePages =
        (try? readWholeFile("/sys/kernel/mm/transparent_hugepage/enabled"))
        .map { !String(decoding: $0, as: UTF8.self).contains("[never]") } ?? false

    @Test(.enabled(if: hasHugePages, "this kernel uses no transparent huge pages"))
    func `and has huge pages where it had them, and no page more`() throws {
        let program = try Program(
            probing: Self.areas + """
                huge = area('huge', pages=3 * 512 + 64); advise(huge, 3 * 512 + 64, 14)
                for page in list(range(3 * 512)) + [3 * 512 + n for n in (0, 7, 9)]: put(huge + page * P, page % 255 + 1)
                def check():
                    lines = iter(open('/proc/self/smaps'))
                    for line in lines:
                        if line.startswith('%x-' % huge): break
                    facts = {}
                    for line in lines:
                        name, _, value = line.partition(':'); facts[name] = value.strip()
                        if name == 'VmFlags': break
                    sum = zlib.crc32(ctypes.string_at(huge, 3 * 512 * P))
                    return 'huge %s, resident %s, flags %s, sum %x' % (facts['AnonHugePages'], facts['Rss'], facts['VmFlags'], sum)
                serve(check)
                """)
        let before = program.ask()
        #expect(before.hasPrefix("huge 6144 kB, resident 6156 kB"), "\(before)")
        let after = try program.cycle()
        #expect(after == before)
    }

    @Test func `and goes on growing`() throws {
        let program = try Program(
            probing: Self.areas + """
                stack = put(area('stack', 0x122, pages=2))
                # A neighbour further down keeps the kernel's gap free.
                area('neighbour', at=stack - 400 * P, pages=8)
                floor = [stack]; heap = [call(12, 0)]
                def check():
                    heap[0] += 5 * P
                    if call(12, heap[0]) != heap[0]: return 'the heap does not grow'
                    put(heap[0] - P)
                    for _ in range(20): floor[0] -= P; put(floor[0])
                    pid = os.fork()
                    if pid == 0: put(areas['neighbour'] + 8 * P + 10 * P); os._exit(0)
                    if os.waitpid(pid, 0)[1] & 127 != 11: return 'the gap under the stack is gone'
                serve(check)
                """)
        #expect(program.ask() == "ok")
        for _ in 1...2 {
            let outcome = try program.cycle()
            #expect(outcome == "ok")
        }
    }
}
