"use strict";
const el = (id) => document.getElementById(id);
const number = (value, digits = 0) => Number(value).toLocaleString("en", { maximumFractionDigits: digits });

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function remembered(key, value) {
  // Some browsers give pages from disk no storage at all.
  try {
    if (value === undefined) return localStorage.getItem("raynest." + key);
    localStorage.setItem("raynest." + key, value);
  } catch { /* then nothing is remembered */ }
  return null;
}

const THEMES = ["system", "light", "dark"];
function setTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  el("theme").textContent = "Theme: " + theme;
}
function startTheme() {
  let theme = THEMES.includes(remembered("theme")) ? remembered("theme") : "system";
  setTheme(theme);
  el("theme").addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    setTheme(theme);
    remembered("theme", theme);
  });
}

function fact(list, name, value, bad) {
  const row = make("div", bad ? "bad" : "");
  row.append(make("dt", "", name), make("dd", "", value));
  list.append(row);
}

function when(text) {
  const date = new Date(text);
  if (isNaN(date)) return text || "";
  return date.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
}
