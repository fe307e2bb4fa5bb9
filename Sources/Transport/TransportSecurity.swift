internal import CTransportSecurity
internal import Diagnostics
internal import Linux
public import SystemPackage

/// How connections are protected by TLS, with CRIU's default files.
public struct TransportSecurity: Hashable, Sendable {
    /// The authority to trust, nil for CRIU's if it is there, else the system's.
    public var authority: FilePath?
    /// Certificates not to trust any more.
    public var revocations: FilePath?
    /// Our certificate and its key.
    public var certificate: FilePath = "/etc/pki/criu/cert.pem", key: FilePath = "/etc/pki/criu/private/key.pem"
    /// Compare the peer's name with its certificate.
    public var verifiesName = true

    /// CRIU's defaults.
    public init() {
        authority = TransportSecurity.existing("/etc/pki/CA/cacert.pem")
        revocations = TransportSecurity.existing("/etc/pki/CA/cacrl.pem")
    }

    private static func existing(_ path: FilePath) -> FilePath? { (try? openFile(path)) == nil ? nil : path }
}

/// A TLS session on a connected socket.
@safe struct SecureSession: ~Copyable {
    private let session: OpaquePointer

    /// Shakes hands.
    ///
    /// - Parameter name: what the peer's certificate must bear.
    init(_ socket: Int32, _ settings: TransportSecurity, isServer: Bool, name: String?) throws(Failure) {
        var message = [CChar](repeating: 0, count: SecureSession.room)
        let opened = unsafe SecureSession.withStrings(settings, name) {
            authority, revocations, certificate, key, name in
            var wanted = unsafe ctls_settings()
            unsafe wanted.authority = authority
            unsafe wanted.revocations = revocations
            unsafe wanted.certificate = certificate
            unsafe wanted.key = key
            unsafe wanted.name = name
            unsafe wanted.is_server = isServer ? 1 : 0
            return unsafe ctls_open(socket, &wanted, &message, message.count)
        }
        guard let opened = unsafe opened else {
            throw Failure(
                .denied, SecureSession.text(message),
                advice: "Check --tls-cacert, --tls-cacrl, --tls-cert and --tls-key at both ends")
        }
        unsafe session = opened
    }

    private static let room = 400

    private static func text(_ message: [CChar]) -> String {
        String(decoding: message.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    private typealias Text = UnsafePointer<CChar>

    private static func withStrings<R>(
        _ settings: TransportSecurity, _ name: String?, _ body: (Text?, Text?, Text?, Text?, Text?) -> R
    ) -> R {
        func optional<T>(_ path: FilePath?, _ body: (Text?) -> T) -> T {
            guard let path else { return body(nil) }
            return unsafe path.withPlatformString { unsafe body($0) }
        }
        return unsafe optional(settings.authority) { authority in
            unsafe optional(settings.revocations) { revocations in
                unsafe optional(settings.certificate) { certificate in
                    unsafe optional(settings.key) { key in
                        guard let name else { return unsafe body(authority, revocations, certificate, key, nil) }
                        return unsafe name.withCString { unsafe body(authority, revocations, certificate, key, $0) }
                    }
                }
            }
        }
    }

    /// Receives at least one byte; 0 at the end.
    func receive(into address: Int, count: Int) throws(Failure) -> Int {
        var message = [CChar](repeating: 0, count: SecureSession.room)
        let got = unsafe ctls_receive(
            session, UnsafeMutableRawPointer(bitPattern: address), count, &message, message.count)
        guard got >= 0 else { throw Failure(.vanished, SecureSession.text(message)) }
        return got
    }

    /// Sends everything, in records of its own.
    func send(from address: Int, count: Int) throws(Failure) {
        var message = [CChar](repeating: 0, count: SecureSession.room)
        let sent = unsafe ctls_send(session, UnsafeRawPointer(bitPattern: address), count, &message, message.count)
        guard sent == 0 else { throw Failure(.vanished, SecureSession.text(message)) }
    }

    /// Whether bytes wait that came already.
    var hasPending: Bool { unsafe ctls_has_pending(session) != 0 }

    /// Ends the session; in an orderly way, both ends say so.
    consuming func close(isOrderly: Bool) {
        unsafe ctls_close(session, isOrderly ? 1 : 0)
        discard self
    }

    deinit { unsafe ctls_close(session, 0) }
}
