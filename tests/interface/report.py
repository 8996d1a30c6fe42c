"""What is printed: lines that two runs of one program have in common, and that no two different interfaces do.

Messages stay literal. Only what changes from run to run becomes a word in angle brackets or a `$NAME`: the directory of
the run, addresses, process numbers, times, digests, passwords, tickets, and figures that are measured.
"""

import json
import re

PATTERNS = [
    (re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"), "<time>"),
    # The module of a line on the log says where the code is, not what happened.
    (re.compile(r"^<time> +(\w+) refit\w*(::\w+)*: ", re.MULTILINE), r"<time> \1 "),
    (re.compile(r"^\d\d:\d\d:\d\d\.\d+(\s+\+[\d.]+ (ms|s|min|h))?", re.MULTILINE), "<time>"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "<digest>"),
    (re.compile(r"\b(?=[0-9a-f]*[0-9])[0-9a-f]{12}\b"), "<short>"),
    (re.compile(r"\b[a-z2-9]{4}(-[a-z2-9]{4}){3}\b"), "<password>"),
    (re.compile(r"\b[0-9a-f]{11}-\d+\b"), "<ticket>"),
    (re.compile(r"\b(guard|runtime|process|pid) \d+\b"), r"\1 <pid>"),
    (re.compile(r"\b(running|starting|stopping|backoff)( +\w+ +)\d+ "), r"\1\2<pid> "),
    (re.compile(r'("seq":|^)1\d{15}\b'), r"\1<seq>"),
    (re.compile(r"\b\d+(\.\d+)? ms\b"), "<n> ms"),
    (re.compile(r"\b\d+\.\d s\b"), "<n> s"),
    (re.compile(r"\bpid=\d+"), "pid=<pid>"),
    # A long message is cut in its middle, wherever in a path that is.
    (re.compile(r"\S* \[\.\.\.\] \S*"), "[...]"),
    (re.compile(r"\b\d{20}\.jsonl\b"), "<n>.jsonl"),
]

# Figures that are measured, or that count what happened meanwhile.
MEASURED = re.compile(
    r"(^|\.)(pid|id|seq|number|publication|delivered|durations|progress|.*_(ms|us|ns|ticks))(\.|\[|$)"
)

LOGGED = re.compile(r"\d{4}-\d\d-\d\dT\S+Z +(DEBUG|INFO|WARN|ERROR) ")


class Report:
    """The text of one section."""

    def __init__(self, title):
        self.title = title
        self.lines = []
        self.places = []
        self.broken = None

    def replace(self, text, name):
        """Has `text` be printed as `name` from now on."""
        self.places.append((str(text), name))
        self.places.sort(key=lambda place: -len(place[0]))

    def plain(self, text):
        """Returns `text` without what changes from run to run."""
        for place, name in self.places:
            text = text.replace(place, name)
        for pattern, name in PATTERNS:
            text = pattern.sub(name, text)
        return text

    def head(self, text):
        self.lines.append(self.plain(f"$ {text}"))

    def line(self, text):
        self.lines.append("  " + self.plain(text).rstrip())

    def text(self, label, text, tables=True):
        """Adds a text line by line. Columns of `tables` are as wide as what changes in them: it is not shown."""
        for line in text.splitlines():
            line = self.plain(line)
            self.line(f"{label} | {re.sub(r' {2,}', '  ', line) if tables else line}".rstrip())

    def each_once(self, label, text):
        """Adds each different line of a text whose writers wrote at the same time: order and number mean nothing."""
        lines = {re.sub(r" {2,}", "  ", line).rstrip() for line in self.plain(text).splitlines()}
        self.lines += [f"  {label} | {line}" for line in sorted(lines)]

    def value(self, label, value):
        """Adds a JSON value, a line for each leaf."""
        for path, leaf in leaves(value):
            self.line(f"{f'{label} {path}'.rstrip()}: {leaf}")

    def shape(self, label, values):
        """Adds which paths some of `values` have, and with which types."""
        for path, kinds in sorted(shape(values).items()):
            self.line(f"{label} {path}: {'|'.join(sorted(kinds))}")

    def events(self, label, events):
        """Adds the events' types, each with the shape of its data."""
        for kind in sorted({event["event"] for event in events}):
            self.shape(f"{label} {kind}", [event for event in events if event["event"] == kind])

    def ran(self, words, ran, events=False, tables=True, env={}, log=False):
        """Adds a command, how it ended, and what it printed: with `events` a stream of those, with `log` a log."""
        self.head(" ".join([*(f"{name}={value}" for name, value in env.items()), "refit", *map(str, words)]))
        self.line(f"status {ran.status}")
        objects = parsed(ran.out)
        if objects is None:
            self.text("out", before_stop(ran.out), tables)
        elif events:
            told = [json.loads(line) for line in before_stop(ran.out).splitlines()]
            told = [one for one in told if "event" in one]
            steps = [one["data"]["step"] for one in told if one["event"] == "update.step"]
            # How far it is, is told as often as somebody looks: an update that fails may never say so.
            self.events("event", [one for one in told if one["event"] != "update.progress"])
            self.line(f"steps {' '.join(steps)}")
            for one in objects:
                if "event" not in one:
                    self.value("out", one)
        else:
            for one in objects:
                self.value("out", one)
        if log:
            self.each_once("err", ran.err)
        else:
            self.text("err", ran.err, tables=False)
        return ran

    def answered(self, what, answer, body="value"):
        """Adds an answer of the API. `body` says how its body is shown: value, shape, text or nothing."""
        self.head(what)
        self.line(f"status {answer.status}")
        for name, value in answer.headers:
            if name not in ("date", "content-length", "connection"):
                shown = re.sub(r"refit_session=[^;]+", "refit_session=<token>", value)
                self.line(f"header {name}: {self.plain(shown)}")
        kind = answer.header("content-type")
        if body == "nothing" or not answer.body:
            return answer
        if kind.endswith("json") and body in ("value", "shape"):
            if body == "value":
                self.value("json", answer.json())
            else:
                self.shape("json", [answer.json()])
        else:
            self.text("body", answer.text())
        return answer


def before_stop(text):
    """Returns what a command said of an update until the image that it had asked began to stop.

    It asks the next image again, and how much of the rest it hears before the outcome is a matter of time. Those that
    follow the events hear all of it.
    """
    lines = text.splitlines(keepends=True)
    stops = [number for number, line in enumerate(lines) if re.match(r'stopping  |.*"step":"stopping"', line)]
    return "".join(lines[: stops[0] + 1]) if stops else text


def parsed(text):
    """Returns the JSON objects of a text that has nothing else, one a line."""
    lines = text.splitlines()
    if not lines or not all(line.startswith("{") for line in lines):
        return None
    try:
        return [json.loads(line) for line in lines]
    except ValueError:
        return None


def kind(value):
    names = {
        str: "string",
        bool: "boolean",
        int: "number",
        float: "number",
        type(None): "null",
        list: "list",
        dict: "object",
    }
    return names[type(value)]


def leaves(value, path=""):
    """Yields path and text of every leaf; of a figure that is measured only that it is a number."""
    if isinstance(value, dict) and value:
        for key in sorted(value):
            yield from leaves(value[key], f"{path}.{key}" if path else key)
    elif isinstance(value, list) and any(isinstance(one, (dict, list)) for one in value):
        for index, one in enumerate(value):
            yield from leaves(one, f"{path}[{index}]")
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and MEASURED.search(path):
        yield path, "number"
    elif isinstance(value, list) and any(isinstance(one, str) and LOGGED.match(one) for one in value):
        yield path, "lines of the log"
    elif path == "component.health" and value in ("unknown", "healthy"):
        yield path, "unknown or healthy"  # of one that was just started: its first probe may have come back
    else:
        yield path, json.dumps(value, ensure_ascii=False)


def shape(values):
    """Returns the kinds of value at each path of `values`; elements of a list have one path."""
    found = {}

    def look(value, path):
        if isinstance(value, dict) and value:
            for key in value:
                look(value[key], f"{path}.{key}" if path else key)
        elif isinstance(value, list) and value:
            for one in value:
                look(one, f"{path}[]")
        else:
            found.setdefault(path, set()).add(kind(value))

    for value in values:
        look(value, "")
    return found
