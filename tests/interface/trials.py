"""A release that is on trial for long, and an appliance whose runtime or guard is killed."""

import fcntl
import glob
import json
import os
import signal
import subprocess

from appliances import Home, Release
from observed import Followed
from program import END_S, Ran, until


def trial(report, bench, directory):
    """Reports a release that is on trial for long, whom it keeps busy, and what ends it."""
    vendor = bench.vendor
    package = lambda version: vendor.package(f"trial-{version}", Release.kiosk(version))
    home = Home(bench.refit, bench.processes, report, directory / "home", ["admin", "http"])
    home.init(package("1.0.0"), vendor.root)
    (home.path / "watched").write_text("one\n")
    home.settings(more='[runtime]\nwatch = ["watched"]\nsettle = "100ms"\n', probation="10m")
    home.start()
    followed = Followed(home.api)
    home.running("1.0.0")
    next_one = package("1.1.0")
    with open(directory / "out", "wb") as out, open(directory / "err", "wb") as err:
        words = home.words(["install", next_one])
        install = home.processes.add(bench.refit.start(words, out=out, err=err))

    def on_trial():
        status = home.look()
        return (
            status
            and status["update"]
            and status["update"]["progress"] > 0
            and status["update"]["phase"] == "probation"
        )

    until("the release is on trial", on_trial)
    for line in ["releases", "releases --json", "history", "rollback", "rollback --json", "install 1.0.0"]:
        home.run(line.split())
    home.run(["install", package("1.2.0")])
    report.answered("GET /api/v1/status on trial", home.api.ask("GET", "/api/v1/status"), body="shape")
    report.answered("POST /api/v1/rollback on trial", home.api.ask("POST", "/api/v1/rollback"))
    report.head("state.json on trial")
    report.value("json", json.loads((home.path / "state.json").read_text()))
    home.run(["component", "stop", "idle"])
    until("the trial waits", lambda: home.look()["update"]["step"].startswith("waiting"))
    home.run(["status"])
    home.run(["component", "start", "idle"])
    runtime = home.look()["runtime"]["pid"]
    os.kill(runtime, signal.SIGKILL)
    until("another runtime runs", lambda: (home.look() or {}).get("runtime", {}).get("pid") not in (runtime, None))
    home.running("1.0.0")
    status = install.wait(END_S)
    report.ran(words, Ran(status, (directory / "out").read_text(), (directory / "err").read_text()))
    for line in ["history", "history --json", "releases --json"]:
        home.run(line.split())
    inhibited(report, bench, home)
    abandoned(report, home)
    report.line(f"guard ended with {home.stop()}")
    followed.report(report)
    report.head("the log")
    report.each_once("log", home.log_path.read_text())


def inhibited(report, bench, home):
    """Reports a watched file that changes while a command keeps the appliance from restarting."""
    generation = home.look()["runtime"]["generation"]
    words = home.words(["bus", "inhibit", "--", "cat"])
    command = home.processes.add(bench.refit.start(words, stdin=subprocess.PIPE))
    until("the inhibitor is held", lambda: is_locked(home.path / "run/inhibit"))
    (home.path / "watched").write_text("two\n")
    until("the restart waits", lambda: "the restart waits" in home.log_path.read_text())
    command.communicate()
    report.head("refit bus inhibit -- cat")
    report.line(f"status {command.returncode}")
    until(
        "the runtime is another image", lambda: (home.look() or {}).get("runtime", {}).get("generation", 0) > generation
    )
    home.running(components=False)


def abandoned(report, home):
    """Reports what becomes of an appliance whose guard was killed, and what the next one finds."""
    home.guard.kill()
    home.guard.wait()
    until("the runtime has ended, too", lambda: not home.look())
    until("nobody holds the home", lambda: not processes_of(home.path))
    home.start()


def is_locked(path):
    """Returns whether somebody holds the lock of the file at `path`."""
    if not path.exists():
        return False
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True


def processes_of(home):
    """Returns the processes that were started with this home on their command line."""
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as file:
                found += [path] if str(home).encode() in file.read().split(b"\0") else []
        except OSError:
            pass  # it has ended
    return found
