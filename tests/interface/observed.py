"""What is seen of an appliance: commands that read, events, files, and what one image leaves to the next."""

import glob
import http.client
import json
import os
import re
import threading
import time

from appliances import tree
from program import until

READING = [
    "status",
    "status --json",
    "releases",
    "releases --json",
    "history",
    "history --json",
    "component list",
    "component list --json",
    "bus state",
    "bus state --json",
]


class Followed:
    """Every event of an appliance's life, also across an exec and a crash."""

    def __init__(self, api):
        self.api, self.events, self.ended = api, [], False
        threading.Thread(target=self.follow, daemon=True).start()

    def follow(self):
        seen = 0
        while not self.ended:
            try:
                _, lines, connection = self.api.stream(
                    f"/api/v1/events?after={seen}", {"Accept": "application/x-ndjson"}
                )
                for line in lines:
                    if line.strip():
                        event = json.loads(line)
                        seen = event["id"]
                        self.events.append(event)
                connection.close()
            except (OSError, http.client.HTTPException, ValueError):
                time.sleep(0.02)  # the next image

    def wait(self, what, wanted):
        return until(what, lambda: next((event for event in list(self.events) if wanted(event)), None))

    def report(self, report):
        self.ended = True
        events = list(self.events)
        report.head("the events")
        report.events("event", events)
        for kind, keys in [
            ("bus.state", ["state"]),
            ("bus.request", ["request", "outcome"]),
            ("update.step", ["kind", "step"]),
            ("component", ["name"]),
            ("component.up", ["peer"]),
        ]:
            found = {" ".join(str(event["data"][key]) for key in keys) for event in events if event["event"] == kind}
            found -= {"Exiting", "Exited"}  # at the end it is chance who still hears of them
            report.line(f"{kind}: {', '.join(sorted(found))}")


def reading(home):
    for line in READING:
        home.run(line.split())


def written(report, home, what):
    """Reports the files of a home and what is in them."""
    report.head(f"the files of {what}")
    deep = [f"releases/{path.name}" for path in (home.path / "releases").iterdir()]
    tree(report, home.path, deep=deep)
    report.head("state.json")
    report.value("json", json.loads((home.path / "state.json").read_text()))
    history = home.path / "history.jsonl"
    for line in history.read_text().splitlines() if history.exists() else []:
        report.head("a line of history.jsonl")
        report.value("json", json.loads(line))
    report.head("what is in other files")
    for pattern in [
        "log/*/*.jsonl",
        "trust/*.json",
        "auth/*.json",
        "releases/.checked.json",
        "releases/*/.refit/manifest.json",
    ]:
        texts = [open(path).read() for path in sorted(glob.glob(str(home.path / pattern)))]
        lines = [line for text in texts for line in text.splitlines()] if pattern.endswith("l") else texts
        report.shape(pattern, [json.loads(line) for line in lines])


def given(report, home, version):
    """Reports what a component was given."""
    report.head(f"what a component of {version} was given")
    report.text("given", (home.path / f"data/given-{version}").read_text())


def inherited(report, home):
    """Reports what one image leaves to the next: descriptors by name, variables, and the document with the guard."""
    status = home.look()
    runtime, guard = status["runtime"]["pid"], status["guard"]["pid"]
    with open(f"/proc/{runtime}/environ", "rb") as file:
        variables = dict(variable.split("=", 1) for variable in file.read().decode().split("\0") if variable)
    with open(f"/proc/{runtime}/cmdline", "rb") as file:
        report.head("what the runtime's image was given")
        report.line(f"words {' '.join(file.read().decode().split(chr(0)))}")
    report.line(f"variables {' '.join(sorted(variables))}")
    names = {re.sub(r"\d+", "<n>", name) for name in variables["LISTEN_FDNAMES"].split(":")}
    for name in sorted(names):
        report.line(f"descriptor {name}")
    documents = []
    for path in glob.glob(f"/proc/{guard}/fd/*"):
        if os.readlink(path).startswith("/memfd:"):
            with open(path, "rb") as file:
                documents.append((os.readlink(path), json.load(file)))
    name, newest = max(documents, key=lambda one: one[1]["sequence"])
    report.line(f"document {name}")
    # Events and tickets have their shapes elsewhere; which of them are kept is a matter of time.
    newest["events"] = [{**event, "data": {}} for event in newest["events"]]
    newest["instances"] = [{**instance, "status": ""} for instance in newest["instances"]]
    report.shape("document", [newest])
