// What the stages were asked; of several runs only what differs.

import { get } from "./api.js";
import { el, fill, vary } from "./dom.js";

export class Config {
  constructor(section, store) {
    Object.assign(this, { section, store, stamp: null });
  }

  async show() {
    const ids = this.store.chosen.filter((id) => this.store.states[id]?.state);
    const stamp = JSON.stringify(ids.map((id) => [id, this.store.states[id].state.stages.map(({ name, restarts }) => [name, restarts])]));
    if (stamp === this.stamp) return;
    this.stamp = stamp;
    const found = await Promise.all(ids.map((id) => get("/api/configs", { run: id }).catch((error) => [{ stage: "", text: error.message, values: {}, changes: [] }])));
    if (stamp !== this.stamp) return;
    this.section.hidden = !found.some((stages) => stages.length);
    fill(this.section.querySelector(".body"), JSON.stringify([ids, found]), () => (ids.length > 1 ? this.differences(ids, found) : found[0]?.map(ofStage)));
  }

  differences(ids, found) {
    const tables = ids.map((_, place) => new Map(found[place].flatMap(({ stage, values }) => Object.entries(values).map(([name, value]) => [`${stage}\u0000${name}`, value]))));
    const names = [...new Set(tables.flatMap((table) => [...table.keys()]))];
    const differing = names.filter((name) => new Set(tables.map((table) => table.get(name))).size > 1);
    if (!differing.length) return el("p", { class: "quiet" }, "Their configurations are the same.");
    return el("div", { class: "scroll" }, el("table", { class: "differences" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, `${differing.length} of ${names.length} settings differ`), ids.map((id) => el("th", { scope: "col" }, vary(el("span", { class: "run" }, el("i", { "aria-hidden": "true" }), this.store.nameOf(id)), "--c", `var(${this.store.colourOf(id)})`))))),
      el("tbody", {}, differing.map((name) => {
        const [stage, setting] = name.split("\u0000");
        return el("tr", {}, el("th", { scope: "row" }, el("span", { class: "quiet" }, `${stage} `), setting), tables.map((table) => el("td", {}, table.has(name) ? table.get(name) : el("span", { class: "quiet" }, "–"))));
      }))));
  }
}

function ofStage({ stage, text, changes }) {
  return el("details", {}, el("summary", {}, stage), changes.map((change) => el("p", { class: "small quiet" }, change)), el("pre", { tabindex: "0" }, text));
}
