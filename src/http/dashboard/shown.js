// What models wrote, and simulations that were kept.
import { get } from "./api.js";
import { byId, h, say, Table } from "./dom.js";
import { bits, loss, number, short } from "./format.js";

/** Control characters and bytes that are no text, which early models write, are shown as one mark each. */
const readable = (text) => text.replace(/[\u0000-\u0008\u000b-\u001f\u007f\ufffd]/g, "·");

async function listSamples() {
  let [found, note] = [[], "What each model wrote when it came: the beginning of a document, always with the same seed."];
  try {
    found = (await get("hydra/v1/samples")).samples;
  } catch (error) {
    note = error.code === "not_serving" ? "Models write samples where the run answers queries (--serve)." : error.message;
  }
  say("samples-note", note);
  const list = byId("samples-list");
  const known = new Map([...list.children].map((item) => [item.dataset.model, item]));
  const items = found.reverse().map((sample) => {
    const there = known.get(sample.model);
    if (there) return there;
    const title = h("h2", {}, `Model ${number(sample.round)} `, h("span", { className: "mono soft", title: sample.model }, short(sample.model)));
    const item = h("li", {}, title, h("pre", {}, readable(sample.text)));
    item.dataset.model = sample.model;
    return item;
  });
  list.replaceChildren(...items);
}

export const samples = { show: listSamples, refresh: listSamples };

let table = null;

export const reports = {
  start() {
    table = new Table(byId("reports-table"), "Simulations", [
      { name: "Report", kind: "text" }, { name: "Scenario", kind: "text" }, { name: "Seed" }, { name: "Rounds" }, { name: "Last loss" },
      { name: "bits a byte" }, { name: "State", kind: "text mono" }, { name: "Expected", kind: "text wrap" },
    ]);
  },
  async show() {
    const { reports: found } = await get("hydra/v1/reports");
    say("reports-note", found.length > 0
      ? "Swarms that were played in virtual time. Each report opens as a page of its own; the state's digest is the same whenever its scenario is played with its seed."
      : "None are shown. `cargo sim scenarios/NAME.toml --out DIR/NAME` keeps one, and --reports DIR shows all in DIR.");
    byId("reports-table").parentElement.hidden = found.length === 0;
    table.fill(
      found.map((one) => [
        { text: one.name, href: `hydra/v1/reports/${one.name}` }, one.scenario, String(one.seed), number(one.rounds), loss(one.loss),
        number(bits(one.loss), 3), { text: short(one.state_hash), title: one.state_hash },
        one.failures.length === 0 ? { text: "holds", kind: "good" } : { text: one.failures.join("; "), kind: "bad" },
      ]),
    );
  },
};
