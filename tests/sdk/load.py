"""Asks like many tenants at once, by OpenAI's SDK for Python, and prints a line of JSON for each
request. Nothing is tried again, so that nothing is hidden.

The environment names the gateway (TIDEGATE_URL) and a tenant's key (TIDEGATE_KEY), and how to ask:
LOAD_CLIENTS at a time, LOAD_RATE requests a second in all (0: as many as come), for LOAD_SECONDS,
LOAD_STREAMED percent of them streamed, LOAD_QUESTIONS different questions (LOAD_PROMPT is put in
front of each), of LOAD_MODEL, with LOAD_TIMEOUT seconds for each.
"""

import asyncio
import gc
import hashlib
import json
import os
import sys
import time

import openai

URL = os.environ["TIDEGATE_URL"].rstrip("/")
KEY = os.environ["TIDEGATE_KEY"]
CLIENTS = int(os.environ.get("LOAD_CLIENTS", "50"))
RATE = float(os.environ.get("LOAD_RATE", "0"))
SECONDS = float(os.environ.get("LOAD_SECONDS", "10"))
STREAMED = int(os.environ.get("LOAD_STREAMED", "50"))
QUESTIONS = int(os.environ.get("LOAD_QUESTIONS", "20"))
PROMPT = os.environ.get("LOAD_PROMPT", "")
MODEL = os.environ.get("LOAD_MODEL", "deepseek-flash")
TIMEOUT = float(os.environ.get("LOAD_TIMEOUT", "60"))


class Answer:
    """What came of one request."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.first = None
        self.chunks = 0
        self.hash = hashlib.blake2b(digest_size=8)
        self.finish = None
        self.request_id = None

    def hear(self, text: str) -> None:
        if self.first is None:
            self.first = time.monotonic()
        self.hash.update(text.encode())


async def whole(client: openai.AsyncOpenAI, asking: dict, answer: Answer) -> None:
    told = await client.chat.completions.create(**asking)
    answer.request_id = told._request_id
    choice = told.choices[0]
    answer.hear(choice.message.content or "")
    answer.finish = choice.finish_reason


async def streamed(client: openai.AsyncOpenAI, asking: dict, answer: Answer) -> None:
    stream = await client.chat.completions.create(stream=True, **asking)
    answer.request_id = stream.response.headers.get("x-request-id")
    async with stream:
        async for chunk in stream:
            answer.chunks += 1
            for choice in chunk.choices:
                if choice.delta.content:
                    answer.hear(choice.delta.content)
                answer.finish = choice.finish_reason or answer.finish


async def ask(client: openai.AsyncOpenAI, number: int) -> None:
    question = number % QUESTIONS
    # Spread over the numbers, so that each question is asked in both ways.
    streams = (number * 37 + number // QUESTIONS) % 100 < STREAMED
    asking = {"model": MODEL, "messages": [{"role": "user", "content": f"{PROMPT}Question {question}"}]}
    answer = Answer()
    at = time.time()
    told = {"number": number, "at_ms": int(at * 1000), "question": question, "stream": streams}
    try:
        await (streamed if streams else whole)(client, asking, answer)
        told["error"] = None
    except Exception as error:
        told["error"] = type(error).__name__
        told["status"] = getattr(error, "status_code", None)
        told["code"] = getattr(error, "code", None)
        told["message"] = str(error)[:300]
        answer.request_id = getattr(error, "request_id", None) or answer.request_id
    since = answer.began
    told["first_ms"] = None if answer.first is None else round((answer.first - since) * 1000, 2)
    told["total_ms"] = round((time.monotonic() - since) * 1000, 2)
    told["chunks"] = answer.chunks
    told["hash"] = answer.hash.hexdigest()
    told["finish"] = answer.finish
    told["request_id"] = answer.request_id
    sys.stdout.write(json.dumps(told) + "\n")


async def main() -> None:
    # One pool of connections for each client would be one TLS context for each, which is slow.
    client = openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY, timeout=TIMEOUT, max_retries=0)
    numbers = iter(range(1 << 60))
    # What is imported stays: looking through it again and again costs more than the requests.
    gc.collect()
    gc.freeze()
    began = time.monotonic()

    async def keep_asking() -> None:
        while True:
            number = next(numbers)
            # Each number has its time, whoever takes it; when all are busy, the rate is what they can.
            due = began + number / RATE if RATE else time.monotonic()
            if due >= began + SECONDS:
                return
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            if time.monotonic() >= began + SECONDS:
                return
            await ask(client, number)

    await asyncio.gather(*(keep_asking() for _ in range(CLIENTS)))
    sys.stdout.flush()


asyncio.run(main())
