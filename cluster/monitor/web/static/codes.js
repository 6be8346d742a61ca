// Maps of the codes in use: a row for each group, a column for each look at held-out images.

import { get } from "./api.js";
import { el, fill, vary } from "./dom.js";
import { number, percent } from "./format.js";

export class Codes {
  constructor(section, store) {
    Object.assign(this, { section, store, found: {}, stamp: null });
  }

  async show() {
    const ids = this.store.chosen.filter((id) => this.store.states[id]?.state);
    const stamp = JSON.stringify(ids.map((id) => [id, this.store.states[id].state.has, this.store.states[id].state.stages.map((stage) => stage.frames?.length ?? stage.looked_at)]));
    if (stamp === this.stamp) return;
    this.stamp = stamp;
    const found = await Promise.all(ids.map((id) => get("/api/codes", { run: id }).catch((error) => ({ looks: [], evaluation: { error: error.message } }))));
    const shown = ids.map((id, place) => [id, found[place]]).filter(([, maps]) => maps.looks.length || maps.evaluation);
    this.section.hidden = !shown.length;
    fill(this.section.querySelector(".body"), JSON.stringify(shown), () => shown.map(([id, maps]) => [
      ids.length > 1 && vary(el("h3", { class: "run" }, el("i", { "aria-hidden": "true" }), this.store.nameOf(id)), "--c", `var(${this.store.colourOf(id)})`),
      el("div", { class: "maps" }, maps.looks.map(lookMap)),
      maps.evaluation && evaluated(maps.evaluation),
    ]).flat());
  }
}

function cell(share, text) {
  return vary(el("i", { title: text }), "--share", Math.max(0, Math.min(1, share ?? 0)));
}

function lookMap({ stage, fold, steps, use, attainable, dead }) {
  const groups = Math.max(0, ...use.map((row) => row.length));
  const grid = el("div", { class: "map", role: "img", "aria-label": `${fold}: share of codes in use, by group and step; now ${use.at(-1).map(percent).join(", ")}` });
  vary(grid, "--columns", steps.length);
  for (let group = 0; group < groups; group += 1) {
    steps.forEach((step, place) => {
      const share = use[place][group] ?? null, bound = attainable[place]?.[group];
      grid.append(cell(bound ? share / bound : share, `group ${group + 1}, step ${number(step)}: ${percent(share)} of the codes${bound ? `, of ${percent(bound)} that so many images could use` : ""}`));
    });
  }
  return el("figure", {}, el("figcaption", {}, el("b", {}, fold.replaceAll("_", " ")), ` of the ${stage}`, dead !== null && ` · ${percent(dead)} dead`), grid,
    el("div", { class: "ends" }, el("span", {}, `step ${number(steps[0])}`), el("span", {}, `${groups} group${groups === 1 ? "" : "s"}`), el("span", {}, number(steps.at(-1)))));
}

function evaluated({ error, use, positions }) {
  if (error) return el("p", { class: "quiet" }, error);
  return el("div", { class: "evaluated" },
    el("h3", {}, "As evaluated"),
    el("div", { class: "scroll" }, el("table", { class: "heat" }, use.map(({ fold, shares }) => el("tr", {}, el("th", { scope: "row" }, fold), shares.map((share) => vary(el("td", {}, percent(share)), "--share", share ?? 0)))))),
    positions.length > 0 && el("p", { class: "quiet small" }, "Codes that each position uses, by perplexity:"),
    el("div", { class: "maps" }, positions.flatMap((group) => group.maps.map((map) => {
      const grid = el("div", { class: "map square", role: "img", "aria-label": `${map.fold}, ${group.positions} positions: from ${map.least} to ${map.most}` }, map.cells.map(({ share, value }) => cell(share, value)));
      return el("figure", {}, vary(grid, "--columns", group.columns), el("figcaption", {}, `${map.fold}, ${group.positions} position${group.positions === "1" ? "" : "s"}`));
    }))));
}
