"""Streams a chat completion with OpenAI's SDK, which signs every request and every retry anew."""

import hashlib
import hmac
import os
import secrets
import time

import openai

# New versions of the SDK bring httpx2, older ones httpx.
try:
    import httpx2 as httpx
except ImportError:
    import httpx


class Signed(httpx.Auth):
    """Signs what is sent, in place of an API key. Bodies are held in memory, uploads too."""

    requires_request_body = True

    def __init__(self, key_id: str, secret: str):
        self.key_id, self.secret = key_id, secret.encode()

    def auth_flow(self, request):
        path, _, query = request.url.raw_path.decode("ascii").partition("?")
        timestamp, nonce = str(int(time.time())), secrets.token_urlsafe(24)
        digest = hashlib.sha256(request.content).hexdigest()
        text = "\n".join(
            ["TG-HMAC-SHA256", request.method, path, query, timestamp, nonce, digest]
        )
        signature = hmac.new(self.secret, text.encode(), hashlib.sha256).hexdigest()
        request.headers["Authorization"] = (
            f"TG-HMAC-SHA256 id={self.key_id}, timestamp={timestamp}, nonce={nonce}, "
            f"digest={digest}, signature={signature}"
        )
        yield request


def main() -> None:
    auth = Signed(os.environ["TIDEGATE_KEY_ID"], os.environ["TIDEGATE_SECRET"])
    client = openai.OpenAI(
        base_url=os.environ["TIDEGATE_URL"] + "/v1",
        api_key="unused",  # the SDK insists on one; the signature takes its place
        http_client=openai.DefaultHttpxClient(auth=auth),
    )
    stream = client.chat.completions.create(
        model="deepseek-flash",
        messages=[{"role": "user", "content": "Say hello."}],
        stream=True,
    )
    for chunk in stream:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
