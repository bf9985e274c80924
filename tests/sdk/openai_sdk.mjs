// Drives the gateway with OpenAI's SDK for JavaScript, as tenants do.
//
// The environment names the gateway (TIDEGATE_URL), a tenant's key that opens every model but
// deepseek-v4-pro (TIDEGATE_KEY), the emulator's journal (EMULATOR_JOURNAL), and where the SDK is
// installed (SDK_FOLDER, the one above node_modules).

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';

const { TIDEGATE_URL, TIDEGATE_KEY, EMULATOR_JOURNAL, SDK_FOLDER } = process.env;
// An import statement looks beside this file, where the SDK is not.
const installed = createRequire(join(SDK_FOLDER, 'package.json')).resolve('openai/index.mjs');
const { default: OpenAI, toFile } = await import(pathToFileURL(installed).href);

const MODEL = 'deepseek-flash';
// Without thinking, so that the first delta is content.
const PLAIN_MODEL = 'deepseek-chat';
const FORBIDDEN_MODEL = 'deepseek-v4-pro';
const SLOW = 'tokens=400,token_delay=25ms';
// How soon an upstream must know that the client has left.
const CANCEL_MILLISECONDS = 1000;
const PARAMETERS = {
  type: 'object',
  properties: { city: { type: 'string' }, days: { type: 'integer' } },
  required: ['city'],
};
const WEATHER = { type: 'function', function: { name: 'get_weather', parameters: PARAMETERS } };

const settings = { baseURL: `${TIDEGATE_URL}/v1`, apiKey: TIDEGATE_KEY, timeout: 20_000 };
const patient = new OpenAI(settings);
const client = new OpenAI({ ...settings, maxRetries: 0 });

const asking = (text = 'Hello', more = {}) => ({
  model: MODEL,
  messages: [{ role: 'user', content: text }],
  ...more,
});
const chat = (text, more, sdk = client) => sdk.chat.completions.create(asking(text, more));
const ordering = (faults, text = 'Hello') => `${text} [[fault:${faults},id=${randomUUID()}]]`;
const textOf = (chunks) => chunks.map((chunk) => chunk.choices[0]?.delta.content ?? '').join('');

async function gather(stream) {
  const items = [];
  for await (const item of await stream) items.push(item);
  return items;
}

/** The error that `call` rejects with, which must be of exactly this kind or a subclass. */
async function raises(kind, call) {
  let answer;
  try {
    answer = await call();
  } catch (error) {
    assert(error instanceof kind, `${error?.constructor.name} instead of ${kind.name}: ${error}`);
    return error;
  }
  return assert.fail(`no ${kind.name}, but ${JSON.stringify(answer)}`);
}

/** Waits until the gateway asks its only account again, which was refused. */
async function recovered() {
  const deadline = Date.now() + 5_000;
  for (;;) {
    try {
      await chat();
      return;
    } catch (error) {
      if (Date.now() > deadline) throw error;
      await sleep(50);
    }
  }
}

async function journal() {
  const answer = await fetch(EMULATOR_JOURNAL);
  return answer.json();
}

const idOf = (entry) => Object.fromEntries(entry.request_headers)['x-request-id'];

/** The upstream's entry for one request, known by the id that the gateway gave it. */
async function asked(requestId) {
  const found = (await journal()).filter((entry) => idOf(entry) === requestId);
  assert.equal(found.length, 1, `${found.length} entries of ${requestId}`);
  return found[0];
}

/** Requests for an answer, oldest first; probes of the upstream's health are none. */
async function generations() {
  return (await journal()).filter((entry) => entry.method === 'POST');
}

/** How many requests for an answer reach the upstream meanwhile. */
async function attempts(call) {
  const before = (await generations()).length;
  await call();
  return (await generations()).length - before;
}

/** The upstream noticed in time that the client left at `leftAt` (Unix milliseconds). */
async function seenAsCancelled(requestId, leftAt) {
  const deadline = Date.now() + 3 * CANCEL_MILLISECONDS;
  let entry = await asked(requestId);
  while (entry.outcome === null && Date.now() < deadline) {
    await sleep(20);
    entry = await asked(requestId);
  }
  assert.equal(entry.outcome, 'client_gone');
  const took = entry.ended_ms - leftAt;
  assert(took < CANCEL_MILLISECONDS, `seen after ${took} ms`);
}

/** What came of a stream that must end in an error, and the error. */
async function brokenStream(faults) {
  const chunks = [];
  const error = await raises(OpenAI.APIError, async () => {
    for await (const chunk of await chat(ordering(faults), { model: PLAIN_MODEL, stream: true })) {
      chunks.push(chunk);
    }
  });
  return [chunks, error];
}

const checks = {
  // Chat

  'a chat answer has text reasoning and usage': async () => {
    const answer = await chat('Hello from Node');
    const [choice] = answer.choices;
    assert.match(choice.message.content, /Hello from Node/);
    assert(choice.message.reasoning_content);
    assert.equal(choice.finish_reason, 'stop');
    const { prompt_tokens, completion_tokens, total_tokens } = answer.usage;
    assert(prompt_tokens > 0 && completion_tokens > 0);
    assert.equal(total_tokens, prompt_tokens + completion_tokens);
  },

  'a retired model name is served without thinking': async () => {
    const answer = await chat('Hello', { model: PLAIN_MODEL });
    assert.equal(answer.choices[0].message.reasoning_content ?? null, null);
  },

  'a streamed answer is the whole answer': async () => {
    const whole = await chat('The same question');
    const chunks = await gather(chat('The same question', { stream: true }));
    assert.equal(textOf(chunks), whole.choices[0].message.content);
    assert(chunks.some((chunk) => chunk.choices[0].delta.reasoning_content));
    assert.equal(chunks.at(-1).choices[0].finish_reason, 'stop');
  },

  'a stream asked for usage ends with it': async () => {
    const chunks = await gather(
      chat('Hello', { stream: true, stream_options: { include_usage: true } }),
    );
    assert(chunks.at(-1).usage.total_tokens > 0);
    assert(chunks.slice(0, -1).every((chunk) => !chunk.usage));
  },

  'a stream not asked for usage has no chunk without choices': async () => {
    const chunks = await gather(chat('Hello', { stream: true }));
    assert(chunks.every((chunk) => chunk.choices.length > 0));
  },

  'tokens arrive one by one and not at the end': async () => {
    const faults = ordering('tokens=20,token_delay=30ms');
    const arrivals = [];
    for await (const _ of await chat(faults, { model: PLAIN_MODEL, stream: true })) {
      arrivals.push(performance.now());
    }
    // 20 tokens take 600 ms; a gateway that gathers them would give the first with the last.
    const spread = arrivals.at(-1) - arrivals[0];
    assert(spread > 400, `${arrivals.length} chunks in ${spread} ms`);
  },

  'the stream helper gathers the same answer': async () => {
    const answer = await client.chat.completions
      .stream(asking('Gather this', { stream_options: { include_usage: true } }))
      .finalChatCompletion();
    assert.match(answer.choices[0].message.content, /Gather this/);
    assert(answer.usage.total_tokens > 0);
  },

  // Tools

  'a tool is called and its result answered': async () => {
    const first = await chat('Use the tool please', { tools: [WEATHER] });
    assert.equal(first.choices[0].finish_reason, 'tool_calls');
    const { message } = first.choices[0];
    const [call] = message.tool_calls;
    assert.equal(call.function.name, 'get_weather');
    assert.deepEqual(Object.keys(JSON.parse(call.function.arguments)).sort(), ['city', 'days']);
    // The reasoning has to travel back, or DeepSeek refuses the turn.
    const messages = [
      { role: 'user', content: 'Use the tool please' },
      message,
      { role: 'tool', tool_call_id: call.id, content: 'sunny' },
    ];
    const second = await chat('', { messages, tools: [WEATHER] });
    assert.equal(second.choices[0].finish_reason, 'stop');
  },

  'a streamed tool call is put together': async () => {
    const chunks = await gather(chat('Use the tool please', { tools: [WEATHER], stream: true }));
    const deltas = chunks.flatMap((chunk) => chunk.choices[0]?.delta.tool_calls ?? []);
    assert.equal(deltas[0].function.name, 'get_weather');
    assert(deltas.length > 2);
    const written = deltas.map((delta) => delta.function.arguments ?? '').join('');
    assert.deepEqual(Object.keys(JSON.parse(written)).sort(), ['city', 'days']);
    assert.equal(chunks.at(-1).choices[0].finish_reason, 'tool_calls');
  },

  // Models, responses, embeddings, files

  'the list of models is what the key may use': async () => {
    const names = (await gather(client.models.list())).map((model) => model.id);
    assert(names.includes(MODEL) && !names.includes(FORBIDDEN_MODEL), String(names));
    assert.equal((await client.models.retrieve(MODEL)).id, MODEL);
    const error = await raises(OpenAI.NotFoundError, () => client.models.retrieve(FORBIDDEN_MODEL));
    assert.equal(error.code, 'model_not_found');
  },

  'a response has text and usage': async () => {
    const answer = await client.responses.create({ model: MODEL, input: 'Hello responses' });
    assert.equal(answer.status, 'completed');
    assert.match(answer.output_text, /Hello responses/);
    assert(answer.usage.total_tokens > 0);
  },

  'a streamed response ends with the whole one': async () => {
    const request = { model: MODEL, input: 'Hello responses', stream: true };
    const events = await gather(client.responses.create(request));
    assert.equal(events[0].type, 'response.created');
    assert.equal(events.at(-1).type, 'response.completed');
    assert.deepEqual(events.map((event) => event.sequence_number), [...events.keys()]);
    const deltas = events.filter((event) => event.type === 'response.output_text.delta');
    assert.match(deltas.map((event) => event.delta).join(''), /Hello responses/);
    assert(events.at(-1).response.usage.total_tokens > 0);
  },

  'a response calls a tool streamed and not': async () => {
    const tools = [{ type: 'function', strict: false, name: 'get_weather', parameters: PARAMETERS }];
    const request = { model: MODEL, input: 'Use the tool please', tools };
    const whole = await client.responses.create(request);
    const events = await gather(client.responses.create({ ...request, stream: true }));
    for (const answer of [whole, events.at(-1).response]) {
      const call = answer.output.find((item) => item.type === 'function_call');
      assert.equal(call.name, 'get_weather');
      assert.deepEqual(Object.keys(JSON.parse(call.arguments)).sort(), ['city', 'days']);
    }
  },

  'embeddings come packed and as numbers': async () => {
    const request = { model: MODEL, input: ['one', 'two'] };
    const packed = await client.embeddings.create(request);
    const plain = await client.embeddings.create({ ...request, encoding_format: 'float' });
    assert.equal(packed.data.length, 2);
    const rounded = (answer) => answer.data[0].embedding.map((number) => number.toFixed(4));
    assert.deepEqual(rounded(packed), rounded(plain));
  },

  'files are uploaded listed read and deleted': async () => {
    const content = Buffer.alloc(256 * 1024, 'tide');
    const file = await toFile(content, 'tide table.bin');
    const made = await client.files.create({ file, purpose: 'user_data' });
    assert.deepEqual([made.filename, made.bytes], ['tide table.bin', content.length]);
    const listed = await gather(client.files.list());
    assert(listed.some((file) => file.id === made.id));
    const read = Buffer.from(await (await client.files.content(made.id)).arrayBuffer());
    assert(read.equals(content));
    assert((await client.files.delete(made.id)).deleted);
    await raises(OpenAI.NotFoundError, () => client.files.retrieve(made.id));
  },

  // Errors

  'a bad key is an authentication error': async () => {
    const stranger = client.withOptions({ apiKey: 'tg_sdk_wrong' });
    const error = await raises(OpenAI.AuthenticationError, () => chat('Hello', {}, stranger));
    assert(error.requestID);
    await raises(OpenAI.AuthenticationError, () => stranger.models.list());
  },

  'an unknown model is not found': async () => {
    const error = await raises(OpenAI.NotFoundError, () => chat('Hello', { model: 'no-such-model' }));
    assert.deepEqual([error.code, error.param], ['model_not_found', 'model']);
  },

  'a model that is not allowed is permission denied': async () => {
    const error = await raises(OpenAI.PermissionDeniedError, () =>
      chat('Hello', { model: FORBIDDEN_MODEL }),
    );
    assert.equal(error.code, 'model_not_allowed');
  },

  'the upstreams words about a bad parameter are relayed': async () => {
    const invalid = await raises(OpenAI.UnprocessableEntityError, () =>
      chat('Hello', { max_tokens: -1 }),
    );
    assert.match(invalid.message, /max_tokens/);
    const bad = await raises(OpenAI.BadRequestError, () => chat('Hello', { n: 2 }));
    assert.match(bad.message, /n value/);
  },

  'an upstream at its limit is a rate limit error': async () => {
    const error = await raises(OpenAI.RateLimitError, () =>
      chat(ordering('status=429,retry_after=3')),
    );
    assert.equal(error.code, 'upstream_rate_limited');
    assert.equal(error.headers.get('retry-after'), '3');
  },

  'an upstream in trouble is an internal server error': async () => {
    const trouble = [[500, 502], [502, 502], [503, 503], [504, 504]];
    const refused = [[401, 503], [402, 503], [403, 503]];
    for (const [told, shown] of [...trouble, ...refused]) {
      const error = await raises(OpenAI.InternalServerError, () => chat(ordering(`status=${told}`)));
      assert.equal(error.status, shown, `upstream status ${told}`);
      assert.doesNotMatch(error.message, /emulated|Balance/);
    }
    await recovered();
  },

  'refusals in quick succession never break the connection': async () => {
    // A connection closed behind an answer that did not announce it loses the next request.
    for (let round = 0; round < 40; round += 1) {
      await raises(OpenAI.InternalServerError, () => chat(ordering('status=503')));
      await raises(OpenAI.RateLimitError, () => chat(ordering('status=429')));
      await raises(OpenAI.NotFoundError, () => chat('Hello', { model: 'no-such-model' }));
      await raises(OpenAI.UnprocessableEntityError, () => chat('Hello', { max_tokens: -1 }));
    }
  },

  'a refusal that no retry can mend is not retried': async () => {
    // A status that SDKs repeat of their own accord, which the gateway tells as a final 400.
    const seen = await attempts(async () => {
      const call = () => chat(ordering('status=409'), {}, patient);
      const error = await raises(OpenAI.BadRequestError, call);
      assert.equal(error.headers.get('x-should-retry'), 'false');
    });
    assert.equal(seen, 1);
  },

  'trouble that passes is survived by the sdks own retry': async () => {
    // It outlasts the gateway's own three attempts.
    const faults = ordering('status=503,times=3,retry_after=1');
    const seen = await attempts(() => chat(faults, {}, patient));
    assert.equal(seen, 4);
  },

  'every answer and every error has a request id': async () => {
    const answer = await chat();
    assert.equal((await asked(answer._request_id)).status, 200);
    const calls = [
      () => chat('Hello', { model: 'no-such-model' }),
      () => chat('Hello', { max_tokens: -1 }),
      () => chat(ordering('status=503')),
    ];
    for (const call of calls) {
      const error = await raises(OpenAI.APIError, call);
      assert(error.requestID);
      assert.equal(error.error.request_id, error.requestID);
    }
  },

  'raw headers carry the request id and nothing of the upstream': async () => {
    const { data, response, request_id } = await chat().withResponse();
    assert.equal(request_id, response.headers.get('x-request-id'));
    assert.equal(data._request_id, request_id);
    for (const name of ['server', 'set-cookie', 'x-ds-trace-id', 'via']) {
      assert.equal(response.headers.get(name), null, name);
    }
  },

  // Streams that do not come to their end

  'a stream that is cut raises after what came': async () => {
    for (const fault of ['cut_after=5', 'end_after=5']) {
      const [chunks, error] = await brokenStream(fault);
      assert.equal(chunks.length, 5, fault);
      assert.equal(error.code, 'stream_interrupted', fault);
      assert(error.requestID);
    }
  },

  'a stream that is cut before its first event raises': async () => {
    for (const fault of ['cut_after=0', 'end_after=0']) {
      assert.deepEqual((await brokenStream(fault))[0], []);
    }
  },

  'an error inside a stream raises': async () => {
    const [chunks] = await brokenStream('error_after=5');
    assert.equal(chunks.length, 5);
  },

  'an answer in one piece that is cut raises': async () => {
    for (const fault of ['cut_after=1', 'cut_after=0']) {
      // Once the head is out, the SDK lets its runtime's own "terminated" through.
      await raises(Error, () => chat(ordering(fault)));
    }
  },

  'an answer that ends too early is an error of the upstream and asked for three times at most': async () => {
    // An answer of no bytes at all makes no sense, and will not make any at another time.
    for (const [fault, times] of [['end_after=1', 3], ['end_after=0', 1]]) {
      // On a connection that served before: what answered, and bills for it, was not stale, so each
      // time counts. The SDK is told not to try again by itself.
      await chat();
      const seen = await attempts(async () => {
        const error = await raises(OpenAI.InternalServerError, () => chat(ordering(fault)));
        assert.deepEqual([fault, error.status], [fault, 502]);
      });
      assert.deepEqual([fault, seen], [fault, times]);
    }
  },

  'an upstreams refusal without a body has one of ours': async () => {
    // DeepSeek answers 404 and 405 with nothing at all.
    const error = await raises(OpenAI.NotFoundError, () => chat(ordering('status=404')));
    assert.equal(error.code, 'not_found');
    assert.equal(error.error.request_id, error.requestID);
  },

  'a streamed response that is cut raises': async () => {
    for (const fault of ['cut_after=6', 'end_after=6']) {
      const request = { model: MODEL, input: ordering(fault), stream: true };
      await raises(OpenAI.APIError, () => gather(client.responses.create(request)));
    }
  },

  'a streamed response that fails says so last': async () => {
    // This format has a failure event of its own, which the SDK hands over instead of raising.
    const request = { model: MODEL, input: ordering('error_after=6'), stream: true };
    const events = await gather(client.responses.create(request));
    assert.equal(events.at(-1).type, 'response.failed');
  },

  // Clients that leave, upstreams that make wait

  'an aborted stream is seen by the upstream within a second': async () => {
    const call = chat(ordering(SLOW), { model: PLAIN_MODEL, stream: true });
    const { data: stream, request_id } = await call.withResponse();
    let leftAt;
    for await (const _ of stream) {
      leftAt ??= Date.now();
      stream.controller.abort();
    }
    await seenAsCancelled(request_id, leftAt);
  },

  'a stream left by break is seen by the upstream within a second': async () => {
    const call = chat(ordering(SLOW), { model: PLAIN_MODEL, stream: true });
    const { data: stream, request_id } = await call.withResponse();
    for await (const _ of stream) break;
    await seenAsCancelled(request_id, Date.now());
  },

  'a client that gives up waiting is seen by the upstream within a second': async () => {
    const hasty = client.withOptions({ timeout: 500 });
    await raises(OpenAI.APIConnectionTimeoutError, () =>
      chat(ordering('first_token=5s'), {}, hasty),
    );
    const leftAt = Date.now();
    await seenAsCancelled(idOf((await generations()).at(-1)), leftAt);
  },

  'keep alives do not disturb': async () => {
    const answer = await chat(ordering('queue=300ms'));
    assert.equal(answer.choices[0].finish_reason, 'stop');
    const chunks = await gather(chat(ordering('queue=300ms'), { stream: true }));
    assert.equal(chunks.at(-1).choices[0].finish_reason, 'stop');
    const request = { model: MODEL, input: ordering('queue=300ms'), stream: true };
    const events = await gather(client.responses.create(request));
    assert.equal(events.at(-1).type, 'response.completed');
  },

  'forty streams at once do not mix': async () => {
    const one = async (number) => {
      const text = `Number ${number}.`;
      const chunks = await gather(chat(text, { model: PLAIN_MODEL, stream: true }));
      assert(textOf(chunks).includes(text), textOf(chunks));
    };
    await Promise.all(Array.from({ length: 40 }, (_, number) => one(number)));
  },
};

let failures = 0;
for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    console.log(`ok ${name}`);
  } catch (error) {
    failures += 1;
    const place = error.stack?.match(/openai_sdk\.mjs:\d+/)?.[0] ?? 'no line';
    const why = `${error.constructor.name}: ${error.message} (${place})`;
    console.log(`not ok ${name}: ${why.replaceAll('\n', ' ')}`);
  }
}
// Not process.exit: what was printed into a pipe must get out first.
process.exitCode = failures ? 1 : 0;
