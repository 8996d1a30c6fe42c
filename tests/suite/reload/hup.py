"""A component that is told by SIGHUP: MODE. handles: it takes it; exits: it ends of it; ignores; default: it knows nothing of it."""

import os
import signal
import socket
import sys
import time

mode = sys.argv[1]
told = 0


def on_hup(*_):
    global told
    told += 1
    print(f"told {told}", flush=True)
    if mode == "exits":
        os._exit(9)


if mode in ("handles", "exits"):
    signal.signal(signal.SIGHUP, on_hup)
elif mode == "ignores":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
address = os.environ["NOTIFY_SOCKET"]
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
    supervisor.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)
while True:
    time.sleep(600)
