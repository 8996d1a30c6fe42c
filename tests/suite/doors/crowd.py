"""Crowds of strangers at the doors of an appliance: see the functions below. Each prints one JSON object."""
import http.client
import json
import resource
import socket
import sys
import threading


def half_sent(address, count, what):
    """Opens `count` connections that send half of a head, or of a body, and holds them until it was told to stop."""
    host, port = address.rsplit(":", 1)
    half = {
        "head": b"GET / HTTP/1.1\r\nHost: a\r\nX-Half: ",
        "body": b"POST /api/v1/session HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{",
    }[what]
    crowd = []
    for number in range(count):
        # From many addresses: none has more than its share.
        one = socket.create_connection((host, int(port)), source_address=(f"127.0.1.{number % 200 + 1}", 0))
        one.sendall(half)
        crowd.append(one)
    print(json.dumps({"open": len(crowd)}), flush=True)
    sys.stdin.readline()
    closed = 0
    for one in crowd:
        one.setblocking(False)
        try:
            closed += one.recv(1) == b""
        except ConnectionError:
            closed += 1
        except BlockingIOError:
            pass
    print(json.dumps({"closed": closed}), flush=True)


def logins(address, count):
    """Tries `count` wrong passwords at once."""
    statuses = []

    def one(number):
        host, port = address.rsplit(":", 1)
        client = http.client.HTTPConnection(host, int(port), timeout=60)
        body = json.dumps({"user": "admin", "password": f"guess number {number}"})
        try:
            client.request("POST", "/api/v1/session", body, {"Content-Type": "application/json"})
            statuses.append(client.getresponse().status)
        except OSError:
            statuses.append(0)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({str(status): statuses.count(status) for status in set(statuses)}), flush=True)


def from_elsewhere(address, password):
    """Logs in from another address of this machine."""
    host, port = address.rsplit(":", 1)
    client = http.client.HTTPConnection(host, int(port), timeout=60, source_address=("127.0.0.2", 0))
    body = json.dumps({"user": "admin", "password": password})
    client.request("POST", "/api/v1/session", body, {"Content-Type": "application/json"})
    print(json.dumps({"status": client.getresponse().status}), flush=True)


hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
name, address, *rest = sys.argv[1:]
{"half_sent": half_sent, "logins": logins, "from_elsewhere": from_elsewhere}[name](
    address, *(int(word) if word.isdigit() else word for word in rest)
)
