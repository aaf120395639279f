// Figures as people read them, and elements made of them. Text goes in as text: nothing here takes markup.

const UNITS = [[1e9, "G"], [1e6, "M"], [1e3, "k"]];

export function short(value) {
  if (value === null || value === undefined) return "?";
  for (const [size, letter] of UNITS) if (value >= size * 0.9995) return `${three(value / size)} ${letter}`;
  return value >= 100 || value === Math.round(value) ? String(Math.round(value)) : three(value);
}

function three(value) {
  return value >= 99.95 ? value.toFixed(0) : value >= 9.995 ? value.toFixed(1) : value.toFixed(2);
}

export function rate(value) {
  return value === null || value === undefined ? "?" : `${short(value).replace(/ $/, "")}${value >= 999.5 ? "" : " "}/s`;
}

export function gbps(value) {
  return value === null || value === undefined ? "?" : value >= 0.9995 ? `${three(value)} Gbit/s` : value > 0 ? `${three(value * 1000)} Mbit/s` : "0";
}

export function perFrame(value) {
  if (value === null || value === undefined) return "–";
  return value === 0 ? "0" : value < 0.001 ? "< 0.001" : value.toFixed(3);
}

export function clock(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString([], { hour12: false });
}

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") element.toggleAttribute(name, value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export function put(element, text) {
  if (element && element.textContent !== text) element.textContent = text;
}

export const $ = (id) => document.getElementById(id);
