"""A home that does not run: making one, reading it, and every way in which it cannot be used."""

import json
import os
import shutil
import signal
import socket
import tempfile

from appliances import Release, tree, with_home
from program import END_S, Api, Ran, until

# Every mistake that a configuration can have, several in a file: all are named at once.
MISTAKES = {
    "not-toml": 'not toml at all\n[appliance\nname = "kiosk"\n',
    "empty": "",
    "unknown-keys": """
colour = "red"
[appliance]
name = "kiosk"
version = "1.0.0"
speed = 3
[runtime]
threads = 2
[update]
keep = "many"
[[component]]
name = "web"
command = "bin/web"
stop_timeout = 5
limits = { speed = 3 }
""",
    "names": """
[appliance]
name = "Not A Name"
version = "one"
requires = "two"
[listeners]
"no name" = "127.0.0.1:8080"
http = "nowhere"
one = "127.0.0.1:8081"
two = "127.0.0.1:8081"
[bus]
channels = ["Bad", "stop", "component.up", "good"]
""",
    "values": """
[appliance]
name = "kiosk"
version = "1.0.0"
[runtime]
binary = "../refit"
settle = "soon"
[listeners]
admin = "0.0.0.0:8080"
http = "127.0.0.1:8080"
[update]
probation = "long"
start_timeout = "9999999h"
keep = 0
watchdog = "10ms"
drain_grace = "-1s"
receive_timeout = "0s"
expired_offline = "shrug"
repository = "ftp://nowhere"
[log]
file_bytes = "1KiB"
files = 0
total_bytes = "none"
""",
    "program": """
[appliance]
name = "kiosk"
version = "1.0.0"
[runtime]
binary = "bin/refit"
[[component]]
name = "web"
command = ["bin/web"]
[[component]]
name = "plain"
command = ["share/one.txt"]
[log]
total_bytes = "100KiB"
""",
    "components": r"""
[appliance]
name = "kiosk"
version = "1.0.0"
[[component]]
command = ["true"]
[[component]]
name = "none"
[[component]]
name = "web"
command = []
listeners = ["https"]
needs = ["web", "db"]
after = ["later"]
handover = "throw"
ready = "perhaps"
allow = ["dance"]
reload_signal = "KILL"
watchdog = "1ms"
umask = "9"
working_directory = "../.."
env = { REFIT_TOKEN = "x", "A=B" = "x" }
limits = { memory = "12KiB", cpu = "fast", files = 3, processes = 0 }
health = { http = "https://127.0.0.1/", interval = "1ms", threshold = 0, action = "pray" }
restart = { policy = "perhaps", backoff = "2s..1s", limit = "often" }
[[component]]
name = "web"
command = ["true"]
[[component]]
name = "zero"
command = ["a\u0000b"]
health = { tcp = "nowhere" }
restart = { backoff = "1s" }
[[component]]
name = "later"
command = ["true"]
after = ["web"]
health = { interval = "1s" }
[[component]]
name = "probe"
command = ["true"]
health = { command = [] }
limits = { memory = "12 parsecs" }
""",
}
GOOD = '[appliance]\nname = "kiosk"\nversion = "1.0.0"\n[[component]]\nname = "web"\ncommand = ["true"]\n'
LOCAL = """
[log]
files = 0
[[component]]
name = "web"
listeners = ["htp"]
command = ["no-such-program"]
[[component]]
name = "nobody"
"""

ONLINE = [
    "status",
    "releases --json",
    "history",
    "check",
    "install 1.1.0",
    "install {package}",
    "rollback --json",
    "component list",
    "component start web",
    "component logs web",
    "bus state",
    "bus request reload",
    "bus publish news",
    "bus watch",
]


def making(report, bench, directory):
    vendor, refit = bench.vendor, bench.refit
    first = vendor.package("first", Release.bare("1.0.0"))
    stranger = vendor.package("stranger", Release.bare("1.0.0"), keys="stranger")
    old = vendor.package("old", Release.bare("1.0.0"), env={"SOURCE_DATE_EPOCH": "1000000000"})
    future = vendor.package("future", Release.bare("1.0.0"), env={"SOURCE_DATE_EPOCH": "4102444800"})
    strict = Release.bare("1.0.0")
    strict.files["appliance.toml"] += '[update]\nexpired_offline = "refuse"\n'
    at = {"env": {"SOURCE_DATE_EPOCH": "1000000000"}}
    strict_old = vendor.package("strict-old", strict, **at)
    strict_future = vendor.package("strict-future", strict, env={"SOURCE_DATE_EPOCH": "4102444800"})
    other = "aarch64" if os.uname().machine == "x86_64" else "x86_64"
    elsewhere = vendor.package("elsewhere", Release.bare("1.0.0"), options=["--arch", other])
    half = directory / "half.refit"
    half.write_bytes(first.read_bytes()[:-5000])
    letter = directory / "letter.txt"
    letter.write_text("Dear customer, this is not a package.\n" * 100)
    (directory / "file").write_text("in the way\n")
    home = directory / "home"
    for words, how in [
        ([first, "--root", directory / "nowhere.json"], {}),
        ([directory / "nowhere.refit", "--root", vendor.root, "--json"], {}),
        ([directory, "--root", vendor.root], {}),
        ([first, "--root", letter], {}),
        ([letter, "--root", vendor.root], {}),
        ([half, "--root", vendor.root], {}),
        ([stranger, "--root", vendor.root], {}),
        ([elsewhere, "--root", vendor.root], {}),
        ([strict_old, "--root", vendor.root], {}),
        ([strict_future, "--root", vendor.root], {}),
        (["-", "--root", vendor.root], {"stdin": b""}),
    ]:
        words = ["init", *words, "--home", home]
        report.ran(words, refit.run(words, **how))
        report.line(f"home {sorted(os.listdir(home)) if home.exists() else 'is not there'}")
    words = ["init", first, "--root", vendor.root, "--home", directory / "file/home"]
    report.ran(words, refit.run(words))
    for label, package in [("old", old), ("future", future), ("pipe", first)]:
        for options in [[], ["--json"]]:
            if label == "pipe":
                words, how = ["init", "-", "--root", vendor.root], {"stdin": first.read_bytes()}
            else:
                words, how = ["init", package, "--root", vendor.root], {}
            words += ["--home", directory / f"{label}{''.join(options)}", *options]
            report.ran(words, refit.run(words, **how))
    report.ran(words, refit.run(words, **how))
    report.head("the files of a new home")
    tree(report, directory / "pipe")


class TriedHome:
    """A home that is copied, broken, and tried."""

    def __init__(self, report, bench, directory):
        self.report, self.bench, self.directory = report, bench, directory
        release = Release.bare("1.0.0", files={"config/a.toml": "a = 1\n"})
        release.files[
            "appliance.toml"
        ] += '[[component]]\nname = "web"\ncommand = ["sleep", "600"]\nready = "started"\n'
        self.package = bench.vendor.package("shelf", release)
        self.home = directory / "good"
        bench.refit.good(["init", self.package, "--root", bench.vendor.root, "--home", self.home])

    def run(self, words, home=None, **how):
        words = with_home([word.format(package=self.package) for word in words.split()], home or self.home)
        if words[0] == "run":
            return self.guard(words, Api(str((home or self.home) / "run/refit.sock")))
        return self.report.ran(words, self.bench.refit.run(words, cwd=self.directory, **how))

    def guard(self, words, api):
        """Reports how a guard ends by itself; one that runs is asked to."""
        with tempfile.TemporaryFile() as err:
            child = self.bench.processes.add(self.bench.refit.start([*words, "--with-parent"], self.directory, err=err))

            def settled():
                status = None if child.poll() is not None else api.get("/api/v1/status")
                return child.poll() is not None or (status and status["bus"]["state"] == "Running")

            until("the guard ends, or the appliance runs", settled)
            runs = child.poll() is None
            if runs:
                child.send_signal(signal.SIGTERM)
            status = child.wait(END_S)
            err.seek(0)
            text = err.read().decode(errors="replace")
        self.report.ran(words, Ran(status, "it ran, and was asked to end\n" if runs else "", text), log=True)

    def broken(self, label, change, *commands):
        """Has `change` change a copy of the home, and reports what commands say of it."""
        home = self.directory / label
        shutil.copytree(self.home, home, symlinks=True)
        change(home)
        for words in commands:
            self.run(words, home)
        return home


def resting(report, bench, directory):
    shelf = TriedHome(report, bench, directory)
    for words in ONLINE:
        shelf.run(words)
    accounts(shelf)
    configurations(shelf)
    released(shelf)
    trusted(shelf)
    refused_starts(shelf)


def accounts(shelf):
    """Reports the passwords of the page."""
    good = {"stdin": b"a long password\n"}
    for words, how in [
        ("user passwd", good),
        ("user passwd --json", good),
        ("user passwd operator --json", good),
        ("user passwd --generate", {}),
        ("user passwd --generate --json", {}),
        ("user passwd", {"stdin": b"short\n"}),
        ("user passwd --json", {"stdin": b""}),
        ("user passwd", {"stdin": b"x" * 1025}),
        ("user passwd", {"stdin": b"\xff\xfe\n"}),
    ]:
        shelf.run(words, **how)
    shelf.report.head("auth/users.json")
    shelf.report.shape("json", [json.loads((shelf.home / "auth/users.json").read_text())])
    (shelf.directory / "nothing").mkdir()
    shelf.run("user passwd", shelf.directory / "nothing", **good)
    shelf.run("user passwd", shelf.directory / "nowhere", **good)

    def damage(home):
        (home / "auth/users.json").write_text("{}")

    def directory(home):
        (home / "auth/users.json").unlink()
        (home / "auth/users.json").mkdir()

    shelf.broken("accounts", damage, "run", "user passwd --generate")
    shelf.broken("no-accounts", directory, "run", "user passwd --generate")


def configurations(shelf):
    """Reports what `refit config check` finds."""
    shelf.run("config check")
    shelf.run("config check --json")
    for label, text in MISTAKES.items():
        directory = shelf.directory / f"config-{label}"
        Release.bare("1.0.0").write(directory)
        (directory / "appliance.toml").write_text(text)
        for words in [f"config check config-{label}", f"config check config-{label} --json"]:
            shelf.run(words)
    shelf.run("pack config-components --keys {package}")
    directory = shelf.directory / "config-good"
    directory.mkdir()
    (directory / "appliance.toml").write_text(GOOD)
    (shelf.directory / "local.toml").write_text(LOCAL)
    for words in [
        "config check config-good",
        "config check config-good --local local.toml --json",
        "config check config-good --local nowhere.toml",
        "config check nowhere",
        "config check local.toml",
        "config check nothing",
    ]:
        shelf.run(words)
    shelf.run("config check", shelf.directory / "nowhere")
    shelf.run("config check --json", shelf.directory / "nothing")
    shelf.broken(
        "mistaken", lambda home: (home / "local.toml").write_text(LOCAL), "config check", "run", "runtime --check 1.0.0"
    )
    shelf.broken("binary", lambda home: (home / "local.toml").write_bytes(b"\xff\xfe"), "config check", "run")


def released(shelf):
    """Reports what `refit verify` finds, and the dry run of a release."""
    for words in [
        "verify",
        "verify --json",
        "verify 1.0.0",
        "verify 9.9.9",
        "runtime --check 1.0.0",
        "runtime --check 9.9.9",
    ]:
        shelf.run(words)
    for words in ["verify", "verify --json", "runtime --check 1.0.0", "runtime"]:
        shelf.run(words, shelf.directory / "nowhere")
        shelf.run(words, shelf.directory / "nothing")

    def altered(path, act):
        """Returns what alters the file at `path`, whose directory is read-only before and after."""

        def alter(home):
            file = home / "releases/1.0.0" / path
            mode = file.parent.stat().st_mode
            file.parent.chmod(mode | 0o200)
            act(file)
            file.parent.chmod(mode)

        return alter

    def rewrite(old, new):
        def act(file):
            mode, text = file.stat().st_mode, file.read_text()
            file.chmod(mode | 0o200)
            file.write_text(text.replace(old, new))
            file.chmod(mode)

        return act

    one, manifest = "share/one.txt", ".refit/manifest.json"
    for label, change in [
        ("missing", altered(one, lambda file: file.unlink())),
        ("unexpected", altered("share/new.txt", lambda file: file.write_text("new\n"))),
        ("mode", altered(one, lambda file: file.chmod(0o755))),
        ("size", altered(one, rewrite("one", "three"))),
        ("content", altered(one, rewrite("one", "two"))),
        ("directory", altered(one, lambda file: file.unlink() or file.mkdir())),
        ("link", altered(one, lambda file: file.unlink() or file.symlink_to("two.txt"))),
        ("manifest", altered(manifest, rewrite("{", "["))),
        ("no-manifest", altered(manifest, lambda file: file.unlink())),
        ("no-release", lambda home: shutil.rmtree(home / "releases/1.0.0")),
        ("no-releases", lambda home: shutil.rmtree(home / "releases")),
    ]:
        shelf.broken(f"damaged-{label}", change, "verify", "verify --json")
    shelf.run("run", shelf.directory / "damaged-no-release")
    shelf.run("run", shelf.directory / "damaged-manifest")
    shelf.run("config check", shelf.directory / "damaged-manifest")


def trusted(shelf):
    """Reports whom a home trusts."""
    root = shelf.bench.vendor.root
    shelf.report.head("the files in trust/")
    for path in sorted((shelf.home / "trust").iterdir()):
        shelf.report.shape(path.name, [json.loads(path.read_text())])
    for words in [
        "trust show",
        "trust show --json",
        "trust reset nowhere.json",
        "trust reset local.toml",
        f"trust reset {root}",
        f"trust reset {root} --json",
        "trust show --json",
    ]:
        shelf.run(words)
    for label, change in [
        ("no-root", lambda home: (home / "trust/root.json").unlink()),
        ("bad-root", lambda home: (home / "trust/root.json").write_text("{}")),
        ("bad-seen", lambda home: (home / "trust/packages.json").write_text('{"format":2,')),
        ("new-seen", lambda home: (home / "trust/packages.json").write_text('{"format":99}')),
        ("no-seen", lambda home: (home / "trust/packages.json").unlink()),
        ("no-trust", lambda home: shutil.rmtree(home / "trust")),
    ]:
        shelf.broken(f"trust-{label}", change, "trust show", "trust show --json", f"trust reset {root}")
    shelf.run("trust show", shelf.directory / "nowhere")
    stranger = shelf.bench.vendor.directory / "stranger/1.root.json"
    shelf.broken("trust-other", lambda home: (home / "state.json").unlink(), f"init {shelf.package} --root {stranger}")


def refused_starts(shelf):
    """Reports how `refit run` refuses, and what it leaves."""
    shelf.run("run", shelf.directory / "nowhere")
    shelf.run("run", shelf.directory / "nothing")
    shelf.run("run", shelf.directory / "local.toml")
    shelf.run("bus inhibit -- true", shelf.directory / "nowhere")
    shelf.run("bus inhibit -- true", shelf.directory / "nothing")
    journal = json.loads((shelf.home / "state.json").read_text())
    for label, text in [
        ("damaged", '{"format": 1,'),
        ("foreign", json.dumps({**journal, "format": 99})),
        ("unknown", json.dumps({**journal, "colour": "red"})),
        ("elsewhere", json.dumps({**journal, "state": {"phase": "Idle", "current": "9.9.9"}})),
    ]:
        change = lambda home: (home / "state.json").write_text(text)
        shelf.broken(f"journal-{label}", change, "run", "verify", "config check", "runtime --check 1.0.0")

    def no_link(home):
        (home / "current").unlink()
        (home / "current").mkdir()

    shelf.broken("no-link", no_link, "run")
    with socket.socket() as somebody:
        somebody.bind(("127.0.0.1", 0))
        somebody.listen()
        address = f"127.0.0.1:{somebody.getsockname()[1]}"
        shelf.report.replace(address, "$SOMEBODY")
        local = f'[listeners]\nadmin = "{address}"\n'
        shelf.broken("port", lambda home: (home / "local.toml").write_text(local), "run")

    for label, keys in [
        ("ends", 'command = ["sh", "-c", "echo no index for schema 2; exit 3"]\nready = "notify"'),
        ("hangs", 'command = ["sleep", "600"]\nready = "notify"\nstart_timeout = "1s"\nstop_timeout = "1s"'),
        ("stranger", 'user = "nosuchuser"'),
        ("nowhere", 'working_directory = "nowhere"'),
    ]:
        local = f'[[component]]\nname = "web"\n{keys}\n'
        shelf.broken(f"start-{label}", lambda home: (home / "local.toml").write_text(local), "run")
