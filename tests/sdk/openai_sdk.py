"""Drives the gateway with OpenAI's SDK for Python, as tenants do. See checks.py for what it needs."""

import asyncio
import json
import time

import openai
from checks import KEY, URL, asked, attempts, check, equal, generations, main, ordering, raises, recovered, seen_as_cancelled

MODEL = "deepseek-flash"
# Without thinking, so that the first delta is content.
PLAIN_MODEL = "deepseek-chat"
FORBIDDEN_MODEL = "deepseek-v4-pro"
SLOW = "tokens=400,token_delay=25ms"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
RESPONSES_WEATHER = {"type": "function", "strict": False, **WEATHER["function"]}

client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, timeout=20)
impatient = client.with_options(max_retries=0)


def async_client() -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY, timeout=20, max_retries=0)


def says(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def chat(text: str = "Hello", sdk: openai.OpenAI = impatient, **more):
    return sdk.chat.completions.create(**{"model": MODEL, "messages": says(text), **more})


def text_of(chunks: list) -> str:
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


# Chat


@check
def a_chat_answer_has_text_reasoning_and_usage() -> None:
    answer = chat("Hello from Python")
    choice = answer.choices[0]
    assert "Hello from Python" in choice.message.content, choice.message.content
    assert choice.message.reasoning_content
    equal(choice.finish_reason, "stop")
    usage = answer.usage
    assert usage.prompt_tokens > 0 and usage.completion_tokens > 0
    equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
    assert usage.completion_tokens_details.reasoning_tokens > 0


@check
def a_retired_model_name_is_served_without_thinking() -> None:
    answer = chat(model=PLAIN_MODEL)
    equal(answer.model, MODEL)
    assert getattr(answer.choices[0].message, "reasoning_content", None) is None


@check
def a_streamed_answer_is_the_whole_answer_with_reasoning_first() -> None:
    whole = chat("The same question")
    chunks = list(chat("The same question", stream=True))
    equal(text_of(chunks), whole.choices[0].message.content)
    equal(chunks[0].choices[0].delta.role, "assistant")
    deltas = [c.choices[0].delta for c in chunks if c.choices]
    kinds = ["text" if d.content else "reasoning" for d in deltas if d.content or getattr(d, "reasoning_content", None)]
    assert kinds and kinds == sorted(kinds) and set(kinds) == {"reasoning", "text"}, kinds
    equal(chunks[-1].choices[0].finish_reason, "stop")


@check
def a_stream_asked_for_usage_ends_with_it() -> None:
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    equal([c.usage is not None for c in chunks], [False] * (len(chunks) - 1) + [True])
    usage = chunks[-1].usage
    equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)


@check
def a_stream_not_asked_for_usage_has_no_chunk_without_choices() -> None:
    chunks = list(chat(stream=True))
    assert all(chunk.choices for chunk in chunks)
    explicit = list(chat(stream=True, stream_options={"include_usage": False}))
    assert all(chunk.choices for chunk in explicit)


@check
def usage_that_the_upstream_attaches_unasked_passes() -> None:
    chunks = list(chat(ordering("usage=attached"), stream=True))
    assert chunks[-1].choices and chunks[-1].usage.total_tokens > 0


@check
def tokens_arrive_one_by_one_and_not_at_the_end() -> None:
    began = time.monotonic()
    arrivals = []
    for chunk in chat(ordering("tokens=20,token_delay=30ms"), model=PLAIN_MODEL, stream=True):
        arrivals.append(time.monotonic() - began)
    # 20 tokens take 600 ms; a gateway that gathers them would give the first with the last.
    assert arrivals[-1] - arrivals[0] > 0.4, arrivals
    gaps = [after - before for before, after in zip(arrivals, arrivals[1:])]
    assert sum(gap > 0.01 for gap in gaps) > 10, gaps


@check
def an_answer_cut_by_max_tokens_says_so() -> None:
    answer = chat(model=PLAIN_MODEL, max_tokens=3)
    equal(answer.choices[0].finish_reason, "length")
    equal(answer.usage.completion_tokens, 3)


@check
def fields_that_the_sdk_does_not_know_reach_the_upstream() -> None:
    answer = chat(extra_body={"thinking": {"type": "disabled"}})
    assert getattr(answer.choices[0].message, "reasoning_content", None) is None


@check
def the_stream_helper_gathers_the_same_answer() -> None:
    with impatient.chat.completions.stream(model=MODEL, messages=says("Gather this")) as stream:
        stream.until_done()
        answer = stream.get_final_completion()
    assert "Gather this" in answer.choices[0].message.content


@check
def a_prompt_of_two_mebibytes_in_many_scripts_arrives_whole() -> None:
    # Short of the emulated context of a million tokens, long past every buffer on the way.
    raw = impatient.chat.completions.with_raw_response.create(
        model=MODEL, messages=says("字é🦀 tide " * 160_000 + "[[fault:tokens=2]]")
    )
    sent = len(raw.http_request.content)
    assert sent > 2 << 20, sent
    # The gateway writes the model's name anew, which has the same length here.
    equal(asked(raw.headers["x-request-id"])["body_bytes"], sent)


@check
def text_completions_fill_in_the_middle() -> None:
    answer = impatient.completions.create(model=MODEL, prompt="def tide(", suffix="return 1", max_tokens=8)
    assert answer.choices[0].text and answer.usage.completion_tokens > 0
    beta = impatient.with_options(base_url=f"{URL}/beta")
    chunks = list(beta.completions.create(model=MODEL, prompt="def tide(", max_tokens=8, stream=True))
    assert "".join(c.choices[0].text for c in chunks if c.choices)


# Tools


@check
def a_tool_is_called_and_its_result_answered() -> None:
    first = chat("Use the tool please", tools=[WEATHER])
    message = first.choices[0].message
    equal(first.choices[0].finish_reason, "tool_calls")
    call = message.tool_calls[0]
    equal(call.function.name, "get_weather")
    assert set(json.loads(call.function.arguments)) == {"city", "days"}
    # The reasoning has to travel back, or DeepSeek refuses the turn.
    turns = [
        *says("Use the tool please"),
        message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    second = chat(messages=turns, tools=[WEATHER])
    equal(second.choices[0].finish_reason, "stop")


@check
def a_streamed_tool_call_is_put_together() -> None:
    chunks = list(chat("Use the tool please", tools=[WEATHER], stream=True))
    deltas = [d for c in chunks if c.choices for d in c.choices[0].delta.tool_calls or []]
    assert deltas[0].id and len(deltas) > 2
    equal(deltas[0].function.name, "get_weather")
    arguments = "".join(delta.function.arguments or "" for delta in deltas)
    assert set(json.loads(arguments)) == {"city", "days"}
    equal(chunks[-1].choices[0].finish_reason, "tool_calls")


# Models, responses, embeddings, files


@check
def the_list_of_models_is_what_the_key_may_use() -> None:
    names = [model.id for model in impatient.models.list()]
    assert MODEL in names and PLAIN_MODEL in names and FORBIDDEN_MODEL not in names, names
    equal(impatient.models.retrieve(MODEL).id, MODEL)


@check
def a_model_that_is_not_open_or_unknown_cannot_be_retrieved() -> None:
    for name in (FORBIDDEN_MODEL, "no-such-model"):
        error = raises(openai.NotFoundError, lambda: impatient.models.retrieve(name))
        equal(error.code, "model_not_found")


@check
def a_response_has_text_and_usage() -> None:
    answer = impatient.responses.create(model=MODEL, input="Hello responses")
    equal(answer.status, "completed")
    assert "Hello responses" in answer.output_text
    assert answer.usage.input_tokens > 0 and answer.usage.output_tokens > 0


@check
def a_streamed_response_ends_with_the_whole_one() -> None:
    events = list(impatient.responses.create(model=MODEL, input="Hello responses", stream=True))
    equal(events[0].type, "response.created")
    equal(events[-1].type, "response.completed")
    equal([event.sequence_number for event in events], list(range(len(events))))
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    equal(text, events[-1].response.output_text)
    assert events[-1].response.usage.total_tokens > 0


@check
def a_response_calls_a_tool_streamed_and_not() -> None:
    asking = {"model": MODEL, "input": "Use the tool please", "tools": [RESPONSES_WEATHER]}
    whole = impatient.responses.create(**asking)
    streamed = list(impatient.responses.create(**asking, stream=True))[-1].response
    for answer in (whole, streamed):
        call = next(item for item in answer.output if item.type == "function_call")
        equal(call.name, "get_weather")
        assert set(json.loads(call.arguments)) == {"city", "days"}


@check
def embeddings_come_packed_and_as_numbers() -> None:
    packed = impatient.embeddings.create(model=MODEL, input=["one", "two"])
    plain = impatient.embeddings.create(model=MODEL, input=["one", "two"], encoding_format="float")
    equal(len(packed.data), 2)
    equal([round(n, 5) for n in packed.data[0].embedding], [round(n, 5) for n in plain.data[0].embedding])
    assert packed.usage.prompt_tokens > 0


@check
def files_are_uploaded_listed_read_and_deleted() -> None:
    content = bytes(range(256)) * 1024
    made = impatient.files.create(file=("tide table.bin", content), purpose="user_data")
    equal((made.filename, made.bytes), ("tide table.bin", len(content)))
    assert made.id in [file.id for file in impatient.files.list(limit=50)]
    equal(impatient.files.retrieve(made.id).id, made.id)
    equal(impatient.files.content(made.id).read(), content)
    assert impatient.files.delete(made.id).deleted
    raises(openai.NotFoundError, lambda: impatient.files.retrieve(made.id))
    assert made.id not in [file.id for file in impatient.files.list()]


# Errors


@check
def a_bad_key_is_an_authentication_error() -> None:
    for key in ("tg_sdk_wrong", KEY[:-1] + ("0" if KEY[-1] != "0" else "1"), "sk-emulator"):
        stranger = impatient.with_options(api_key=key)
        error = raises(openai.AuthenticationError, lambda: chat(sdk=stranger))
        assert key not in str(error) and error.request_id
        raises(openai.AuthenticationError, lambda: stranger.models.list())


@check
def an_unknown_model_is_not_found() -> None:
    error = raises(openai.NotFoundError, lambda: chat(model="no-such-model"))
    equal((error.code, error.param), ("model_not_found", "model"))


@check
def a_model_that_is_not_allowed_is_permission_denied() -> None:
    error = raises(openai.PermissionDeniedError, lambda: chat(model=FORBIDDEN_MODEL))
    equal((error.code, error.param), ("model_not_allowed", "model"))


@check
def an_unknown_path_is_not_found() -> None:
    error = raises(openai.NotFoundError, lambda: impatient.moderations.create(input="Hello"))
    equal(error.code, "unknown_path")


@check
def the_upstreams_words_about_a_bad_parameter_are_relayed() -> None:
    error = raises(openai.UnprocessableEntityError, lambda: chat(max_tokens=-1))
    assert "max_tokens" in error.message, error.message
    equal(error.type, "invalid_request_error")
    streamed = raises(openai.UnprocessableEntityError, lambda: chat(max_tokens=-1, stream=True))
    assert "max_tokens" in streamed.message
    bad = raises(openai.BadRequestError, lambda: chat(n=2))
    assert "n value" in bad.message, bad.message
    raises(openai.BadRequestError, lambda: impatient.responses.create(model=MODEL, input="x", previous_response_id="r"))


@check
def an_upstream_at_its_limit_is_a_rate_limit_error() -> None:
    error = raises(openai.RateLimitError, lambda: chat(ordering("status=429,retry_after=3")))
    equal((error.code, error.type), ("upstream_rate_limited", "rate_limit_error"))
    equal(error.response.headers["retry-after"], "3")


@check
def an_upstream_in_trouble_is_an_internal_server_error() -> None:
    wanted = {500: 502, 502: 502, 503: 503, 504: 504, 401: 503, 402: 503, 403: 503}
    for told, shown in wanted.items():
        error = raises(openai.InternalServerError, lambda: chat(ordering(f"status={told}")))
        equal((told, error.status_code), (told, shown))
        leaked = [word for word in ("emulated", "Balance") if word in error.message]
        equal(leaked, [])
    recovered(chat)


@check
def refusals_in_quick_succession_never_break_the_connection() -> None:
    # A connection that is closed behind an answer that did not announce it loses the next request.
    for _ in range(40):
        raises(openai.InternalServerError, lambda: chat(ordering("status=503")))
        raises(openai.RateLimitError, lambda: chat(ordering("status=429")))
        raises(openai.NotFoundError, lambda: chat(model="no-such-model"))
        raises(openai.UnprocessableEntityError, lambda: chat(max_tokens=-1))


@check
def an_upstream_that_breaks_before_the_head_is_an_internal_server_error() -> None:
    # 503 when pooled connections were broken one after the other: those may have been stale.
    error = raises(openai.InternalServerError, lambda: chat(ordering("reset")))
    assert error.status_code in (502, 503), error.status_code


@check
def a_refusal_that_no_retry_can_mend_is_not_retried() -> None:
    # A status that SDKs repeat of their own accord, which the gateway tells as a final 400.
    def refused() -> None:
        error = raises(openai.BadRequestError, lambda: chat(ordering("status=409"), sdk=client))
        equal(error.response.headers["x-should-retry"], "false")

    equal(attempts(refused), 1)


@check
def trouble_that_passes_is_survived_by_the_sdks_own_retry() -> None:
    def survived() -> None:
        # It outlasts the gateway's own three attempts.
        answer = chat(ordering("status=503,times=3,retry_after=1"), sdk=client)
        equal(answer.choices[0].finish_reason, "stop")

    equal(attempts(survived), 4)


@check
def every_answer_and_every_error_has_a_request_id() -> None:
    answer = chat()
    equal(asked(answer._request_id)["status"], 200)
    for call in (
        lambda: chat(model="no-such-model"),
        lambda: chat(max_tokens=-1),
        lambda: chat(ordering("status=503")),
    ):
        error = raises(openai.APIStatusError, call)
        equal(error.body["request_id"], error.request_id)


@check
def raw_headers_carry_the_request_id_and_nothing_of_the_upstream() -> None:
    raw = impatient.chat.completions.with_raw_response.create(model=MODEL, messages=says("Hello"))
    equal(raw.headers["x-request-id"], raw.parse()._request_id)
    with impatient.chat.completions.with_streaming_response.create(
        model=MODEL, messages=says("Hello"), stream=True
    ) as streamed:
        assert streamed.headers["x-request-id"]
        assert streamed.headers["content-type"].startswith("text/event-stream")
        for headers in (raw.headers, streamed.headers):
            leaked = {"server", "set-cookie", "x-ds-trace-id", "via"} & set(headers)
            assert not leaked, leaked


@check
def nothing_of_the_tenant_reaches_the_upstream() -> None:
    raw = impatient.chat.completions.with_raw_response.create(
        model=MODEL, messages=says("Hello"), extra_headers={"OpenAI-Organization": "org", "Cookie": "a=b"}
    )
    headers = dict(asked(raw.headers["x-request-id"])["request_headers"])
    assert KEY not in str(headers)
    own = {"openai-organization", "cookie", "user-agent"}
    leaked = [name for name in headers if name in own or name.startswith("x-stainless")]
    equal(leaked, [])


# Streams that do not come to their end


def broken_stream(faults: str) -> tuple[list, Exception]:
    chunks = []

    def consume() -> None:
        for chunk in chat(ordering(faults), model=PLAIN_MODEL, stream=True):
            chunks.append(chunk)

    error = raises(openai.APIError, consume)
    assert not any(c.choices[0].finish_reason for c in chunks if c.choices)
    return chunks, error


@check
def a_stream_that_is_cut_raises_after_what_came() -> None:
    for fault in ("cut_after=5", "end_after=5"):
        chunks, error = broken_stream(fault)
        equal((fault, len(chunks)), (fault, 5))
        equal((fault, error.code), (fault, "stream_interrupted"))
        assert error.body["request_id"]


@check
def a_stream_that_is_cut_before_its_first_event_raises() -> None:
    for fault in ("cut_after=0", "end_after=0"):
        chunks, _ = broken_stream(fault)
        equal(chunks, [])


@check
def an_error_inside_a_stream_raises() -> None:
    chunks, error = broken_stream("error_after=5")
    equal(len(chunks), 5)
    assert error.message


@check
def a_stream_that_lacks_only_its_end_mark_raises() -> None:
    # Six tokens, the role before them, the finish after them: only [DONE] is missing.
    chunks = []

    def consume() -> None:
        for chunk in chat(ordering("tokens=6,end_after=8,usage=attached"), model=PLAIN_MODEL, stream=True):
            chunks.append(chunk)

    raises(openai.APIError, consume)
    equal(chunks[-1].choices[0].finish_reason, "stop")


@check
def an_answer_in_one_piece_that_is_cut_raises() -> None:
    for fault in ("cut_after=1", "cut_after=0"):
        raises(openai.APIError, lambda: chat(ordering(fault)))


@check
def an_answer_that_ends_too_early_is_an_error_of_the_upstream_and_asked_for_three_times_at_most() -> None:
    # An answer of no bytes at all makes no sense, and will not make any at another time.
    for fault, times in (("end_after=1", 3), ("end_after=0", 1)):
        # On a connection that served before: what answered, and bills for it, was not stale, so each
        # time counts. The SDK is told not to try again by itself.
        chat()

        def refused() -> None:
            error = raises(openai.InternalServerError, lambda: chat(ordering(fault)))
            equal((fault, error.status_code), (fault, 502))

        equal((fault, attempts(refused)), (fault, times))


@check
def an_upstreams_refusal_without_a_body_has_one_of_ours() -> None:
    # DeepSeek answers 404 and 405 with nothing at all.
    error = raises(openai.NotFoundError, lambda: chat(ordering("status=404")))
    equal(error.code, "not_found")
    equal(error.body["request_id"], error.request_id)
    other = raises(openai.APIStatusError, lambda: chat(ordering("status=405")))
    equal(other.code, "method_not_allowed")


@check
def a_streamed_response_that_is_cut_raises() -> None:
    for fault in ("cut_after=6", "end_after=6"):
        events = []

        def consume() -> None:
            for event in impatient.responses.create(model=MODEL, input=ordering(fault), stream=True):
                events.append(event.type)

        raises(openai.APIError, consume)
        equal((fault, len(events)), (fault, 6))
        assert "response.completed" not in events


@check
def a_streamed_response_that_fails_says_so_last() -> None:
    # This format has a failure event of its own, which the SDK hands over instead of raising.
    events = list(impatient.responses.create(model=MODEL, input=ordering("error_after=6"), stream=True))
    equal(events[-1].type, "response.failed")


# Clients that leave, upstreams that make wait


@check
def a_closed_stream_is_seen_by_the_upstream_within_a_second() -> None:
    stream = chat(ordering(SLOW), model=PLAIN_MODEL, stream=True)
    request_id = stream.response.headers["x-request-id"]
    for _ in range(3):
        next(stream)
    equal(asked(request_id)["outcome"], None)
    left_at = time.time()
    stream.close()
    seen_as_cancelled(request_id, left_at)


@check
def a_client_that_gives_up_waiting_is_seen_by_the_upstream_within_a_second() -> None:
    text = ordering("first_token=5s")
    hasty = impatient.with_options(timeout=0.5)
    raises(openai.APITimeoutError, lambda: chat(text, sdk=hasty))
    left_at = time.time()
    request_id = dict(generations()[-1]["request_headers"])["x-request-id"]
    seen_as_cancelled(request_id, left_at)


@check
def keep_alives_do_not_disturb() -> None:
    answer = chat(ordering("queue=300ms"))
    equal(answer.choices[0].finish_reason, "stop")
    chunks = list(chat(ordering("queue=300ms"), stream=True))
    equal(chunks[-1].choices[0].finish_reason, "stop")
    response = impatient.responses.create(model=MODEL, input=ordering("queue=300ms"))
    equal(response.status, "completed")
    events = list(impatient.responses.create(model=MODEL, input=ordering("queue=300ms"), stream=True))
    equal(events[-1].type, "response.completed")


@check
def a_stream_that_is_cut_after_keep_alives_raises() -> None:
    chunks, error = broken_stream("queue=200ms,cut_after=3")
    equal((len(chunks), error.code), (3, "stream_interrupted"))


# The asynchronous client


@check
async def the_async_client_is_answered_streamed_and_not() -> None:
    async with async_client() as sdk:
        whole = await sdk.chat.completions.create(model=MODEL, messages=says("Hello async"))
        assert "Hello async" in whole.choices[0].message.content
        stream = await sdk.chat.completions.create(model=MODEL, messages=says("Hello async"), stream=True)
        equal(text_of([chunk async for chunk in stream]), whole.choices[0].message.content)
        equal((await sdk.responses.create(model=MODEL, input="Hello")).status, "completed")
        names = [model.id async for model in sdk.models.list()]
        assert MODEL in names


@check
async def forty_async_streams_at_once_do_not_mix() -> None:
    async with async_client() as sdk:

        async def one(number: int) -> None:
            text = f"Number {number}."
            stream = await sdk.chat.completions.create(model=PLAIN_MODEL, messages=says(text), stream=True)
            answer = text_of([chunk async for chunk in stream])
            assert text in answer, answer

        await asyncio.gather(*(one(number) for number in range(40)))


@check
async def the_async_client_raises_the_right_errors() -> None:
    async with async_client() as sdk:

        async def failing(text: str = "Hello", **more) -> openai.APIError:
            try:
                answer = await sdk.chat.completions.create(**{"model": MODEL, "messages": says(text), **more})
                if more.get("stream"):
                    _ = [chunk async for chunk in answer]
            except openai.APIError as error:
                return error
            raise AssertionError("no error")

        equal(type(await failing(model="no-such-model")), openai.NotFoundError)
        equal(type(await failing(model=FORBIDDEN_MODEL)), openai.PermissionDeniedError)
        equal(type(await failing(ordering("status=429"))), openai.RateLimitError)
        equal((await failing(ordering("cut_after=5"), stream=True)).code, "stream_interrupted")
        equal((await failing(ordering("end_after=5"), stream=True)).code, "stream_interrupted")
        assert (await failing(ordering("error_after=5"), stream=True)).message


@check
async def a_cancelled_async_task_is_seen_by_the_upstream_within_a_second() -> None:
    async with async_client() as sdk:
        begun: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def read() -> None:
            stream = await sdk.chat.completions.create(
                model=PLAIN_MODEL, messages=says(ordering(SLOW)), stream=True
            )
            async for _ in stream:
                if not begun.done():
                    begun.set_result(stream.response.headers["x-request-id"])

        task = asyncio.create_task(read())
        request_id = await begun
        left_at = time.time()
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass
        await asyncio.to_thread(seen_as_cancelled, request_id, left_at)


main()
