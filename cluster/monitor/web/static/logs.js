// What the jobs of a run printed.

import { get } from "./api.js";
import { el, fill } from "./dom.js";
import { clock, duration } from "./format.js";

const MOST_CHARACTERS = 400_000;

export class Logs {
  constructor(section, store) {
    Object.assign(this, { section, store, jobs: [], job: null, place: 0, text: "" });
    this.list = el("div", { class: "jobs" });
    this.output = el("pre", { class: "log", tabindex: "0", "aria-label": "What the job printed" });
    this.follow = el("input", { type: "checkbox", checked: true });
    section.querySelector(".body").append(this.list, el("label", { class: "small quiet" }, this.follow, " follow"), this.output);
  }

  async show() {
    const ids = this.store.chosen.filter((id) => this.store.states[id]?.state?.has.jobs);
    this.section.hidden = !ids.length;
    if (!ids.length || this.busy) return;
    this.busy = true;
    try {
      const found = await Promise.all(ids.map((id) => get("/api/jobs", { run: id })));
      this.jobs = ids.flatMap((id, place) => found[place].jobs.map((job) => ({ ...job, run: id })));
      ids.forEach((id, place) => { this.store.prices[id] = found[place].price; });
      const key = (job) => `${job.run}/${job.id}`;
      if (!this.jobs.some((job) => key(job) === this.job)) this.choose(this.jobs[0] ? key(this.jobs[0]) : null);
      fill(this.list, JSON.stringify([this.jobs, this.job]), () => this.jobs.map((job) =>
        el("button", { type: "button", "data-name": key(job), class: `job ${job.status ?? "pending"}`, "aria-pressed": String(key(job) === this.job), onclick: () => { this.choose(key(job)); this.show(); } },
          el("b", {}, job.id), el("span", { class: "status" }, job.status ?? "pending"), el("span", { class: "quiet" }, about(job)))));
      await this.read();
    } catch (error) {
      this.output.title = error.message;
    } finally {
      this.busy = false;
    }
  }

  choose(job) {
    Object.assign(this, { job, place: 0, text: "" });
    this.output.textContent = "";
  }

  async read() {
    const job = this.jobs.find((each) => `${each.run}/${each.id}` === this.job);
    if (!job) return;
    const found = await get("/api/log", { run: job.run, job: job.id, after: this.place });
    if (this.job !== `${job.run}/${job.id}`) return;
    if (!found.text && found.end === this.place) return;
    const ending = this.output.scrollHeight - this.output.scrollTop - this.output.clientHeight < 40;
    this.text = ((found.start > this.place ? "…\n" : this.text) + found.text).slice(-MOST_CHARACTERS);
    this.place = found.end;
    this.output.textContent = this.text;
    if (this.follow.checked && ending) this.output.scrollTop = this.output.scrollHeight;
  }
}

function about(job) {
  const parts = [job.stages?.join(", "), job.target, job.node, job.attempt > 1 && `attempt ${job.attempt}`, job.started && clock(job.started), job.started && job.ended && duration(job.ended - job.started), Number.isInteger(job.exit_code) && `exit code ${job.exit_code}`, job.message];
  return parts.filter(Boolean).join(" · ");
}
