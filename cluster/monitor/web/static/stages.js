// How the stages of each run stand: shards, steps and workers; and what happened last.

import { el, fill, vary } from "./dom.js";
import { clock, duration, number, percent, words } from "./format.js";

const plural = (count, name) => `${number(count)} ${name}${count === 1 ? "" : "s"}`;

export function showStages(section, store) {
  const runs = store.chosen.map((id) => [id, store.states[id]?.state]).filter(([, state]) => state);
  section.hidden = !runs.some(([, state]) => state.stages.length);
  fill(section.querySelector(".body"), JSON.stringify(runs.map(([id, state]) => [id, state.stages.map(({ age, ...stage }) => stage), state.given])), () =>
    runs.map(([id, state]) => el("div", { class: "run-stages" },
      runs.length > 1 && vary(el("h3", { class: "run" }, el("i", { "aria-hidden": "true" }), store.nameOf(id)), "--c", `var(${store.colourOf(id)})`),
      el("ol", { class: "stages" }, state.stages.map(stageRow)),
      Object.entries(state.given).map(([name, uri]) => el("p", { class: "quiet small" }, `${name}: from ${uri}`)))));
}

function stageRow(stage) {
  const share = stage.total ? Math.min(1, stage.done / stage.total) : null;
  const facts = [
    stage.rate !== null && (stage.trains || stage.status === "running") && [`${number(stage.rate)}`, "images/s"],
    stage.eta !== null && [duration(stage.eta), "left"],
    stage.workers !== null && stage.status === "running" && [number(stage.workers), stage.workers === 1 ? "worker" : "workers"],
    stage.goodput !== null && [percent(stage.goodput), "training"],
  ].filter(Boolean);
  const notes = [
    stage.skipped && plural(stage.skipped, "skipped step"), stage.spikes && plural(stage.spikes, "loss spike"),
    stage.restarts && plural(stage.restarts, "restart"), stage.passed_over && `${plural(stage.passed_over, "step")} passed over`,
  ].filter(Boolean);
  const bar = el("progress", { max: 1, value: share ?? (stage.status === "finished" ? 1 : 0), "aria-label": `${stage.name}: done` });
  return el("li", { class: `stage ${stage.status}` },
    el("div", { class: "title" }, el("strong", {}, stage.name), el("span", { class: "status" }, stage.status === "stalled" ? `stalled for ${duration(stage.age)}` : stage.status)),
    el("div", { class: "progress" }, bar, el("span", {}, `${number(stage.done)}${stage.total ? ` of ${number(stage.total)}` : ""} ${stage.unit}${(stage.total ?? stage.done) === 1 ? "" : "s"}`, share !== null && el("b", {}, ` ${percent(share)}`))),
    el("div", { class: "facts" }, facts.map(([value, name]) => el("span", {}, el("b", {}, value), ` ${name}`)), notes.map((note) => el("span", { class: "note" }, note))),
    stage.hosts.length > 0 && hosts(stage));
}

function hosts(stage) {
  const most = Math.max(...stage.hosts.flatMap(({ workers }) => workers.map(({ rate }) => rate)), 1e-9);
  return el("details", { class: "hosts", "data-name": stage.name, open: stage.hosts.length <= 4 }, el("summary", {}, `${plural(stage.hosts.length, "host")}`),
    stage.hosts.map(({ host, workers }) => el("div", { class: "host" }, el("span", { class: "quiet" }, host), el("div", { class: "workers" },
      workers.map(({ worker, rate, slow }) => vary(el("span", { class: slow ? "worker slow" : "worker", title: `${worker}: ${number(rate)} images/s` }, el("i", { "aria-hidden": "true" }), `${number(rate)}${slow ? " slow" : ""}`), "--share", rate / most))))));
}

/** One line a run: what it is, how it stands. */
export function showHead(section, store, actions, act) {
  const runs = store.chosen.map((id) => [id, store.states[id]?.state]);
  const only = runs.length === 1;
  const others = store.runs.length > 1;
  fill(section, JSON.stringify([store.runs, store.chosen, runs.map(([, state]) => state && [state.name, state.uri, status(state)]), actions]), () => [
    el("div", { class: "titles" },
      only ? el("h1", {}, store.nameOf(runs[0][0])) : el("h1", {}, runs.length ? `${runs.length} runs` : "Runs"),
      only && runs[0][1] && el("p", { class: "uri" }, runs[0][1].uri, " ", el("span", { class: `status ${status(runs[0][1])}` }, status(runs[0][1]))),
      el("p", { class: "quiet small", id: "seen" })),
    only && actions.length > 0 && el("div", { class: "actions" }, actions.map((action) => el("button", { type: "button", id: `do-${action}`, class: action === "stop" ? "danger" : "", onclick: () => act(runs[0][0], action) }, { stop: "Stop", checkpoint: "Checkpoint now" }[action] ?? action))),
    others && chooser(store),
  ]);
}

function chooser(store) {
  return el("fieldset", { class: "chooser" }, el("legend", {}, `Runs to show, up to ${store.most}`), store.runs.map(({ id, name, uri }) => {
    const chosen = store.chosen.includes(id);
    const box = el("input", { type: "checkbox", "data-name": id, checked: chosen, disabled: !chosen && store.chosen.length >= store.most, onchange: () => store.toggle(id) });
    return vary(el("label", { class: "run", title: uri }, box, el("i", { "aria-hidden": "true" }), name), "--c", chosen ? `var(${store.colourOf(id)})` : "transparent");
  }));
}

export function status(state) {
  const stages = state.stages.map((stage) => stage.status);
  if (!stages.length) return "not begun";
  for (const each of ["running", "stalled", "failed", "stopped"]) if (stages.includes(each)) return each;
  return "finished";
}

export function showEvents(section, store) {
  const runs = store.chosen.map((id) => [id, store.states[id]?.state]).filter(([, state]) => state?.events.length);
  section.hidden = !runs.length;
  const all = runs.flatMap(([id, { events }]) => events.map((event) => ({ ...event, id }))).sort((a, b) => b.time - a.time).slice(0, 200);
  fill(section.querySelector(".body"), JSON.stringify(all), () => el("ol", { class: "events", tabindex: "0", "aria-label": "What happened, the newest first" }, all.map((event) =>
    el("li", {}, el("time", {}, clock(event.time)), el("span", { class: "quiet" }, runs.length > 1 ? `${store.nameOf(event.id)} · ${event.stage}` : event.stage), el("span", {}, words(event.text))))));
}
