// Curves over each other, one chart a number; only charts on the screen are asked for.

import { get } from "./api.js";
import { choice, colour, el, fill } from "./dom.js";
import { clock, number, words } from "./format.js";

const AXES = [["steps", "Steps"], ["images", "Images"], ["hours", "Hours"], ["date", "Date"]];
const FIRST = ["loss", "validation_loss", "validation_mse", "learning_rate", "grad_norm", "samples_per_second", "goodput"];
const PLACE = ["steps", "samples", "time", "window_steps", "epoch", "crop_epoch"];
const QUIET_MARKS = new Set(["checkpoint", "start", "finish"]);
const HEIGHT = 190;

const isFirst = (name) => FIRST.includes(name) || /^(reconstruction|lpips|adversarial|commitment|accuracy|validation_(psnr|ssim|use_.*))$/.test(name);
const order = (name) => (FIRST.includes(name) ? FIRST.indexOf(name) : FIRST.length);

/** Stages that train in any of the runs, in their order. */
export function trainedStages(states) {
  const found = [];
  for (const state of states) for (const stage of state.stages) if (stage.trains && !found.includes(stage.name)) found.push(stage.name);
  return found;
}

export class Charts {
  constructor(root, store, changed) {
    Object.assign(this, { root, store, changed, cards: new Map(), visible: new Set(), hiddenMarks: new Set(QUIET_MARKS), marks: {}, log: new Set() });
    this.tools = el("div", { class: "tools" });
    this.legend = el("div", { class: "legend" });
    this.grid = el("div", { class: "charts" });
    this.rest = el("div", { class: "charts" });
    this.filter = el("input", { type: "search", placeholder: "Filter by name", "aria-label": "Filter numbers by name", oninput: () => this.sift() });
    this.more = el("details", { class: "more", ontoggle: () => this.refresh() }, el("summary"), this.filter, this.rest);
    root.replaceChildren(this.tools, this.legend, this.grid, this.more);
    this.watch = new IntersectionObserver((seen) => this.see(seen), { rootMargin: "200px" });
    this.resize = new ResizeObserver((changes) => changes.forEach(({ target }) => this.fit(target)));
  }

  /** Runs that have the stage, as [id, state of the stage]. */
  runs() {
    return this.store.chosen.map((id) => [id, this.store.states[id]?.state?.stages.find((stage) => stage.name === this.store.stage)]).filter(([, stage]) => stage?.trains);
  }

  show() {
    const states = this.store.chosen.map((id) => this.store.states[id]?.state).filter(Boolean);
    const stages = trainedStages(states);
    this.root.parentElement.hidden = !stages.length;
    if (!stages.length) return;  // nothing is known yet: the stage that the address names may come
    if (!stages.includes(this.store.stage)) this.store.stage = stages.at(-1);
    const zoomed = this.store.zoom !== null;
    fill(this.tools, JSON.stringify([stages, this.store.stage, this.store.axis, zoomed]), () => [
      choice("Stage", stages.map((name) => [name, name]), this.store.stage, (name) => this.set({ stage: name, zoom: null })),
      choice("Axis", AXES, this.store.axis, (axis) => this.set({ axis, zoom: null })),
      zoomed && el("button", { type: "button", class: "plain", onclick: () => this.set({ zoom: null }) }, "Show all"),
    ]);
    const names = new Set(this.runs().flatMap(([, stage]) => stage.names).filter((name) => !PLACE.includes(name)));
    this.lay([...names].sort((a, b) => order(a) - order(b) || a.localeCompare(b, "en", { numeric: true })));
    this.refresh();
  }

  set(change) {
    Object.assign(this.store, change);
    this.stamp = null;
    this.changed();
  }

  lay(names) {
    const key = JSON.stringify(names);
    if (key === this.key) return;
    this.key = key;
    for (const [name, card] of this.cards) if (!names.includes(name)) this.drop(name, card);
    for (const name of names) {
      if (!this.cards.has(name)) this.add(name);
      (isFirst(name) ? this.grid : this.rest).append(this.cards.get(name).node);
    }
    this.more.hidden = !this.rest.childElementCount;
    this.more.firstChild.textContent = `${this.rest.childElementCount} more number${this.rest.childElementCount === 1 ? "" : "s"}`;
    this.sift();
  }

  sift() {
    const text = this.filter.value.trim().toLowerCase();
    for (const [name, { node }] of this.cards) if (node.parentElement === this.rest) node.hidden = !words(name).toLowerCase().includes(text) && !name.toLowerCase().includes(text);
  }

  add(name) {
    const value = el("output", { class: "value" });
    const log = el("button", { type: "button", class: "plain small", "aria-pressed": "false", title: "Logarithmic axis", onclick: () => this.flip(name) }, "log");
    const plot = el("div", { class: "plot", tabindex: "0", role: "img", "aria-label": `${words(name)}; plus and minus zoom, arrows move, 0 shows all`, onkeydown: (event) => this.press(event) });
    const under = el("div", { class: "under" });
    const node = el("figure", { class: "chart" }, el("figcaption", {}, el("span", { class: "name" }, words(name)), value, log), plot, under);
    node.dataset.name = name;
    this.cards.set(name, { node, plot, value, under, log, drawn: null, chart: null });
    this.watch.observe(node);
    this.resize.observe(plot);
  }

  drop(name, card) {
    card.chart?.destroy();
    card.node.remove();
    this.cards.delete(name);
    this.visible.delete(name);
  }

  see(seen) {
    for (const { target, isIntersecting } of seen) this.visible[isIntersecting ? "add" : "delete"](target.dataset.name);
    this.refresh();
  }

  flip(name) {
    this.log[this.log.has(name) ? "delete" : "add"](name);
    this.cards.get(name).log.setAttribute("aria-pressed", String(this.log.has(name)));
    this.redraw(name);
  }

  redraw(name) {
    const card = this.cards.get(name);
    card.chart?.destroy();
    card.chart = null;
    if (card.drawn) this.draw(name, card.drawn);
  }

  /** All charts anew, in the colours of now. */
  repaint() {
    for (const name of this.cards.keys()) this.redraw(name);
  }

  /** Ask for the curves on the screen that are not those of now. */
  async refresh() {
    const runs = this.runs();
    if (!runs.length) return;
    const { stage, axis, zoom } = this.store;
    const stamp = JSON.stringify([stage, axis, zoom, runs.map(([id, found]) => [id, found.rows, found.marks, found.began])]);
    const names = [...this.visible].filter((name) => this.cards.get(name)?.stamp !== stamp).slice(0, 60);
    if (!names.length || this.asking === stamp) return;
    this.asking = stamp;
    try {
      const found = await get("/api/curves", { run: runs.map(([id]) => id), name: names, stage, axis, low: zoom?.low, high: zoom?.high });
      this.marks = found.marks;
      this.list();
      for (const name of names) {
        const card = this.cards.get(name);
        if (!card) continue;
        card.stamp = stamp;
        card.drawn = found.curves[name] ?? {};
        this.draw(name, card.drawn);
      }
    } catch (error) {
      this.legend.title = error.message;
    } finally {
      this.asking = null;
    }
    if ([...this.visible].some((name) => this.cards.get(name)?.stamp !== stamp)) setTimeout(() => this.refresh(), 50);
  }

  /** The marks that there are, by kind, each of which can be switched. */
  list() {
    const counts = new Map();
    for (const marks of Object.values(this.marks)) for (const { kind } of marks) counts.set(kind, (counts.get(kind) ?? 0) + 1);
    fill(this.legend, JSON.stringify([[...counts], [...this.hiddenMarks]]), () => [...counts].map(([kind, count]) =>
      el("button", { type: "button", "data-name": kind, class: `mark ${kind.replaceAll(" ", "-")}`, "aria-pressed": String(!this.hiddenMarks.has(kind)), onclick: () => {
        this.hiddenMarks[this.hiddenMarks.has(kind) ? "delete" : "add"](kind);
        this.list();
        for (const { chart } of this.cards.values()) chart?.redraw(false);
      } }, el("i", { "aria-hidden": "true" }), `${kind} `, el("b", {}, number(count)))));
  }

  draw(name, drawn) {
    const card = this.cards.get(name);
    const ids = Object.keys(drawn);
    const data = ids.length ? uPlot.join(ids.map((id) => [drawn[id].x, drawn[id].y])) : [[], []];
    const positive = ids.every((id) => drawn[id].lowest > 0);
    card.log.hidden = !positive;
    const key = JSON.stringify([ids, this.store.axis, this.log.has(name) && positive]);
    if (card.chart && card.key === key) {
      card.chart.setData(data, false);
      this.range(card.chart, data);
    } else {
      card.chart?.destroy();
      card.key = key;
      card.chart = new uPlot(this.options(name, card, ids, positive && this.log.has(name)), data, card.plot);
      this.range(card.chart, data);
    }
    this.read(name, null);
  }

  /** Show all of a curve, or the stretch that was chosen. */
  range(chart, data) {
    const { zoom } = this.store;
    const xs = data[0];
    const [low, high] = zoom ? [zoom.low, zoom.high] : [Math.min(xs[0] ?? 0, this.store.axis === "date" ? Infinity : 0), xs.at(-1) ?? 1];
    chart.batch(() => chart.setScale("x", { min: low, max: high > low ? high : low + 1 }));
  }

  options(name, card, ids, log) {
    const date = this.store.axis === "date";
    const quiet = colour("--quiet"), rule = colour("--rule");
    const axis = { stroke: quiet, grid: { stroke: rule, width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    const format = (_, ticks) => ticks.map((tick) => (tick === null ? "" : short(tick)));
    return {
      width: Math.max(200, card.plot.clientWidth), height: HEIGHT, legend: { show: false }, padding: [14, 8, 0, 0],
      cursor: { sync: { key: "foldtrain", setSeries: false }, drag: { x: true, y: false, setScale: false }, points: { size: 6 } },
      scales: { x: { time: date, auto: false }, y: log ? { distr: 3 } : {} },
      axes: [{ ...axis, size: 26, gap: 4, ...(date ? {} : { values: format }) }, { ...axis, size: 52, gap: 6, values: log ? (_, ticks) => ticks.map((tick) => (tick !== null && Number.isInteger(Math.round(Math.log10(tick) * 1e6) / 1e6) ? short(tick) : "")) : format }],
      series: [{}, ...ids.map((id) => ({ stroke: colour(this.store.colourOf(id)), width: 1.6, spanGaps: true, points: { show: (chart, place) => chart.data[place].filter((value) => value !== null).length < 2 } }))],
      hooks: { draw: [(chart) => this.paint(chart)], setCursor: [(chart) => this.read(name, chart.cursor.idx)], setSelect: [(chart) => this.select(chart)] },
    };
  }

  shown() {
    return Object.entries(this.marks).flatMap(([id, marks]) => marks.map((mark) => ({ ...mark, id }))).filter(({ kind }) => !this.hiddenMarks.has(kind));
  }

  paint(chart) {
    const { ctx, bbox } = chart;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top - 14 * devicePixelRatio, bbox.width, bbox.height + 14 * devicePixelRatio);
    ctx.clip();
    for (const mark of this.shown()) {
      const x = Math.round(chart.valToPos(mark.x, "x", true)) + 0.5;
      if (x < bbox.left - 1 || x > bbox.left + bbox.width + 1) continue;
      ctx.strokeStyle = ctx.fillStyle = colour(`--mark-${mark.kind.replaceAll(" ", "-")}`) || colour("--quiet");
      ctx.globalAlpha = 0.45;
      ctx.lineWidth = devicePixelRatio;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      ctx.globalAlpha = 1;
      const size = 3.5 * devicePixelRatio;
      ctx.beginPath();
      ctx.moveTo(x - size, bbox.top - 2 * size);
      ctx.lineTo(x + size, bbox.top - 2 * size);
      ctx.lineTo(x, bbox.top);
      ctx.fill();
    }
    ctx.restore();
  }

  /** The values below the cursor, or the last ones; and what happened there. */
  read(name, place) {
    const card = this.cards.get(name);
    if (!card?.drawn) return;
    const chart = card.chart;
    const ids = Object.keys(card.drawn);
    const at = (index) => (place === null || place === undefined ? card.drawn[ids[index]].last : nearest(chart.data[index + 1], place));
    card.value.textContent = ids.length === 1 ? number(at(0)) : "";
    const several = this.store.chosen.length > 1;
    const rows = several ? ids.map((id, index) => el("span", { class: "run", "data-colour": this.store.colourOf(id) }, el("i", { "aria-hidden": "true" }), `${this.store.nameOf(id)} `, el("b", {}, number(at(index))))) : [];
    const far = place !== null && place !== undefined ? chart.posToVal(8, "x") - chart.posToVal(0, "x") : 0;
    const x = far ? chart.data[0][place] : null;
    const near = far ? this.shown().filter((mark) => Math.abs(mark.x - x) <= far).slice(0, 3) : [];
    const unit = this.store.axis === "date" ? null : el("span", { class: "unit" }, this.store.axis);
    const where = x === null ? unit : el("span", { class: "where" }, this.store.axis === "date" ? clock(x) : `${number(x)} ${this.store.axis}`);
    card.under.replaceChildren(...[...rows, where, ...near.map((mark) => el("span", { class: "happened" }, mark.text))].filter(Boolean));
    card.under.querySelectorAll(".run").forEach((row) => row.style.setProperty("--c", `var(${row.dataset.colour})`));
  }

  select(chart) {
    const { left, width } = chart.select;
    if (width < 6) return;
    const low = chart.posToVal(left, "x"), high = chart.posToVal(left + width, "x");
    chart.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    this.set({ zoom: { low, high } });
  }

  press(event) {
    const chart = [...this.cards.values()].find((card) => card.plot === event.currentTarget)?.chart;
    if (!chart || event.ctrlKey || event.metaKey || event.altKey) return;
    const { min, max } = chart.scales.x;
    const step = (max - min) * 0.2;
    const moved = { "+": [min + step, max - step], "=": [min + step, max - step], "-": [min - step, max + step], ArrowLeft: [min - step, max - step], ArrowRight: [min + step, max + step] }[event.key];
    if (event.key === "0" || event.key === "Escape") this.set({ zoom: null });
    else if (moved) this.set({ zoom: { low: moved[0], high: moved[1] } });
    else return;
    event.preventDefault();
  }

  fit(plot) {
    const card = [...this.cards.values()].find((each) => each.plot === plot);
    if (card?.chart && plot.clientWidth) card.chart.setSize({ width: plot.clientWidth, height: HEIGHT });
  }
}

/** The value at a place, or the next one to its left that there is. */
function nearest(values, place) {
  for (let at = place; at >= 0; at -= 1) if (values[at] !== null && values[at] !== undefined) return values[at];
  return null;
}

function short(value) {
  const size = Math.abs(value);
  if (size >= 1e9) return `${Number((value / 1e9).toPrecision(3))}G`;
  if (size >= 1e6) return `${Number((value / 1e6).toPrecision(3))}M`;
  if (size >= 1e4) return `${Number((value / 1e3).toPrecision(3))}k`;
  if (size !== 0 && size < 1e-3) return value.toExponential(0).replace("e+", "e");
  return String(Number(value.toPrecision(4)));
}
