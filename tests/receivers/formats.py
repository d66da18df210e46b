"""Receives deliveries on /<name> and reads each back with another library than the one that wrote it.

The signature of every delivery is verified first, over the bytes that came. GET /results says what was
read. The first line printed is the port and, as JSON, the public keys to encrypt for.
"""

import base64
import gzip
import hashlib
import hmac
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl
from xml.etree import ElementTree

from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from jwcrypto import jwe, jwk

WHSEC = os.environ["WHSEC"]
KEYS = {
    "P-256": jwk.JWK.generate(kty="EC", crv="P-256"),
    "P-384": jwk.JWK.generate(kty="EC", crv="P-384"),
    "P-521": jwk.JWK.generate(kty="EC", crv="P-521"),
    "RSA": jwk.JWK.generate(kty="RSA", size=2048),
}


def public():
    jwks = {name: key.export_public(as_dict=True) for name, key in KEYS.items()}
    pems = {f"{name}-pem": key.export_to_pem().decode() for name, key in KEYS.items()}
    return {**jwks, **pems}


def signature(body, headers):
    """Standard Webhooks; their library takes nothing but UTF-8."""
    key = base64.b64decode(WHSEC.removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def decrypted(body, headers, name):
    assert headers["content-type"] == "application/jose", headers
    received = jwe.JWE()
    received.deserialize(body.decode(), key=KEYS[name])
    return {"header": received.jose_header, "body": json.loads(received.payload)}


def tree(element):
    return [element.tag, element.attrib, element.text, [tree(child) for child in element]]


def cloud_event(body, headers):
    event = from_http_event(HTTPMessage(headers=headers, body=body))
    attributes = {name: str(value) for name, value in event.get_attributes().items()}
    return {"attributes": attributes, "data": event.get_data()}


def of_batch(body, headers):
    assert headers["content-type"].startswith("application/cloudevents-batch+json")
    one = {"content-type": "application/cloudevents+json"}
    return [cloud_event(json.dumps(event).encode(), one) for event in json.loads(body)]


READERS = {
    "envelope": lambda body, headers, _: json.loads(body),
    "fields": lambda body, headers, _: json.loads(body),
    "template": lambda body, headers, path: [path, headers["x-order"], json.loads(body)],
    "form": lambda body, headers, _: parse_qsl(body.decode(), keep_blank_values=True),
    "query": lambda body, headers, path: [
        len(body), parse_qsl(path.split("?", 1)[1], keep_blank_values=True)
    ],
    "xml": lambda body, headers, _: tree(ElementTree.fromstring(body)),
    "gzip": lambda body, headers, _: json.loads(gzip.decompress(body)),
    "all": lambda body, headers, _: decrypted(gzip.decompress(body), headers, "P-256"),
    "structured": lambda body, headers, _: cloud_event(body, headers),
    "binary": lambda body, headers, _: cloud_event(body, headers),
    "came": lambda body, headers, _: [headers["webhook-id"], cloud_event(body, headers)],
    "batch": lambda body, headers, _: of_batch(body, headers),
    "version": lambda body, headers, _: [
        headers["webhook-version"], headers["deprecation"], headers["sunset"]
    ],
    **{
        f"jwe-{name}".lower(): lambda body, headers, _, name=name: decrypted(body, headers, name.removesuffix("-pem"))
        for name in public()
    },
}
RESULTS = {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/results":
            return self.answer(200, json.dumps(RESULTS).encode())
        self.do_POST()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"] or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        name = self.path.strip("/").split("/")[0].split("?")[0]
        try:
            assert headers["webhook-signature"] == signature(body, headers), "the signature"
            RESULTS[name] = READERS[name](body, headers, self.path)
        except Exception as why:
            RESULTS[name] = f"{type(why).__name__}: {why}"
        self.answer(204, b"")

    do_PUT = do_POST

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    # Many connect at once.
    ThreadingHTTPServer.request_queue_size = 128
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], json.dumps(public()), flush=True)
    # Ends with whoever has started it.
    threading.Thread(target=lambda: (os.read(0, 1), os._exit(0)), daemon=True).start()
    server.serve_forever()
