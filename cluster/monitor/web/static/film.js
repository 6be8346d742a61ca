// Pictures over steps: two of them on top of each other, with a slider between, and the strip of all.

import { pictureUrl } from "./api.js";
import { el, fill } from "./dom.js";
import { number } from "./format.js";

const MOST_THUMBNAILS = 16;

export class Film {
  constructor(section, store) {
    Object.assign(this, { section, store, sides: [{ at: 0 }, { at: Infinity }], split: 50 });
    this.body = section.querySelector(".body");
  }

  /** Stages of runs that have pictures: [key, label, run, stage]. */
  strips() {
    const several = this.store.chosen.length > 1;
    return this.store.chosen.flatMap((id) => (this.store.states[id]?.state?.stages ?? []).filter((stage) => stage.frames?.length)
      .map((stage) => ({ key: `${id}/${stage.name}`, label: several ? `${this.store.nameOf(id)} · ${stage.name}` : stage.name, id, stage: stage.name, frames: stage.frames, version: stage.restarts })));
  }

  show() {
    const strips = this.strips();
    this.section.hidden = !strips.length;
    if (!strips.length) return;
    const last = strips.at(-1);
    for (const side of this.sides) if (!strips.some(({ key }) => key === side.key)) side.key = last.key;
    fill(this.body, JSON.stringify([strips.map(({ key, label }) => [key, label]), this.sides.map(({ key }) => key)]), () => this.lay(strips));
    this.update();
  }

  lay(strips) {
    this.pictures = this.sides.map((_, place) => el("img", { class: place ? "over" : "under", alt: "", draggable: "false" }));
    this.labels = this.sides.map((_, place) => el("output", { class: "step" }));
    this.ranges = this.sides.map((side, place) => el("input", { type: "range", min: 0, step: 1, "aria-label": place ? "Step of the right picture" : "Step of the left picture", oninput: (event) => {
      side.at = Number(event.target.value) >= Number(event.target.max) ? Infinity : Number(event.target.value);
      this.update();
    } }));
    this.divider = el("input", { type: "range", class: "divider", min: 0, max: 100, value: this.split, "aria-label": "Where the left picture ends and the right one begins", oninput: (event) => {
      this.split = Number(event.target.value);
      this.cut();
    } });
    this.strip = el("div", { class: "strip", role: "group", "aria-label": "All pictures" });
    const pick = (place) => strips.length > 1 && el("select", { "aria-label": place ? "Right: of" : "Left: of", onchange: (event) => {
      this.sides[place].key = event.target.value;
      this.show();
    } }, strips.map(({ key, label }) => el("option", { value: key, selected: key === this.sides[place].key }, label)));
    const side = (place, name) => el("div", { class: "side" }, el("span", { class: "quiet" }, name), pick(place), this.ranges[place], this.labels[place]);
    const laid = [el("div", { class: "sides" }, side(0, "Left"), side(1, "Right")), el("div", { class: "compare" }, this.pictures, this.divider), this.strip];
    this.update();
    return laid;
  }

  update() {
    const strips = new Map(this.strips().map((strip) => [strip.key, strip]));
    this.sides.forEach((side, place) => {
      const strip = strips.get(side.key);
      if (!strip) return;
      const at = Math.min(side.at, strip.frames.length - 1);
      Object.assign(this.ranges[place], { max: strip.frames.length - 1 });
      this.ranges[place].value = at;
      this.labels[place].textContent = `step ${number(strip.frames[at])}`;
      const url = pictureUrl(strip.id, strip.stage, strip.frames[at], strip.version);
      if (!this.pictures[place].src.endsWith(url)) this.pictures[place].src = url;
      this.pictures[place].alt = `${strip.label} at step ${strip.frames[at]}`;
    });
    this.cut();
    this.thumbnails(strips.get(this.sides[1].key));
  }

  cut() {
    this.pictures[1].style.clipPath = `inset(0 0 0 ${this.split}%)`;
    this.divider.parentElement.style.setProperty("--split", `${this.split}%`);
  }

  thumbnails(strip) {
    const count = Math.min(MOST_THUMBNAILS, strip.frames.length);
    const places = [...new Set(Array.from({ length: count }, (_, place) => Math.round((place * (strip.frames.length - 1)) / Math.max(1, count - 1))))];
    fill(this.strip, JSON.stringify([strip.key, strip.version, places.map((place) => strip.frames[place])]), () => places.map((place) =>
      el("button", { type: "button", "data-place": place, onclick: () => {
        this.sides[1].at = place === strip.frames.length - 1 ? Infinity : place;
        this.update();
      } }, el("img", { loading: "lazy", alt: "", src: pictureUrl(strip.id, strip.stage, strip.frames[place], strip.version) }), el("span", {}, number(strip.frames[place])))));
    const at = Math.min(this.sides[1].at, strip.frames.length - 1);
    for (const button of this.strip.children) button.setAttribute("aria-pressed", String(Number(button.dataset.place) === at));
  }
}
