/// What kinds remember during one order, one object of a type each.
struct Memories {
    private var objects: [ObjectIdentifier: AnyObject] = [:]

    /// The object of a type; made at first use.
    mutating func of<State: AnyObject>(_ type: State.Type, _ make: () -> State) -> State {
        if let known = objects[ObjectIdentifier(type)] as? State { return known }
        let fresh = make()
        objects[ObjectIdentifier(type)] = fresh
        return fresh
    }
}
