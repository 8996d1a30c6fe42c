"""The command line: the help of every command, and what is wrong with words that are none."""

import re

HIDDEN = [["runtime"], ["launch"]]

WRONG = """

frobnicate
lunch
instal
status --fast
status now
status --home
--json
releases x
history x
check x
install
install a b
install a --digest zz
rollback x
rollback 1.0.0 1.1.0
verify x
component
component paint web
component list x
component start
component stop
component restart
component logs
component logs web -n x
component logs web -n -1
bus
bus state x
bus request
bus request dance
bus request update
bus publish
bus publish news {not
bus watch x
bus inhibit
bus inhibit --
config
config check a b
config check --local x
pack
pack tree
pack tree --keys keys --codec lzma
pack tree --keys keys --level x
pack tree --keys keys --arch amd64
pack tree --keys keys --arch armhf
pack tree --keys keys --arch bogus
pack tree --keys keys --expires-days 0
pack tree --keys keys --expires-days 36501
pack tree --keys keys --expires-days x
pack tree --keys keys --metadata-version 0
pack tree --keys keys --metadata-version 1000001
inspect
inspect a b c
keys
keys init
keys init keys --threshold 0
keys init keys --threshold 17
keys init keys --threshold many
keys init keys --root-keys 17
keys init keys --expires-days 0
keys init keys --external targets
keys init keys --external tea=x
keys rotate
keys rotate keys --role tea
keys rotate keys --threshold many
keys renew
keys renew keys --expires-days x
keys show
repo
repo init
repo init repo
repo init repo --keys keys --timestamp-days 0
repo add repo
repo add repo --keys keys
repo refresh repo
repo show
repo show repo
repo show repo --root x --accept-retired
repo check
repo check repo
trust
trust show x
trust reset
user
user passwd a b
init
init x
init x --root
run x
demo x
runtime --check
runtime --check x
launch
launch --listen-fds x -- true
launch --umask rwx -- true
help frobnicate
""".split("\n")[1:-1]

# What a component's program begins with, by the hidden command that starts it.
LAUNCHES = [
    ["launch", "--", "/nowhere"],
    ["launch", "--", "nowhere"],
    ["launch", "--listen-fds", "2", "--", "true"],
    ["launch", "--user", "nosuchuser", "--", "true"],
    ["launch", "--group", "nosuchgroup", "--", "true"],
    ["launch", "--groups", "nosuchgroup", "--", "true"],
    ["launch", "--directory", "/nowhere", "--", "true"],
    ["launch", "--cgroup", "/nowhere", "--", "true"],
    ["launch", "--umask", "23", "--", "sh", "-c", "umask"],
    ["launch", "--session", "--directory", "/usr", "--", "pwd"],
    ["launch", "--limit-files", "64", "--", "sh", "-c", "ulimit -n"],
    ["launch", "--", "sh", "-c", "exit 3"],
]


def below(text):
    """Returns the commands that a help lists."""
    listed = re.search(r"^Commands:\n((?:  .*\n|\n)+)", text, re.MULTILINE)
    names = re.findall(r"^  (\S+)", listed.group(1), re.MULTILINE) if listed else []
    return [name for name in names if name != "help"]


def helps(report, bench, directory):
    refit = bench.refit
    version = refit.run(["--version"])
    report.head("refit --version")
    report.text("out", re.sub(r"\d+\.\d+\.\d+\S*", "<version>", version.out))
    waiting = [[]]
    while waiting:
        words = waiting.pop(0)
        ran, short = [refit.run([*words, option]) for option in ["--help", "-h"]]
        report.ran([*words, "--help"], ran, tables=False)
        if short.out != ran.out:
            report.ran([*words, "-h"], short, tables=False)
        more = [[*words, name] for name in below(ran.out)]
        waiting = more + (HIDDEN if not words else []) + waiting


def usage(report, bench, directory):
    for words in [line.split() for line in WRONG] + LAUNCHES:
        report.ran(words, bench.refit.run(words, cwd=directory))
