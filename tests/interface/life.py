"""An appliance's life: what it is asked, what it is sent, what becomes of updates, and how it ends."""

import functools
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import threading

import api
from appliances import Home, Release, free_port
from observed import Followed, given, inherited, reading, written
from program import END_S, until


def life(report, bench, directory):
    vendor = bench.vendor
    package = lambda version, **what: vendor.package(f"kiosk-{version}", Release.kiosk(version, **what))
    home = Home(bench.refit, bench.processes, report, directory / "home", ["admin", "http"])
    home.init(package("1.0.0"), vendor.root)
    home.start()
    followed = Followed(home.api)
    with open(directory / "timeline", "wb") as out:
        watch = home.processes.add(bench.refit.start(home.words(["bus", "watch"]), out=out))
    home.running("1.0.0")
    reading(home)
    for line in [
        "component logs web",
        "component logs web --json -n 1",
        "component logs nobody",
        "check",
        "check --json",
    ]:
        home.run(line.split())
    written(report, home, "a running appliance")
    given(report, home, "1.0.0")
    api.reads(report, home)
    api.wrong(report, home)
    api.page(report, home)
    api.bus(report, home)
    publications(report, home)
    watching(report, home)
    requests(report, home, followed)
    refused_packages(report, bench, home, directory)
    staged(report, home, package("1.1.0"))

    config = home.path / "config/1.0.0/kiosk.toml"
    config.write_text(config.read_text().replace("Welcome to 1.0.0.", "Ahoy.").replace('"m"', '"ft"'))
    home.run(["install", vendor.directory / "kiosk-1.1.0.refit", "--json"], events=True)
    home.running("1.1.0")
    reading(home)
    written(report, home, "an appliance after an update")
    given(report, home, "1.1.0")
    inherited(report, home)
    home.run(["rollback"])
    home.running("1.0.0")
    written(report, home, "an appliance after a rollback")
    for words in [
        "install 1.1.0 --stage-only",
        f"install 1.1.0 --digest {'1' * 64}",
        "install 1.1.0 --json",
        "rollback --json",
    ]:
        home.run(words.split(), events="--json" in words)
        home.running()
    failing(report, bench, home, package)
    repository(report, bench, home, directory)
    damaged(report, home, package("1.6.0"))
    ending(report, bench, home, followed, directory)
    watch.kill()
    watch.wait()
    report.head("refit bus watch, all the time")
    # What a component is, and how far an update is, is told as often as somebody looks.
    lines = [
        line for line in (directory / "timeline").read_text().splitlines() if not re.search("  component  | % ", line)
    ]
    report.each_once("out", "\n".join(lines))


def publications(report, home):
    """Reports what is said on the bus, and what a component may ask."""
    told = ['{"do": "fail"}', '"good morning"']
    for words in [
        ["news"],
        *(["news", argument] for argument in told),
        ["news", told[0], "--json"],
        ["news", told[1], "--json"],
        ["silent"],
        ["silent", "--json"],
        ["nowhere", "--json"],
        ["stop"],
    ]:
        home.run(["bus", "publish", *words])
    post = lambda path, body, token: {"do": "post", "path": f"/api/v1/{path}", "body": body, "token": token}
    for argument in [
        {"do": "request", "request": "exit"},
        {"do": "request", "request": "dance"},
        {"do": "publish", "channel": "silent"},
        {"do": "publish", "channel": "stop"},
        {"do": "wait"},
        {"do": "tokenless"},
        post("bus/requests", {"request": "exit"}, True),
        post("bus/requests", {"request": "exit"}, False),
        post("bus/requests", {"request": "exit"}, "another's"),
        post("rollback", {}, True),
        post("updates", {"version": "1.0.0"}, True),
        post("components/web/stop", {}, True),
    ]:
        home.run(["bus", "publish", "news", json.dumps(argument), "--json"])


def watching(report, home):
    """Reports what `refit bus watch` and `refit component logs --follow` show."""
    fail = json.dumps({"do": "fail"})
    for words, line in [
        (["bus", "watch"], "as it was told"),
        (["bus", "watch", "--json"], "as it was told"),
        (["component", "logs", "web", "-f"], "is up"),
        (["component", "logs", "web", "-f", "--json"], "is up"),
    ]:
        path = home.path.with_name("watched")
        with open(path, "wb") as out:
            child = home.processes.add(home.refit.start(home.words(words), out=out))

        def seen():
            home.refit.run(home.words(["bus", "publish", "news", fail]))
            return line in path.read_text()

        until(f"{' '.join(words)} shows it", seen)
        child.send_signal(signal.SIGINT)
        status = child.wait(END_S)
        report.head(" ".join(["refit", *words]))
        report.line(f"status {status}")
        text = path.read_text()
        if "--json" in words:
            report.shape("out", [json.loads(one) for one in text.splitlines()])
        else:
            report.each_once("out", text)


def requests(report, home, followed):
    """Reports what the bus is asked for, and the site while it is stopped."""
    for line in ["stop web", "start web", "restart web --json", "stop nobody", "stop nobody --json"]:
        home.run(["component", *line.split()])
        if line == "stop web":
            home.run(["component", "list"])
    home.running()
    for line in ["reload", "reload --json", "start --json", "start"]:
        home.run(["bus", "request", *line.split()])
    ticket = home.run(["bus", "request", "reload", "--no-wait"]).out.strip()
    api.outcome(home, ticket)
    home.guard.send_signal(signal.SIGHUP)
    asked = followed.wait("SIGHUP is a request", lambda event: event["data"].get("origin") == "signal HUP")
    followed.wait("it is done", lambda event: event["event"] == "bus.reload" and event["id"] > asked["id"])
    local = home.path / "local.toml"
    text = local.read_text()
    local.write_text(text.replace('"300ms"', '"long"'))
    home.run(["bus", "request", "reload"])
    home.run(["bus", "request", "restart", "--json"])
    local.write_text(text.replace('"300ms"', '"400ms"'))
    home.run(["bus", "request", "reload"])
    local.write_text(text)
    home.run(["bus", "inhibit", "--", "sh", "-c", "exit 75"])
    home.run(["bus", "inhibit", "--", "sh", "-c", "exit 3"])
    home.run(["bus", "inhibit", "--", "/nowhere"])
    home.run(["bus", "request", "stop", "--json"])
    for line in ["status", "component list", "bus state", "rollback", "bus request stop", "install 1.0.0"]:
        home.run(line.split())
    report.answered("GET /healthz of a stopped site", home.api.ask("GET", "/healthz"))
    report.answered(
        "POST a publication to a stopped site", home.api.ask("POST", "/api/v1/bus/publications", {"channel": "news"})
    )
    home.run(["bus", "request", "start"])
    home.running()
    home.run(["bus", "request", "restart", "--json"])
    home.running()


class Served:
    """A web server for the files of a directory."""

    def __init__(self, report, directory):
        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self):
                if self.path.startswith("/broken"):
                    return self.send_error(500)
                if self.path.startswith("/moved"):
                    self.send_response(301)
                    self.send_header("Location", "ftp://elsewhere/")
                    return self.end_headers()
                super().do_GET()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, directory=str(directory))
        )
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        report.replace(self.url, "http://$WEB")
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def refused_packages(report, bench, home, directory):
    """Reports packages that are refused by a running appliance."""
    vendor = bench.vendor
    newer = vendor.package("bare-1.1.0", Release.bare("1.1.0"))
    whole = newer.read_bytes()
    letter, half, long = directory / "letter.txt", directory / "half.refit", directory / "long.refit"
    letter.write_text("Dear customer, this is not a package.\n" * 100)
    half.write_bytes(whole[: len(whole) // 2])
    long.write_bytes(whole + bytes(512))
    requires = Release.bare("1.1.0")
    requires.files["appliance.toml"] = requires.files["appliance.toml"].replace(
        "[listeners]", 'requires = "1.0.5"\n[listeners]'
    )
    other = "aarch64" if os.uname().machine == "x86_64" else "x86_64"
    nobody = f"http://127.0.0.1:{free_port()}"
    report.replace(nobody, "http://$NOBODY")
    served = Served(report, directory)
    for words in [
        [letter],
        [letter, "--json"],
        [half],
        [long],
        [vendor.package("lighthouse", Release.bare("1.1.0", name="lighthouse"))],
        [vendor.package("a-stranger", Release.bare("1.1.0"), keys="stranger")],
        [vendor.package("older", Release.bare("0.9.0"))],
        [vendor.package("same", Release.bare("1.0.0"))],
        [vendor.package("requires", requires)],
        [vendor.package("elsewhere-1.1.0", Release.bare("1.1.0"), options=["--arch", other])],
        [newer, "--digest", "1" * 64],
        [directory],
        ["nowhere.refit", "--json"],
        ["nowhere.refit"],
        ["1.0.0"],
        ["9.9.9"],
        ["9.9.9", "--json"],
        ["1" * 64],
        ["1" * 64, "--stage-only"],
        [f"{nobody}/a.refit"],
        [f"{served.url}/nowhere.refit"],
        [f"{served.url}/letter.txt", "--json"],
    ]:
        home.run(["install", *words], cwd=directory)
    home.run(["rollback"])
    home.run(["rollback", "7.0.0", "--json"])
    home.run(["install", "-"], stdin=b"not a package")
    served.close()
    home.run(["run", "--with-parent"])
    api.packages(report, home, letter.read_bytes(), newer.read_bytes())
    home.running("1.0.0")


def staged(report, home, package):
    """Reports a package that is received and waits."""
    home.run(["install", package, "--stage-only"])
    home.run(["install", package, "--stage-only", "--json"])
    for line in ["status", "releases", "releases --json"]:
        home.run(line.split())
    report.answered("GET /api/v1/packages", home.api.ask("GET", "/api/v1/packages"))
    digest = home.look()["staged"][0]["digest"]
    report.answered("DELETE /api/v1/packages/DIGEST", home.api.ask("DELETE", f"/api/v1/packages/{digest}"))
    report.answered("DELETE it again", home.api.ask("DELETE", f"/api/v1/packages/{digest}"))


def failing(report, bench, home, package):
    """Reports updates that fail, each in its own step."""
    with socket.socket() as somebody:
        somebody.bind(("127.0.0.1", 0))
        somebody.listen()
        address = f"127.0.0.1:{somebody.getsockname()[1]}"
        report.replace(address, "$SOMEBODY")
        program = '\n[[component]]\nname = "none"\ncommand = ["no-such-program"]\n'
        busy = Release.kiosk("1.4.0")
        busy.files["appliance.toml"] = busy.files["appliance.toml"].replace("[bus]", f'extra = "{address}"\n\n[bus]')
        for release in [
            package("1.2.0", argument="--fail"),
            package("1.2.1", argument="--ill"),
            package("1.3.0", more=program),
            bench.vendor.package("kiosk-1.4.0", busy),
            bench.vendor.package("bare-1.5.0", Release.bare("1.5.0")),
        ]:
            home.run(["install", release, "--json"], events=True)
            home.running("1.0.0")
    for line in ["history", "history --json", "releases", "releases --json", "verify"]:
        home.run(line.split())
    # The number of the release that runs, and other content.
    other = bench.vendor.package("other-1.0.0", Release.kiosk("1.0.0", files={"lib/more.py": ""}))
    home.run(["install", other, "--allow-downgrade"])
    home.running("1.0.0")
    failed = bench.vendor.directory / "kiosk-1.2.0.refit"
    home.run(["install", failed, "--stage-only"])
    home.run(["install", "1.2.0"])
    home.running("1.0.0")


def repository(report, bench, home, directory):
    """Reports an appliance with a repository, and with one that does not answer."""
    keys, repo = bench.vendor.keys, directory / "repo"
    bench.refit.good(["repo", "init", repo, "--keys", keys])
    bench.refit.good(["repo", "init", directory / "failed", "--keys", keys])
    bench.refit.good(
        ["repo", "add", directory / "failed", bench.vendor.directory / "kiosk-1.2.0.refit", "--keys", keys]
    )
    for version in ["1.0.0", "1.6.0"]:
        Release.kiosk(version).write(directory / version)
        bench.refit.good(["pack", directory / version, "--repo", repo, "--keys", keys, "--level", "1"])
    (directory / "nothing").mkdir()
    served = Served(report, directory)
    nobody = f"http://127.0.0.1:{free_port()}"
    report.replace(nobody, "http://$NOTHING")
    places = [nobody, *(f"{served.url}/{path}" for path in ["nothing", "broken", "moved", "failed", "repo"])]
    for address in [*places, directory / "nothing", repo]:
        home.settings(update=f'repository = "{address}"\nreceive_timeout = "20s"')
        home.refit.good(home.words(["bus", "request", "restart"]))
        home.running()
        for line in ["check", "check --json", "install 9.9.9"]:
            home.run(line.split())
        report.answered("GET /api/v1/repository", home.api.ask("GET", "/api/v1/repository"), body="shape")
    report.answered("POST /api/v1/packages 9.9.9", home.api.ask("POST", "/api/v1/packages", {"version": "9.9.9"}))
    wrong = {"version": "1.6.0", "digest": "1" * 64}
    report.answered("POST /api/v1/packages 1.6.0, another approved", home.api.ask("POST", "/api/v1/packages", wrong))
    home.run(["install", "1.6.0", "--stage-only"])
    home.run(["install", "1.6.0", "--json"], events=True)
    home.running("1.6.0")
    for line in ["check", "check --json", "trust show", "trust show --json", "status"]:
        home.run(line.split())
    served.close()


def damaged(report, home, mending):
    """Reports a kept release that is damaged, and one that its package mends."""
    for version in ["1.0.0", "1.6.0"]:
        file = home.path / f"releases/{version}/config/notes.txt"
        file.chmod(0o644)
        file.write_text(file.read_text().upper())
        file.chmod(0o444)
    for line in ["rollback 1.0.0", "verify 1.0.0 --json", "verify --json", "history"]:
        home.run(line.split())
        home.running("1.6.0")
    home.run(["install", "1.6.0"])
    home.run(["install", mending, "--allow-downgrade"])
    home.running("1.6.0")
    home.run(["verify"])


def ending(report, bench, home, followed, directory):
    """Reports accounts that may not come in, the end of an appliance, and all that it has said meanwhile."""
    api.logins(report, home)
    if os.geteuid() == 0:
        nobody = {"user": 65534, "group": 65534, "extra_groups": []}
        words = [bench.refit.path, *home.words(["status"])]
        stranger = subprocess.run(words, cwd="/", env=bench.refit.environment, capture_output=True, text=True, **nobody)
        report.head("refit status, as another account")
        report.line(f"status {stranger.returncode}")
        report.text("err", stranger.stderr)
    killed = home.component("web")["pid"]
    os.kill(killed, signal.SIGKILL)
    until("web is started again", lambda: home.component("web")["pid"] not in (killed, None))
    home.running()
    killed = home.look()["runtime"]["pid"]
    os.kill(killed, signal.SIGKILL)
    until("another runtime runs", lambda: (home.look() or {}).get("runtime", {}).get("pid") not in (killed, None))
    home.running()
    home.run(["status", "--json"])
    with open(directory / "logs", "wb") as out, open(directory / "logs-err", "wb") as err:
        logs = home.processes.add(bench.refit.start(home.words(["component", "logs", "web", "-f"]), out=out, err=err))
    until("the logs are followed", lambda: (directory / "logs").stat().st_size)
    home.run(["bus", "request", "exit", "--json"])
    report.line(f"guard ended with {home.guard.wait(END_S)}")
    report.line(f"refit component logs web -f ended with {logs.wait(END_S)}")
    report.text("err", (directory / "logs-err").read_text())
    home.run(["status"])
    written(report, home, "an appliance that has ended")
    followed.report(report)
    report.head("the log")
    report.each_once("log", home.log_path.read_text())
