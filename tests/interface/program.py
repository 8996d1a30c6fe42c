"""Runs `refit`, asks its API, and waits: everything with a limit, and nothing left running."""

import atexit
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time

LIMIT_S = 90  # of one condition or command: a busy machine takes a tenth of it
AGAIN_S = 0.02
END_S = 30  # of a guard that was asked to end


class Failed(Exception):
    """Something did not happen in time."""


def until(what, look, limit=LIMIT_S):
    """Returns what `look` returns as soon as that is true."""
    deadline = time.monotonic() + limit
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise Failed(f"not within {limit} s: {what}")
        time.sleep(AGAIN_S)


class Ran:
    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err

    def objects(self):
        return [json.loads(line) for line in self.out.splitlines()]


class Refit:
    """The program under test, with an environment that has nothing but the way to programs."""

    def __init__(self, path):
        self.path = os.path.abspath(path)
        # The very python3 that runs this: a shim would be a program more between a component and its process.
        here = os.path.dirname(os.path.realpath(sys.executable))
        self.environment = {"PATH": f"{here}:/usr/local/bin:/usr/bin:/bin"}

    def start(self, words, cwd="/", stdin=subprocess.DEVNULL, out=subprocess.PIPE, err=subprocess.PIPE, env={}):
        return subprocess.Popen(
            [self.path, *map(str, words)], cwd=cwd, stdin=stdin, stdout=out, stderr=err, env={**self.environment, **env}
        )

    def run(self, words, cwd="/", stdin=None, env={}, limit=LIMIT_S, out=subprocess.PIPE):
        """Runs it to its end."""
        pipe = subprocess.DEVNULL if stdin is None else subprocess.PIPE
        child = self.start(words, cwd, pipe, out, env=env)
        try:
            out, err = child.communicate(stdin, timeout=limit)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            raise Failed(f"refit {' '.join(map(str, words))} did not end within {limit} s") from None
        return Ran(child.returncode, (out or b"").decode(errors="replace"), err.decode(errors="replace"))

    def good(self, words, **how):
        """As `run`; fails where the command does."""
        ran = self.run(words, **how)
        if ran.status != 0:
            raise Failed(f"refit {' '.join(map(str, words))} ended with {ran.status}: {ran.err}")
        return ran


class Answer:
    def __init__(self, response, body):
        self.status, self.body = response.status, body
        self.headers = sorted((name.lower(), value) for name, value in response.getheaders())

    def header(self, name):
        return dict(self.headers).get(name, "")

    def text(self):
        return self.body.decode(errors="replace")

    def json(self):
        return json.loads(self.body)


class Api:
    """The API at a Unix socket, or at HOST:PORT."""

    def __init__(self, at):
        self.at = at

    def connection(self):
        connection = http.client.HTTPConnection("appliance", timeout=LIMIT_S)
        if self.at.startswith("/"):
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(LIMIT_S)
            connection.sock.connect(self.at)
        else:
            host, port = self.at.split(":")
            connection.sock = socket.create_connection((host, int(port)), LIMIT_S)
        return connection

    def ask(self, method, path, body=None, headers={}):
        if isinstance(body, (dict, list)):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
        connection = self.connection()
        try:
            connection.request(method, path, body, {"Connection": "close", **headers})
            response = connection.getresponse()
            return Answer(response, response.read())
        finally:
            connection.close()

    def get(self, path):
        """Returns the JSON at `path`; nothing if there is no good answer."""
        try:
            answer = self.ask("GET", path)
        except (OSError, http.client.HTTPException):
            return None
        return answer.json() if answer.status == 200 else None

    def stream(self, path, headers={}):
        """Returns status, headers and lines of an answer without end."""
        connection = self.connection()
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return Answer(response, b""), response, connection


class Processes:
    """Everything that was started and must end, and the directory that tells what belongs to it."""

    def __init__(self, directory):
        self.directory, self.guards = str(directory), []
        atexit.register(self.end)

    def add(self, guard):
        self.guards.append(guard)
        return guard

    def end(self):
        for guard in self.guards:
            if guard.poll() is None:
                guard.send_signal(signal.SIGTERM)
        for guard in self.guards:
            try:
                guard.wait(END_S)
            except subprocess.TimeoutExpired:
                guard.kill()
                guard.wait()
        self.guards.clear()
        # What a guard leaves that was killed has its home in the environment.
        begin = f"REFIT_HOME={self.directory}/".encode()
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    if any(variable.startswith(begin) for variable in file.read().split(b"\0")):
                        os.kill(int(name), signal.SIGKILL)
            except OSError:
                pass  # it has ended, or is another account's
