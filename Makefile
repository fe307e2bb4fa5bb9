# brumate: make, make install, make demo, make test, make lint.

PREFIX ?= /usr/local
SWIFT ?= swift
BINARY = .build/release/brumate
# One static file: it starts in half a millisecond and runs on any distribution. Whether stored properties are accessed
# exclusively is checked at compile time and in the tests; checks at run time take a tenth of a dump with many files.
RELEASE = -c release -Xswiftc -static-executable -Xswiftc -enforce-exclusivity=unchecked -Xlinker -s

.PHONY: all build install demo test lint clean packages programs

all: build

build: packages
	$(SWIFT) build $(RELEASE) --product brumate

# What a fresh Debian lacks, besides the Swift toolchain.
packages:
	@Scripts/install-packages

# Real programs that tests checkpoint. A test whose program can't be installed is skipped and says so.
programs:
	@Scripts/install-packages programs

# CRIU=1 installs it under the name criu as well.
install: build
	install -D -m 755 $(BINARY) $(DESTDIR)$(PREFIX)/sbin/brumate
	@if [ -n "$(CRIU)" ]; then ln -sf brumate $(DESTDIR)$(PREFIX)/sbin/criu; fi

demo: build
	@Scripts/demo $(BINARY)

test: build programs
	$(SWIFT) build --product brumatePackageTests
	$(SWIFT) build --product ImageFuzzer
	BRUMATE=$(CURDIR)/$(BINARY) $(SWIFT) test --skip-build
	@if [ $$(id -u) = 0 ]; then Scripts/memory-fuzz $(BINARY) 30 1; else echo "memory-fuzz is skipped: it needs root"; fi

lint:
	$(SWIFT) format lint --recursive --parallel --strict Package.swift Sources/[A-HJ-Z]* Sources/ImageFormat Tests

clean:
	$(SWIFT) package clean
