// Streams a chat completion with a signed request; needs Node.js 20 or later and no packages.

import { createHash, createHmac, randomBytes } from 'node:crypto';
import process from 'node:process';

/** The Authorization header of one request. url is a URL, body a string or Buffer. */
function sign(keyId, secret, method, url, body) {
  const timestamp = Math.floor(Date.now() / 1000);
  const nonce = randomBytes(24).toString('base64url');
  const digest = createHash('sha256').update(body).digest('hex');
  const query = url.search.slice(1);
  const text = ['TG-HMAC-SHA256', method, url.pathname, query, timestamp, nonce, digest].join('\n');
  const signature = createHmac('sha256', secret).update(text).digest('hex');
  return (
    `TG-HMAC-SHA256 id=${keyId}, timestamp=${timestamp}, nonce=${nonce}, ` +
    `digest=${digest}, signature=${signature}`
  );
}

/** The data of each event in a stream. */
async function* events(body) {
  let rest = '';
  for await (const text of body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + text).split('\n');
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith('data:')) yield line.slice(5).trim();
    }
  }
}

async function main({ TIDEGATE_URL, TIDEGATE_KEY_ID, TIDEGATE_SECRET }) {
  const url = new URL('/v1/chat/completions', TIDEGATE_URL);
  const messages = [{ role: 'user', content: 'Say hello.' }];
  const body = JSON.stringify({ model: 'deepseek-flash', stream: true, messages });
  const answer = await fetch(url, {
    method: 'POST',
    headers: {
      authorization: sign(TIDEGATE_KEY_ID, TIDEGATE_SECRET, 'POST', url, body),
      'content-type': 'application/json',
    },
    body,
    redirect: 'error',
  });
  if (answer.status !== 200) throw new Error(`${answer.status}: ${await answer.text()}`);
  for await (const data of events(answer.body)) {
    if (data === '[DONE]') {
      process.stdout.write('\n');
      return;
    }
    const { error, choices } = JSON.parse(data);
    if (error) throw new Error(error.message);
    for (const { delta } of choices) process.stdout.write(delta.content ?? '');
  }
  throw new Error('the answer broke off');
}

main(process.env).catch((error) => {
  console.error(error.message);
  process.exitCode = 1;
});
