"""A component on the bus that does what it is told: NAME [CHANNEL=PRIORITY ...] [--deaf] [--orphan] [--limit MS].

It appends what it is called for to $REFIT_DATA/order, as "CHANNEL NAME PID", and is READY when it is on the bus. What an
argument {"do": ...} asks for: fail, hang, die, publish, request, wait, count. --deaf: SIGTERM does nothing. --orphan: it has a
child in a session of its own. Every connection is a line "attach NAME PID", with the state it was told.
"""

import os
import signal
import socket
import subprocess
import sys
import time

from refit_bus import Bus, BusError

name, words = sys.argv[1], sys.argv[2:]
data = os.environ["REFIT_DATA"]


def record(what):
    order = os.open(os.path.join(data, "order"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(order, f"{what} {name} {os.getpid()}\n".encode())
    os.close(order)


def refused(act, *words, **params):
    try:
        return act(*words, **params)
    except BusError as error:
        return {"refused": str(error), "code": error.code}


def called(call):
    channel, argument = call["channel"], call["argument"] if isinstance(call["argument"], dict) else {}
    record("-".join([channel, *filter(None, [call.get("phase"), call.get("reason")])]))
    if argument.get("to") not in (None, name):
        return None
    match argument.get("do"):
        case "fail":
            raise ValueError("as it was told")
        case "hang":
            time.sleep(600)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "publish":
            return refused(bus.ask, "publish", channel=argument["channel"], argument=argument.get("argument"))
        case "request":
            return refused(bus.ask, "request", request=argument["request"])
        case "wait":
            return refused(bus.ask, "wait", **argument["for"])
    return {"name": name, "said": call["argument"]}


class Member(Bus):
    def connect(self):
        welcome = super().connect()
        record(f"attach-{welcome['state']}")
        return welcome


bus = Member(name, heard=lambda method, params: record(f"state-{params['state']}") if method == "state" else None, grace=2.0)
for word in words:
    if "=" in word:
        channel, priority = word.split("=")
        bus.on(channel, called, priority=int(priority), limit_ms=2000 if "--limit" in words else None)
if "--deaf" in words:
    signal.signal(signal.SIGTERM, lambda *_: record("term"))
if "--orphan" in words:
    subprocess.Popen(["sleep", "600"], start_new_session=True)
bus.connect()
address = os.environ["NOTIFY_SOCKET"]
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
    supervisor.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)
bus.serve()
