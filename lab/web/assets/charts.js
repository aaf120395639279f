// Three charts of the last two minutes, by Plotly. Labels stand beside the ends of their lines; paths have colours of their own, and
// guests of one path differ by dashes.

import { $, rate } from "./words.js";

const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const SPAN_S = 120;
const MOST_LABELS = 8;

export function charts(view, history) {
  if (typeof Plotly === "undefined" || !history.length) return;
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim() || style.getPropertyValue("--ink").trim();
  const now = history[history.length - 1].time;
  const past = history.filter((one) => one.time > now - SPAN_S);
  const seen = {};
  const lines = view.picture.paths.map((path) => {
    const index = (seen[path.path] = (seen[path.path] ?? -1) + 1);
    return { name: path.guest, colour: colour(path.path), dash: DASHES[index % DASHES.length] };
  });
  const guest = (name, way) => past.map((one) => one.guests[name]?.[way] ?? null);
  draw("chart-tx", past, now, lines.map((line) => ({ ...line, values: guest(line.name, 0) })), style, rate);
  draw("chart-rx", past, now, lines.map((line) => ({ ...line, values: guest(line.name, 1) })), style, rate);
  const daemons = ["dom0", "nic", "hyp", "xenstored"].map((name, k) => ({ name, colour: colour(name), dash: DASHES[k] }));
  const all = [...daemons, ...lines].map((line) => ({ ...line, values: past.map((one) => one.cpu[line.name] ?? null) }));
  draw("chart-cpu", past, now, all, style, (value) => value.toFixed(2));
}

function draw(id, past, now, lines, style, said) {
  const element = $(id);
  const ink = style.getPropertyValue("--ink").trim();
  const soft = style.getPropertyValue("--soft").trim();
  const x = past.map((one) => one.time - now);
  const most = Math.max(id === "chart-cpu" ? 1 : 10, ...lines.flatMap((line) => line.values.map((value) => value ?? 0))) * 1.08;
  const traces = lines.map((line) => ({
    x, y: line.values, mode: "lines", line: { color: line.colour, dash: line.dash, width: 2.2 }, type: "scatter",
  }));
  const height = element.clientHeight - 42;
  const labels = spread(lines.map((line) => ({ ...line, last: line.values.at(-1) ?? 0 })), most, height);
  const layout = {
    margin: { l: 46, r: 92, t: 10, b: 32 }, showlegend: false, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: soft, size: 12, family: "system-ui, DejaVu Sans, sans-serif" }, width: element.clientWidth, height: element.clientHeight,
    xaxis: { range: [-SPAN_S, 0], showgrid: false, zeroline: false, tickvals: [-120, -60, 0], ticktext: ["2 min ago", "1 min", "now"] },
    yaxis: { range: [0, most], gridcolor: style.getPropertyValue("--faint").trim(), zeroline: false, nticks: 5, exponentformat: "SI" },
    annotations: labels.map((label) => ({
      x: 1, xref: "paper", xanchor: "left", y: label.at, yref: "y", yshift: label.shift, showarrow: false, text: escaped(label.text ?? label.name),
      font: { color: label.colour ?? ink, size: 12 },
    })),
  };
  element.setAttribute("aria-label", lines.map((line) => `${line.name} ${said(line.values.at(-1) ?? 0)}`).join(", "));
  Plotly.react(element, traces, layout, { staticPlot: true, displayModeBar: false });
}

// Plotly takes some markup in texts.
const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

// Labels at the height of their lines, moved apart by what they need to be read.
function spread(lines, most, height) {
  const step = 14;
  const shown = lines.sort((a, b) => b.last - a.last).slice(0, MOST_LABELS);
  let free = Infinity;
  const placed = shown.map((line) => {
    const wanted = (line.last / most) * height;
    const at = Math.min(wanted, free);
    free = at - step;
    return { ...line, at: line.last, wanted, px: at };
  });
  let floor = 0;
  for (const label of placed.reverse()) {
    label.px = Math.max(label.px, floor);
    floor = label.px + step;
  }
  for (const label of placed) label.shift = label.px - label.wanted;
  if (lines.length > MOST_LABELS) placed[0].text = `${placed[0].name} and ${lines.length - MOST_LABELS} more`;
  return placed;
}

