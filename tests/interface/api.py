"""The HTTP API on the Unix socket and on the admin listener, and the protocol of the bus."""

import base64
import json
import re
import socket

from program import LIMIT_S, until

READS = [
    "status",
    "releases",
    "history",
    "components",
    "components/web/logs",
    "components/web/logs?n=1",
    "components/web/logs?after=1",
    "components/nobody/logs",
    "bus",
    "bus/requests/nothing",
    "packages",
    "repository",
    "nowhere",
]
WRONG = [
    ("GET", "rollback", None),
    ("DELETE", "status", None),
    ("PUT", "updates", None),
    ("POST", "packages/1", None),
    ("GET", "events?after=x", None),
    ("GET", "components/web/logs?n=x", None),
    ("GET", "components/web/logs?follow=perhaps", None),
    ("GET", "bus/requests/1?wait_ms=x", None),
    ("PUT", "packages?digest=zz", None),
    ("PUT", "packages?allow_downgrade=maybe", None),
    ("PUT", "packages?alow_downgrade=true", None),
    ("PUT", "packages", b"7" * 5000),
    ("DELETE", "packages/zz", None),
    ("DELETE", f"packages/{'0' * 64}", None),
    ("POST", "components/web/paint", {}),
    ("POST", "components/nobody/stop", {}),
    ("POST", "rollback", None),
    ("POST", "rollback", {"version": "7.0.0"}),
    ("POST", "rollback", {"version": "seven"}),
    ("POST", "rollback", {"digest": "0" * 64}),
    ("POST", "rollback", {"wrong": "1.0.0"}),
    ("POST", "updates", {}),
    ("POST", "updates", {"version": "1.0.0"}),
    ("POST", "updates", {"version": "9.9.9"}),
    ("POST", "updates", {"digest": "0" * 64}),
    ("POST", "updates", {"digest": "0" * 64, "version": "1.0.0"}),
    ("POST", "updates", {"version": "1.1.0", "wrong": True}),
    ("POST", "updates", b"{"),
    ("POST", "updates", None),
    ("POST", "packages", {}),
    ("POST", "packages", {"version": "1.1.0"}),
    ("POST", "packages", {"version": "1.1.0", "wrong": True}),
    ("POST", "bus/requests", {"request": "dance"}),
    ("POST", "bus/requests", {"request": "update", "version": "1.0.0"}),
    ("POST", "bus/requests", {"request": "update"}),
    ("POST", "bus/requests", {"request": "reload", "wrong": 1}),
    ("POST", "bus/requests", {}),
    ("POST", "bus/publications", {"channel": "nowhere"}),
    ("POST", "bus/publications", {"channel": "stop"}),
    ("POST", "bus/publications", {"channel": "component.up"}),
    ("POST", "bus/publications", {"channel": "news", "wrong": 1}),
    ("POST", "session", {"wrong": 1}),
]


def reads(report, home):
    """Reports everything that can be read on the socket, and its streams."""
    for path in READS:
        report.answered(f"GET /api/v1/{path}", home.api.ask("GET", f"/api/v1/{path}"))
    for path in ["/healthz", "/metrics", "/nowhere"]:
        report.answered(f"GET {path}", home.api.ask("GET", path))
    for path in ["/", "/healthz", "/metrics", "/api/v1/status"]:
        report.answered(f"HEAD {path}", home.api.ask("HEAD", path))
    lines = {"Accept": "application/x-ndjson"}
    logs = "/api/v1/components/web/logs"
    report.answered(f"GET {logs}, as lines", home.api.ask("GET", logs, headers=lines), body="text")
    for path, headers in [
        ("/api/v1/events?after=0", {}),
        ("/api/v1/events?after=0", lines),
        (f"{logs}?follow=true", {}),
        (f"{logs}?follow=true", lines),
    ]:
        stream(report, home, path, headers)


def stream(report, home, path, headers):
    """Reports the beginning of a stream: its first line or, of events, the first of one kind."""
    answer, lines, connection = home.api.stream(path, headers)
    report.answered(f"GET {path} {headers.get('Accept', '')}", answer, body="nothing")
    wanted = '"event":"bus.request"' if "events" in path else "{"
    if headers:
        line = next(line for line in map(bytes.decode, lines) if wanted in line)
        report.shape("line", [json.loads(line)])
        connection.close()
        return
    begun = [lines.readline().decode().strip() for _ in range(3 if "events" not in path else 2)]
    wanted, block = "event: bus.request" if "events" in path else "event: line", []
    while wanted not in block:
        block = list(iter(lambda: lines.readline().decode().strip(), ""))
    connection.close()
    for line in begun + block:
        name, _, value = line.partition(": ")
        if name == "data":
            report.shape("data", [json.loads(value)])
        else:
            report.line(f"line {name}: <n>" if name == "id" else f"line {line}")


def wrong(report, home):
    """Reports what is not understood or refused on the socket, and requests that are taken."""
    for method, path, body in WRONG:
        said = body.decode()[:5] if isinstance(body, bytes) else json.dumps(body) if body is not None else ""
        report.answered(f"{method} /api/v1/{path} {said}", home.api.ask(method, f"/api/v1/{path}", body))
    accepted = reload(report, home, "POST /api/v1/bus/requests reload", home.api)
    report.answered("GET its ticket", home.api.ask("GET", accepted.header("location")))
    report.answered("POST start", home.api.ask("POST", "/api/v1/bus/requests", {"request": "start"}))
    report.answered(
        "POST a publication", home.api.ask("POST", "/api/v1/bus/publications", {"channel": "news", "argument": 1})
    )
    for action in ["stop", "start", "restart"]:
        report.answered(f"POST {action} idle", home.api.ask("POST", f"/api/v1/components/idle/{action}"))


def outcome(home, ticket):
    """Waits for the outcome of a ticket."""
    path = f"/api/v1/bus/requests/{ticket}?wait_ms=5000"
    until("a request has its outcome", lambda: home.api.get(path)["ticket"]["state"] != "accepted")


def reload(report, home, what, api, headers={}, body=None):
    """Reports the answer to a reload, and waits for its end: two at once would be one."""
    answer = report.answered(what, api.ask("POST", "/api/v1/bus/requests", body or {"request": "reload"}, headers))
    if answer.status == 202:
        outcome(home, answer.json()["ticket"]["id"])
    return answer


def basic(user, password):
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def page(report, home):
    """Reports the admin listener: the page, who may ask, and that it answers as the socket does."""
    waiting, seen = ["/"], []
    while waiting:
        path = waiting.pop(0)
        if path in seen:
            continue
        seen.append(path)
        answer = report.answered(f"GET {path} (admin)", home.admin.ask("GET", path), body="nothing")
        if path.endswith(("/", ".js")):
            found = re.findall(r"""(?:src|href)="([^":]+)"|from "\.?(/[^"]+)"|import\("\.?(/[^"]+)"\)""", answer.text())
            waiting += ["/" + "".join(names).lstrip("./") for names in found if not "".join(names).startswith("#")]
    report.answered("HEAD / (admin)", home.admin.ask("HEAD", "/"))
    report.answered("PUT / (admin)", home.admin.ask("PUT", "/"))
    for path in ["/healthz", "/metrics", "/api/v1/status", "/api/v1/events", "/api/v1/nowhere", "/nowhere"]:
        report.answered(f"GET {path} (admin, nobody)", home.admin.ask("GET", path))
    for method, path in [("PUT", "packages"), ("POST", "updates"), ("POST", "rollback"), ("POST", "bus/requests")]:
        report.answered(f"{method} /api/v1/{path} (admin, nobody)", home.admin.ask(method, f"/api/v1/{path}"))
    admin = basic("admin", home.password)
    for path in ["/api/v1/status", "/metrics", "/api/v1/nowhere"]:
        report.answered(f"GET {path} (admin)", home.admin.ask("GET", path, headers=admin), body="shape")
    cross = {**admin, "Sec-Fetch-Site": "cross-site"}
    for site in ["cross-site", "same-site", "same-origin", "none"]:
        reload(report, home, f"POST reload (admin, {site})", home.admin, {**admin, "Sec-Fetch-Site": site})
    report.answered(
        "POST session (admin, cross-site)", home.admin.ask("POST", "/api/v1/session", {"password": "x"}, cross)
    )
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    body = b'{"request": "reload"}'
    reload(report, home, "POST a form (admin)", home.admin, {**admin, **form}, body)
    reload(report, home, "POST a form (socket)", home.api, form, body)


def logins(report, home):
    """Reports sessions of the admin listener; in the end nobody may try any more."""
    login = lambda body: home.admin.ask("POST", "/api/v1/session", body)
    begun = report.answered("POST /api/v1/session", login({"password": home.password}))
    cookie = {"Cookie": begun.header("set-cookie").split(";")[0]}
    status = lambda headers: home.admin.ask("GET", "/api/v1/status", headers=headers)
    report.answered("GET /api/v1/status with the session", status(cookie), body="shape")
    report.answered("DELETE /api/v1/session", home.admin.ask("DELETE", "/api/v1/session", headers=cookie))
    report.answered("GET /api/v1/status after it", status(cookie))
    report.answered("DELETE /api/v1/session, nobody", home.admin.ask("DELETE", "/api/v1/session"))
    report.answered("GET /api/v1/status, wrong password", status(basic("admin", "not this one")))
    report.answered("GET /api/v1/status, wrong account", status(basic("nobody", home.password)))
    report.answered("GET /api/v1/status, no base64", status({"Authorization": "Basic !"}))
    report.answered("POST /api/v1/session, wrong password", login({"user": "admin", "password": "guess"}))
    for number in range(15):
        last = login({"password": f"guess number {number}"})
    report.answered("POST /api/v1/session, once too often", last)
    report.answered("GET /api/v1/status, once too often", status(basic("nobody", "guess")))


def packages(report, home, letter, package):
    """Reports packages that are sent over HTTP."""
    put = lambda query, body: home.api.ask("PUT", f"/api/v1/packages{query}", body)
    report.answered("PUT /api/v1/packages, a letter", put("", letter))
    report.answered("PUT /api/v1/packages, half of one", put("", package[: len(package) // 2]))
    report.answered("PUT /api/v1/packages, another approved", put(f"?digest={'1' * 64}", package))
    sent = report.answered("PUT /api/v1/packages", put("", package))
    digest = sent.json()["digest"]
    report.answered("PUT it again, approved", put(f"?digest={digest}", package))
    report.answered("GET /api/v1/packages", home.api.ask("GET", "/api/v1/packages"))
    report.answered("DELETE it", home.api.ask("DELETE", f"/api/v1/packages/{digest}"))
    receiving(report, home, package)


def receiving(report, home, package):
    """Reports a package of which only a part has come, and one that comes meanwhile."""
    look = lambda: home.api.get("/api/v1/status")["receiving"]
    connection = home.api.connection()
    head = f"PUT /api/v1/packages HTTP/1.1\r\nHost: appliance\r\nContent-Length: {len(package)}\r\n\r\n"
    connection.sock.sendall(head.encode())
    for step, part in [("metadata", b""), ("unpacking", package[:-1])]:
        connection.sock.sendall(part)
        found = until(f"a package is at {step}", lambda: (look() or {}).get("step") == step and look())
        report.head(f"receiving of GET /api/v1/status, {step}")
        report.value("json", {**found, "received_bytes": "<n>"})
    report.answered("PUT /api/v1/packages meanwhile", home.api.ask("PUT", "/api/v1/packages", package))
    connection.close()
    until("nothing is being received", lambda: look() is None)


class Peer:
    """A peer of the bus that says what it is told to."""

    def __init__(self, report, home, title):
        self.report = report
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(LIMIT_S)
        self.socket.connect(str(home.path / "run/bus.sock"))
        self.lines = self.socket.makefile("rb")
        report.head(f"a peer of the bus: {title}")

    def send(self, line):
        self.socket.sendall(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")

    def ask(self, method, **params):
        """Asks, answers what it is called for, and reports the answer."""
        self.send({"jsonrpc": "2.0", "id": "a", "method": method, "params": params})
        self.report.line(f"-> {method} {json.dumps(params)}")
        self.hear()

    def raw(self, line):
        self.report.line(f"-> {line.decode().strip()}")
        self.send(line)
        self.hear()

    def hear(self):
        """Reports the answer that comes next; what else comes is answered or passed over."""
        while True:
            try:
                line = self.lines.readline()
            except OSError:
                line = b""
            if not line:
                return self.report.line("<- the end")
            message = json.loads(line)
            if message.get("method") == "call":
                self.send({"jsonrpc": "2.0", "id": message["id"], "result": "heard"})
            if "method" not in message:
                message.pop("jsonrpc")
                return self.report.value("<-", message)


def bus(report, home):
    """Reports the protocol of the bus, as the operator speaks it."""
    hello = {"version": 1, "name": "watcher"}
    peer = Peer(report, home, "an operator")
    peer.ask("hello", **hello, channels=[{"channel": "news", "priority": 10, "limit_ms": 2000}])
    for method, params in [
        ("hello", hello),
        ("state", {}),
        ("dance", {}),
        ("subscribe", {"channel": "nowhere"}),
        ("subscribe", {"channel": "enter"}),
        ("subscribe", {"channel": "news", "priority": 2_000_000}),
        ("subscribe", {"channel": "news", "priority": 30}),
        ("subscribe", {}),
        ("publish", {"channel": "news", "argument": {"a": 1}}),
        ("publish", {"channel": "stop"}),
        ("publish", {"channel": "nowhere"}),
        ("unsubscribe", {"channel": "news"}),
        ("unsubscribe", {"channel": "news"}),
        ("request", {"request": "dance"}),
        ("request", {"request": "update"}),
        ("request", {"request": "rollback"}),
        ("request", {"request": "rollback", "digest": "0" * 64}),
        ("request", {"request": "start"}),
        ("request", {}),
        ("ticket", {"id": "nothing"}),
        ("wait", {}),
        ("wait", {"ticket": "nothing"}),
        ("wait", {"states": ["Running"], "limit_ms": 1000}),
        ("wait", {"states": ["Exited"], "limit_ms": 10}),
        ("wait", {"states": ["Dancing"]}),
        ("log", {"level": "info", "text": "a peer says so"}),
        ("log", {"level": "loud", "text": "a peer says so"}),
    ]:
        peer.ask(method, **params)
    peer.raw(b'{"jsonrpc":"2.0","id":"a"}\n')
    peer.raw(b"[]\n")
    taken = Peer(report, home, "a name that is taken")
    taken.ask("hello", **hello)
    peer.ask("bye")
    peer.hear()
    for title, params in [
        ("another version", {"version": 2, "name": "watcher"}),
        ("a bad name", {"version": 1, "name": "no name!"}),
        ("another's name", {"version": 1, "name": "clerk/desk"}),
        ("a wrong token", {"version": 1, "name": "watcher", "token": "wrong"}),
        ("a channel that is not there", {"version": 1, "name": "watcher", "channels": [{"channel": "nowhere"}]}),
        ("no version", {}),
    ]:
        peer = Peer(report, home, title)
        peer.ask("hello", **params)
        peer.hear()
    peer = Peer(report, home, "no hello")
    peer.ask("state")
    peer.hear()
    peer = Peer(report, home, "no JSON")
    peer.raw(b"hello\n")
    peer.hear()
    peer = Peer(report, home, "a line that is too long")
    peer.send(b" " * 140_000)
    peer.hear()
    peer = Peer(report, home, "one that is gone")
    peer.ask("hello", **hello)
    peer.socket.shutdown(socket.SHUT_RDWR)
