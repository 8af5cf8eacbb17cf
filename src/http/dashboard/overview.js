// How the run stands.
import { Lines } from "./charts.js";
import { byId, facts, say, Table } from "./dom.js";
import { about, bits, date, hyd, loss, number, short, words } from "./format.js";

let [lossChart, speedChart, table, drawn] = [null, null, null, ""];
/** What the charts show. */
const chosen = { unit: "nats", span: "all" };

export function start(state) {
  lossChart = new Lines(
    byId("chart-loss"),
    "Loss after each round",
    [
      { name: "validation", colour: "--accent", mark: "one" },
      { name: "training", colour: "--second", mark: "other" },
    ],
    4,
  );
  speedChart = new Lines(byId("chart-speed"), "Tokens a second in each round", [{ name: "tokens a second", colour: "--accent", mark: "one" }], 0);
  for (const radio of document.querySelectorAll('input[name="unit"], input[name="span"]')) {
    radio.addEventListener("change", () => {
      chosen[radio.name] = radio.value;
      drawn = "";
      charts(state);
      redraw();
    });
  }
  table = new Table(byId("chart-loss-table"), "Losses after each round", [
    { name: "Model" }, { name: "Validation, nats" }, { name: "bits a byte" }, { name: "Training, nats" }, { name: "Tokens a second" },
  ]);
  byId("chart-loss-table").parentElement.addEventListener("toggle", () => rows(state));
}

export function redraw() {
  lossChart.draw();
  speedChart.draw();
}

/** Accepted tokens of a closed round for each second that it was open. */
export const speed = (round) =>
  round.closed === null || round.closed <= round.opened ? null : (round.tokens * 1000) / (round.closed - round.opened);

/** The training that led to model `round` went on in the round before it. */
const trained = (rounds, index) => (index > 0 ? rounds[index - 1].train_loss : null);

function charts(state) {
  const { rounds } = state;
  const from = chosen.span === "all" ? 0 : Math.max(0, rounds.length - Number(chosen.span));
  const last = rounds.at(-1);
  const mark = `${rounds.length} ${last?.round} ${last?.loss} ${rounds.at(-2)?.train_loss}`;
  if (mark === drawn || rounds.length === 0) return;
  drawn = mark;
  const scale = chosen.unit === "bits" ? bits : (value) => value;
  const lines = [rounds.map((round) => round.round), rounds.map((round) => scale(round.loss)), rounds.map((_, index) => scale(trained(rounds, index)))];
  lossChart.show(lines.map((line) => line.slice(from)));
  const closed = rounds.slice(from).filter((round) => round.closed !== null);
  if (closed.length > 0) speedChart.show([closed.map((round) => round.round), closed.map(speed)]);
  rows(state);
}

function rows(state) {
  if (!byId("chart-loss-table").parentElement.open) return;
  const { rounds } = state;
  const row = (round, index) => [
    number(round.round), loss(round.loss), number(bits(round.loss), 3), loss(trained(rounds, index)),
    number(index > 0 ? speed(rounds[index - 1]) : null),
  ];
  table.fill(rounds.map(row).reverse().slice(0, 200));
}

export function tick(state, duration) {
  const { status } = state;
  if (!status) return;
  const now = Date.now() + state.offset;
  say("round-timer", `${duration(now - status.opened)} · deadline in ${duration(status.deadline - now)}`);
}

export function update(state) {
  const { status, books, rounds, spec } = state;
  say("phase", state.finished ? "Finished" : status.closed ? "Aggregating" : "Training");
  say("phase-more", status.closed ? "making the next model" : `${number(status.leased)} tasks under way`);
  say("round", number(status.round));
  say("tasks", `${number(status.accepted)} / ${number(status.tasks)}`);
  const bar = byId("tasks-bar");
  [bar.max, bar.value] = [Math.max(1, status.tasks), status.accepted];
  say("loss", loss(status.loss));
  say("loss-bits", status.loss === null ? "" : `${number(bits(status.loss), 3)} bits a byte`);
  const last = rounds.findLast((round) => round.closed !== null);
  say("train-loss", loss(last?.train_loss));
  say("train-bits", last?.train_loss ? `${number(bits(last.train_loss), 3)} bits a byte` : "");
  say("speed", number(last ? speed(last) : null));
  say("tokens", number(status.tokens));
  say("swarm", number(status.workers_seen));
  say("swarm-more", `of ${number(status.workers)} that ever worked`);
  say("supply", books ? about(books.supply) : "–");
  say("supply-more", books ? `HYD; ${about(books.unvested)} not vested` : state.elsewhere ? "the ledger is elsewhere" : "");
  charts(state);
  if (spec) {
    const { model } = spec;
    facts(byId("facts"), [
      ["Run", { text: status.run, kind: "mono" }],
      ["Newest model", { text: status.model, kind: "mono" }],
      ["Network", `${number(status.parameters)} parameters: ${model.layers} layers, ${model.width} wide, ${model.heads} heads, context ${model.context}`],
      ["Task", `${spec.inner_steps} steps of ${spec.batch} sequences, ${words(Object.keys(spec.optimizer)[0])}, ${words(spec.codec)} updates`],
      ["Aggregation", words(spec.aggregation.rule ?? "mean")],
      ["Audits", spec.audits ? `by ${spec.audits.by}` : "none: everybody is trusted"],
      ["Emission", `${hyd(spec.emission.initial)} HYD a round, halved every ${number(spec.emission.halving_rounds)} rounds`],
      ["Began", rounds[0]?.round === 0 ? date(rounds[0].opened) : `before round ${short(String(rounds[0]?.round ?? ""))}`],
    ]);
  }
}
