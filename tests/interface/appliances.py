"""A vendor with its packages, and homes that run them."""

import os
import pathlib
import random
import signal
import socket
import subprocess
import stat

from program import END_S, Api, Failed, until

ROOT = pathlib.Path(__file__).resolve().parents[2]
PORTS = (20_000, 32_000)  # below those that the kernel gives to clients

# It serves one line, takes its socket instead of binding one, and writes down what it was given.
WEB = """
import os, select, signal, socket, sys, threading

version, data = os.environ["REFIT_VERSION"], os.environ["REFIT_DATA"]
if "--fail" in sys.argv:
    print("no index for schema 2", flush=True)
    sys.exit(3)
status = b"503 Unavailable" if "--ill" in sys.argv else b"200 OK"
with open("/proc/self/status") as file:
    signals = [line.strip() for line in file if line.startswith(("SigBlk", "SigIgn"))]
umask = os.umask(0)
os.umask(umask)
with open(os.path.join(data, "given"), "w") as given:
    print("variables:", *sorted(os.environ), file=given)
    print("listeners:", os.environ["LISTEN_FDNAMES"], os.environ["LISTEN_FDS"], file=given)
    print("for me:", os.environ["LISTEN_PID"] == str(os.getpid()), file=given)
    print("descriptors:", sorted(int(fd) for fd in os.listdir("/proc/self/fd") if int(fd) < 4), file=given)
    print("session and group of its own:", os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid(), file=given)
    print("working directory:", os.getcwd(), "umask:", oct(umask), *signals, file=given)
    for name in ["BUS", "COMPONENT", "CONFIG", "DATA", "HOME", "RELEASE", "SOCKET"]:
        name = f"REFIT_{name}"
        print(name, os.environ[name], file=given)
os.replace(os.path.join(data, "given"), os.path.join(data, f"given-{version}"))

wake, woken = os.pipe()
os.set_blocking(woken, False)
signal.signal(signal.SIGTERM, lambda *_: None)
signal.set_wakeup_fd(woken)
listener = socket.socket(fileno=3)
listener.setblocking(False)

def notify(text):
    address = os.environ["NOTIFY_SOCKET"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.sendto(text.encode(), "\\0" + address[1:] if address.startswith("@") else address)

def answer(connection):
    with connection:
        connection.settimeout(10)
        try:
            connection.recv(65536)
            head = b"HTTP/1.1 " + status + b"\\r\\nContent-Length: 3\\r\\nConnection: close\\r\\n\\r\\n"
            connection.sendall(head + b"ok\\n")
        except OSError:
            pass

print(f"web {version} is up", flush=True)
notify(f"READY=1\\nSTATUS=serving {version}")
while True:
    if wake in select.select([listener, wake], [], [])[0]:
        break
    try:
        connection, _ = listener.accept()
    except BlockingIOError:
        continue
    threading.Thread(target=answer, args=[connection]).start()
notify("STOPPING=1")
print("<4>the lamp goes out", file=sys.stderr, flush=True)
"""

# It listens on the bus, and does there what the argument of a publication says.
CLERK = """
import http.client, json, os, socket, sys

from refit_bus import Bus, BusError

def refused(act, *words, **params):
    try:
        return act(*words, **params)
    except BusError as error:
        return {"refused": str(error), "code": error.code}

def post(path, body, token):
    connection = http.client.HTTPConnection("appliance")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(os.environ["REFIT_SOCKET"])
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = "Bearer " + (os.environ["REFIT_TOKEN"] if token is True else token)
    connection.request("POST", path, json.dumps(body), headers)
    answer = connection.getresponse()
    return {"status": answer.status, "body": json.loads(answer.read())}

def tokenless(name):
    token = os.environ.pop("REFIT_TOKEN")
    try:
        return refused(Bus(name).connect)
    finally:
        os.environ["REFIT_TOKEN"] = token

def called(call):
    argument = call["argument"] if isinstance(call["argument"], dict) else {}
    match argument.get("do"):
        case "fail":
            raise ValueError("as it was told")
        case "request":
            return refused(bus.ask, "request", request=argument["request"])
        case "publish":
            return refused(bus.ask, "publish", channel=argument["channel"])
        case "wait":
            return refused(bus.ask, "wait", states=["Idle"], limit_ms=10)
        case "post":
            return post(argument["path"], argument["body"], argument.get("token"))
        case "tokenless":
            return tokenless("other")
    call.pop("publication")
    return call

bus = Bus("desk")
for channel in ["news", "reload", "stop", "exit"]:
    bus.on(channel, called, priority=20)
bus.connect()
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
    address = os.environ["NOTIFY_SOCKET"]
    supervisor.sendto(b"READY=1", "\\0" + address[1:] if address.startswith("@") else address)
bus.ask("log", level="info", text="the clerk is at the desk")
bus.serve()
"""

HEAD = """[appliance]
name = "{name}"
version = "{version}"

[listeners]
admin = "127.0.0.1:0"
{listeners}
[bus]
channels = ["news", "silent"]
"""
KIOSK = """
[[component]]
name = "clerk"
command = ["python3", "lib/clerk.py"]
ready = "notify"
env = {{ PYTHONDONTWRITEBYTECODE = "1" }}
allow = ["reload"]
limits = {{ files = 256 }}
files = ["lib/clerk.py", "lib/refit_bus.py"]

[[component]]
name = "web"
command = ["python3", "lib/web.py"{argument}]
listeners = ["http"]
needs = ["clerk"]
ready = "notify"
handover = "overlap"
restart = {{ policy = "on-failure", backoff = "50ms..100ms", limit = "5/1m" }}
stop_timeout = "20s"

[[component]]
name = "idle"
command = ["sleep", "600"]
ready = "started"
handover = "keep"
"""


class Release:
    """A release as a vendor writes it: its files, by path."""

    def __init__(self, version, components="", name="kiosk", listeners="", files={}):
        self.version, self.name = version, name
        self.files = {
            "appliance.toml": HEAD.format(name=name, version=version, listeners=listeners) + components,
            **files,
        }

    @staticmethod
    def bare(version, **what):
        """Returns a release without components."""
        files = {
            "share/one.txt": f"one of {version}\n",
            "lib/data.txt": f"data of {version}\n",
            **what.pop("files", {}),
        }
        return Release(version, files=files, **what)

    @staticmethod
    def kiosk(version, argument="", more="", files={}):
        """Returns a release with a web server, a component on the bus, and one that does nothing."""
        components = KIOSK.format(argument=f', "{argument}"' if argument else "") + more
        files = {
            "lib/web.py": f"# {version}\n{WEB}",
            "lib/clerk.py": CLERK,
            "lib/refit_bus.py": (ROOT / "fixtures/peers/refit_bus.py").read_text(),
            "config/kiosk.toml": f'# Its first words.\ngreeting = "Welcome to {version}."\n\n# Kept.\nunit = "m"\n',
            "config/notes.txt": f"notes of {version}\n",
            **files,
        }
        return Release(version, components, listeners='http = "127.0.0.1:0"\n', files=files)

    def write(self, directory):
        for path, text in self.files.items():
            file = pathlib.Path(directory, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return directory


class Vendor:
    """Keys, and packages that are made with them."""

    def __init__(self, refit, directory):
        self.refit, self.directory = refit, pathlib.Path(directory)
        self.keys, self.root = self.directory / "keys", self.directory / "keys/1.root.json"
        self.directory.mkdir()
        refit.good(["keys", "init", self.keys])
        refit.good(["keys", "init", self.directory / "stranger"])

    def package(self, label, release, keys="keys", options=[], env={}):
        """Packs a release; returns the package."""
        tree, out = self.directory / f"tree-{label}", self.directory / f"{label}.refit"
        release.write(tree)
        self.refit.good(["pack", tree, "-o", out, "--keys", self.directory / keys, "--level", "1", *options], env=env)
        return out


def with_home(words, home):
    """Returns a command line with this home; what follows `--` belongs to another program."""
    end = words.index("--") if "--" in words else len(words)
    return [*words[:end], "--home", home, *words[end:]]


def free_port():
    while True:
        port = random.randrange(*PORTS)
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind(("127.0.0.1", port))
                return port
            except OSError:
                pass


class Home:
    """A home, and the guard that runs it."""

    def __init__(self, refit, processes, report, path, listeners=("admin",)):
        self.refit, self.processes, self.report, self.path = refit, processes, report, pathlib.Path(path)
        self.guard, self.log_path = None, self.path.with_name(self.path.name + ".log")
        self.addresses = {name: f"127.0.0.1:{free_port()}" for name in listeners}
        for name, address in self.addresses.items():
            report.replace(address, f"${name.upper()}")
        self.api = Api(str(self.path / "run/refit.sock"))
        self.admin = Api(self.addresses["admin"])
        self.password = None

    def words(self, words):
        return with_home(words, self.path)

    def init(self, package, root):
        self.password = self.refit.good(self.words(["init", package, "--root", root, "--json"])).objects()[0][
            "password"
        ]
        self.report.replace(self.password, "<password>")
        self.settings()

    def settings(self, update="", more="", probation="300ms"):
        """Writes what is of this machine alone."""
        text = f'[update]\nprobation = "{probation}"\nstart_timeout = "60s"\n{update}\n[listeners]\n'
        text += "".join(f'{name} = "{address}"\n' for name, address in self.addresses.items())
        if "http" in self.addresses:
            text += f'\n[[component]]\nname = "web"\nhealth = {{ http = "http://{self.addresses["http"]}/", '
            text += 'interval = "50ms", timeout = "20s", threshold = 3 }\n'
        (self.path / "local.toml").write_text(text + more)

    def start(self, components=True):
        with open(self.log_path, "ab") as log:
            words = self.words(["run", "--with-parent"])
            self.guard = self.processes.add(self.refit.start(words, out=subprocess.DEVNULL, err=log))
        self.running(components=components)

    def look(self):
        return self.api.get("/api/v1/status")

    def running(self, version=None, components=True):
        """Waits until the appliance runs, has no update under way, and its components are well; returns the status."""

        def look():
            if self.guard.poll() is not None:
                raise Failed(f"the guard ended with {self.guard.returncode}: {self.log_path.read_text()}")
            status = self.look()
            if (
                not status
                or status["bus"]["state"] != "Running"
                or status["update"]
                or status["release"]["state"] != "good"
            ):
                return None
            if version and status["release"]["version"] != version:
                return None
            views = status["components"] if components else []
            well = all(view["state"] == "running" and view["health"] in ("none", "healthy") for view in views)
            return status if well and all(view["peers"] for view in views if view["name"] == "clerk") else None

        return until(f"the appliance runs{f' release {version}' if version else ''}", look)

    def component(self, name):
        return next(view for view in self.look()["components"] if view["name"] == name)

    def run(self, words, events=False, **how):
        """Runs a command on this home and reports it."""
        return self.report.ran(words, self.refit.run(self.words(words), **how), events)

    def stop(self):
        """Asks the guard to end; returns its status."""
        self.guard.send_signal(signal.SIGTERM)
        return self.guard.wait(END_S)


def tree(report, path, label="file", deep=()):
    """Reports every file below `path` with its mode; of the directories in `deep` only that they are there."""
    for directory, names, files in os.walk(path):
        names.sort()
        for name in sorted(names + files):
            entry = os.path.join(directory, name)
            mode = os.lstat(entry).st_mode
            below = os.path.relpath(entry, path)
            to = f" -> {os.readlink(entry)}" if stat.S_ISLNK(mode) else ""
            report.line(f"{label} {stat.filemode(mode)} {below}{to}")
        names[:] = [name for name in names if os.path.relpath(os.path.join(directory, name), path) not in deep]
