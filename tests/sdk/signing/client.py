"""Streams a chat completion with a signed request; needs nothing but Python's standard library."""

import hashlib
import hmac
import http.client
import json
import os
import secrets
import sys
import time
from urllib.parse import urlsplit


def sign(key_id: str, secret: str, method: str, target: str, body: bytes) -> str:
    """The Authorization header of one request. target is path?query, exactly as it will be sent."""
    path, _, query = target.partition("?")
    timestamp, nonce = str(int(time.time())), secrets.token_urlsafe(24)
    digest = hashlib.sha256(body).hexdigest()
    text = "\n".join(["TG-HMAC-SHA256", method, path, query, timestamp, nonce, digest])
    signature = hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
    return (
        f"TG-HMAC-SHA256 id={key_id}, timestamp={timestamp}, nonce={nonce}, "
        f"digest={digest}, signature={signature}"
    )


def main() -> None:
    gateway = urlsplit(os.environ["TIDEGATE_URL"])
    target = "/v1/chat/completions"
    messages = [{"role": "user", "content": "Say hello."}]
    body = json.dumps({"model": "deepseek-flash", "stream": True, "messages": messages}).encode()
    headers = {
        "Authorization": sign(
            os.environ["TIDEGATE_KEY_ID"], os.environ["TIDEGATE_SECRET"], "POST", target, body
        ),
        "Content-Type": "application/json",
    }

    secure = gateway.scheme == "https"
    connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = connect(gateway.netloc, timeout=60)
    connection.request("POST", target, body, headers)
    answer = connection.getresponse()
    if answer.status != 200:
        sys.exit(f"{answer.status}: {answer.read().decode()}")
    for line in answer:
        if not line.startswith(b"data:"):
            continue
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            print()
            return
        event = json.loads(data)
        if "error" in event:
            sys.exit(event["error"]["message"])
        for choice in event["choices"]:
            print(choice["delta"].get("content") or "", end="", flush=True)
    sys.exit("the answer broke off")


if __name__ == "__main__":
    main()
