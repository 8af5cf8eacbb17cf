// The ledger: what it holds, what was done, what it signed, and proofs of that which are checked here.
import { get } from "./api.js";
import { byId, digest, facts, h, keep, kept, Pager, say, Table } from "./dom.js";
import { about, account, date, duration, hyd, number, words } from "./format.js";

const PAGE = 25;
/** Where the last head that this browser has checked is kept. */
const SEEN = "hydra-ledger-head";

let [transfers, accounts, held, heads] = [null, null, null, null];
let [transfersPager, accountsPager, heldPager] = [null, null, null];
/** What is shown: of whom, before which transfer, after which account; and the ledger's key. */
const at = { key: null, before: null, trail: [], after: [null], afterHold: [null], ledger: null, size: 0 };

const linked = (name) => {
  const key = name.split(":")[1];
  return { text: account(name), title: name, href: key ? `#ledger/${key}` : undefined };
};

const sides = (all) => {
  const of = (name) => BigInt(all[name]);
  return { posted: of("credits") - of("debits"), going: of("debits_pending"), coming: of("credits_pending") };
};

function purpose(transfer) {
  const [kind] = typeof transfer.kind === "string" ? [transfer.kind] : Object.keys(transfer.kind);
  const [why] = typeof transfer.purpose === "string" ? [transfer.purpose] : Object.keys(transfer.purpose);
  const round = transfer.purpose?.pay?.round;
  return [kind === "pending" ? "held" : kind, words(why) + (round === undefined ? "" : `, round ${round}`)];
}

function listTransfers(entries) {
  transfers.fill(
    entries.map(({ sequence, at: when, transfer }) => [
      { text: number(sequence), href: `#ledger/proof/${sequence}`, title: `${transfer.id}: check its proof` }, date(when), ...purpose(transfer),
      linked(transfer.debit), linked(transfer.credit), hyd(transfer.amount, true),
    ]),
    "No transfers yet.",
  );
}

async function fetchTransfers() {
  const { key, before } = at;
  let entries;
  if (key) {
    const query = before === null ? "" : `&before=${before}`;
    ({ entries } = await get(`hydra/v1/ledger/accounts/${key}/history?most=${PAGE}${query}`));
  } else {
    const end = before ?? at.size + 1;
    const first = Math.max(0, end - 1 - PAGE);
    ({ entries } = await get(`hydra/v1/ledger/entries?after=${first}&most=${Math.max(1, end - 1 - first)}`));
    entries.reverse();
  }
  if (key !== at.key || before !== at.before) return;
  listTransfers(entries);
  const last = entries.at(-1)?.sequence ?? 1;
  at.next = entries.length === PAGE && last > 1 ? last : null;
  const text = entries.length > 0 ? `${number(last)} to ${number(entries[0].sequence)}${key ? "" : ` of ${number(at.size)}`}` : "";
  transfersPager.show(text, at.trail.length > 0, at.next !== null);
}

async function fetchAccounts() {
  const after = at.after.at(-1);
  const page = await get(`hydra/v1/ledger/accounts?most=${PAGE}${after ? `&after=${after}` : ""}`);
  const row = (one) => {
    const { posted, going, coming } = sides(one);
    return [linked(one.account), hyd(posted, true), hyd(going, true), hyd(coming, true), hyd(one.debits, true), hyd(one.credits, true)];
  };
  accounts.fill(page.accounts.map(row), "No accounts yet.");
  at.nextAccount = page.accounts.length < PAGE ? null : page.next;
  accountsPager.show("", at.after.length > 1, at.nextAccount !== null);
}

async function fetchStanding() {
  if (!at.key) return facts(byId("standing"), []);
  const standing = await get(`hydra/v1/ledger/accounts/${at.key}`).catch(() => null);
  if (!standing) return facts(byId("standing"), [["Key", "not known to this ledger, or no key"]]);
  const [wallet, stake] = [sides(standing.wallet), sides(standing.stake)];
  facts(byId("standing"), [
    ["Key", { text: standing.key, kind: "mono" }],
    ["May be spent", `${hyd(wallet.posted - wallet.going)} HYD`],
    ["Held", `${hyd(wallet.going)} HYD`],
    ["Not vested", `${hyd(wallet.coming)} HYD in ${number(standing.unvested_rewards)} rewards`],
    ["Stake", `${hyd(stake.posted)} HYD`],
  ]);
}

async function fetchHeld(books) {
  const after = at.afterHold.at(-1);
  const page = await get(`hydra/v1/ledger/holds?most=${PAGE}${after ? `&after=${after}` : ""}`);
  const row = ({ sequence, at: since, transfer }) => {
    const { expires } = transfer.kind.pending;
    const ends = expires === null ? "" : duration(Math.max(0, expires - Date.now()));
    return [
      { text: number(sequence), href: `#ledger/proof/${sequence}`, title: `${transfer.id}: check its proof` }, date(since), purpose(transfer)[1],
      linked(transfer.debit), linked(transfer.credit), hyd(transfer.amount, true), ends,
    ];
  };
  held.fill(page.entries.map(row), "Nothing is held.");
  at.nextHold = page.next;
  heldPager.show("", at.afterHold.length > 1, at.nextHold !== null);
  say("held-note", `${hyd(books.debits_pending)} HYD are held in all: pay that has not vested, queries under way, stakes on their way out, and open offers.`);
}

async function fetchHeads() {
  const { readHead, hex, openHead } = await import("./proof.js");
  const page = await get(`hydra/v1/ledger/heads?most=12&after=${Math.max(0, at.size - 60)}`);
  let signed = page.heads;
  const newest = (await get("hydra/v1/ledger/head")).head;
  if (newest && signed.at(-1)?.body !== newest.body) signed = [...signed.slice(-11), newest];
  heads.fill(
    signed.reverse().map((one) => {
      const head = readHead(one.body);
      let verdict = { text: "holds", kind: "good" };
      try {
        openHead(one, at.ledger);
      } catch (error) {
        verdict = { text: error.message, kind: "bad" };
      }
      return [number(head.size), date(Number(head.at)), digest(hex(head.root)), digest(hex(head.chain)), verdict];
    }),
    "Nothing is signed yet.",
  );
}

/* Proofs. */

function verdict(text, good, steps = []) {
  const place = byId("proof-verdict");
  place.className = `verdict ${good ? "good" : "bad"}`;
  say(place, text);
  byId("proof-steps").replaceChildren(...steps.map((step) => h("li", { className: "mono" }, step)));
}

/** The size of the last head of this ledger that this browser has checked, or null. */
function seenSize(key) {
  const [of, size] = (kept(SEEN) ?? "").split(" ");
  return of === key && Number(size) > 0 ? Number(size) : null;
}

async function checkText() {
  const { check, readHead } = await import("./proof.js");
  try {
    const proof = JSON.parse(byId("proof-text").value);
    const key = at.ledger ?? (await get("hydra/v1/ledger")).key;
    const { said, steps } = check(proof, key);
    verdict(`✓ ${said}`, true, steps);
    const size = Number(readHead(proof.head.body).size);
    if (size > (seenSize(key) ?? 0)) keep(SEEN, `${key} ${size}`);
  } catch (error) {
    verdict(`✗ This proves nothing: ${error.message}`, false);
  }
}

async function fetchProof(path) {
  try {
    byId("proof-text").value = JSON.stringify(await get(path), null, 1);
    await checkText();
  } catch (error) {
    byId("proof-text").value = "";
    verdict(`✗ There is no such proof: ${error.message}`, false);
  }
}

/** That the ledger goes on from the last head that this browser has seen, or from the oldest one that it shows. */
async function growth() {
  let since = seenSize(at.ledger);
  if (since === null) {
    try {
      const { readHead } = await import("./proof.js");
      const first = (await get("hydra/v1/ledger/heads?most=1")).heads[0];
      since = first ? Number(readHead(first.body).size) : 1;
    } catch (error) {
      return verdict(`✗ What the ledger signed first cannot be read: ${error.message}`, false);
    }
  }
  await fetchProof(`hydra/v1/ledger/growth?since=${since}`);
}

export function start(state) {
  transfers = new Table(byId("transfers-table"), "Transfers, newest first", [
    { name: "Number" }, { name: "When", kind: "text" }, { name: "Kind", kind: "text" }, { name: "What for", kind: "text" }, { name: "From", kind: "text" },
    { name: "To", kind: "text" }, { name: "HYD" },
  ]);
  accounts = new Table(byId("accounts-table"), "Accounts", [
    { name: "Account", kind: "text" }, { name: "Balance, HYD" }, { name: "Held, going" }, { name: "Held, coming" }, { name: "Ever taken" }, { name: "Ever put in" },
  ]);
  held = new Table(byId("held-table"), "What is held", [
    { name: "Number" }, { name: "Since", kind: "text" }, { name: "What for", kind: "text" }, { name: "Of", kind: "text" }, { name: "For", kind: "text" },
    { name: "HYD" }, { name: "Ends in" },
  ]);
  heads = new Table(byId("heads-table"), "Signed heads, newest first", [
    { name: "Transfers" }, { name: "When", kind: "text" }, { name: "Root", kind: "text mono" }, { name: "Chain", kind: "text mono" }, { name: "Signature", kind: "text" },
  ]);
  const older = () => {
    at.trail.push(at.before);
    at.before = at.next;
    fetchTransfers();
  };
  const newer = () => {
    at.before = at.trail.pop() ?? null;
    fetchTransfers();
  };
  transfersPager = new Pager(byId("transfers-table"), "Newer", "Older", newer, older);
  const further = () => (at.after.push(at.nextAccount), fetchAccounts());
  const back = () => (at.after.pop(), fetchAccounts());
  accountsPager = new Pager(byId("accounts-table"), "Previous", "Next", back, further);
  const onward = () => (at.afterHold.push(at.nextHold), fetchHeld(at.books));
  const backward = () => (at.afterHold.pop(), fetchHeld(at.books));
  heldPager = new Pager(byId("held-table"), "Previous", "Next", backward, onward);
  byId("proof-form").addEventListener("submit", (event) => {
    event.preventDefault();
    fetchProof(`hydra/v1/ledger/transfers/${encodeURIComponent(byId("proof-name").value.trim())}/proof`);
  });
  byId("proof-check").addEventListener("click", checkText);
  byId("proof-growth").addEventListener("click", growth);
  byId("transfers-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const key = byId("transfers-key").value.trim();
    location.hash = key ? `#ledger/${key}` : "#ledger";
  });
  byId("transfers-all").addEventListener("click", () => (location.hash = "#ledger"));
}

export function show(state, [what, name]) {
  const key = /^[0-9a-f]{64}$/.test(what ?? "") ? what : null;
  if (key !== at.key || at.before !== null) Object.assign(at, { key, before: null, trail: [] });
  byId("transfers-key").value = key ?? "";
  if (what === "proof" && /^[0-9a-f]+$/.test(name ?? "")) {
    byId("proof-name").value = name;
    byId("proof-title").scrollIntoView();
    fetchProof(`hydra/v1/ledger/transfers/${name}/proof`);
  }
  refresh(state);
  if (key) byId("standing").scrollIntoView({ block: "center" });
}

export async function refresh(state) {
  const { books, elsewhere } = state;
  byId("ledger-here").hidden = elsewhere !== null;
  byId("ledger-elsewhere").hidden = elsewhere === null;
  if (elsewhere) say("ledger-elsewhere", `The ledger of this run is another process: ${elsewhere}. It answers the same calls, but shows no page.`);
  if (!books) return;
  Object.assign(at, { ledger: books.key, size: books.transfers, books });
  const tile = (name, value, more) => h("div", {}, h("dt", {}, name), h("dd", {}, value), h("dd", { className: "sub" }, more));
  byId("ledger-sums").replaceChildren(
    tile("Supply, HYD", about(books.supply), "emitted and not burned"),
    tile("Emitted", about(books.emitted), "by closed rounds"),
    tile("Not vested", about(books.unvested), "at stake for what it was paid for"),
    tile("Burned", about(books.burned), "gone"),
    tile("Transfers", number(books.transfers), `chain ${books.head.slice(0, 8)}`),
    tile("Balanced", books.debits === books.credits && books.debits_pending === books.credits_pending ? "yes" : "NO", "debits equal credits"),
  );
  await Promise.allSettled([
    at.before === null ? fetchTransfers() : null, fetchAccounts(), fetchStanding(), fetchHeld(books), fetchHeads(),
  ]);
}
