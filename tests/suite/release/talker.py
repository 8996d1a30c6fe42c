"""A component that prints: NAME ticks|halves|flood|endless|mixed [BYTES].

ticks: numbered lines for ever, going on with the next number when it is started again.
halves: the first half of a line; the other half when $REFIT_DATA/go is there.
flood: so many bytes in lines, as fast as it can; then it makes $REFIT_DATA/done.
endless: the same without the end of a line.
mixed: one of everything.
"""

import os
import signal
import sys

mode, size = sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0
data = os.environ["REFIT_DATA"]
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def write(text, to=1):
    text = text if isinstance(text, bytes) else text.encode()
    while text:
        text = text[os.write(to, text):]


def asked_to_end(seconds):
    return signal.sigtimedwait({signal.SIGTERM}, seconds) is not None


def ticks():
    path = os.path.join(data, "ticks")
    try:
        with open(path) as file:
            number = int(file.read())
    except FileNotFoundError:
        number = 0
    while not asked_to_end(0.002):
        write(f"tick {number}\n")
        number += 1
    with open(path, "w") as file:
        file.write(str(number))
    sys.exit(0)


if mode == "ticks":
    ticks()
elif mode == "halves":
    write("hal")
    while not os.path.exists(os.path.join(data, "go")):
        if asked_to_end(0.005):
            sys.exit(0)
    write("f\n")
elif mode == "flood":
    line = b"x" * 99 + b"\n"
    for _ in range(size // 6_400):
        write(line * 64)
    write("the last words\n")
elif mode == "endless":
    for _ in range(size // 8192):
        write(b"y" * 8192)
elif mode == "mixed":
    write("out\n")
    write("<3>err\n", 2)
    write(b"\xff\xfe caf\xc3\xa9\n")
    write("z" * 5000 + "\n")
    write("\x1b[2Jno end")
    os.close(1)
if mode != "ticks":
    open(os.path.join(data, "done"), "w").close()
    signal.sigwait({signal.SIGTERM})
