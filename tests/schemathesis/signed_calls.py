"""Signs what schemathesis sends, as docs/src/protocol.md says calls are signed.

Unsigned, everything that matters would be answered with 401 and nothing behind that would be tried. Each call is a new
key's, so that no rate limit is met, but for the routes of the operator and of verifiers.
"""

import base64
import os
import time
import urllib.request

import json
import requests
import schemathesis
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SITE = os.environ["HYDRA_SITE"]
OPERATOR = Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32)
VERIFIER = Ed25519PrivateKey.from_private_bytes(bytes([8]) * 32)

with urllib.request.urlopen(f"{SITE}/hydra/v1/hello") as hello:
    SESSION = bytes.fromhex(json.load(hello)["session"])


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def counted(text: bytes) -> bytes:
    return varint(len(text)) + text


def authorization(key: Ed25519PrivateKey, method: str, path: str, body: bytes) -> str:
    """The header for a call: version 1, then signer, signature in halves, and the signed call, in postcard."""
    call = b"\x01" + SESSION + counted(method.encode()) + counted(path.encode()) + blake3(body).digest()
    call += varint(time.time_ns() // 1_000_000) + os.urandom(16)
    domain = blake3(b"http call v1", derive_key_context="hydra signed message v1").digest()
    signature = key.sign(domain + call)
    signer = key.public_key().public_bytes_raw()
    signed = b"\x01" + signer + counted(signature[:32]) + counted(signature[32:]) + counted(call)
    return "Hydra " + base64.urlsafe_b64encode(signed).decode().rstrip("=")


class Signed(requests.auth.AuthBase):
    def __call__(self, request):
        path = request.path_url
        if "/admin/" in path:
            key = OPERATOR
        elif path.endswith(("/verdicts", "/jobs")):
            key = VERIFIER
        else:
            key = Ed25519PrivateKey.generate()
        body = request.body or b""
        body = body.encode() if isinstance(body, str) else body
        if isinstance(body, bytes):
            request.headers["Authorization"] = authorization(key, request.method, path, body)
        return request


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.operation.definition.raw.get("security"):
        kwargs["auth"] = Signed()


# If this is refused, nothing behind the signature would be tried.
requests.post(f"{SITE}/hydra/v1/register", data=b"{}", auth=Signed()).raise_for_status()
