// The drawing comes from the server as SVG (lab/page/drawing.py); here figures are put into it, and hops can be chosen.

import { $, gbps, put, rate } from "./words.js";

const STOPPED = ["T", "t"];
let chosen = null;
let onChoice = () => {};

export function mount(drawings, choose) {
  onChoice = choose;
  for (const size of ["wide", "narrow"]) {
    const parsed = new DOMParser().parseFromString(drawings[size] ?? "<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml");
    $(size).replaceChildren(document.importNode(parsed.documentElement, true));
  }
  for (const hop of document.querySelectorAll(".hop")) {
    hop.addEventListener("click", () => select(hop.dataset.hop));
    hop.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); select(hop.dataset.hop); }
    });
  }
  mark();
}

export function select(hop) {
  chosen = chosen === hop ? null : hop;
  mark();
  onChoice(chosen);
}

function mark() {
  for (const hop of document.querySelectorAll(".hop")) hop.setAttribute("aria-pressed", String(hop.dataset.hop === chosen));
}

// Widths by rate: in proportion to the root, so that a tenth of the fastest is still seen to flow.
export function update(sample) {
  const rates = Object.values(sample.hops).map((hop) => hop.fps ?? 0);
  const most = Math.max(1, ...rates);
  for (const element of document.querySelectorAll(".hop")) {
    const figures = sample.hops[element.dataset.hop];
    if (!figures) continue;
    const narrow = element.closest(".narrow") !== null;
    const share = Math.sqrt((figures.fps ?? 0) / most);
    element.classList.toggle("moves", (figures.fps ?? 0) > 0);
    element.classList.toggle("bad", Object.values(figures.drops).some((drop) => drop.s > 0));
    element.style.setProperty("--w", `${(narrow ? 2 + 7 * share : 3 + 13 * share).toFixed(1)}px`);
    element.style.setProperty("--t", share > 0.75 ? "0.9s" : share > 0.4 ? "1.4s" : share > 0.1 ? "2.4s" : "4s");
  }
  for (const text of document.querySelectorAll("[data-rate]")) {
    const figures = sample.hops[text.dataset.rate];
    if (!figures) continue;
    const brief = text.dataset.prefix !== undefined || /wire/.test(text.dataset.rate.split(">").find((end) => end === "wire") ?? "");
    const said = figures.fps === null ? "?" : figures.fps > 0 ? rate(figures.fps) + (brief ? "" : ` · ${gbps(figures.gbps)}`) : brief ? "0" : "no frames";
    put(text, `${text.dataset.prefix ?? ""}${said}`);
  }
  for (const node of document.querySelectorAll("[data-node]")) {
    const process = sample.processes[node.dataset.node];
    const stands = process !== undefined && STOPPED.includes(process.state);
    const gone = process !== undefined && (process.state === "" || process.state === "Z");
    node.classList.toggle("stands", stands);
    node.classList.toggle("gone", gone);
    put(node.querySelector("[data-state]"), stands ? "stopped" : gone ? "dead" : "");
    put(node.querySelector("[data-cpu]"), process && !gone ? `${node.closest(".narrow") ? "" : "CPU "}${Math.round(process.cpu * 100)} %` : "");
  }
}
