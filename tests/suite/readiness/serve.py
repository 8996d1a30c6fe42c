"""A web server that serves one connection after the other, and knows nothing of Refit but its listener.

Arguments: the version, and how it begins: "at_once", "late" (it accepts after two seconds), "never" (it does not accept), "exits",
"closes" (it answers without waiting for a request, and closes soon), "forks" (a child process accepts), "shuts" (it closes the listener for
everybody when it ends), "sick" (it answers 503), "lingers" (it accepts for a second and a half after it was told to stop), "dies"
(it ends half a second after it has begun to accept), "exclusive" (of several processes the kernel always wakes the same one).
It writes to $REFIT_DATA when it begins to accept and when it is told to stop, by the clock that all processes share.
"""

import os
import select
import signal
import socket
import sys
import time

VERSION, BEGINS = sys.argv[1], sys.argv[2]
# A connection that says nothing holds this server for so long, as it does many real ones.
SILENCE_MAX = 3.0
HEAD = "HTTP/1.1 " + ("503 Sick" if BEGINS == "sick" else "200 OK") + "\r\nContent-Length: 0\r\nConnection: close\r\nX-Version: " + VERSION + "\r\n\r\n"


def note(what):
    name = os.environ["REFIT_COMPONENT"]
    path = os.path.join(os.environ["REFIT_DATA"], what + ("" if name == "web" else "-" + name) + "-" + VERSION)
    try:
        with open(path + ".new", "w") as file:
            file.write(str(time.monotonic()))
        os.rename(path + ".new", path)
    except PermissionError:
        pass  # it runs as an account of its own


def serve(connection):
    connection.settimeout(SILENCE_MAX)
    try:
        if BEGINS != "closes":
            request = b""
            while b"\r\n\r\n" not in request:
                read = connection.recv(4096)
                if not read:
                    return
                request += read
        connection.sendall(HEAD.encode())
        if BEGINS == "closes":
            time.sleep(0.02)
    except OSError:
        pass
    finally:
        connection.close()


def waiting(listener):
    """Returns a function that waits for what can be read of some sockets."""
    if BEGINS != "exclusive":
        return lambda sockets, limit: select.select(sockets, [], [], limit)[0]
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)

    def wait(sockets, limit):
        for other in sockets:
            if other is not listener and other not in known:
                known.append(other)
                poll.register(other, select.EPOLLIN)
        numbers = [number for number, _ in poll.poll(limit)]
        return [other for other in sockets if other.fileno() in numbers]

    known = []
    return wait


def main():
    wake, asked = socket.socketpair()
    wake.setblocking(False)
    asked.setblocking(False)
    signal.set_wakeup_fd(asked.fileno())
    signal.signal(signal.SIGTERM, lambda *_: None)
    if BEGINS == "exits":
        sys.exit(3)
    listener = socket.socket(fileno=int(os.environ.get("SERVE_FD", "3")))
    listener.setblocking(False)
    if "QUEUE" in os.environ:
        listener.listen(int(os.environ["QUEUE"]))
    if BEGINS in ("late", "never"):
        ready, _, _ = select.select([wake], [], [], 2 if BEGINS == "late" else None)
        if ready:
            note("told")
            return
    if BEGINS == "forks":
        worker = os.fork()
        if worker:
            select.select([wake], [], [])
            os.kill(worker, signal.SIGTERM)
            os.waitpid(worker, 0)
            note("told")
            return
        wake, asked = socket.socketpair()
        asked.setblocking(False)
        signal.set_wakeup_fd(asked.fileno())
    note("accepting")
    wait = waiting(listener)
    until, dies = None, time.monotonic() + 0.5 if BEGINS == "dies" else None
    while True:
        ready = wait([listener, wake], 0.1 if until or dies else None)
        if dies and time.monotonic() > dies:
            sys.exit(3)
        if wake in ready:
            note("told")
            if BEGINS == "lingers":
                wake.recv(1)
                until = time.monotonic() + 1.5
            if BEGINS == "shuts":
                listener.shutdown(socket.SHUT_RDWR)
            if not until:
                return
        if until and time.monotonic() > until:
            return
        if listener not in ready:
            continue
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            continue  # the other process was faster
        connection.setblocking(True)
        serve(connection)


main()
