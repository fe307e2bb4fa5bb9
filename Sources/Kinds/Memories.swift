/// What kinds remember during one order, one object of a type each.
struct Memories {
    private var objects: [ObjectIdentifier: AnyObject] = [:]

    /// The object of a type, nil before its first use.
    func known<State: AnyObject>(_ type: State.Type) -> State? { objects[ObjectIdentifier(type)] as? State }

    /// Remembers an object.
    mutating func keep<State: AnyObject>(_ object: State) { objects[ObjectIdentifier(State.self)] = object }
}
