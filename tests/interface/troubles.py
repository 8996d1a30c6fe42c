"""Components that end, hang, are ill, are limited, or say what they should not."""

import re

from appliances import Home, Release
from observed import Followed
from program import until

# What fails waits for a file of its own: faults are those of a site that runs, and come in one order.
GO = "until test -e $REFIT_DATA/go-$REFIT_COMPONENT; do sleep 0.02; done"
GO_ORDER = {"frail": "failed", "loose": "failed", "done": "stopped", "mute": "failed", "mended": "failed"}
TROUBLED = f"""
[[component]]
name = "frail"
command = ["sh", "-c", "{GO}; echo no disk >&2; exit 3"]
ready = "started"
restart = {{ policy = "on-failure", backoff = "10ms..20ms", limit = "2/1m" }}

[[component]]
name = "loose"
command = ["sh", "-c", "{GO}; sleep 600 & sleep 0.3"]
ready = "started"
restart = {{ policy = "no" }}

[[component]]
name = "done"
command = ["sh", "-c", "{GO}"]
ready = "started"
restart = {{ policy = "no" }}

[[component]]
name = "mute"
command = ["python3", "lib/mute.py"]
ready = "notify"
restart = {{ policy = "no" }}

[[component]]
name = "mended"
command = ["sleep", "600"]
ready = "started"
start_timeout = "1s"
health = {{ command = ["sh", "-c", "! ls $REFIT_DATA/go-mended"], action = "restart", interval = "50ms" }}
restart = {{ policy = "on-failure", backoff = "10ms..20ms", limit = "1/1m" }}

[[component]]
name = "mouth"
command = ["python3", "lib/mouth.py"]
ready = "notify"
reload_signal = "USR1"
restart = {{ policy = "no" }}

[[component]]
name = "deaf"
command = ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]
ready = "started"
stop_timeout = "200ms"

[[component]]
name = "sick"
command = ["sleep", "600"]
ready = "started"
health = {{ command = ["sh", "-c", "echo feverish >&2; exit 1"], interval = "50ms", timeout = "20s", threshold = 2 }}

[[component]]
name = "slow"
command = ["sleep", "600"]
ready = "started"
health = {{ command = ["sleep", "600"], interval = "50ms", timeout = "100ms", threshold = 2 }}

[[component]]
name = "closed"
command = ["sleep", "600"]
ready = "started"
health = {{ tcp = "127.0.0.1:1", interval = "50ms", timeout = "20s", threshold = 2 }}

[[component]]
name = "refused"
command = ["sleep", "600"]
ready = "started"
health = {{ http = "http://127.0.0.1:1/", interval = "50ms", timeout = "20s", threshold = 2 }}

[[component]]
name = "bound"
command = ["sleep", "600"]
ready = "started"
limits = {{ memory = "256MiB", cpu = "50%", files = 64, processes = 32 }}
umask = "0027"
no_new_privs = true
"""
NOTIFY = """
import os, signal, socket, time

address = os.environ["NOTIFY_SOCKET"]
supervisor = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
supervisor.connect("\\0" + address[1:] if address.startswith("@") else address)
"""
# It has to give signs of life from some time on, and does not.
MUTE = f"""{NOTIFY}
supervisor.send(b"READY=1")
while not os.path.exists(os.path.join(os.environ["REFIT_DATA"], "go-mute")):
    time.sleep(0.02)
supervisor.send(b"WATCHDOG_USEC=300000")
signal.pause()
"""
# It says what it should not, is ready, and says that it hangs when it is told to reload.
MOUTH = f"""{NOTIFY}
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGUSR1}})
for said in ["MAINPID=1", "FDSTORE=1", "no key", "x" * 5000, "EXTEND_TIMEOUT_USEC=x", "EXTEND_TIMEOUT_USEC=9999999999"]:
    supervisor.send(said.encode())
supervisor.send(b"WATCHDOG_USEC=soon")
supervisor.send(b"STATUS=speaking\\nREADY=1")
print("x" * 5000, flush=True)
signal.sigwait({{signal.SIGUSR1}})
supervisor.send(b"RELOADING=1\\nSTATUS=no more\\nERRNO=28\\nWATCHDOG=trigger")
signal.pause()
"""


def troubles(report, bench, directory):
    """Reports components that end, hang, are ill, or are limited."""
    report.replace("x" * 4096, "<4096 x>")
    report.replace("x" * 904, "<904 x>")
    home = Home(bench.refit, bench.processes, report, directory / "home")
    release = Release("1.0.0", TROUBLED, files={"lib/mouth.py": MOUTH, "lib/mute.py": MUTE})
    home.init(bench.vendor.package("troubled", release), bench.vendor.root)
    home.start(components=False)
    followed = Followed(home.api)
    for name, state in GO_ORDER.items():
        (home.path / f"data/go-{name}").touch()
        until(f"{name} is {state}", lambda: home.component(name)["state"] == state)
    for name in ["sick", "slow", "closed", "refused"]:
        until(f"{name} is unhealthy", lambda: home.component(name)["health"] == "unhealthy")
    until("mouth speaks", lambda: home.component("mouth")["status"] == "speaking")
    for line in ["component list", "component list --json", "component stop deaf", "component list --json"]:
        home.run(line.split())
    for name in ["frail", "mute", "mouth"]:
        home.run(["component", "logs", name])
        home.run(["component", "logs", name, "--json"])
    report.answered("GET /metrics", home.api.ask("GET", "/metrics"))
    home.run(["bus", "request", "reload", "--json"])
    until("mouth has ended", lambda: home.component("mouth")["state"] == "failed")
    home.run(["component", "list"])
    dates(report, bench, home)
    report.line(f"guard ended with {home.stop()}")
    followed.report(report)
    report.head("the log")
    # A health command may run in the moment in which its component ends.
    lines = home.log_path.read_text().splitlines()
    ends = re.compile('what it had started was ended.*"(sick|slow)"')
    report.each_once("log", "\n".join(line for line in lines if not ends.search(line)))


def dates(report, bench, home):
    """Reports packages that are past their date, or before it."""
    for label, seconds in [("past", "1000000000"), ("future", "4102444800")]:
        package = bench.vendor.package(label, Release.bare("1.1.0"), env={"SOURCE_DATE_EPOCH": seconds})
        home.run(["install", package, "--stage-only"])
    for line in ["status", "trust show", "trust show --json"]:
        home.run(line.split())
