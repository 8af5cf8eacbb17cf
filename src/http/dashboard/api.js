// Calls of the server that this page is from, and of nobody else.

/** An answer that is no good. */
export class Refused extends Error {
  constructor(status, error) {
    super(error?.message ?? `the server answered with status ${status}`);
    this.status = status;
    this.code = error?.code ?? "";
    this.detail = error ?? {};
  }
}

async function read(response) {
  const body = await response.json().catch(() => null);
  if (!response.ok) throw new Refused(response.status, body?.error);
  return body;
}

export async function get(path, headers = {}) {
  return read(await fetch(path, { headers, credentials: "omit", redirect: "error" }));
}

export async function post(path, body, headers = {}) {
  const all = { "content-type": "application/json", ...headers };
  return read(await fetch(path, { method: "POST", headers: all, body: JSON.stringify(body), credentials: "omit" }));
}

/** Has a text streamed: calls `take` with each piece, and gives what was used and paid. */
export async function stream(path, body, headers, take, signal) {
  const all = { "content-type": "application/json", ...headers };
  const options = { method: "POST", headers: all, body: JSON.stringify(body), credentials: "omit", signal };
  const response = await fetch(path, options);
  if (!response.ok) await read(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let [rest, usage] = ["", null];
  for (;;) {
    const { done, value } = await reader.read();
    rest += value ?? "";
    const lines = rest.split("\n");
    rest = lines.pop();
    for (const line of lines.filter((line) => line.startsWith("data:"))) {
      const data = line.slice(5).trim();
      if (data === "[DONE]") continue;
      const event = JSON.parse(data);
      if (event.error) throw new Refused(response.status, event.error);
      const choice = event.choices?.[0];
      const piece = choice?.text ?? choice?.delta?.content;
      if (piece) take(piece);
      usage = event.usage ?? usage;
    }
    if (done) return usage;
  }
}

/** All pages of something, or the first so many things. */
export async function pages(path, name, most = 20000, after = null) {
  const all = [];
  for (let next = after; ; ) {
    const query = next === null ? "?most=1000" : `?most=1000&after=${encodeURIComponent(next)}`;
    const page = await get(path + query);
    all.push(...page[name]);
    next = page.next;
    if (next === null || all.length >= most) return all;
  }
}
