// The page: which runs are chosen, and what of them is new. Each part of the page has a file of its own.

import { get, post } from "./api.js";
import { Charts } from "./charts.js";
import { Codes } from "./codes.js";
import { Config } from "./config.js";
import { el } from "./dom.js";
import { Film } from "./film.js";
import { duration } from "./format.js";
import { Logs } from "./logs.js";
import { Numbers } from "./numbers.js";
import { Spent } from "./spent.js";
import { showEvents, showHead, showStages } from "./stages.js";

const LOOK_MILLISECONDS = 2000;
const COLOURS = 10;
const PARTS = [["stages", "Stages"], ["curves", "Curves"], ["numbers", "Numbers"], ["pictures", "Pictures"], ["codes", "Codes"], ["spent", "Time"], ["events", "Events"], ["logs", "Logs"], ["config", "Config"]];
const part = (id) => document.getElementById(id);

const store = {
  runs: [], most: 10, chosen: [], states: {}, stage: null, axis: "steps", zoom: null, prices: {},
  nameOf: (id) => store.runs.find((run) => run.id === Number(id))?.name ?? "",
  colourOf: (id) => `--c${Math.max(0, store.chosen.indexOf(Number(id))) % COLOURS}`,
  toggle: (id) => {
    store.chosen = store.chosen.includes(id) ? store.chosen.filter((each) => each !== id) : [...store.chosen, id].slice(0, store.most);
    store.zoom = null;
    remember();
    show();
    look();
  },
};
let actions = [];
const charts = new Charts(part("curves").querySelector(".body"), store, () => { remember(); show(); });
const film = new Film(part("pictures"), store);
const codes = new Codes(part("codes"), store);
const numbers = new Numbers(part("numbers"), store);
const spent = new Spent(part("spent"), store);
const logs = new Logs(part("logs"), store);
const config = new Config(part("config"), store);

function show() {
  showHead(part("head"), store, actions, act);
  showStages(part("stages"), store);
  charts.show();
  numbers.show();
  film.show();
  codes.show();
  spent.show();
  showEvents(part("events"), store);
  logs.show();
  config.show();
  const away = store.chosen.map((id) => store.states[id]?.state?.away).filter(Boolean);
  part("away").hidden = !away.length;
  part("away").textContent = away.length ? `Storage cannot be read; what is shown is what was read last. ${away[0]}` : "";
  document.title = `${store.chosen.length === 1 ? store.nameOf(store.chosen[0]) : `${store.chosen.length} runs`} – foldtrain`;
}

/** Ask what is new, now and then every few seconds; not while nobody sees the page. */
async function look() {
  clearTimeout(look.next);
  try {
    if (store.chosen.length && !document.hidden) {
      const asked = store.chosen.map((id) => `${id}:${store.states[id]?.version ?? ""}`.replace(/:$/, ""));
      const { now, runs } = await get("/api/states", { run: asked });
      let news = false;
      for (const [id, { version, state, ages }] of Object.entries(runs)) {
        if (state) store.states[id] = { version, state };
        for (const stage of store.states[id]?.state.stages ?? []) stage.age = ages[stage.name] ?? stage.age;
        news ||= Boolean(state);
      }
      if (news) show();
      else logs.show();
      spent.show();
      const times = store.chosen.map((id) => runs[id]?.seen_at).filter(Boolean);
      const line = part("seen");
      if (line) line.textContent = times.length ? `seen ${duration(Math.max(0, now - Math.min(...times)))} ago` : "";
      document.body.classList.remove("lost");
    }
  } catch (error) {
    document.body.classList.add("lost");
    part("away").hidden = false;
    part("away").textContent = `The monitor's server does not answer: ${error.message}`;
  }
  look.next = setTimeout(look, LOOK_MILLISECONDS);
}

async function act(run, action) {
  const dialog = part("ask");
  const text = { stop: `Stop ${store.nameOf(run)}? It saves a checkpoint and ends; the same command goes on from there.`, checkpoint: `Have ${store.nameOf(run)} write a checkpoint after the step under way?` };
  dialog.querySelector("p").textContent = text[action] ?? action;
  dialog.querySelector('button[value="yes"]').textContent = { stop: "Stop", checkpoint: "Write it" }[action] ?? action;
  dialog.returnValue = "no";
  dialog.showModal();
  const question = act.question = (act.question ?? 0) + 1;
  while (dialog.open) await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));  // that of an earlier question may come now
  if (question !== act.question || dialog.returnValue !== "yes") return;
  const note = el("p", { class: "banner", role: "status", id: "said" });
  try {
    note.textContent = (await post("/api/control", { run, action })).said;
  } catch (error) {
    note.textContent = error.message;
  }
  part("said")?.remove();
  part("head").after(note);
}

/** What is chosen stands in the address, so that it can be kept and sent. */
function remember() {
  const kept = new URLSearchParams({ runs: store.chosen.join(","), axis: store.axis });
  if (store.stage) kept.set("stage", store.stage);
  history.replaceState(null, "", `#${kept}`);
}

function recall() {
  const kept = new URLSearchParams(location.hash.slice(1));
  const ids = (kept.get("runs") ?? "").split(",").filter(Boolean).map(Number).filter((id) => store.runs.some((run) => run.id === id));
  store.chosen = (ids.length ? ids : store.runs.map(({ id }) => id)).slice(0, store.most);
  if (["steps", "images", "hours", "date"].includes(kept.get("axis"))) store.axis = kept.get("axis");
  store.stage = kept.get("stage");
}

function theme() {
  const button = part("theme");
  const dark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const paint = () => { button.textContent = dark() ? "☀" : "☾"; charts.repaint(); };
  button.addEventListener("click", () => { document.documentElement.dataset.theme = dark() ? "light" : "dark"; localStorage.setItem("theme", document.documentElement.dataset.theme); paint(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  const kept = localStorage.getItem("theme");
  if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;
  paint();
}

async function begin() {
  part("nav").append(...PARTS.map(([id, name]) => el("a", { href: `#${id}`, "data-part": id, hidden: true, onclick: (event) => { event.preventDefault(); part(id).scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" }); part(id).querySelector("h2").tabIndex = -1; part(id).querySelector("h2").focus({ preventScroll: true }); } }, name)));
  const parts = new MutationObserver(() => { for (const link of part("nav").children) link.hidden = part(link.dataset.part).hidden; });
  for (const [id] of PARTS) parts.observe(part(id), { attributeFilter: ["hidden"] });
  theme();
  const found = await get("/api/runs");
  Object.assign(store, { runs: found.runs, most: found.most });
  actions = found.actions;
  recall();
  document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
  show();
  await look();
}

begin().catch((error) => { part("away").hidden = false; part("away").textContent = error.message; });
