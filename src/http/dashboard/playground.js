// Have the newest model write. The API key stays in this browser and goes to this server only.
import { get, post, Refused, stream } from "./api.js";
import { byId, facts, h, keep, kept, say } from "./dom.js";
import { hyd, number, short } from "./format.js";

const KEY = "hydra-api-key";
let [stop, timer, context, serving] = [null, null, null, null];

const headers = () => {
  const key = byId("ask-key").value.trim();
  return key ? { authorization: `Bearer ${key}` } : {};
};

function query() {
  const chat = document.querySelector('input[name="kind"]:checked').value === "chat";
  const text = byId("ask-text").value;
  const body = {
    model: "hydra",
    max_tokens: Math.max(1, Number(byId("ask-most").value) || 1),
    temperature: Math.max(0, Number(byId("ask-temperature").value) || 0),
    ...(chat ? { messages: [{ role: "user", content: text }] } : { prompt: text }),
  };
  return [chat ? "v1/chat/completions" : "v1/completions", body];
}

/** What it would cost, and who would pay. */
async function price() {
  const [, body] = query();
  const pairs = [];
  try {
    const quote = await post("hydra/v1/quote", body);
    pairs.push(["Price", `at most ${hyd(quote.most)} HYD: ${number(quote.prompt_tokens)} tokens of the text and up to ${number(quote.completion_tokens)} new ones, ${hyd(quote.price)} each`]);
  } catch (error) {
    pairs.push(["Price", { text: error.message, kind: "bad" }]);
  }
  try {
    const pays = await get("hydra/v1/balance", headers());
    if (pays.payer === "allowance") pairs.push(["Paid by", `nobody: ${number(pays.free_tokens)} free tokens are left today`]);
    else if (pays.payer === "operator") pairs.push(["Paid by", "nobody: this is the operator's key"]);
    else {
      const { wallet } = await get(`hydra/v1/ledger/accounts/${pays.wallet}`);
      const balance = BigInt(wallet.credits) - BigInt(wallet.debits) - BigInt(wallet.debits_pending);
      const limit = pays.limit === null ? "" : `; with this key ${hyd(pays.spent)} of at most ${hyd(pays.limit)} were spent`;
      pairs.push(["Paid by", { text: `wallet ${short(pays.wallet)}`, href: `#ledger/${pays.wallet}` }], ["Balance", `${hyd(balance)} HYD${limit}`]);
    }
  } catch (error) {
    pairs.push(["Paid by", { text: error.message, kind: "bad" }]);
  }
  facts(byId("ask-price"), pairs);
}

function soon() {
  clearTimeout(timer);
  if (serving) timer = setTimeout(price, 300);
}

async function write(event) {
  event.preventDefault();
  keepKey();
  stop?.abort();
  stop = new AbortController();
  const [path, body] = query();
  const written = h("span");
  const given = path.endsWith("/chat/completions") ? "" : body.prompt;
  const output = byId("ask-output");
  output.replaceChildren(h("span", { className: "given" }, given), written);
  byId("ask-go").disabled = true;
  byId("ask-stop").disabled = false;
  say("ask-status", "Writing");
  const began = performance.now();
  let tokens = 0;
  try {
    const all = { ...body, stream: true, stream_options: { include_usage: true } };
    const usage = await stream(path, all, headers(), (piece) => {
      tokens += 1;
      written.append(piece);
    }, stop.signal);
    const seconds = (performance.now() - began) / 1000;
    const said = usage ? `${number(usage.completion_tokens)} tokens in ${number(seconds, 2)} s for ${hyd(usage.cost ?? 0)} HYD` : "Done";
    say("ask-status", said);
  } catch (error) {
    say("ask-status", error.name === "AbortError" ? `Stopped after ${number(tokens)} tokens` : error.message);
  }
  byId("ask-go").disabled = false;
  byId("ask-stop").disabled = true;
  soon();
}

function keepKey() {
  keep(KEY, (byId("ask-keep").checked && byId("ask-key").value) || null);
}

export function start() {
  const key = kept(KEY);
  if (key) [byId("ask-key").value, byId("ask-keep").checked] = [key, true];
  byId("ask").addEventListener("submit", write);
  byId("ask").addEventListener("input", soon);
  byId("ask-keep").addEventListener("change", keepKey);
  byId("ask-stop").addEventListener("click", () => stop?.abort());
}

export async function show() {
  try {
    const [model] = (await get("v1/models")).data;
    [serving, context] = [true, model.context_length];
    // A token is a byte, and one more begins the text.
    const room = context - 1 - new TextEncoder().encode(byId("ask-text").value).length;
    const most = byId("ask-most");
    most.max = context;
    if (Number(most.value) > room && room > 0) most.value = room;
  } catch (error) {
    serving = error instanceof Refused && error.code !== "not_serving";
    if (!serving) {
      say("playground-off", "This run answers no queries. Whoever runs it can have it do so with --serve, and --free-tokens N lets visitors of this page try it without a key.");
    } else {
      say("playground-off", error.message);
    }
  }
  byId("playground-off").hidden = serving && context !== null;
  byId("ask").hidden = !serving;
  soon();
}
