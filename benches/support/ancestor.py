"""The Python ancestor of the bus, asked to do what this bus is measured with.

One request a line on standard input, one answer a line on standard output, both JSON. Durations are in nanoseconds.
`ancestor.py block WAITERS` only waits, as a site without work does, beside so many waiting threads.
"""
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from cherrypy.process import plugins, wspbus

# How long a program may take to report.
STEP_MAX_S = 30


def publish(listeners, distinct, count):
    """Publish `count` times to so many listeners that answer at once."""
    bus = wspbus.Bus()
    for index in range(listeners):
        bus.subscribe("bench", lambda: None, priority=index if distinct else 50)
    durations = []
    for _ in range(count):
        begun = time.perf_counter_ns()
        answers = bus.publish("bench")
        durations.append(time.perf_counter_ns() - begun)
        if len(answers) != listeners:
            raise SystemExit(f"{len(answers)} of {listeners} listeners were called")
    return {"ns": durations}


def hear(count):
    """Have a thread wait for the state STARTED, and start: how long until it hears of it."""
    durations = []
    for index in range(count):
        bus = wspbus.Bus()
        waiting = threading.Event()
        heard = []

        def wait():
            waiting.set()
            bus.wait(bus.states.STARTED)
            heard.append(time.perf_counter_ns())

        thread = threading.Thread(target=wait)
        thread.start()
        waiting.wait()
        time.sleep(0.1 * index / count)  # not always at the same point of its period
        begun = time.perf_counter_ns()
        bus.start()
        thread.join()
        durations.append(heard[0] - begun)
    return {"ns": durations}


class Member(plugins.SimplePlugin):
    """A plugin that runs a program, or nothing. Its priorities put it after the one before it, and stop it in reverse."""

    def __init__(self, bus, index, program, directory):
        super().__init__(bus)
        self.program = program
        self.address = os.path.join(directory, str(index))
        self.process = None
        bus.subscribe("start", self.begin, index)
        bus.subscribe("stop", self.end, -index)

    def begin(self):
        if self.program is None:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reports:
            reports.settimeout(STEP_MAX_S)
            reports.bind(self.address)
            self.process = subprocess.Popen(
                [self.program], env={"NOTIFY_SOCKET": self.address}, stdin=subprocess.DEVNULL)
            if not reports.recv(4096).startswith(b"READY=1"):
                raise RuntimeError("the program is not ready")
        os.unlink(self.address)

    def end(self):
        if self.process is not None:
            self.process.terminate()
            self.process.wait(STEP_MAX_S)
            self.process = None


def life(count, program):
    """Start and stop so many plugins."""
    bus = wspbus.Bus()
    with tempfile.TemporaryDirectory() as directory:
        for index in range(count):
            Member(bus, index, program, directory)
        begun = time.perf_counter_ns()
        bus.start()
        started = time.perf_counter_ns()
        bus.stop()
        stopped = time.perf_counter_ns()
    return {"start_ns": started - begun, "stop_ns": stopped - started}


def block(waiters):
    """Wait as a site without work does, until the process is ended."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    bus = wspbus.Bus()
    bus.start()
    for _ in range(waiters):
        threading.Thread(target=bus.wait, args=(bus.states.EXITING,), daemon=True).start()
    print("{}", flush=True)
    bus.block()


def main():
    if sys.argv[1:2] == ["block"]:
        block(int(sys.argv[2]))
        return
    does = {"publish": publish, "hear": hear, "life": life}
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(does[asked.pop("do")](**asked)), flush=True)


main()
