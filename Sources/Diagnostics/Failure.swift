public import Linux

/// What was being done when something failed; one link of a failure's trail.
public enum Activity: Hashable, Sendable, CustomStringConvertible {
    /// Dumping a task, with its `comm`.
    case dumping(TaskID, String)
    /// Restoring a task, with its `comm`.
    case restoring(TaskID, String)
    /// Working on a thread of the task named before.
    case thread(TaskID)
    /// Working on a descriptor of the task named before.
    case descriptor(Int32)
    /// Working on an open file, named by kind and path.
    case file(String)
    /// Working on a mapping.
    case mapping(AddressRange)
    /// Reading or writing an image file.
    case image(String)
    /// Any other step, in words that follow "while".
    case step(String)

    /// The phrase for messages.
    public var description: String {
        switch self {
        case .dumping(let task, let name): "can't dump task \(task) (\(name))"
        case .restoring(let task, let name): "can't restore task \(task) (\(name))"
        case .thread(let task): "thread \(task)"
        case .descriptor(let number): "file descriptor \(number)"
        case .file(let name): name
        case .mapping(let range): "mapping \(range)"
        case .image(let name): "image \(name)"
        case .step(let words): words
        }
    }
}

/// Why an order could not be carried out: what went wrong, where, and what the user can do.
public struct Failure: Error, Sendable, CustomStringConvertible {
    /// The kind of trouble, for programs.
    public enum Code: Sendable {
        /// The task uses something that we can't dump or restore.
        case unsupported
        /// The kernel or an option forbids it.
        case denied
        /// A task or file changed or disappeared while we looked.
        case vanished
        /// Something on this machine is in the way, such as a taken pid.
        case conflict
        /// An image is damaged, incomplete or hostile.
        case corruptImage
        /// The kernel lacks an interface.
        case kernelTooOld
        /// The command line or configuration is wrong.
        case usage
        /// Our own mistake.
        case bug
    }
    /// The kind of trouble.
    public var code: Code
    /// What went wrong, as a clause without a full stop.
    public var reason: String
    /// What the user can do, as a sentence without a full stop.
    public var advice: String?
    /// The system call behind it.
    public var cause: SystemCallError?
    /// What was being done, outermost first.
    public private(set) var trail: [Activity] = []

    /// Makes a failure.
    public init(_ code: Code, _ reason: String, advice: String? = nil, cause: SystemCallError? = nil) {
        self.code = code
        self.reason = reason
        self.advice = advice
        self.cause = cause
    }

    /// Adds an outer activity to the trail.
    public mutating func enter(_ activity: Activity) { trail.insert(activity, at: 0) }

    /// One sentence or two: where, what, advice, system call.
    public var description: String {
        var text = trail.map { "\($0)" }.joined(separator: ", ")
        text += text.isEmpty ? reason : ": " + reason
        text = text.prefix(1).uppercased() + text.dropFirst() + "."
        if let advice { text += " \(advice)." }
        if let cause { text += " [\(cause)]" }
        return text
    }
}

/// Runs `body`; a failure on its way out notes that it happened during `activity`.
public func during<R: ~Copyable>(
    _ activity: @autoclosure () -> Activity, _ body: () throws(Failure) -> R
) throws(Failure) -> R {
    do { return try body() } catch {
        var failure = error
        failure.enter(activity())
        throw failure
    }
}

/// Runs `body`; a failed system call becomes a failure that says what could not be done.
///
/// - Parameter doing: completes the sentence "can't …".
@discardableResult
public func attempt<R: ~Copyable>(
    _ doing: @autoclosure () -> String, code: Failure.Code = .denied, advice: String? = nil,
    _ body: () throws(SystemCallError) -> R
) throws(Failure) -> R {
    do { return try body() } catch {
        let gone = error.errno == .ESRCH
        throw Failure(gone ? .vanished : code, "can't \(doing())", advice: advice, cause: error)
    }
}
