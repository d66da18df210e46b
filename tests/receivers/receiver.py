"""Receives deliveries on /<name> and asks the official Python verifiers about them.

Each delivery is to be accepted as it came, and refused with its body, signature, timestamp or the
secret changed. GET /results says what came of it. The first line printed is the port.
"""

import base64
import hashlib
import hmac
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, parse_qsl

import django
from django.conf import settings

settings.configure(ALLOWED_HOSTS=["*"], DEFAULT_CHARSET="utf-8", INSTALLED_APPS=[])
django.setup()

import nacl.signing
import standardwebhooks
import stripe
import svix.webhooks
from anymail.webhooks.mandrill import MandrillSignatureMixin
from django.test import RequestFactory
from slack_sdk.signature import SignatureVerifier
from twilio.request_validator import RequestValidator

TEXT, WHSEC, WHPK = (os.environ[name] for name in ("TEXT", "WHSEC", "WHPK"))
OTHER_TEXT = TEXT[::-1]
OTHER_WHSEC = "whsec_" + base64.b64encode(b"x" * 32).decode()
OTHER_WHPK = "whpk_" + base64.b64encode(bytes(nacl.signing.SigningKey(b"x" * 32).verify_key)).decode()


class Request:
    def __init__(self, method, url, headers, body):
        self.method, self.url, self.headers, self.body = method, url, headers, body

    def changed(self, **to):
        return Request(**{**vars(self), **to})


def tag(secret, message, digest=hashlib.sha256):
    return hmac.new(secret.encode(), message, digest).digest()


def same(given, expected):
    return hmac.compare_digest(given.encode(), expected.encode())


def by_stripe(request, secret):
    stripe.Webhook.construct_event(request.body, request.headers["stripe-signature"], secret)
    return True


def by_slack(request, secret):
    return SignatureVerifier(secret).is_valid_request(request.body, request.headers)


def by_twilio_form(request, secret):
    params = dict(parse_qsl(request.body.decode(), keep_blank_values=True))
    signature = request.headers["x-twilio-signature"]
    return RequestValidator(secret).validate(request.url, params, signature)


def by_twilio_json(request, secret):
    signature = request.headers["x-twilio-signature"]
    return RequestValidator(secret).validate(request.url, request.body.decode(), signature)


def by_standardwebhooks(request, secret):
    standardwebhooks.Webhook(secret).verify(request.body, request.headers)
    return True


def by_svix(request, secret):
    svix.webhooks.Webhook(secret).verify(request.body, request.headers)
    return True


class Mandrill(MandrillSignatureMixin):
    esp_name = "Mandrill"
    webhook_key = webhook_url = None


def by_anymail(request, secret):
    view = Mandrill(webhook_key=secret)
    host = request.url.split("/")[2]
    asked = RequestFactory().post(
        request.url.split(host, 1)[1],
        request.body,
        content_type=request.headers["content-type"],
        headers={"x-mandrill-signature": request.headers["x-mandrill-signature"], "host": host},
    )
    view.validate_request(asked)
    json.loads(asked.POST["mandrill_events"])
    return True


def by_pynacl(request, secret):
    key = nacl.signing.VerifyKey(base64.b64decode(secret.removeprefix("whpk_")))
    signed = f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}.".encode()
    version, signature = request.headers["webhook-signature"].split(",")
    key.verify(signed + request.body, base64.b64decode(signature))
    return version == "v1a"


def by_docusigns_documentation(request, secret):
    expected = base64.b64encode(tag(secret, request.body)).decode()
    return request.headers["x-authorization-digest"] == "HMACSHA256" and same(
        request.headers["x-docusign-signature-1"], expected
    )


def by_jiras_documentation(request, secret):
    method, signature = request.headers["x-hub-signature"].split("=", 1)
    return method == "sha256" and same(signature, tag(secret, request.body).hex())


def by_trellos_documentation(request, secret):
    message = request.body + request.url.encode()
    expected = base64.b64encode(tag(secret, message, hashlib.sha1)).decode()
    return same(request.headers["x-trello-webhook"], expected)


def by_asanas_documentation(request, secret):
    return same(request.headers["x-hook-signature"], tag(secret, request.body).hex())


def by_gitlabs_documentation(request, secret):
    return same(request.headers["x-gitlab-token"], secret) and "x-gitlab-event" in request.headers


def papertrails_shape(request, _):
    json.loads(parse_qs(request.body.decode())["payload"][0])
    return True


def zapiers_shape(request, _):
    return isinstance(json.loads(request.body), dict)


# Name: verifier, right and wrong secret, header of the signature, header of a signed timestamp, and
# what the scheme does not protect.
VERIFIERS = {
    "standard": (by_standardwebhooks, WHSEC, OTHER_WHSEC, "webhook-signature", "webhook-timestamp", ()),
    "standard-ed25519": (by_pynacl, WHPK, OTHER_WHPK, "webhook-signature", "webhook-timestamp", ()),
    "svix": (by_svix, WHSEC, OTHER_WHSEC, "svix-signature", "svix-timestamp", ()),
    "stripe": (by_stripe, TEXT, OTHER_TEXT, "stripe-signature", "stripe-signature", ()),
    "slack-form": (by_slack, TEXT, OTHER_TEXT, "x-slack-signature", "x-slack-request-timestamp", ()),
    "slack-json": (by_slack, TEXT, OTHER_TEXT, "x-slack-signature", "x-slack-request-timestamp", ()),
    "twilio-form": (by_twilio_form, TEXT, OTHER_TEXT, "x-twilio-signature", None, ("timestamp",)),
    "twilio-json": (by_twilio_json, TEXT, OTHER_TEXT, "x-twilio-signature", None, ("timestamp",)),
    "mailchimp": (by_anymail, TEXT, OTHER_TEXT, "x-mandrill-signature", None, ("timestamp",)),
    "mailchimp-made": (by_anymail, TEXT, OTHER_TEXT, "x-mandrill-signature", None, ("timestamp",)),
    "twilio-made": (by_twilio_form, TEXT, OTHER_TEXT, "x-twilio-signature", None, ("timestamp",)),
    "slack-made": (by_slack, TEXT, OTHER_TEXT, "x-slack-signature", "x-slack-request-timestamp", ()),
    "docusign": (by_docusigns_documentation, TEXT, OTHER_TEXT, "x-docusign-signature-1", None, ("timestamp",)),
    "jira": (by_jiras_documentation, TEXT, OTHER_TEXT, "x-hub-signature", None, ("timestamp",)),
    "trello": (by_trellos_documentation, TEXT, OTHER_TEXT, "x-trello-webhook", None, ("timestamp",)),
    "asana": (by_asanas_documentation, TEXT, OTHER_TEXT, "x-hook-signature", None, ("timestamp",)),
    "gitlab": (by_gitlabs_documentation, TEXT, OTHER_TEXT, "x-gitlab-token", None, ("timestamp", "body")),
    "papertrail": (papertrails_shape, "", "", None, None, ("timestamp", "body", "signature", "secret")),
    "papertrail-made": (papertrails_shape, "", "", None, None, ("timestamp", "body", "signature", "secret")),
    "zapier": (zapiers_shape, "", "", None, None, ("timestamp", "body", "signature", "secret")),
    "zoho": (zapiers_shape, "", "", None, None, ("timestamp", "body", "signature", "secret")),
}


def another(text, at):
    """`text` with another letter or digit at this place."""
    return text[:at] + ("B" if text[at] != "B" else "C") + text[at + 1 :]


def changes(request, signature, timestamp, right, wrong):
    """Each kind of change: the changed request, and the secret to verify it with."""
    body = request.body.replace(b"4711", b"4712")
    assert body != request.body, request.body
    yield "body", request.changed(body=body), right
    if signature:
        text = request.headers[signature]
        text = another(text, len(text) - 8)
        yield "signature", request.changed(headers={**request.headers, signature: text}), right
        yield "secret", request, wrong
    if timestamp == "stripe-signature":
        at, rest = request.headers[timestamp].removeprefix("t=").split(",", 1)
        yield "timestamp", request.changed(headers={**request.headers, timestamp: f"t={int(at) + 1},{rest}"}), right
    elif timestamp:
        later = str(int(request.headers[timestamp]) + 1)
        yield "timestamp", request.changed(headers={**request.headers, timestamp: later}), right


def believed(verifier, request, secret):
    try:
        return (True, "") if verifier(request, secret) else (False, "no")
    except Exception as why:
        return False, f"{type(why).__name__}: {why}"


def judge(name, request):
    verifier, right, wrong, signature, timestamp, unprotected = VERIFIERS[name]
    accepted, why = believed(verifier, request, right)
    refused = {}
    for kind, changed, secret in changes(request, signature, timestamp, right, wrong):
        if kind not in unprotected:
            refused[kind] = not believed(verifier, changed, secret)[0]
    missing = {"body", "signature", "timestamp", "secret"} - set(refused) - set(unprotected)
    assert not missing, (name, missing)
    return {"accepted": accepted, "why": why, "refused": refused}


RESULTS = {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(200, json.dumps(RESULTS).encode())

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        url = f"http://{headers['host']}{self.path}"
        name = self.path.split("?")[0].strip("/")
        try:
            RESULTS[name] = judge(name, Request("POST", url, headers, body))
        except Exception as why:
            RESULTS[name] = {"accepted": False, "why": repr(why), "refused": {}}
        self.answer(204 if RESULTS[name]["accepted"] else 401, b"")

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
    print(server.server_address[1], flush=True)
    # Ends with whoever has started it.
    threading.Thread(target=lambda: (os.read(0, 1), os._exit(0)), daemon=True).start()
    server.serve_forever()
