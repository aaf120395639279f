// The page: takes the views that the server sends (lab/web/hub.py) and shows the last one.

import { charts } from "./charts.js";
import { control, mayControl } from "./controls.js";
import { show } from "./details.js";
import { mount, select, update } from "./drawing.js";
import { build, events, fill } from "./tables.js";
import { $, make, put } from "./words.js";

const KEPT = 120;
let whole = null;
let view = null;
let history = [];
let chosen = null;

function take(next) {
  const isWhole = next.kind === "whole";
  if (isWhole) {
    whole = next;
    history = next.history.slice();
  } else if (whole) {
    history.push({
      time: next.sample.time,
      guests: Object.fromEntries(Object.entries(next.sample.guests).map(([name, guest]) => [name, [guest.tx.fps, guest.rx.fps]])),
      cpu: Object.fromEntries(Object.entries(next.sample.processes).map(([name, one]) => [name, one.cpu])),
    });
    history = history.slice(-KEPT);
  } else return;
  view = { ...whole, ...next };
  if (isWhole) {
    put($("name"), view.name);
    document.title = `${view.name}: the Xen-bypass I/O lab`;
    mount(view.drawings, (hop) => { chosen = hop; show(view, chosen); if (hop) $("details").scrollIntoView({ block: "nearest" }); });
    build(view);
  }
  state(view.status.state);
  banner([...(view.status.dead ?? [])].join("; "));
  update(view.sample);
  show(view, chosen);
  fill(view);
  events(next.events, isWhole);
  if (document.visibilityState === "visible") charts(view, history);
  if (isWhole) load();
  document.body.dataset.samples = String(Number(document.body.dataset.samples ?? 0) + 1);
}

// Charts come when the drawing is there: their library takes a while to read.
function load() {
  if (document.querySelector("script[src='/assets/plotly.js']")) return;
  document.head.append(make("script", { src: "/assets/plotly.js" }));
}

function state(name) {
  put($("state"), name);
  $("state").className = `badge ${name}`;
}

function banner(text) {
  put($("banner"), text);
  $("banner").hidden = !text;
}

const source = new EventSource("/stream");
for (const kind of ["whole", "sample"]) source.addEventListener(kind, (event) => take(JSON.parse(event.data)));
source.addEventListener("ended", (event) => {
  source.close();
  state("ended");
  banner(`${JSON.parse(event.data).reason}. What is shown is the last that was seen of it.`);
  document.body.classList.add("over");
});
source.addEventListener("error", () => {
  state("lost");
  banner("The server does not answer; trying again. What is shown is the last that was seen.");
});

$("view-only").hidden = mayControl;
$("proof").addEventListener("click", () => control($("proof").dataset.verb, { process: "dom0" }));
$("price-form").addEventListener("submit", (event) => {
  event.preventDefault();
  control("price", { name: $("price-name").value, value: $("price-value").valueAsNumber });
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && chosen) select(chosen); });
addEventListener("resize", () => { if (view) charts(view, history); });
