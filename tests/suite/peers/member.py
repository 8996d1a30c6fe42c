"""A component on the bus that does what it is told: NAME [CHANNEL=PRIORITY ...] [--deaf] [--orphan] [--limit] [--hold] [--reverts].

It appends what it is called for to $REFIT_DATA/order, as "CHANNEL NAME PID", and is READY when it is on the bus. What an
argument {"do": ...} asks for: fail, hang, die, pid, publish, request, outcome, wait, inside, http, tokenless, twin, fork, hammer, close.
--deaf: SIGTERM does nothing. --orphan: it has a child in a session of its own. --linger: it goes on when the peer was closed. --hold: on the bus, it is READY when $REFIT_DATA/go is there,
and dies when $REFIT_DATA/die is. --reverts: it can revert a reload, and every ticket of one that has to be
confirmed is a line "ticket-STATE NAME PID". Every connection is a line "attach NAME PID", with the state it was told. What a reload does is in
$REFIT_DATA/reload-NAME, if that is there: PHASE DEED.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

from refit_bus import Bus, BusError

name, words = sys.argv[1], sys.argv[2:]
data = os.environ["REFIT_DATA"]
with open(os.path.join(data, f"pid-{name}"), "w") as own:
    own.write(str(os.getpid()))


def record(what):
    order = os.open(os.path.join(data, "order"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(order, f"{what} {name} {os.getpid()}\n".encode())
    os.close(order)


def refused(act, *words, **params):
    try:
        return act(*words, **params)
    except BusError as error:
        return {"refused": str(error), "code": error.code}


def deed(call):
    try:
        with open(os.path.join(data, f"reload-{name}")) as file:
            phase, what = file.read().split()
    except FileNotFoundError:
        return None
    return what if phase == call.get("phase") else None


def in_child():
    """Says what a child of this process can do with the peer before and after it connects itself."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            bus.ask("state")
            said = "it has the parent's connection"
        except RuntimeError as error:
            said = str(error)
        bus.name = "child"
        os.write(writer, json.dumps([said, bus.connect()["name"], bus.ask("state")["state"]]).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as answers:
        return json.load(answers)


def hammer(threads, rounds):
    """Publishes from many threads at the same time. Returns how many answers were another thread's, or none."""
    wrong = []

    def publish(own):
        for number in range(rounds):
            said = f"{own}.{number}"
            report = bus.ask("publish", channel="echo", argument=said)
            values = [answer.get("value", {}).get("said") for answer in report["answers"]]
            if values != [said]:
                wrong.append([said, report])

    workers = [threading.Thread(target=publish, args=(own,)) for own in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return wrong


def called(call):
    channel, argument = call["channel"], call["argument"] if isinstance(call["argument"], dict) else {}
    record("-".join([channel, *filter(None, [call.get("phase"), call.get("reason")])]))
    if argument.get("to") not in (None, name):
        return None
    match argument.get("do") or deed(call):
        case "fail":
            raise ValueError("as it was told")
        case "hang":
            time.sleep(600)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "pid":
            return os.getpid()
        case "outcome":
            return refused(bus.request, argument["request"])
        case "parricide":
            with open(os.path.join(data, "pid-a")) as file:
                os.kill(int(file.read()), signal.SIGKILL)
            time.sleep(0.3)  # its connection is seen to end before this answer
        case "inside":
            return bus.request("reload", limit=5.0)
        case "twin":
            try:
                return refused(Bus(name, grace=2.5).connect)
            finally:
                record("twin")
        case "fork":
            return in_child()
        case "hammer":
            return hammer(argument["threads"], argument["rounds"])
        case "close":
            threading.Thread(target=bus.close).start()
        case "publish":
            return refused(bus.ask, "publish", channel=argument["channel"], argument=argument.get("argument"))
        case "request":
            return refused(bus.ask, "request", **{key: value for key, value in argument.items() if key not in ("do", "to")})
        case "http":
            connection = http.client.HTTPConnection("appliance")
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(os.environ["REFIT_SOCKET"])
            token = os.environ["REFIT_TOKEN"] if argument.get("token") else None
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            body = json.dumps(argument["body"])
            connection.request("POST", argument["path"], body, {"Content-Type": "application/json", **headers})
            answer = connection.getresponse()
            return {"status": answer.status, "body": json.loads(answer.read())}
        case "tokenless":
            token = os.environ.pop("REFIT_TOKEN")
            try:
                return refused(Bus("other").connect)
            finally:
                os.environ["REFIT_TOKEN"] = token
        case "wait":
            return refused(bus.ask, "wait", **argument["for"])
    return {"name": name, "said": call["argument"]}


def heard(method, params):
    if method in ("hello", "state"):
        record(f"{'attach' if method == 'hello' else 'state'}-{params['state']}")
    elif method == "ticket" and "confirmation" in params["ticket"]:
        record(f"ticket-{params['ticket']['confirmation']['state']}")


bus = Bus(name, heard=heard, grace=2.0)
for word in words:
    if "=" in word:
        channel, priority = word.split("=")
        place = {"reverts": True} if channel == "reload" and "--reverts" in words else {}
        bus.on(channel, called, priority=int(priority), limit_ms=2000 if "--limit" in words else None, **place)
if "--deaf" in words:
    signal.signal(signal.SIGTERM, lambda *_: record("term"))
if "--orphan" in words:
    subprocess.Popen(["sleep", "600"], start_new_session=True)
bus.connect()
while "--hold" in words and not os.path.exists(os.path.join(data, "go")):
    if os.path.exists(os.path.join(data, "die")):
        sys.exit(3)
    time.sleep(0.005)
address = os.environ["NOTIFY_SOCKET"]
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
    supervisor.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)


def restart_when_asked():
    while not os.path.exists(os.path.join(data, f"restart-{name}")):
        time.sleep(0.005)
    record(f"restarted-{bus.request('restart')['state']}")


threading.Thread(target=restart_when_asked, daemon=True).start()
bus.serve()
record("closed")
while "--linger" in words:
    signal.pause()
