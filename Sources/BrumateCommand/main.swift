internal import Brumate
internal import Glibc

/// An environment variable as the shell set it.
private func variable(_ name: String) -> Word? {
    guard let value = unsafe getenv(name) else { return nil }
    return unsafe Word(UnsafeBufferPointer(start: value, count: strlen(value)).map { UInt8(bitPattern: $0) })
}

/// The words after the program's name, byte by byte: CommandLine.arguments would repair what is not UTF-8.
private func words() -> [Word] {
    var out: [Word] = []
    for index in 1..<max(1, Int(CommandLine.argc)) {
        guard let word = unsafe CommandLine.unsafeArgv[index] else { break }
        out.append(unsafe Word(UnsafeBufferPointer(start: word, count: strlen(word)).map { UInt8(bitPattern: $0) }))
    }
    return out
}

exit(Command.run(words(), environment: variable))
