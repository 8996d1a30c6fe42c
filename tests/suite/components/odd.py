"""A component that behaves as its first argument says: see the functions below. What it finds out goes to $REFIT_DATA."""

import json
import os
import resource
import signal
import socket
import sys
import time

DATA = os.environ.get("REFIT_DATA", ".")


def write(name, text):
    path = os.path.join(DATA, name)
    with open(path + ".new", "w") as file:
        file.write(text)
    os.rename(path + ".new", path)


def append(name, text):
    with open(os.path.join(DATA, name), "a") as file:
        file.write(text + "\n")


def channel():
    address = os.environ["NOTIFY_SOCKET"]
    found = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    found.connect("\0" + address[1:] if address.startswith("@") else address)
    return found


def say(text):
    with channel() as manager:
        manager.send(text.encode())


def wait_for(name):
    while not os.path.exists(os.path.join(DATA, name)):
        time.sleep(0.005)


def rest():
    while True:
        signal.pause()


def until_asked():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.sigwait({signal.SIGTERM})
    sys.exit(0)


def get_away(name, clean=False):
    """Leaves a process behind that has another session and another parent, and does not hear SIGTERM."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            append(name, str(os.getpid()))
            if clean:
                os.execve("/proc/self/exe", ["python3", "-c", "import signal\nwhile True: signal.pause()"], {})
            rest()
        os._exit(0)
    os.wait()
    while not os.path.exists(os.path.join(DATA, name)):
        time.sleep(0.005)


def plain():
    say("READY=1\nSTATUS=" + " ".join(sys.argv[2:]))
    until_asked()


def accept():
    say("STATUS=accepting")
    listener = socket.socket(fileno=3)
    while True:
        listener.accept()[0].close()


def describe():
    """Writes down in what state it began."""
    numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    links = {}
    for number in numbers:
        try:
            links[number] = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            pass  # the directory that was listed
    with open("/proc/self/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    mask = os.umask(0)
    found = {
        "argv": sys.argv, "fds": links, "status": status, "umask": mask, "cwd": os.getcwd(), "env": dict(os.environ), "pid": os.getpid(),
        "sid": os.getsid(0), "pgid": os.getpgid(0), "uid": os.getuid(), "gid": os.getgid(), "groups": os.getgroups(),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[1], "memory": resource.getrlimit(resource.RLIMIT_AS)[1],
        "processes": resource.getrlimit(resource.RLIMIT_NPROC)[1],
    }
    os.umask(mask)
    say("READY=1\nSTATUS=" + json.dumps(found)[:10])
    try:
        write("found", json.dumps(found))
    except OSError:
        print(json.dumps({key: found[key] for key in ("uid", "gid", "groups")} | {"home": os.environ["HOME"]}), flush=True)
    until_asked()


def slow():
    """Takes its time to start, and says so."""
    end = time.monotonic() + float(sys.argv[2])
    while time.monotonic() < end:
        say("EXTEND_TIMEOUT_USEC=30000000\nSTATUS=migrating")
        time.sleep(0.1)
    say("READY=1")
    until_asked()


def patient():
    """Asks for time once, when it starts, and is ready when it is let."""
    say("EXTEND_TIMEOUT_USEC=120000000\nSTATUS=migrating")
    append("started", str(os.getpid()))
    wait_for("go")
    say("READY=1")
    until_asked()


def talker():
    """Says much of itself while it runs, each thing once, and fails when it is let."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    say("READY=1\nSTATUS=fresh")
    wait_for("talk")
    say("WATCHDOG_USEC=1000000\nEXTEND_TIMEOUT_USEC=120000000")
    say("ERRNO=28\nRELOADING=1")
    say("STATUS=busy")
    print("talked", flush=True)
    append("talked", str(os.getpid()))
    wait_for("fail")
    sys.exit(4)


def slow_stop():
    """Takes its time to stop, and says so."""
    say("READY=1")
    signal.sigwait({signal.SIGTERM})
    end = time.monotonic() + float(sys.argv[2])
    while time.monotonic() < end:
        say("STOPPING=1\nEXTEND_TIMEOUT_USEC=30000000")
        time.sleep(0.1)
    sys.exit(0)


def once():
    """Is ready the first time, and never again."""
    if os.path.exists(os.path.join(DATA, "once")):
        append("second", str(os.getpid()))
        rest()
    write("once", "yes")
    say("READY=1")
    until_asked()


def silent():
    rest()


def unlinked():
    address = os.environ["NOTIFY_SOCKET"]
    if not address.startswith("@"):
        os.unlink(address)
    rest()


def noise():
    with channel() as manager:
        for text in (b"", b"\0\xff\xfe", b"READY", b"MAINPID=1", b"STATUS=" + b"x" * 100_000, b"READY=1\nX=" + b"x" * 10_000):
            manager.send(text)
        manager.setblocking(False)
        for number in range(20_000):
            try:
                manager.send(b"STATUS=%d" % number)
            except BlockingIOError:
                pass
        manager.setblocking(True)
        for number in range(600):  # none is lost: more than are read at once, however slow the machine is
            manager.send(b"STATUS=%d" % number)
        manager.send(b"READY=1\nSTATUS=done")
    until_asked()


def by_child():
    """Has a child report, which lives on."""
    if os.fork() == 0:
        say("READY=1\nSTATUS=child")
        wait_for("again")
        say("STATUS=again")
        rest()
    until_asked()


def by_gone():
    """Has children report that end at once, in a session of their own."""
    for name, text in (None, "READY=1\nSTATUS=gone"), ("again", "STATUS=again"):
        if name:
            wait_for(name)
        if os.fork() == 0:
            os.setsid()
            say(text)
            os._exit(0)
        os.wait()
    until_asked()


def by_orphan():
    """Has a process report that has gone to the background: another session, another parent."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while os.getppid() == os.getpgid(0):  # the parent leads the session, until it ends
                time.sleep(0.005)
            say("READY=1\nSTATUS=orphan")
            wait_for("again")
            say("STATUS=again")
            rest()
        os._exit(0)
    os.wait()
    until_asked()


def forger():
    """Reports for another component, whose socket is in a file, and then for itself."""
    say("READY=1")
    wait_for("target")
    with open(os.path.join(DATA, "target")) as file:
        target = file.read()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        for text in ("READY=1\nSTATUS=forged", "WATCHDOG=trigger", "STOPPING=1", "MAINPID=1") * 42:
            other.sendto(text.encode(), target)
    say("STATUS=forged")
    until_asked()


def slow_end():
    """Takes its time to end, and ends well; says which process was told, and that it ended."""
    say("READY=1")
    os.makedirs(DATA, exist_ok=True)
    append("started", str(os.getpid()))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGABRT})
    if "trigger" in sys.argv and not os.path.exists(os.path.join(DATA, "told")):
        say("WATCHDOG=trigger")
    signal.sigwait({signal.SIGTERM, signal.SIGABRT})
    append("told", str(os.getpid()))
    end = time.monotonic() + float(sys.argv[2])
    while time.monotonic() < end and not os.path.exists(os.path.join(DATA, "end")):
        time.sleep(0.005)
    append("ended", str(os.getpid()))
    sys.exit(0)


def told():
    """Says by which signal it was told to end."""
    watched = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGWINCH}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    say("READY=1")
    append("told", sys.argv[2] + " " + signal.Signals(signal.sigwait(watched)).name)


def errno():
    say("STATUS=no disk\nERRNO=28")
    sys.exit(4)


def last_word():
    say("READY=1")
    while not os.path.exists(os.path.join(DATA, "go")):
        time.sleep(0.01)
    say("STATUS=no disk\nERRNO=28")
    sys.exit(4)


def deaf():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say("READY=1")
    rest()


def stops():
    say("READY=1")
    say("STOPPING=1")
    sys.exit(3)


def tick():
    """Gives signs of life, as often as it is told, and then none."""
    write("watchdog", os.environ["WATCHDOG_USEC"] + " " + str(os.environ["WATCHDOG_PID"] == str(os.getpid())))
    say("READY=1")
    for _ in range(int(sys.argv[2])):
        time.sleep(0.05)
        say("WATCHDOG=1")
    append("last-tick", str(os.getpid()))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGABRT} if "stubborn" in sys.argv else set())
    rest()


def trigger():
    say("READY=1")
    say("WATCHDOG=trigger")
    rest()


def quit():
    sys.exit(0)


def daemon():
    get_away("away")
    sys.exit(0)


def crowd():
    """Has children of every kind that get away."""
    get_away("away")
    get_away("away-too")
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        append("child", str(os.getpid()))
        rest()
    say("READY=1")
    until_asked()


def unknown():
    get_away("away", clean=True)
    say("READY=1")
    until_asked()


def hog():
    say("READY=1")
    held = []
    try:
        for _ in range(64):
            held.append(bytearray(os.urandom(1 << 20)) * 8)
    except MemoryError:
        print("out of memory", file=sys.stderr, flush=True)
        sys.exit(9)
    write("unlimited", "512 MiB")
    rest()


def reload():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGTERM})
    say("READY=1")
    while signal.sigwait({signal.SIGHUP, signal.SIGTERM}) == signal.SIGHUP:
        append("reloaded", str(os.getpid()))


def probe():
    """A health command: bad while there is a file of that name."""
    if os.path.exists(os.path.join(DATA, "bad")):
        sys.exit("the file is there")


def probe_hang():
    write("probe-env", json.dumps([os.getsid(0) == os.getpid(), os.environ["REFIT_COMPONENT"], os.getcwd()]))
    get_away("probe-away")
    rest()


if sys.argv[1] not in ("describe", "deaf"):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
globals()[sys.argv[1]]()
