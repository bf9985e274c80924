"""Drives the gateway with Anthropic's SDK for Python, as tenants do. See checks.py for what it
needs."""

import asyncio
import time

import anthropic
from checks import KEY, URL, asked, attempts, check, equal, generations, main, ordering, raises, recovered, seen_as_cancelled

MODEL = "deepseek-flash"
# Without thinking, so that the first delta is content.
PLAIN_MODEL = "deepseek-chat"
FORBIDDEN_MODEL = "deepseek-v4-pro"
SLOW = "tokens=400,token_delay=25ms"
WEATHER = {
    "name": "get_weather",
    "description": "Weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}

client = anthropic.Anthropic(base_url=f"{URL}/anthropic", api_key=KEY, timeout=20)
impatient = client.with_options(max_retries=0)


def async_client() -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=f"{URL}/anthropic", api_key=KEY, timeout=20, max_retries=0)


def asking(text: str = "Hello", **more) -> dict:
    return {"model": MODEL, "max_tokens": 1024, "messages": [{"role": "user", "content": text}], **more}


def ask(text: str = "Hello", sdk: anthropic.Anthropic = impatient, **more):
    return sdk.messages.create(**asking(text, **more))


def text_of(message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


# Messages


@check
def a_message_has_text_thinking_and_usage() -> None:
    answer = ask("Hello from Anthropic")
    equal([block.type for block in answer.content], ["thinking", "text"])
    assert "Hello from Anthropic" in text_of(answer)
    equal(answer.stop_reason, "end_turn")
    usage = answer.usage
    # What was cached is not counted among the input.
    assert usage.input_tokens + usage.cache_read_input_tokens > 0 and usage.output_tokens > 0


@check
def a_retired_model_name_is_served_without_thinking() -> None:
    equal([block.type for block in ask(model=PLAIN_MODEL).content], ["text"])


@check
def a_streamed_message_is_the_whole_message() -> None:
    events = list(ask("The same question", model=PLAIN_MODEL, stream=True))
    equal(events[0].type, "message_start")
    equal([event.type for event in events[-2:]], ["message_delta", "message_stop"])
    text = "".join(e.delta.text for e in events if e.type == "content_block_delta")
    equal(text, text_of(ask("The same question", model=PLAIN_MODEL)))
    equal(events[-2].delta.stop_reason, "end_turn")
    assert events[-2].usage.output_tokens > 0


@check
def the_stream_helper_gathers_the_same_message() -> None:
    with impatient.messages.stream(**asking("Gather this")) as stream:
        text = "".join(stream.text_stream)
        answer = stream.get_final_message()
    assert "Gather this" in text
    equal(text_of(answer), text)
    equal([block.type for block in answer.content], ["thinking", "text"])
    assert answer.usage.output_tokens > 0


@check
def tokens_arrive_one_by_one_and_not_at_the_end() -> None:
    began = time.monotonic()
    arrivals = []
    for event in ask(ordering("tokens=20,token_delay=30ms"), model=PLAIN_MODEL, stream=True):
        if event.type == "content_block_delta":
            arrivals.append(time.monotonic() - began)
    equal(len(arrivals), 20)
    # 20 tokens take 600 ms; a gateway that gathers them would give the first with the last.
    assert arrivals[-1] - arrivals[0] > 0.4, arrivals


@check
def an_answer_cut_by_max_tokens_says_so() -> None:
    answer = ask(model=PLAIN_MODEL, max_tokens=3)
    equal((answer.stop_reason, answer.usage.output_tokens), ("max_tokens", 3))


@check
def the_beta_messages_are_the_same_messages() -> None:
    answer = impatient.beta.messages.create(**asking("Hello beta"), betas=["files-api-2025-04-14"])
    assert "Hello beta" in text_of(answer)
    headers = dict(asked(answer._request_id)["request_headers"])
    equal(headers["anthropic-beta"], "files-api-2025-04-14")


# Tools


@check
def a_tool_is_called_and_its_result_answered() -> None:
    first = ask("Use the tool please", tools=[WEATHER])
    equal(first.stop_reason, "tool_use")
    call = next(block for block in first.content if block.type == "tool_use")
    equal((call.name, set(call.input)), ("get_weather", {"city", "days"}))
    turns = [
        {"role": "user", "content": "Use the tool please"},
        {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in first.content]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}]},
    ]
    equal(ask(messages=turns, tools=[WEATHER]).stop_reason, "end_turn")


@check
def a_streamed_tool_call_is_put_together() -> None:
    with impatient.messages.stream(**asking("Use the tool please", tools=[WEATHER])) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        answer = stream.get_final_message()
    assert len(pieces) > 1, pieces
    equal(answer.stop_reason, "tool_use")
    call = next(block for block in answer.content if block.type == "tool_use")
    equal((call.name, set(call.input)), ("get_weather", {"city", "days"}))


# Models


@check
def the_list_of_models_is_what_the_key_may_use() -> None:
    names = [model.id for model in impatient.models.list(limit=100)]
    assert MODEL in names and PLAIN_MODEL in names and FORBIDDEN_MODEL not in names, names
    model = impatient.models.retrieve(MODEL)
    equal((model.id, model.type), (MODEL, "model"))
    assert model.created_at.year >= 1970


@check
def a_model_that_is_not_open_or_unknown_cannot_be_retrieved() -> None:
    for name in (FORBIDDEN_MODEL, "no-such-model"):
        raises(anthropic.NotFoundError, lambda: impatient.models.retrieve(name))


# Errors


@check
def a_key_is_taken_from_either_header() -> None:
    newer = anthropic.Anthropic(base_url=f"{URL}/anthropic", auth_token=KEY, max_retries=0)
    equal(ask(sdk=newer).stop_reason, "end_turn")
    bare = {"Authorization": anthropic.omit, "X-Api-Key": KEY}
    equal(ask(extra_headers=bare).stop_reason, "end_turn")
    both = {"X-Api-Key": KEY}
    equal(ask(extra_headers=both).stop_reason, "end_turn")
    quarrel = {"X-Api-Key": "tg_sdk_another"}
    raises(anthropic.AuthenticationError, lambda: ask(extra_headers=quarrel))


@check
def a_bad_key_is_an_authentication_error() -> None:
    for key in ("tg_sdk_wrong", KEY[:-1] + ("0" if KEY[-1] != "0" else "1"), "sk-emulator"):
        stranger = impatient.with_options(api_key=key)
        error = raises(anthropic.AuthenticationError, lambda: ask(sdk=stranger))
        assert key not in str(error)
        equal(error.type, "authentication_error")


@check
def an_unknown_model_is_not_found() -> None:
    error = raises(anthropic.NotFoundError, lambda: ask(model="no-such-model"))
    equal((error.type, error.body["error"]["code"]), ("not_found_error", "model_not_found"))


@check
def a_model_that_is_not_allowed_is_permission_denied() -> None:
    error = raises(anthropic.PermissionDeniedError, lambda: ask(model=FORBIDDEN_MODEL))
    equal(error.type, "permission_error")


@check
def an_unknown_path_is_not_found() -> None:
    counted = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
    error = raises(anthropic.NotFoundError, lambda: impatient.messages.count_tokens(**counted))
    equal(error.type, "not_found_error")


@check
def the_upstreams_words_about_a_bad_parameter_are_relayed() -> None:
    error = raises(anthropic.UnprocessableEntityError, lambda: ask(max_tokens=-1))
    assert "max_tokens" in error.api_message, error.api_message
    equal(error.type, "invalid_request_error")
    streamed = raises(anthropic.UnprocessableEntityError, lambda: ask(max_tokens=-1, stream=True))
    assert "max_tokens" in streamed.api_message
    bad = raises(anthropic.BadRequestError, lambda: ask(messages=[]))
    assert "Empty" in bad.api_message, bad.api_message


@check
def an_upstream_at_its_limit_is_a_rate_limit_error() -> None:
    error = raises(anthropic.RateLimitError, lambda: ask(ordering("status=429,retry_after=3")))
    equal((error.type, error.response.headers["retry-after"]), ("rate_limit_error", "3"))


@check
def an_upstream_in_trouble_is_an_internal_server_error() -> None:
    wanted = {500: 502, 502: 502, 503: 503, 504: 504, 401: 503, 402: 503, 403: 503}
    for told, shown in wanted.items():
        error = raises(anthropic.InternalServerError, lambda: ask(ordering(f"status={told}")))
        equal((told, error.status_code), (told, shown))
        equal(error.type, "overloaded_error" if shown == 503 else "api_error")
        assert "emulated" not in str(error) and "Balance" not in str(error), error
    recovered(ask)
    raises(anthropic.ServiceUnavailableError, lambda: ask(ordering("status=503")))
    raises(anthropic.GatewayTimeoutError, lambda: ask(ordering("status=504")))


@check
def refusals_in_quick_succession_never_break_the_connection() -> None:
    # A connection that is closed behind an answer that did not announce it loses the next request.
    for _ in range(40):
        raises(anthropic.InternalServerError, lambda: ask(ordering("status=503")))
        raises(anthropic.RateLimitError, lambda: ask(ordering("status=429")))
        raises(anthropic.NotFoundError, lambda: ask(model="no-such-model"))
        raises(anthropic.UnprocessableEntityError, lambda: ask(max_tokens=-1))


@check
def a_refusal_that_no_retry_can_mend_is_not_retried() -> None:
    # A status that SDKs repeat of their own accord, which the gateway tells as a final 400.
    def refused() -> None:
        error = raises(anthropic.BadRequestError, lambda: ask(ordering("status=409"), sdk=client))
        equal(error.response.headers["x-should-retry"], "false")

    equal(attempts(refused), 1)


@check
def trouble_that_passes_is_survived_by_the_sdks_own_retry() -> None:
    def survived() -> None:
        # It outlasts the gateway's own three attempts.
        answer = ask(ordering("status=503,times=3,retry_after=1"), sdk=client)
        equal(answer.stop_reason, "end_turn")

    equal(attempts(survived), 4)


@check
def every_answer_and_every_error_has_a_request_id() -> None:
    equal(asked(ask()._request_id)["status"], 200)
    for call in (
        lambda: ask(model="no-such-model"),
        lambda: ask(max_tokens=-1),
        lambda: ask(ordering("status=503")),
    ):
        error = raises(anthropic.APIStatusError, call)
        assert error.request_id
        equal(error.body["request_id"], error.request_id)


@check
def raw_headers_carry_both_request_ids() -> None:
    raw = impatient.messages.with_raw_response.create(**asking())
    equal(raw.headers["request-id"], raw.headers["x-request-id"])
    equal(raw.parse()._request_id, raw.headers["request-id"])
    leaked = {"server", "set-cookie", "x-ds-trace-id", "via"} & set(raw.headers)
    assert not leaked, leaked


@check
def nothing_of_the_tenant_reaches_the_upstream() -> None:
    answer = ask(extra_headers={"Cookie": "a=b"})
    headers = dict(asked(answer._request_id)["request_headers"])
    assert KEY not in str(headers)
    leaked = [name for name in headers if name in ("cookie", "user-agent") or name.startswith("x-stainless")]
    equal(leaked, [])
    assert "anthropic-version" in headers


# Streams that do not come to their end


def broken_stream(faults: str) -> tuple[list[str], anthropic.APIError]:
    events: list[str] = []

    def consume() -> None:
        for event in ask(ordering(faults), model=PLAIN_MODEL, stream=True):
            events.append(event.type)

    error = raises(anthropic.APIError, consume)
    assert "message_stop" not in events
    return events, error


@check
def a_stream_that_is_cut_raises_after_what_came() -> None:
    for fault in ("cut_after=6", "end_after=6"):
        events, error = broken_stream(fault)
        # One of the six is a ping, which the SDK keeps to itself.
        equal((fault, len(events)), (fault, 5))
        equal((fault, error.body["error"]["code"]), (fault, "stream_interrupted"))
        assert error.body["request_id"]


@check
def a_stream_that_is_cut_before_its_first_event_raises() -> None:
    for fault in ("cut_after=0", "end_after=0"):
        equal(broken_stream(fault)[0], [])


@check
def an_error_inside_a_stream_raises() -> None:
    events, error = broken_stream("error_after=6")
    equal(len(events), 5)
    assert str(error)


@check
def a_stream_that_lacks_only_its_last_event_raises() -> None:
    # Start, ping, block start, six tokens, block stop, message delta: only message_stop is missing.
    events, _ = broken_stream("tokens=6,end_after=11")
    equal(events[-1], "message_delta")


@check
def the_stream_helper_raises_as_well() -> None:
    for fault in ("cut_after=6", "end_after=6", "error_after=6"):

        def consume():
            with impatient.messages.stream(**asking(ordering(fault))) as stream:
                return stream.get_final_message()

        raises(anthropic.APIError, consume)


@check
def an_answer_in_one_piece_that_is_cut_raises() -> None:
    for fault in ("cut_after=1", "cut_after=0"):
        raises(anthropic.APIError, lambda: ask(ordering(fault)))


@check
def an_answer_that_ends_too_early_is_an_error_of_the_upstream_and_asked_for_three_times_at_most() -> None:
    # An answer of no bytes at all makes no sense, and will not make any at another time.
    for fault, times in (("end_after=1", 3), ("end_after=0", 1)):
        # On a connection that served before: what answered, and bills for it, was not stale, so each
        # time counts. The SDK is told not to try again by itself.
        ask()

        def refused() -> None:
            error = raises(anthropic.InternalServerError, lambda: ask(ordering(fault)))
            equal((fault, error.status_code), (fault, 502))

        equal((fault, attempts(refused)), (fault, times))


@check
def an_upstreams_refusal_without_a_body_has_one_of_ours() -> None:
    # DeepSeek answers 404 and 405 with nothing at all.
    error = raises(anthropic.NotFoundError, lambda: ask(ordering("status=404")))
    equal(error.type, "not_found_error")
    equal(error.body["request_id"], error.request_id)


# Clients that leave, upstreams that make wait


@check
def a_closed_stream_is_seen_by_the_upstream_within_a_second() -> None:
    stream = ask(ordering(SLOW), model=PLAIN_MODEL, stream=True)
    request_id = stream.response.headers["request-id"]
    for _ in range(4):
        next(stream)
    equal(asked(request_id)["outcome"], None)
    left_at = time.time()
    stream.close()
    seen_as_cancelled(request_id, left_at)


@check
def a_client_that_gives_up_waiting_is_seen_by_the_upstream_within_a_second() -> None:
    text = ordering("first_token=5s")
    hasty = impatient.with_options(timeout=0.5)
    raises(anthropic.APITimeoutError, lambda: ask(text, sdk=hasty))
    left_at = time.time()
    request_id = dict(generations()[-1]["request_headers"])["x-request-id"]
    seen_as_cancelled(request_id, left_at)


@check
def keep_alives_do_not_disturb() -> None:
    equal(ask(ordering("queue=300ms")).stop_reason, "end_turn")
    with impatient.messages.stream(**asking(ordering("queue=300ms"))) as stream:
        equal(stream.get_final_message().stop_reason, "end_turn")


@check
def a_stream_that_is_cut_after_keep_alives_raises() -> None:
    events, _ = broken_stream("queue=200ms,cut_after=4")
    equal(len(events), 3)


# The asynchronous client


@check
async def the_async_client_is_answered_streamed_and_not() -> None:
    async with async_client() as sdk:
        whole = await sdk.messages.create(**asking("Hello async"))
        async with sdk.messages.stream(**asking("Hello async")) as stream:
            streamed = await stream.get_final_message()
        equal(text_of(streamed), text_of(whole))
        names = [model.id async for model in sdk.models.list()]
        assert MODEL in names


@check
async def forty_async_streams_at_once_do_not_mix() -> None:
    async with async_client() as sdk:

        async def one(number: int) -> None:
            text = f"Number {number}."
            async with sdk.messages.stream(**asking(text)) as stream:
                answer = text_of(await stream.get_final_message())
            assert text in answer, answer

        await asyncio.gather(*(one(number) for number in range(40)))


@check
async def the_async_client_raises_the_right_errors() -> None:
    async with async_client() as sdk:

        async def failing(text: str = "Hello", **more) -> anthropic.APIError:
            try:
                answer = await sdk.messages.create(**asking(text, **more))
                if more.get("stream"):
                    _ = [event async for event in answer]
            except anthropic.APIError as error:
                return error
            raise AssertionError("no error")

        equal(type(await failing(model="no-such-model")), anthropic.NotFoundError)
        equal(type(await failing(model=FORBIDDEN_MODEL)), anthropic.PermissionDeniedError)
        equal(type(await failing(ordering("status=429"))), anthropic.RateLimitError)
        for fault in ("cut_after=6", "end_after=6", "error_after=6"):
            await failing(ordering(fault), stream=True)


@check
async def a_cancelled_async_task_is_seen_by_the_upstream_within_a_second() -> None:
    async with async_client() as sdk:
        begun: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def read() -> None:
            stream = await sdk.messages.create(**asking(ordering(SLOW), stream=True))
            async for _ in stream:
                if not begun.done():
                    begun.set_result(stream.response.headers["request-id"])

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
