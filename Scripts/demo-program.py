"""The program of `make demo`: run WORK starts it, ask WORK shows its state."""
import os, sys, tempfile, threading, time

work = sys.argv[2]
request, answer = os.path.join(work, "request"), os.path.join(work, "answer")


def ask():
    with open(request, "w") as f:
        f.write("?")
    with open(answer) as f:
        print(f.read(), end="")


def run():
    os.close(os.open("/dev/null", os.O_RDONLY))
    for name in (request, answer):
        os.mkfifo(name)
    state = {"counter": 0, "ticks": 0}
    reading, writing = os.pipe()
    os.write(writing, b"a message that nobody has read yet")
    log = open(os.path.join(work, "log"), "w")
    ghost = tempfile.TemporaryFile(dir=work)
    ghost.write(b"an unlinked file")
    ghost.flush()

    def count():
        while True:
            state["counter"] += 1
            time.sleep(0.001)

    def tick():
        while True:
            state["ticks"] += 1
            log.write(f"tick {state['ticks']}\n")
            log.flush()
            time.sleep(0.1)

    for work_of in (count, tick):
        threading.Thread(target=work_of, daemon=True).start()
    questions = os.open(request, os.O_RDWR)
    with open(os.path.join(work, "pid"), "w") as f:
        f.write(str(os.getpid()))
    while True:
        os.read(questions, 1)
        ghost.seek(0)
        text = (
            f"pid {os.getpid()}, {threading.active_count()} threads, counted to {state['counter']}, "
            f"{state['ticks']} ticks in its log, {ghost.read().decode()!r} readable\n"
        )
        # The asker reads to the end: give it one of its own.
        with open(answer, "w") as f:
            f.write(text)


run() if sys.argv[1] == "run" else ask()
