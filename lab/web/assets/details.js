// What is said of the hop that is chosen; how to read the drawing, where none is.

import { $, gbps, make, perFrame, rate, short } from "./words.js";

export function show(view, chosen) {
  const hop = chosen && view.picture.hops.find((one) => one.id === chosen);
  const figures = hop && view.sample.hops[chosen];
  if (!figures) return legend(view);
  $("details-title").textContent = `${hop.source} → ${hop.target}`;
  const whose = hop.guest ? `${hop.guest}'s alone` : "shared: figures are of all guests";
  const body = [
    make("p", { class: "soft" }, `${hop.way === "tx" ? "on the way out" : "on the way in"}, ${whose}`),
    make("p", {}, `${hop.what[0].toUpperCase()}${hop.what.slice(1)}.`),
    make("p", {}, make("code", {}, hop.file), ", ", make("code", {}, hop.code)),
    list([
      ["frames a second", rate(figures.fps)],
      ["", gbps(figures.gbps)],
      ["frames in all", figures.frames.toLocaleString("en")],
      ["notifications", rate(figures.notifications_s)],
      ["… a frame", perFrame(figures.per_frame)],
      ["… left out", figures.suppressed === null ? "–" : `${(100 * figures.suppressed).toFixed(1)} %`],
      [`wake-ups${forAll(hop, "wakeups")}`, rate(figures.wakeups_s)],
      ...(hop.feeds.calls ? [[`${hop.marks.includes("trap") ? "traps" : "hypercalls"}${forAll(hop, "calls")}`, rate(figures.calls_s)]] : []),
    ]),
    ...fill(hop, figures),
    ...names("Dropped", figures.drops),
    ...names("Faults", figures.faults),
    make("p", { class: "soft" }, "Esc: back to how to read the drawing."),
  ];
  $("details-body").replaceChildren(...body);
}

// Of loops that work for several guests, where the hop itself is one guest's.
function forAll(hop, figure) {
  const ours = hop.guest === null || (hop.feeds[figure]?.rows ?? []).some((row) => row.includes(hop.guest));
  return ours ? "" : ", of all guests";
}

function fill(hop, figures) {
  if (figures.in_flight === null) return [make("p", { class: "soft" }, `Under way: not known. Room for ${hop.room} frames.`)];
  const meter = make("meter", { min: "0", max: String(hop.room), value: String(figures.in_flight), "aria-label": "frames under way" });
  return [make("p", {}, `Under way: ${figures.in_flight} of ${hop.room} frames`), meter];
}

function names(title, counts) {
  const entries = Object.entries(counts);
  if (!entries.length) return [make("p", { class: "soft" }, `${title}: none`)];
  return [make("p", {}, make("b", {}, title)), list(entries.map(([name, n]) => [name, `${short(n.total)}, ${rate(n.s)}`]))];
}

function list(rows) {
  return make("dl", {}, ...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}

function legend(view) {
  $("details-title").textContent = "How to read it";
  $("details-body").replaceChildren(
    make("p", {}, "The wider and faster a lane, the more frames take it. Upper lanes lead out, lower ones in."),
    make("dl", { class: "marks" }, ...Object.entries(view.marks).flatMap(([name, about]) => [
      make("dt", {}, make("span", { class: "letter" }, name[0].toUpperCase()), name), make("dd", {}, about)])),
    make("p", {}, "Click a lane, or Tab to it and press Enter: what happens there, and its counters."),
  );
}
