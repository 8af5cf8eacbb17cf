// The rounds, and what became of each task of one.
import { get } from "./api.js";
import { byId, digest, facts, h, Pager, say, Table } from "./dom.js";
import { about, bits, date, duration, hyd, loss, number, words } from "./format.js";
import { speed } from "./overview.js";

const PAGE = 50;
let [table, pager, from, opened, parts, now] = [null, null, 0, null, null, null];

export function start(state) {
  table = new Table(byId("rounds-table"), "Rounds, newest first", [
    { name: "Round" }, { name: "Base model", kind: "text mono" }, { name: "Opened", kind: "text" }, { name: "Took" },
    { name: "Accepted" }, { name: "Rejected" }, { name: "Tokens/s" }, { name: "Training" }, { name: "Validation" },
    { name: "bits/byte" }, { name: "Paid, HYD" },
  ]);
  const turn = (by) => () => {
    from += by;
    list(state);
  };
  pager = new Pager(byId("rounds-table"), "Newer", "Older", turn(-PAGE), turn(PAGE));
}

function list({ rounds }) {
  const newest = [...rounds].reverse();
  from = Math.max(0, Math.min(from, newest.length - 1));
  // The loss that a round led to is that of the model after it.
  const after = (round) => rounds[round.round - rounds[0].round + 1]?.loss ?? null;
  table.fill(
    newest.slice(from, from + PAGE).map((round) => [
      { text: number(round.round), href: `#rounds/${round.round}` }, digest(round.base), date(round.opened),
      round.closed === null ? { text: "open", kind: "good" } : duration(round.closed - round.opened), number(round.accepted),
      { text: number(round.rejected), kind: round.rejected > 0 ? "bad" : "" }, number(speed(round)), loss(round.train_loss),
      loss(after(round)), number(bits(after(round)), 3), round.paid === "0" ? "–" : about(round.paid),
    ]),
    "No round yet.",
  );
  pager.show(newest.length > PAGE ? `${from + 1} to ${Math.min(from + PAGE, newest.length)} of ${number(newest.length)}` : "", from > 0, from + PAGE < newest.length);
}

function build() {
  const place = (name) => h("div", { className: "scroll", id: name });
  const [tasks, rejections, audits] = [place("round-tasks"), place("round-rejections"), place("round-audits")];
  const made = {
    title: h("h2"),
    before: h("a", {}, "← Round before"),
    after: h("a", {}, "Round after →"),
    facts: h("dl", { className: "facts" }),
    rejected: h("div", {}, h("h3", {}, "Rejected"), rejections),
    audited: h("div", {}, h("h3", {}, "Computed again"), audits),
    none: h("p", { className: "note" }),
  };
  byId("rounds-one").replaceChildren(
    h("p", { className: "pager" }, h("a", { href: "#rounds" }, "All rounds"), made.before, made.after),
    h("div", { className: "panel" }, made.title, made.facts),
    h("div", { className: "panel" }, h("h2", {}, "Tasks and who did them"), tasks, made.rejected, made.audited, made.none),
  );
  made.tasks = new Table(tasks, "Tasks of the round", [
    { name: "Task" }, { name: "Worker", kind: "text mono" }, { name: "Stage", kind: "text" }, { name: "Verified", kind: "text" },
    { name: "Loss, first" }, { name: "Loss, last" }, { name: "Norm" }, { name: "Payload", kind: "text mono" }, { name: "Verdict by", kind: "text mono" },
  ]);
  made.rejections = new Table(rejections, "Rejected submissions", [
    { name: "Task" }, { name: "Worker", kind: "text mono" }, { name: "Layer", kind: "text" }, { name: "Why", kind: "text wrap" },
  ]);
  made.audits = new Table(audits, "Audits", [
    { name: "Task", kind: "text mono" }, { name: "Worker", kind: "text mono" }, { name: "Clean before" }, { name: "Verdicts" }, { name: "Came of it", kind: "text" },
  ]);
  return made;
}

async function detail(state) {
  const wanted = opened;
  const [round, audits] = await Promise.all([
    get(`hydra/v1/rounds/${wanted}`),
    get(`hydra/v1/audits?round=${wanted}`),
  ]).catch((error) => {
    say(parts.title, error.message);
    return [null, null];
  });
  if (!round || opened !== wanted) return;
  say(parts.title, "In short");
  parts.before.hidden = round.round === 0;
  parts.before.href = `#rounds/${round.round - 1}`;
  parts.after.hidden = !round.made;
  parts.after.href = `#rounds/${round.round + 1}`;
  const { aggregation, outer, codec } = audits.spec;
  const limit = aggregation.norm_limit ? `, each limited to ${aggregation.norm_limit} × the median length` : "";
  const [accepted, all] = [number(round.accepted), number(round.tasks.length)];
  const contributors = new Set(round.tasks.filter((task) => task.stage === "accepted").map((task) => task.worker)).size;
  facts(parts.facts, [
    ["Opened", date(round.opened)],
    ["Closed", round.closed === null ? "it is open" : `${date(round.closed)}, after ${duration(round.closed - round.opened)}${round.extended ? `; extended ${round.extended} times` : ""}`],
    ["Accepted", `${accepted} of ${all} tasks, ${number(round.tokens)} tokens by ${number(contributors)} contributors`],
    ["Training loss", loss(round.train_loss)],
    ["Aggregation", `${words(aggregation.rule ?? "mean")} of ${words(codec)} updates, weighted by tokens${limit}; outer rate ${outer.rate}, momentum ${outer.momentum}`],
    ["Base model", { text: round.base, kind: "mono" }],
    ["Became", round.made ? { text: round.made, kind: "mono", title: "" } : "not yet"],
    ["Paid", round.paid === "0" ? "not yet" : `${hyd(round.paid)} HYD`],
  ]);
  parts.tasks.fill(
    round.tasks.map((task) => [
      number(task.index), digest(task.worker, task.worker ? `#ledger/${task.worker}` : undefined),
      { text: task.stage, kind: task.stage === "accepted" ? "good" : "" }, task.layer ? words(task.layer) : "–",
      loss(task.loss_first), loss(task.loss_last), number(task.norm, 3), digest(task.payload), digest(task.verifier),
    ]),
  );
  parts.rejected.hidden = round.rejections.length === 0;
  parts.rejections.fill(round.rejections.map((one) => [one.index < round.tasks.length ? number(one.index) : "late", digest(one.worker), words(one.layer), one.reason]));
  const drawn = (audits.draw?.results ?? []).filter((result) => result.ending || result.verdicts.length > 0);
  parts.audited.hidden = drawn.length === 0;
  parts.audits.fill(
    drawn.map((result) => [
      digest(result.task), digest(result.worker), number(result.clean), number(result.verdicts.length),
      result.ending ? { text: words(result.ending), kind: result.ending === "clean" ? "good" : "bad" } : "under way",
    ]),
  );
  say(parts.none, drawn.length > 0 ? "" : audits.spec.audits ? (audits.draw ? "Nobody was drawn to be computed again." : "Who is computed again is drawn when the round closes, and kept for the newest rounds.") : "This run has no audits.");
  now = round;
}

export function show(state, [round]) {
  opened = /^\d+$/.test(round ?? "") ? Number(round) : null;
  byId("rounds-all").hidden = opened !== null;
  byId("rounds-one").hidden = opened === null;
  say("rounds-title", opened === null ? "Rounds" : `Round ${opened}`);
  if (opened !== null) {
    parts ??= build();
    detail(state);
  }
}

export function update(state) {
  if (opened === null) list(state);
  else if (opened >= state.status.round - 1 || (now?.round === opened && now.paid === "0")) detail(state);
}
