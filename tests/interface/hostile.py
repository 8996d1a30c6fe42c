"""The hostile corpus: what is said of each of its packages by an appliance and by `refit inspect`."""

import re
import subprocess

from appliances import Home, Release


def corpus(report, bench, directory):
    if not bench.corpus:
        report.line("no hostile corpus was given")
        return
    files = {f"share/{name}.txt": f"{name}\n" for name in ["two", "three"]}
    made = {}
    for version in ["1.0.0", "1.1.0"]:
        package = bench.vendor.package(
            f"corpus-{version}", Release.bare(version, files={**files, "config/a.toml": "a = 1\n"})
        )
        made[version] = directory / version
        subprocess.run([bench.corpus, package, made[version]], check=True, stdin=subprocess.DEVNULL)
    first, attacks = made["1.0.0"], made["1.1.0"]
    root = first / "1.root.json"
    home = Home(bench.refit, bench.processes, report, directory / "home")
    home.init(first / "honest.refit", root)
    home.settings(update='expired_offline = "refuse"\n')
    home.start()
    for line in (attacks / "corpus.tsv").read_text().splitlines():
        attack = attacks / f"{line.split(chr(9))[0]}.refit"
        for words in [home.words(["install", attack]), ["inspect", attack, "--check", "--root", root]]:
            ran = bench.refit.run(words)
            if attack.stem == "codec-other":  # every file of it is wrong; the first to be unpacked is named
                ran.err = re.sub(r'"[^"]+": a frame', '"<path>": a frame', ran.err)
            report.ran(words, ran)
    home.run(["install", attack, "--json"])
    report.line(f"staged {home.look()['staged']}")
    home.run(["install", attacks / "honest.refit", "--json"], events=True)
    home.running("1.1.0")
    report.line(f"guard ended with {home.stop()}")
