// Tables and tiles. Rows are made once for a picture and then filled, so that what somebody types into, or has the focus, stays.

import { control, mayControl } from "./controls.js";
import { $, clock, gbps, make, perFrame, put, rate, short } from "./words.js";

const MOVES = ["split", "bypass"];
const MOST_EVENTS = 100;
const ALARMING = ["died", "restarting", "drops", "faults", "stopped"];
const PATHS = {
  split: "through Dom0", bypass: "past Dom0", native: "past Dom0", cdna: "past Dom0, checked", trapped: "through the hypervisor",
};

export function build(view) {
  const guests = view.picture.nodes.filter((node) => node.kind === "guest");
  const paths = [...new Set(view.picture.paths.map((path) => path.path))];
  $("paths").replaceChildren(...paths.map((path) => make("li", { class: `tile path-${path}`, "data-path": path },
    make("span", { class: "who" }, path), " ", make("span", { class: "soft" }, PATHS[path] ?? ""), make("b"), make("span", { class: "soft rest" }))));
  $("guest-rows").replaceChildren(...guests.map((guest) => row(guest, guests, view.streams.find((one) => one.guest === guest.id))));
  $("ledger-rows").replaceChildren(...view.costs.map((cost) => make("tr", { class: `path-${cost.path}` },
    who(cost.guest, cost.path), make("td", {}, cost.way === "tx" ? "out" : "in"), make("td", { class: "n" }, String(cost.copies)),
    make("td", {}, cost.through.join(", ") || "nobody"), ...["notifications", "calls", "wakeups"].map(() => make("td", { class: "n" })))));
  $("price-name").replaceChildren(...Object.keys(view.prices).map((name) => make("option", { value: name }, name)));
  $("process-rows").replaceChildren(...view.status.processes.map(process));
}

function who(name, path) {
  return make("td", { class: "who" }, name, make("span", {}, path));
}

function figure(kind, label) {
  return make("td", { class: `figure ${kind}`, "data-label": label });
}

function row(guest, guests, stream) {
  const path = MOVES.includes(guest.path) ? MOVES.find((one) => one !== guest.path) : null;
  const move = path && guest.program !== "own"
    ? make("button", { type: "button", disabled: !mayControl, onclick: () => control("move", { guest: guest.id, path }) }, `Move to ${path}`)
    : make("span", { class: "soft" }, "stays");
  return make("tr", { class: `path-${guest.path}`, "data-guest": guest.id },
    who(guest.id, guest.path), figure("n tx", "sent"), figure("n rx", "received"), figure("drops", "dropped"),
    make("td", {}, traffic(guest, guests, stream)), make("td", {}, move));
}

function traffic(guest, guests, stream = { to: "wire", frame: 512, pps: 0 }) {
  if (guest.program === "tap") return offloads(guest);
  if (guest.program !== "traffic") return make("span", { class: "soft" }, `program = "${guest.program}"`);
  const others = guests.filter((one) => one.id !== guest.id).map((one) => one.id);
  const to = make("select", { "aria-label": `${guest.id} sends to`, disabled: !mayControl },
    ...["wire", ...others].map((name) => make("option", { value: name, selected: name === stream.to }, name)));
  const number = (label, value, min, max) => make("input", { type: "number", value, min, max, required: true, "aria-label": `${guest.id}: ${label}`, disabled: !mayControl });
  const frame = number("bytes a frame", String(stream.frame), "48", "1514");
  const pps = number("frames a second, 0: as fast as they are taken", String(stream.pps), "0", "100000000");
  const start = make("button", { type: "submit", disabled: !mayControl }, "Start");
  const quiet = make("button", { type: "button", class: "quiet", disabled: true, onclick: () => control("quiet", { guest: guest.id }) }, "Stop");
  const send = (event) => {
    event.preventDefault();
    control("traffic", { guest: guest.id, to: to.value, frame: frame.valueAsNumber, pps: pps.valueAsNumber });
  };
  return make("form", { onsubmit: send }, make("label", {}, "to", to), make("label", {}, frame, "B"), make("label", {}, pps, "/s"), start, quiet);
}

// Of a TAP guest: its programs send; here is whether its kernel leaves checksums and segmentation to the device.
function offloads(guest) {
  const box = make("input", { type: "checkbox", class: "offloads", checked: true, disabled: !mayControl, onchange: () => control("offloads", { guest: guest.id, on: box.checked }) });
  return make("form", {}, make("span", { class: "soft" }, "its programs send"), make("label", {}, box, "offloads"));
}

// The hypervisor is not started again: set-up fails from then on.
function end(name) {
  if (name !== "hyp" || confirm("Nobody starts the hypervisor again. Kill it?")) control("kill", { process: name });
}

function process(one) {
  const stop = make("button", { type: "button", class: "stop", disabled: !mayControl, onclick: () => control(stop.dataset.verb, { process: one.name }) }, "Stop");
  stop.dataset.verb = "stop";
  const kill = make("button", { type: "button", class: "kill", disabled: !mayControl, onclick: () => end(one.name) }, "Kill");
  return make("tr", { "data-process": one.name },
    make("td", { class: "who" }, one.name), figure("how", ""),
    make("td", { class: "figure", "data-label": "" }, make("span", { class: "bar" }, make("i")), make("span", { class: "cpu" })),
    figure("n restarts", "restarts"), make("td", {}, make("form", {}, stop, kill)));
}

export function fill(view) {
  const { sample, status } = view;
  for (const tile of document.querySelectorAll("[data-path]")) {
    const paths = view.picture.paths.filter((path) => path.path === tile.dataset.path);
    const of = (way, figure) => paths.reduce((sum, path) => sum + (sample.guests[path.guest]?.[way][figure] ?? 0), 0);
    put(tile.querySelector("b"), rate(of("tx", "fps")));
    const copies = paths[0]?.copies.tx ?? "?";
    put(tile.querySelector(".rest"), `sent, ${gbps(of("tx", "gbps"))}; ${copies} ${copies === 1 ? "copy" : "copies"} a frame`);
  }
  for (const tr of document.querySelectorAll("[data-guest]")) {
    const guest = sample.guests[tr.dataset.guest];
    if (!guest) continue;
    put(tr.querySelector(".tx"), `${rate(guest.tx.fps)}`);
    put(tr.querySelector(".rx"), `${rate(guest.rx.fps)}`);
    put(tr.querySelector(".drops"), Object.entries({ ...guest.drops, ...guest.faults }).map(([name, n]) => `${short(n)} ${name}`).join(", ") || "0");
    const box = tr.querySelector(".offloads");
    if (box && document.activeElement !== box) box.checked = !view.plain.includes(tr.dataset.guest);
    const quiet = tr.querySelector(".quiet");
    if (quiet) {
      const sends = view.streams.some((stream) => stream.guest === tr.dataset.guest);
      quiet.disabled = !mayControl || !sends;
      put(tr.querySelector("button[type=submit]"), sends ? "Change" : "Start");
    }
  }
  const rows = $("ledger-rows").children;
  view.costs.forEach((cost, k) => ["notifications", "calls", "wakeups"].forEach((name, column) => put(rows[k]?.children[4 + column], perFrame(cost[name]))));
  for (const one of status.processes) {
    const tr = document.querySelector(`[data-process="${CSS.escape(one.name)}"]`);
    if (!tr) continue;
    const now = sample.processes[one.name];
    const stands = now && ["T", "t"].includes(now.state);
    put(tr.querySelector(".how"), stands ? "stopped" : one.state);
    put(tr.querySelector(".cpu"), now ? `${Math.round(now.cpu * 100)} %` : "–");
    tr.querySelector(".bar i").style.width = `${Math.min(100, Math.round((now?.cpu ?? 0) * 100))}%`;
    put(tr.querySelector(".restarts"), String(one.restarts));
    const stop = tr.querySelector(".stop");
    stop.dataset.verb = stands ? "continue" : "stop";
    put(stop, stands ? "Continue" : "Stop");
  }
  const priced = Object.entries(view.prices).filter(([, value]) => value > 0);
  put($("priced"), priced.map(([name, value]) => `${name} ${value.toLocaleString("en")}`).join(", ") || "nothing has a price");
  for (const id of ["price-name", "price-value", "price-set"]) $(id).disabled = !mayControl || !Object.keys(view.prices).length;
  const dom0 = sample.processes.dom0;
  const stands = dom0 && ["T", "t"].includes(dom0.state);
  $("proof").disabled = !mayControl || !dom0;
  $("proof").dataset.verb = stands ? "continue" : "stop";
  put($("proof"), stands ? "Continue Dom0" : "Stop Dom0");
  put($("proof-says"), stands ? "Dom0 stands still: bypass goes on, split does not." : "The proof: without Dom0 bypass goes on, and split stands still.");
}

export function events(records, whole) {
  const list = $("events");
  if (whole) list.replaceChildren();
  for (const one of records) {
    list.prepend(make("li", { class: ALARMING.includes(one.kind) ? "alarm" : "" },
      make("time", {}, clock(one.time)), make("span", { class: "kind" }, one.kind), `${one.who}: ${one.what}`));
  }
  while (list.children.length > MOST_EVENTS) list.lastElementChild.remove();
  if (!list.children.length) list.append(make("li", { class: "soft" }, "nothing yet"));
}
