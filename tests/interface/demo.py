"""`refit demo`: what it prints, and what it leaves in the directory that it was given."""

import json
import re
import signal

from appliances import tree
from program import END_S, until


def demo(report, bench, directory):
    home = directory / "home"
    for options in [["--json"], []]:
        words = ["demo", "--home", home, *options]
        out, err = directory / "out", directory / "err"
        with open(out, "wb") as to, open(err, "wb") as errors:
            child = bench.processes.add(bench.refit.start(words, out=to, err=errors))

        def ready():
            if child.poll() is not None:
                raise RuntimeError(f"the demo ended with {child.returncode}: {err.read_text()}")
            return "\n" in out.read_text() if options else "Ctrl-C" in out.read_text()

        until("the demo runs", ready)
        for address in re.findall(r"http://(127\.0\.0\.1:\d+)/", out.read_text()):
            report.replace(address, "$ADDRESS")
        child.send_signal(signal.SIGTERM)
        status = child.wait(END_S)
        report.head(" ".join(["refit", *map(str, words)]))
        report.line(f"status {status}")
        text = re.sub(r"(?m)^  password +\S+", "  password  <password>", out.read_text())
        if options:
            found = json.loads(text)
            # The site may run a moment before what is seen of its components says so.
            found["status"]["components"] = [view["name"] for view in found["status"]["components"]]
            report.value("out", found)
        else:
            report.text("out", text)
        report.text("err", err.read_text())
    report.head("the files of the demo")
    tree(report, home, deep=("log", "releases/1.0.0"))
