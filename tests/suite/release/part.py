"""A component whose whole behaviour is on its command line: NAME [--hang] [--late] [--deaf] [--dies].

It appends "start NAME PID", "stop NAME PID" to $REFIT_DATA/order, so that a test sees who came and went when.
--hang: it is never ready. --late: it is ready after 300 ms, and appends "ready NAME PID" just before it says so.
--deaf: it does not end when it is asked to. --dies: it ends with status 3 once it was ready.
"""

import os
import signal
import socket
import sys
import time

name, options = sys.argv[1], sys.argv[2:]
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def record(what):
    path = os.path.join(os.environ["REFIT_DATA"], "order")
    order = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(order, f"{what} {name} {os.getpid()}\n".encode())
    os.close(order)


def notify(text):
    address = os.environ["NOTIFY_SOCKET"]
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.sendto(text.encode(), address)


record("start")
print(f"{name} is up", flush=True)
if "--late" in options:
    time.sleep(0.3)
    record("ready")
if "--hang" not in options:
    notify("READY=1")
if "--dies" in options:
    sys.exit(3)
signal.sigwait({signal.SIGTERM})
while "--deaf" in options:
    signal.pause()
record("stop")
