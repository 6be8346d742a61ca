// What evaluations found: a row for each metric, a column for each run; what may not be compared has rows of its own.

import { get } from "./api.js";
import { el, fill, vary } from "./dom.js";
import { number } from "./format.js";

const ARROWS = { lower: " ↓", higher: " ↑" };

export class Numbers {
  constructor(section, store) {
    Object.assign(this, { section, store, stamp: null });
  }

  async show() {
    const ids = this.store.chosen.filter((id) => this.store.states[id]?.state?.has["evaluation.json"]);
    const stamp = JSON.stringify(ids.map((id) => [id, this.store.states[id].state.stages.map(({ name, status, step, done }) => [name, status, status === "finished" ? step ?? done : null])]));
    if (stamp === this.stamp) return;
    this.stamp = stamp;
    const none = { columns: [], metrics: [], left_out: 0, problems: [] };
    const found = ids.length ? await get("/api/evaluations", { run: ids }).catch((error) => ({ ...none, problems: [{ run: ids[0], text: error.message }] })) : none;
    if (stamp !== this.stamp) return;
    this.section.hidden = !found.metrics.length && !found.problems.length;
    fill(this.section.querySelector(".body"), JSON.stringify([ids, found]), () => this.tables(found));
  }

  tables({ columns, metrics, left_out, problems }) {
    const main = metrics.filter((metric) => metric.main), others = metrics.filter((metric) => !metric.main);
    return [
      problems.map(({ run, text }) => el("p", { class: "banner" }, `${this.store.nameOf(run)}: ${text}`)),
      main.length ? this.table(columns, main, true) : null,
      others.length ? el("details", { class: "more" }, el("summary", {}, `${others.length} more, of parts of the tokens`), this.table(columns, others, false)) : null,
      left_out ? el("p", { class: "small quiet" }, `${left_out} more are not shown; foldtrain compare has all.`) : null,
    ].flat();
  }

  table(columns, metrics, hours) {
    const head = ({ run, label }) => el("th", { scope: "col", class: "num" }, vary(el("span", { class: "run" }, el("i", { "aria-hidden": "true" }), this.store.nameOf(run)), "--c", `var(${this.store.colourOf(run)})`), label ? el("div", { class: "quiet" }, label) : null);
    const timed = hours && columns.some((column) => column.hours !== null);
    return el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": hours ? "Numbers" : "More numbers" }, el("table", { class: "numbers" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "measured"), columns.map(head))),
      el("tbody", {},
        metrics.map(({ title, better, method, cells }) => el("tr", {},
          el("th", { scope: "row" }, `${title}${ARROWS[better] ?? ""}`, el("div", { class: "quiet small" }, method)),
          cells.map((cell) => el("td", { class: "num", title: cell?.name }, cell === null ? el("span", { class: "quiet" }, "–") : cell.best ? el("b", {}, cell.text) : cell.text)))),
        timed ? el("tr", {}, el("th", { scope: "row" }, "hours of all stages"), columns.map((column) => el("td", { class: "num" }, column.hours === null ? "" : number(column.hours)))) : null)));
  }
}
