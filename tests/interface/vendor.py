"""The vendor's side: keys, packages, repositories, and what is refused there."""

import os
import pathlib
import shutil
import subprocess

from appliances import Release, tree

# Nobody has the private key.
PUBLIC_KEY = """-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEkNDSMofOX1a/cqnsnbIFisxNTT1T
4XMSpPSJg917xnvXAVrzyLUsym2x+CFNxQr9iWsz/YqO9r7mPSfTXkTU/A==
-----END PUBLIC KEY-----
"""
PASSPHRASE = "REFIT_KEY_PASSPHRASE_FILE"


class VendorDirectory:
    """A directory in which a vendor works."""

    def __init__(self, report, bench, directory):
        self.report, self.refit, self.directory = report, bench.refit, directory

    def run(self, line, **how):
        ran = self.refit.run(line.split(), cwd=self.directory, **how)
        return self.report.ran(line.split(), ran, env=how.get("env", {}))

    def quietly(self, line):
        self.refit.good(line.split(), cwd=self.directory)

    def copy(self, source, target):
        shutil.copytree(self.directory / source, self.directory / target)

    def write(self, path, text):
        file = self.directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def write_program(self, path, text):
        """Has another process write a program: one that this process has open anywhere cannot be executed."""
        script = 'cat >"$1" && chmod 755 "$1"'
        subprocess.run(["sh", "-c", script, "sh", self.directory / path], input=text, text=True, check=True)

    def files(self, path):
        self.report.head(f"the files of {path}")
        tree(self.report, self.directory / path)


def keys(report, bench, directory):
    desk = VendorDirectory(report, bench, directory)
    for line in [
        "keys init one",
        "keys init one",
        "keys init json --json",
        "keys show json --json",
        "keys show one",
        "keys show nowhere",
        "keys init few --threshold 2 --root-keys 1",
        "keys init many --threshold 2 --separate-roles --offline-root stick",
        "keys rotate many --role targets",
        "keys rotate many --role targets --with stick --json",
        "keys renew many --with stick --expires-days 30",
        "keys show many --json",
        "keys show many --with stick --json",
        "keys rotate many --role root --with stick",
        "keys rotate one --threshold 2",
        "keys rotate one --role targets --root-keys 2",
        "keys rotate one --offline-root away",
        "keys renew one --json",
        "keys renew nowhere",
    ]:
        desk.run(line)
    for path in ["one", "many", "stick", "away"]:
        desk.files(path)
    protected(desk)
    outside(desk)
    (directory / "damaged").mkdir()
    desk.write("damaged/1.root.json", "{}")
    desk.run("keys show damaged")
    desk.quietly("keys init spoilt")
    desk.write("spoilt/refit.key.pem", "not a key\n")
    desk.run("keys show spoilt")
    (directory / "empty").mkdir()
    desk.run("keys show empty")
    desk.quietly("keys init parted --separate-roles")
    (directory / "parted/targets.key.pem").unlink()
    desk.run("keys show parted")
    desk.run("keys rotate parted")
    shutil.copy(directory / "json/refit.key.pem", directory / "locked/refit-v2.key.pem")
    desk.run("pack tree --keys locked -o locked.refit", env={PASSPHRASE: "secret"})
    with open("/dev/full", "wb") as full:
        desk.run("keys show json", out=full)
        desk.run("keys show json --json", out=full)


def protected(desk):
    """Reports keys with a passphrase."""
    Release.bare("1.0.0").write(desk.directory / "tree")
    desk.write("secret", "plank and nail\n")
    desk.write("wrong", "plank and screw\n")
    desk.write("blank", "\n")
    desk.run("keys init locked --encrypt")
    desk.run("keys init locked --encrypt", env={PASSPHRASE: "nowhere"})
    desk.run("keys init locked --encrypt", env={PASSPHRASE: "blank"})
    desk.run("keys init locked --encrypt", env={PASSPHRASE: "secret"})
    pack = "pack tree --keys locked -o locked.refit"
    desk.run(pack)
    for file in ["wrong", "nowhere"]:
        desk.run(pack, env={PASSPHRASE: file})
    desk.run("keys rotate locked")
    desk.run("keys rotate locked --json", env={PASSPHRASE: "secret"})
    desk.files("locked")


def outside(desk):
    """Reports keys behind a command."""
    program = 'public = "module.pem"\ncommand = ["./sign"]\n'
    for label, text in [
        ("module", program),
        ("nothing", 'public = "module.pem"\ncommand = []\n'),
        ("half", 'public = "module.pem"\n'),
        ("other", 'public = "other.key.toml"\ncommand = ["./sign"]\n'),
        ("late", program + 'timeout = "soon"\n'),
        ("never", program + 'timeout = "48h"\n'),
    ]:
        desk.write(f"with-{label}/module.pem", PUBLIC_KEY)
        desk.write(f"with-{label}/{label}.key.toml", text)
        desk.run(f"keys init with-{label} --external targets=with-{label}/{label}.key.toml")
    desk.run("keys init with-nowhere --external targets=nowhere.key.toml")
    desk.run("keys init none --external targets=none")
    desk.run("keys init both --external targets=none --external targets=with-module/module.key.toml")
    pack = "pack tree --keys with-module -o outside.refit"
    for script in ["echo the token is locked >&2; exit 1", "cat >/dev/null; echo no signature", "kill -9 $$"]:
        desk.write_program("with-module/sign", f"#!/bin/sh\n{script}\n")
        desk.run(pack)
    desk.write("with-module/module.key.toml", program + 'timeout = "300ms"\n')
    desk.write_program("with-module/sign", "#!/bin/sh\nexec sleep 600\n")
    desk.run(pack)
    (desk.directory / "with-module/sign").unlink()
    desk.run(pack)
    desk.run("keys rotate with-module")
    desk.run("keys rotate with-module --role root --external targets=with-module/module.key.toml")
    desk.run("keys rotate with-module --role targets --external targets=none --json")
    desk.files("with-module")


def packages(report, bench, directory):
    desk = VendorDirectory(report, bench, directory)
    desk.quietly("keys init keys --expires-days 36500")
    desk.quietly("keys init strangers")
    more = {"bin/tool": "#!/bin/sh\nexit 0\n", "share/same.txt": "data of 1.0.0\n", "config/a.toml": "a = 1\n"}
    Release.bare("1.0.0", files=more).write(directory / "tree")
    os.chmod(directory / "tree/bin/tool", 0o755)
    os.symlink("one.txt", directory / "tree/share/link")
    os.truncate(directory / "tree/lib/data.txt", 1 << 20)
    Release.bare("1.1.0", files={"share/two.txt": "two\n" * 100}).write(directory / "next")
    Release.bare("1.0.0", name="lighthouse").write(directory / "foreign")
    pack = "pack tree --keys keys -o one.refit"
    at = {"SOURCE_DATE_EPOCH": "1900000000"}
    for line, how in [
        (pack, {}),
        (pack + " --json", {}),
        (pack + " --codec gzip --level 9 --arch any --expires-days 3 --metadata-version 7 --json", {}),
        (pack, {"env": {"SOURCE_DATE_EPOCH": "yesterday"}}),
        ("pack tree --keys keys --json", {"env": at}),
        ("pack next --keys keys -o two.refit", {}),
        ("pack foreign --keys keys -o foreign.refit", {}),
        ("pack tree --keys keys -o old.refit", {"env": {"SOURCE_DATE_EPOCH": "1000000000"}}),
        ("inspect one.refit", {}),
        ("inspect one.refit --json", {}),
        ("inspect one.refit --root keys/1.root.json --check --json", {}),
        ("inspect one.refit --root keys/1.root.json --check", {}),
        ("inspect old.refit --json --root keys/1.root.json", {}),
        ("inspect old.refit", {}),
        ("inspect one.refit two.refit", {}),
        ("inspect one.refit two.refit --json", {}),
        ("inspect two.refit one.refit", {}),
        ("inspect one.refit foreign.refit", {}),
        ("inspect - --json", {"stdin": b"Dear customer, this is not a package.\n" * 100}),
        ("inspect -", {"stdin": b""}),
        ("inspect one.refit --root strangers/1.root.json", {}),
        ("inspect one.refit --root one.refit", {}),
        ("inspect one.refit --root nowhere", {}),
        ("inspect tree", {}),
        ("inspect nowhere --json", {}),
        ("inspect one.refit nowhere", {}),
        ("pack nowhere --keys keys --json", {}),
        ("pack tree --keys nowhere", {}),
        (pack + " --level 99", {}),
        (pack + " --codec gzip --level 99", {}),
        ("pack tree --keys keys -o tree/inside.refit", {}),
        ("pack tree --keys keys -o nowhere/out.refit", {}),
        ("pack tree --keys keys --repo nowhere", {}),
    ]:
        desk.run(line, **how)
    whole = (directory / "two.refit").read_bytes()
    payload, signature = len(whole) - 1024 - 512, whole.index(b'"sig":"') + 7  # the one is short, and ends the package
    for name, content in [
        ("half", whole[: len(whole) // 2]),
        ("short", whole[:100]),
        ("long", whole + bytes(1024)),
        ("changed", whole[:payload] + bytes([whole[payload] ^ 1]) + whole[payload + 1 :]),
        (
            "forged",
            whole[:signature] + (b"1" if whole[signature : signature + 1] == b"0" else b"0") + whole[signature + 1 :],
        ),
    ]:
        (directory / f"{name}.refit").write_bytes(content)
        desk.run(f"inspect {name}.refit --check --root keys/1.root.json")
    refused(desk)


def refused(desk):
    """Reports what cannot be packed."""
    pack = "pack bad --keys keys -o bad.refit"
    directory = desk.directory / "bad"
    (desk.directory / "empty").mkdir()
    desk.run("pack empty --keys keys")

    def slip(make):
        if directory.exists():
            shutil.rmtree(directory)
        Release.bare("1.0.0").write(directory)
        make()
        desk.run(pack)

    share = directory / "share"
    for make in [
        lambda: os.chmod(share, 0o2755),
        lambda: os.chmod(share / "one.txt", 0o4755),
        lambda: os.mkfifo(share / "pipe"),
        lambda: os.symlink("/etc/passwd", share / "absolute"),
        lambda: os.symlink("../../outside", share / "outside"),
        lambda: os.symlink("..", share / "top"),
        lambda: os.symlink("itself", share / "itself"),
        lambda: (share / "ONE.txt").write_text("case\n"),
        lambda: (share / "back\\slash").write_text("name\n"),
        lambda: (share / "tab\tname").write_text("name\n"),
        lambda: open(os.fsencode(share) + b"/\xff", "w").close(),
        lambda: (directory / ".refit").mkdir(),
        lambda: pathlib.Path(share, *"deep" * 20).mkdir(parents=True),
        lambda: (directory / "appliance.toml").write_text("not toml at all\n"),
        lambda: (directory / "appliance.toml").write_bytes(b"\xff\xfe"),
        lambda: (directory / "appliance.toml").unlink(),
    ]:
        slip(make)
    os.mkfifo(desk.directory / "pipe")
    desk.run("pack tree --keys keys -o pipe")
    desk.run("pack tree --keys keys -o empty")


def repositories(report, bench, directory):
    desk = VendorDirectory(report, bench, directory)
    desk.quietly("keys init keys")
    desk.quietly("keys init strangers")
    for version in ["1.0.0", "1.1.0"]:
        Release.bare(version).write(directory / version)
    desk.quietly("pack 1.0.0 -o one.refit --keys keys --arch any")
    desk.quietly("pack 1.0.0 -o foreign.refit --keys strangers")
    Release.bare("1.0.0", files={"share/more.txt": "more\n"}).write(directory / "same")
    desk.quietly("pack same -o same.refit --keys keys --arch any")
    shutil.copy(directory / "keys/1.root.json", directory / "root.json")
    by = {"env": {"REFIT_KEYS": "keys"}}
    for line, how in [
        ("repo add repo one.refit", by),
        ("repo show repo --root root.json", {}),
        ("repo init repo", by),
        ("repo init repo", by),
        ("repo init other --keys keys --json", {}),
        ("repo add repo one.refit --keys keys", {}),
        ("repo add repo one.refit --keys keys", {}),
        ("repo add repo one.refit --keys keys --json", {}),
        ("repo add repo same.refit --keys keys", {}),
        ("repo add repo one.refit nowhere --keys keys", {}),
        ("repo add repo foreign.refit --keys keys", {}),
        ("pack 1.1.0 --repo repo --keys keys --json", {}),
        ("pack 1.1.0 --repo repo --keys keys", {}),
        ("pack 1.1.0 --repo repo --keys strangers", {}),
        ("repo refresh repo --keys keys --json", {}),
        ("repo refresh repo --keys strangers", {}),
        ("repo show repo --keys keys", {}),
        ("repo show repo --root root.json --json", {}),
        ("repo show repo --keys strangers", {}),
        ("repo check repo --root root.json", {}),
        ("repo check repo --keys keys --json", {}),
        ("repo check repo --root one.refit", {}),
        ("repo check repo --root nowhere", {}),
        ("repo check nowhere --root root.json", {}),
    ]:
        desk.run(line, **how)
    desk.files("repo")
    damaged(desk)
    retired(desk)


def damaged(desk):
    """Reports a repository of which something is missing or wrong."""

    def broken(label, change):
        desk.copy("repo", label)
        change(desk.directory / label)
        desk.run(f"repo check {label} --root root.json")
        desk.run(f"repo check {label} --root root.json --json")

    def payload(repo):
        return sorted(repo.glob("targets/kiosk/1.0.0/*/*.payload"))[0]

    def manifest(repo):
        return sorted(repo.glob("targets/kiosk/1.0.0/*/*.manifest.json"))[0]

    broken("no-payload", lambda repo: payload(repo).unlink())
    broken("no-manifest", lambda repo: manifest(repo).unlink())
    broken("short-payload", lambda repo: payload(repo).write_bytes(payload(repo).read_bytes()[:-1]))
    broken(
        "other-payload",
        lambda repo: payload(repo).write_bytes(
            bytes([payload(repo).read_bytes()[0] ^ 1]) + payload(repo).read_bytes()[1:]
        ),
    )
    broken(
        "other-manifest",
        lambda repo: manifest(repo).write_bytes(manifest(repo).read_bytes().replace(b"kiosk", b"kiosc")),
    )
    broken("no-root", lambda repo: (repo / "metadata/1.root.json").unlink())
    broken("no-snapshot", lambda repo: sorted(repo.glob("metadata/*.snapshot.json"))[-1].unlink())
    broken("bad-timestamp", lambda repo: (repo / "metadata/timestamp.json").write_text("{}"))
    broken("no-timestamp", lambda repo: (repo / "metadata/timestamp.json").unlink())
    desk.run("repo add no-payload one.refit --keys keys")
    for words in ["repo refresh", "repo init", "repo show"]:
        desk.run(f"{words} no-timestamp --keys keys")


def retired(desk):
    """Reports what becomes of a repository when keys are rotated, stolen, forgotten or out of date."""
    desk.copy("keys", "stale")
    desk.copy("repo", "forged")
    desk.quietly("keys rotate keys")
    desk.quietly("repo refresh repo --keys keys")
    desk.run("repo check repo --root root.json")
    desk.run("repo refresh repo --keys stale")
    desk.run("pack 1.1.0 --repo repo --keys stale")
    for line in [
        "repo refresh forged --keys keys",
        "repo show forged --keys keys --accept-retired --json",
        "repo refresh forged --keys keys --accept-retired",
        "repo refresh forged --keys keys --accept-retired --json",
    ]:
        desk.run(line)
    desk.files("keys")
    desk.quietly("keys init forgetful")
    (desk.directory / "forgetful/published.json").mkdir()
    for line in ["repo init told --keys forgetful", "keys rotate forgetful", "repo refresh told --keys forgetful"]:
        desk.run(line)
