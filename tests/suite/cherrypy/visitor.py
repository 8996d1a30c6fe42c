"""Visits an HTTPS site whose certificate nobody signed: presented PORT | of FILE | post PORT PATH FILE | download PORT PATH."""

import hashlib
import http.client
import ssl
import sys

what, words = sys.argv[1], sys.argv[2:]
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE


def visit(port):
    return http.client.HTTPSConnection("127.0.0.1", int(port), timeout=120, context=context)


if what == "presented":
    connection = visit(words[0])
    connection.request("GET", "/")
    certificate = connection.sock.getpeercert(binary_form=True)
    print(hashlib.sha256(certificate).hexdigest(), connection.getresponse().read().decode())
elif what == "of":
    with open(words[0]) as file:
        pem = file.read()
    print(hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem[pem.index("-----BEGIN CERTIFICATE"):])).hexdigest())
elif what == "post":
    with open(words[2], "rb") as file:
        connection = visit(words[0])
        connection.request("POST", words[1], file.read(), {"Content-Type": "application/x-pem-file"})
    print(connection.getresponse().read().decode())
elif what == "download":
    connection = visit(words[0])
    connection.request("GET", words[1])
    answer = connection.getresponse()
    first = answer.read(1)
    print("begun", flush=True)
    body = first + answer.read()
    print(body == b"x" * 100_000 + b"y" * 100_000, len(body))
