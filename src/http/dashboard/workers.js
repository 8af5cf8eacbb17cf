// Who works, and who has done how much: two views of one list.
import { pages } from "./api.js";
import { byId, digest, Pager, Table } from "./dom.js";
import { about, duration, number } from "./format.js";

/** Rows of a page of the table. */
const PAGE = 50;
/** The list is asked for this often at most, ms. */
const EVERY = 3000;

let [all, asked, waiting, fill] = [[], 0, null, null];
let [view, pager, sort, from] = [null, null, { by: "tokens", descending: true }, 0];
let board_ = null;
let server = null;

/** Has the view that is looked at filled, at once with what is known, and again when that is fetched. */
async function look(view) {
  fill = view;
  if (asked > 0) fill();
  const wait = asked + EVERY - Date.now();
  if (wait > 0) {
    waiting ??= setTimeout(() => {
      waiting = null;
      look(fill);
    }, wait);
    return;
  }
  asked = Date.now();
  try {
    all = await pages("hydra/v1/workers", "workers");
  } catch {
    // The polls of the state say that the server cannot be reached.
    return;
  }
  fill();
}

/** Amounts are longer than numbers may be. */
const ORDER = {
  key: (a, b) => (a.key < b.key ? -1 : 1),
  pay: (a, b) => (BigInt(a.pay) < BigInt(b.pay) ? -1 : BigInt(a.pay) > BigInt(b.pay) ? 1 : 0),
  state: (a, b) => rank(a) - rank(b) || (a.seen ?? 0) - (b.seen ?? 0),
};
const rank = (worker) => (worker.banned ? 0 : worker.holds > 0 ? 3 : worker.seen !== null ? 2 : 1);

function ordered(list, by, descending) {
  const compare = ORDER[by] ?? ((a, b) => a[by] - b[by]);
  const sorted = [...list].sort((a, b) => compare(a, b) || ORDER.key(a, b));
  return descending ? sorted.reverse() : sorted;
}

function doing(worker) {
  if (worker.banned) return { text: "shut out", kind: "bad" };
  if (worker.holds > 0) return { text: worker.holds === 1 ? "has a task" : `has ${worker.holds} tasks`, kind: "good" };
  if (server.books?.verifiers.includes(worker.key)) return "verifies";
  const now = Date.now() + server.offset;
  return worker.seen === null ? { text: "away or done", kind: "soft" } : `seen ${duration(now - worker.seen)} ago`;
}

function fillTable() {
  const text = byId("workers-find").value.trim().toLowerCase();
  const which = byId("workers-which").value;
  const wanted = all.filter(
    (worker) =>
      worker.key.includes(text) && (which === "all" || (which === "busy" ? worker.holds > 0 : worker.banned)),
  );
  from = Math.min(from, Math.max(0, Math.floor((wanted.length - 1) / PAGE) * PAGE));
  const rows = ordered(wanted, sort.by, sort.descending).slice(from, from + PAGE);
  view.sorted(sort.by, sort.descending);
  view.fill(
    rows.map((worker) => [
      digest(worker.key, `#ledger/${worker.key}`), doing(worker), number(worker.accepted),
      { text: number(worker.rejected), kind: worker.rejected > 0 ? "bad" : "" }, number(worker.tokens), number(worker.audited),
      { text: number(worker.found_false), kind: worker.found_false > 0 ? "bad" : "" }, about(worker.pay),
    ]),
    all.length === 0 ? "Nobody has worked yet." : "No worker fits.",
  );
  byId("workers-count").textContent = `${number(wanted.length)} of ${number(all.length)}`;
  pager.show(
    wanted.length > PAGE ? `${number(from + 1)} to ${number(Math.min(from + PAGE, wanted.length))}` : "",
    from > 0, from + PAGE < wanted.length,
  );
}

function fillBoard() {
  const best = ordered(all.filter((worker) => worker.tokens > 0), "tokens", true);
  const sum = best.reduce((sum, worker) => sum + worker.tokens, 0);
  const top = best[0]?.tokens ?? 1;
  board_.fill(
    best.slice(0, 100).map((worker, index) => [
      number(index + 1), digest(worker.key, `#ledger/${worker.key}`), { share: worker.tokens / top },
      `${number((worker.tokens / sum) * 100, 1)} %`, number(worker.tokens), number(worker.accepted),
      `${number((worker.accepted / Math.max(1, worker.accepted + worker.rejected)) * 100, 1)} %`, about(worker.pay),
    ]),
    "Nobody has had work accepted yet.",
  );
}

export const table = {
  start(state) {
    server = state;
    const onSort = (by) => {
      sort = { by, descending: sort.by === by ? !sort.descending : true };
      from = 0;
      fillTable();
    };
    view = new Table(
      byId("workers-table"),
      "Workers",
      [
        { name: "Key", kind: "text mono", sort: "key" }, { name: "State", kind: "text", sort: "state" },
        { name: "Accepted", sort: "accepted" }, { name: "Rejected", sort: "rejected" }, { name: "Tokens", sort: "tokens" },
        { name: "Computed again", sort: "audited" }, { name: "Found false", sort: "found_false" }, { name: "Pay, HYD", sort: "pay" },
      ],
      onSort,
    );
    const turn = (by) => () => {
      from += by;
      fillTable();
    };
    pager = new Pager(byId("workers-table"), "Previous", "Next", turn(-PAGE), turn(PAGE));
    byId("workers-search").addEventListener("submit", (event) => event.preventDefault());
    byId("workers-find").addEventListener("input", fillTable);
    byId("workers-which").addEventListener("change", fillTable);
  },
  show: () => look(fillTable),
  update: () => look(fillTable),
};

export const board = {
  start() {
    board_ = new Table(byId("leaderboard-table"), "Leaderboard", [
      { name: "Rank" }, { name: "Key", kind: "text mono" }, { name: "", kind: "text" }, { name: "Share" }, { name: "Tokens" },
      { name: "Tasks" }, { name: "Accepted" }, { name: "Pay, HYD" },
    ]);
  },
  show: () => look(fillBoard),
  refresh: () => look(fillBoard),
};
