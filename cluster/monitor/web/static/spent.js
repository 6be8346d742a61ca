// Where the wall time of each training stage went, by cause, in hours and in money.

import { el, fill, vary } from "./dom.js";
import { duration, hours, percent, words } from "./format.js";

const CAUSES = ["training", "data_wait", "checkpoint_blocked", "validation", "lost_steps", "restart_gap", "start_up", "shutdown"];

export class Spent {
  constructor(section, store) {
    Object.assign(this, { section, store });
    this.price = document.querySelector('meta[name="page-price"]').content;
  }

  rows() {
    return this.store.chosen.flatMap((id) => (this.store.states[id]?.state?.stages ?? []).filter((stage) => stage.seconds && Object.keys(stage.seconds).length).map((stage) => [id, stage, this.store.prices[id]]));
  }

  show() {
    const rows = this.rows();
    this.section.hidden = !rows.length;
    const body = this.section.querySelector(".body");
    if (!body.firstChild) {
      this.input = el("input", { type: "number", min: 0, step: "any", inputmode: "decimal", value: this.price, placeholder: "–", oninput: () => { this.price = this.input.value; this.show(); } });
      this.list = el("div");
      body.append(el("label", { class: "price" }, "Price of an hour of all machines of the run ", this.input), this.list);
    }
    fill(this.list, JSON.stringify([this.price, rows]), () => rows.map(([id, stage, price]) => this.stage(id, stage, price)));
  }

  stage(id, stage, recorded) {
    const total = Object.values(stage.seconds).reduce((sum, each) => sum + each, 0);
    const own = this.price === "" ? null : Number(this.price);
    const price = own ?? recorded?.per_hour ?? null, currency = own === null && recorded ? ` ${recorded.currency}` : "";
    const money = (seconds) => (price === null ? null : `${((seconds / 3600) * price).toFixed(2)}${currency}`);
    const causes = CAUSES.filter((cause) => stage.seconds[cause] > 0);
    const title = this.store.chosen.length > 1 ? `${this.store.nameOf(id)} · ${stage.name}` : stage.name;
    return el("div", { class: "account" },
      el("h3", {}, title, el("span", { class: "quiet" }, ` ${duration(total)}${price === null ? "" : ` · ${money(total)}`}`)),
      el("div", { class: "stack", role: "img", "aria-label": causes.map((cause) => `${words(cause)} ${percent(stage.seconds[cause] / total)}`).join(", ") },
        causes.map((cause) => vary(el("i", { class: `cause ${cause}`, title: `${words(cause)}: ${percent(stage.seconds[cause] / total)}` }), "--share", stage.seconds[cause] / total))),
      el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, ["Cause", "Hours", "Share", price !== null && "Money"].filter(Boolean).map((name, place) => el("th", { scope: "col", class: place ? "num" : "" }, name)))),
        el("tbody", {}, causes.map((cause) => el("tr", {}, el("th", { scope: "row" }, el("i", { class: `swatch cause ${cause}`, "aria-hidden": "true" }), words(cause)), el("td", { class: "num" }, hours(stage.seconds[cause])), el("td", { class: "num" }, percent(stage.seconds[cause] / total)), price !== null && el("td", { class: "num" }, money(stage.seconds[cause]))))))));
  }
}

