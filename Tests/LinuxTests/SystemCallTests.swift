import Linux
import Testing

@Test func `an error names the call and the errno`() {
    #expect(throws: SystemCallError(.openat, .ENOENT)) { _ = try openFile("/no/such/file") }
    #expect(SystemCallError(.openat, .ENOENT).description == "openat: ENOENT (2)")
}
