/// The texts that the program prints about itself.
enum Help {
    /// What LXC and others read to learn which CRIU's features to expect, and our own name.
    static let version = """
        Version: 4.2
        Brumate 0.1.0, a drop-in for CRIU

        """

    /// The commands.
    static let usage = """

        Usage:
          brumate dump -t PID [OPTIONS]
          brumate pre-dump -t PID [OPTIONS]
          brumate restore [OPTIONS]
          brumate dedup [OPTIONS]
          brumate unpack [OPTIONS]
          brumate page-server|lazy-pages [OPTIONS]
          brumate send --stream-to TO [OPTIONS]
          brumate receive --stream-from FROM [OPTIONS]
          brumate check [--feature NAME[,NAME…]]
          brumate cpuinfo dump|check [OPTIONS]

        Commands:
          dump           write a process tree to image files, and end it
          pre-dump       write the memory of a tree ahead of a dump; the tree runs on
          restore        bring a process tree back from image files
          dedup          drop pages from the parent images that the newest ones have anew
          unpack         turn images with compressed pages, and their parents, into CRIU's format
          page-server    receive the pages of a dump, or give them to a lazy restore
          lazy-pages     bring pages to tasks of a lazy restore
          send           send the images of a directory as one stream
          receive        save a stream as a directory of images
          check          find out whether this kernel has what we need
          cpuinfo dump   write the features of this CPU to an image file
          cpuinfo check  compare the features of this CPU with the image file

        Not supported yet: service, swrk.

        """

    /// Everything, made from the table of options.
    static var text: String {
        var out = usage
        out += "\nMost options without an argument have an opposite, --no-NAME. Names may be abbreviated.\n"
        for heading in Option.Heading.allCases {
            out += "\n\(heading.rawValue):\n"
            for option in Option.table where option.heading == heading { out += entry(option) }
        }
        out += "\nKernel features for --feature:\n" + wrap(KernelFeature.all.map(\.name), indent: 2)
        return out
    }

    private static let column = 30

    private static func entry(_ option: Option) -> String {
        var left = "  "
        left += option.letter.map { "-\(String(decoding: [$0], as: UTF8.self)), " } ?? "    "
        left += "--" + option.name
        switch option.argument {
        case .none: break
        case .required(let what): left += " " + what
        case .optional(let what): left += "[=\(what)]"
        }
        var words = option.help.split(separator: " ").map(String.init)
        if case .later(let issue, _, _) = option.support {
            words += ["(Not", "yet:", "comes", "with"] + ["\(issue).)"]
        }
        let right = wrap(words, indent: column)
        if left.count + 2 > column { return left + "\n" + right }
        return left + right.dropFirst(left.count)
    }

    private static func wrap(_ words: [String], indent: Int) -> String {
        let margin = String(repeating: " ", count: indent)
        var out = ""
        var line = margin
        for word in words {
            if line.count + word.count > 100, line != margin {
                out += line + "\n"
                line = margin
            }
            line += (line == margin ? "" : " ") + word
        }
        return out + line + "\n"
    }
}
