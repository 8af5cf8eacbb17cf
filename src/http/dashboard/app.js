// What is shown, and when it is asked for again: the newest state by short polls, rounds and the rest when an event says
// that there is something new. Nothing is asked for while nobody looks.
import { get, pages } from "./api.js";
import { byId, h, keep, say } from "./dom.js";
import { duration, hyd, loss, number, short, time, words } from "./format.js";
import * as ledger from "./ledger.js";
import * as overview from "./overview.js";
import * as playground from "./playground.js";
import * as rounds from "./rounds.js";
import * as shown from "./shown.js";
import * as workers from "./workers.js";

/** How often the state of the open round is asked for, ms. */
const POLL = 2000;
/** Rounds that are kept and drawn. */
const ROUNDS_MAX = 5000;
/** Of the newest so many rounds those that may still change are asked for again. */
const UNSETTLED_MAX = 64;
const EVENTS_MAX = 50;

/** All that sections are made of. `offset` is what the server's clock is ahead of this one, ms. */
const state = { status: null, books: null, elsewhere: null, rounds: [], spec: null, offset: 0, finished: false };

const sections = {
  overview,
  workers: workers.table,
  rounds,
  ledger,
  leaderboard: workers.board,
  playground,
  samples: shown.samples,
  reports: shown.reports,
};
let current = ["overview", []];

/** Runs one after the other, and once more where it was asked for meanwhile. */
function oneAtATime(work) {
  let [running, again] = [false, false];
  return async function run() {
    if (running) {
      again = true;
      return;
    }
    running = true;
    try {
      await work();
      connected(true);
    } catch (error) {
      connected(false, error);
    }
    running = false;
    if (again) {
      again = false;
      run();
    }
  };
}

function connected(is, error) {
  const live = byId("live");
  live.classList.toggle("on", is);
  live.classList.toggle("off", !is);
  say("live-text", is ? (state.finished ? "Finished" : "Live") : "Cannot be reached; trying again");
  live.title = error ? error.message : "";
}

const pollStatus = oneAtATime(async () => {
  const status = await get("hydra/v1/status");
  const moved = !state.status || state.status.round !== status.round || state.status.closed !== status.closed;
  if (state.status && state.status.run !== status.run) location.reload();
  // Somebody has asked for more rounds.
  if (status.closed || status.leased > 0) state.finished = false;
  state.status = status;
  state.offset = status.time - Date.now();
  say("run", `run ${short(status.run)}`);
  byId("run").title = status.run;
  if (moved) pollRounds();
  update();
});

const pollRounds = oneAtATime(async () => {
  // One round is open; those before it are measured and paid while the next are trained, or much later where the ledger is away.
  const open = (round) => round.closed === null || round.loss === null || round.paid === "0";
  const first = state.rounds.slice(-UNSETTLED_MAX).find(open)?.round;
  const known = (first === undefined ? state.rounds.at(-1)?.round : first - 1) ?? Math.max(-1, (state.status?.round ?? 0) - ROUNDS_MAX);
  const fresh = await pages("hydra/v1/rounds", "rounds", ROUNDS_MAX + 10, known < 0 ? null : known);
  state.rounds = [...state.rounds.filter((round) => round.round <= known), ...fresh].slice(-ROUNDS_MAX);
  if (!state.spec) state.spec = (await get("hydra/v1/audits")).spec;
  try {
    state.books = await get("hydra/v1/ledger");
  } catch (error) {
    if (error.code !== "ledger_elsewhere") throw error;
    state.elsewhere = error.detail.ledger;
  }
  update();
  call(sections[current[0]].refresh);
});

/** Has a section fetch what it shows. What cannot be fetched now is asked for again later. */
function call(fetching, rest) {
  Promise.resolve(fetching?.(state, rest)).catch((error) => connected(false, error));
}

function update() {
  if (state.status) sections[current[0]].update?.(state);
}

/** Shows the section that the address names. */
function go() {
  const [name, ...rest] = location.hash.slice(1).split("/").map(decodeURIComponent);
  const wanted = name in sections ? name : "overview";
  const moved = wanted !== current[0];
  current = [wanted, rest];
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== wanted;
  for (const link of document.querySelectorAll("#nav a")) {
    if (link.hash === `#${wanted}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const title = byId(`${wanted}-title`).textContent;
  document.title = wanted === "overview" ? "Hydra" : `${title} – Hydra`;
  if (moved) {
    scrollTo(0, 0);
    byId("main").focus({ preventScroll: true });
  }
  call(sections[wanted].show, rest);
  update();
}

/** What an event says to people, and whether it is bad news. */
function tell(event) {
  const who = short(event.worker ?? event.verifier);
  switch (event.event) {
    case "round_closed":
      return [`Round ${event.round} closed: ${event.accepted} accepted, ${number(event.tokens)} tokens`];
    case "evaluated":
      return [`Model ${event.round} measured: ${loss(event.loss)} nats a token`];
    case "rejected":
      return [`Round ${event.round}: work of ${who} rejected: ${event.reason}`, true];
    case "audited":
      return [`Round ${event.round}: work of ${who} computed again: ${words(event.ending)}`, event.ending === "false"];
    case "convicted":
      return [`Round ${event.round}: work of ${who} found false; it may appeal`, true];
    case "forfeited":
      return [`${who} lost ${hyd(event.lost)} HYD`, true];
    case "struck_off":
      return [`Verifier ${who} is not believed any more`, true];
    case "left_out":
      return [`Round ${event.round}: an accepted payload cannot be used, and counts for nothing`, true];
    case "finished":
      return ["Every round that was asked for is done"];
    case "check_failed":
      return [`A check could not be done: ${event.error}`, true];
    default:
      return [words(event.event)];
  }
}

function hear(event) {
  const [text, bad] = tell(event);
  const list = byId("events");
  byId("events-none").hidden = true;
  list.prepend(h("li", {}, h("time", {}, time(Date.now() + state.offset)), h("span", { className: bad ? "bad" : "" }, text)));
  while (list.children.length > EVENTS_MAX) list.lastChild.remove();
  if (event.event === "finished") state.finished = true;
  pollStatus();
  pollRounds();
}

let source = null;
function listen() {
  source = new EventSource("hydra/v1/events");
  source.onmessage = (message) => hear(JSON.parse(message.data));
  source.onopen = () => {
    // What was missed meanwhile is in the state.
    pollStatus();
    pollRounds();
  };
  // A server that cannot take more listeners ends it for good; polls go on.
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 10000);
  };
}

const THEMES = ["system", "light", "dark"];
function theme() {
  const button = byId("theme");
  const now = () => document.documentElement.dataset.theme ?? "system";
  const name = () => say(button, `Theme: ${now()}`);
  button.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(now()) + 1) % THEMES.length];
    if (next === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    keep("hydra-theme", next);
    name();
    overview.redraw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", overview.redraw);
  name();
}

function tick() {
  if (!document.hidden) overview.tick(state, duration);
}

for (const section of Object.values(sections)) section.start?.(state);
theme();
addEventListener("hashchange", go);
go();
listen();
pollStatus();
setInterval(() => document.hidden || pollStatus(), POLL);
setInterval(tick, 1000);
document.addEventListener("visibilitychange", () => document.hidden || (pollStatus(), pollRounds()));
get("hydra/v1/hello").then((hello) => say("version", `Hydra ${hello.version} ·`)).catch(() => {});
