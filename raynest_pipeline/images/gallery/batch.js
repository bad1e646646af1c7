const PAGE = 120, IN_FLIGHT = 4, PRELOAD = 40;
const rows = new Array(BATCH.images);
const chunkState = new Array(BATCH.chunks).fill(0); // 0 not asked for, 1 on its way, 2 here
const view = { q: "", only: "", sort: "", page: 1 };
let shown = null; // row numbers that match, in order; null: all, by id
let open = -1; // place in the order of what the viewer shows
let waiting = [];

// Each data file calls this; a page from disk may load scripts, but not fetch().
window.raynest = (chunk, list) => {
  list.forEach((row, i) => { rows[chunk * BATCH.chunk + i] = row; });
  chunkState[chunk] = 2;
};

function load(chunk) {
  return new Promise((done) => {
    if (chunkState[chunk] === 2) return done();
    waiting.push({ chunk, done });
    if (chunkState[chunk] === 1) return;
    chunkState[chunk] = 1;
    const script = document.createElement("script");
    script.src = `gallery/data-${String(chunk).padStart(5, "0")}.js?${BATCH.version}`;
    script.onload = script.onerror = () => {
      script.remove();
      if (chunkState[chunk] !== 2) chunkState[chunk] = 0;
      const ready = waiting.filter((w) => w.chunk === chunk);
      waiting = waiting.filter((w) => w.chunk !== chunk);
      ready.forEach((w) => w.done());
    };
    document.head.append(script);
  });
}

async function loadAll(told) {
  let next = 0, done = 0;
  const worker = async () => {
    while (next < BATCH.chunks) { await load(next++); told?.(++done); }
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, worker));
}

async function need(from, to) {
  const first = Math.floor(from / BATCH.chunk), last = Math.floor(Math.max(from, to - 1) / BATCH.chunk);
  const parts = [];
  for (let c = first; c <= Math.min(last, BATCH.chunks - 1); c++) parts.push(load(c));
  await Promise.all(parts);
}

const total = () => (shown ? shown.length : BATCH.images);
const rowAt = (place) => rows[shown ? shown[place] : place];
const pages = () => Math.max(1, Math.ceil(total() / PAGE));

function words() {
  return view.q.toLowerCase().split(/\s+/).filter(Boolean);
}

function haystack(row) {
  const free = row.x ? " " + Object.values(row.x).map(String).join(" ") : "";
  return row.hay ??= `${row.id} ${row.prompt} ${row.negative || ""} ${row.seed}${free} ${row.error || ""}`.toLowerCase();
}

const ORDERS = {
  seed: (a, b) => rows[a].seed - rows[b].seed || a - b,
  slow: (a, b) => (rows[b].ms || 0) - (rows[a].ms || 0) || a - b,
  new: (a, b) => (rows[b].at || "").localeCompare(rows[a].at || "") || a - b,
};

let asked = 0;
async function refresh() {
  const mine = ++asked;
  if (!view.q && !view.only && !view.sort) {
    shown = null;
  } else {
    await loadAll((done) => {
      if (mine === asked && done < BATCH.chunks) el("count").textContent = `Reading ${done} of ${BATCH.chunks} …`;
    });
    if (mine !== asked) return;
    const wanted = words();
    shown = [];
    rows.forEach((row, i) => {
      if (view.only === "failed" ? row.file : view.only === "good" && !row.file) return;
      if (wanted.length && !wanted.every((word) => haystack(row).includes(word))) return;
      shown.push(i);
    });
    if (view.sort) shown.sort(ORDERS[view.sort]);
  }
  view.page = Math.min(Math.max(1, view.page), pages());
  const from = (view.page - 1) * PAGE, to = Math.min(from + PAGE, total());
  if (!shown) await need(from, to);
  if (mine === asked) draw(from, to);
}

function draw(from, to) {
  const cards = [];
  for (let place = from; place < to; place++) if (rowAt(place)) cards.push(card(rowAt(place), place));
  el("grid").replaceChildren(...cards);
  el("empty").classList.toggle("hidden", cards.length > 0);
  if (!cards.length) el("empty").textContent = total() ? "The data of this page could not be read." : "Nothing matches.";
  const all = shown && total() < BATCH.images ? ` in ${number(BATCH.images)}` : "";
  el("count").textContent = total()
    ? `${number(from + 1)}–${number(to)} of ${number(total())}` + (all ? ` found${all}` : "")
    : `0 found${all}`;
  el("pager").classList.toggle("hidden", pages() < 2);
  el("page").value = view.page;
  el("pages").textContent = `of ${number(pages())}`;
  el("first").disabled = el("prev").disabled = view.page <= 1;
  el("next").disabled = el("last").disabled = view.page >= pages();
  saveHash();
}

function highlight(node, text) {
  const wanted = words().map((w) => w.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  if (!wanted.length) { node.textContent = text; return; }
  let at = 0;
  for (const found of text.matchAll(new RegExp(wanted.join("|"), "gi"))) {
    node.append(text.slice(at, found.index), make("mark", "", found[0]));
    at = found.index + found[0].length;
  }
  node.append(text.slice(at));
}

function picture(row, full) {
  if (!row.file) return make("span", "none", row.error || "failed");
  const image = make("img", (row.w || 0) <= 160 ? "crisp" : "");
  image.loading = full ? "eager" : "lazy";
  image.decoding = "async";
  image.alt = row.prompt;
  image.onerror = () => image.replaceWith(make("span", "none", "The file is missing."));
  image.src = encodeURI(full ? row.file : row.thumb || row.file);
  return image;
}

function card(row, place) {
  const item = make("li", row.file ? "card" : "card failed");
  const button = make("button", "open");
  button.type = "button";
  button.dataset.place = place;
  button.setAttribute("aria-label", `${row.prompt}, seed ${row.seed}${row.file ? "" : ", failed"}`);
  const frame = make("span", "frame"), text = make("span", "words");
  frame.append(picture(row, false));
  highlight(text, row.prompt);
  button.append(frame, text);
  button.addEventListener("click", () => show(place));
  const meta = make("div", "meta"), seed = make("button", "seed", row.seed);
  seed.type = "button";
  seed.title = "Copy the seed";
  seed.tabIndex = -1;
  seed.addEventListener("click", () => copy(String(row.seed), "Seed copied"));
  meta.append(make("span", "", row.id), seed);
  meta.firstChild.title = row.id;
  item.append(button, meta);
  return item;
}

let toastTimer = 0;
function toast(text) {
  el("toast").textContent = text;
  el("toast").classList.add("on");
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => el("toast").classList.remove("on"), 1600);
}

async function copy(text, said) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // A page from disk is not always allowed the clipboard.
    const area = make("textarea");
    area.value = text;
    (el("viewer").open ? el("viewer") : document.body).append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  toast(said);
}

const quoted = (text) => "'" + String(text).replaceAll("'", "'\\''") + "'";
function command(row) {
  const parts = ["raynest imagine", quoted(row.prompt), "--seed " + row.seed];
  if (row.size) parts.push("--size " + row.size);
  if (row.steps) parts.push("--steps " + row.steps);
  if (row.guidance !== undefined) parts.push("--guidance " + row.guidance);
  if (row.negative) parts.push("--negative " + quoted(row.negative));
  return parts.join(" ");
}

function detail(list, name, value, code) {
  if (value === undefined || value === null || value === "") return null;
  const cell = make("dd", code ? "code" : "", String(value));
  list.append(make("dt", "", name), cell);
  return cell;
}

async function show(place) {
  if (place < 0 || place >= total()) return;
  if (!shown) await need(place, place + 1);
  const row = rowAt(place);
  if (!row) return;
  open = place;
  const image = picture(row, true);
  if (row.file) {
    const link = make("a");
    link.href = encodeURI(row.file);
    link.target = "_blank";
    link.title = "Open the file";
    link.append(image);
    el("picture").replaceChildren(link);
  } else {
    el("picture").replaceChildren(image);
  }
  el("prompt").textContent = row.prompt;
  const list = make("dl");
  const seed = detail(list, "Seed", row.seed, true);
  const again = make("button", "copy", "copy");
  again.type = "button";
  again.addEventListener("click", () => copy(String(row.seed), "Seed copied"));
  seed.append(" ", again);
  detail(list, "Avoid", row.negative);
  detail(list, "Size", row.w ? `${row.w} × ${row.h} pixels` : row.size);
  detail(list, "Steps", row.steps);
  detail(list, "Guidance", row.guidance);
  detail(list, "Model", BATCH.models[row.m || 0]);
  detail(list, "Id", row.id, true);
  for (const [key, value] of Object.entries(row.x || {})) detail(list, key, typeof value === "object" ? JSON.stringify(value) : value);
  detail(list, "Made", when(row.at));
  detail(list, "Took", row.ms ? (row.ms < 10000 ? `${number(row.ms)} ms` : `${number(row.ms / 1000, 1)} s`) + (row.attempts > 1 ? `, attempt ${row.attempts}` : "") : undefined);
  detail(list, "Error", row.error);
  detail(list, "File", row.file ? `${row.file} (${number(row.bytes / 1000, 1)} kB)` : undefined, true);
  detail(list, "SHA-256", row.sha, true);
  list.id = "details";
  el("details").replaceWith(list);
  const acts = [["Copy prompt", row.prompt, "Prompt copied"], ["Copy command", command(row), "Command copied"]];
  el("acts").replaceChildren(...acts.map(([name, text, said]) => {
    const button = make("button", "plain small", name);
    button.type = "button";
    button.addEventListener("click", () => copy(text, said));
    return button;
  }));
  if (row.file) {
    const link = make("a", "plain small", "Full size");
    link.href = encodeURI(row.file);
    link.target = "_blank";
    el("acts").append(link);
  }
  el("where").textContent = `${number(place + 1)} of ${number(total())}`;
  el("before").disabled = place === 0;
  el("after").disabled = place === total() - 1;
  if (!el("viewer").open) el("viewer").showModal();
  saveHash();
  const after = rowAt(place + 1);
  if (after?.file) new Image().src = encodeURI(after.file);
}

function saveHash() {
  const parts = new URLSearchParams();
  for (const key of ["q", "only", "sort"]) if (view[key]) parts.set(key, view[key]);
  if (view.page > 1) parts.set("page", view.page);
  if (el("viewer").open && open >= 0) parts.set("image", open + 1);
  const hash = parts.toString();
  history.replaceState(null, "", hash ? "#" + hash : location.pathname + location.search);
}

async function readHash() {
  const parts = new URLSearchParams(location.hash.slice(1));
  for (const key of ["q", "only", "sort"]) { view[key] = parts.get(key) || ""; el(key).value = view[key]; }
  if (!(view.sort in ORDERS)) view.sort = "";
  view.page = parseInt(parts.get("page")) || 1;
  await refresh();
  if (parts.get("image")) await show(parseInt(parts.get("image")) - 1);
}

function goTo(page) {
  view.page = page;
  refresh().then(() => scrollTo({ top: Math.min(scrollY, el("grid").offsetTop - 130) }));
}

function moveFocus(key) {
  const cards = [...document.querySelectorAll(".open")];
  const at = cards.indexOf(document.activeElement);
  if (at < 0) { cards[0]?.focus(); return; }
  const columns = getComputedStyle(el("grid")).gridTemplateColumns.split(" ").length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  cards[at + step]?.focus();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (el("viewer").open) {
    if (event.key === "ArrowLeft") show(open - 1);
    else if (event.key === "ArrowRight") show(open + 1);
    else if (event.key === "c") copy(String(rowAt(open).seed), "Seed copied");
    return;
  }
  if (/INPUT|SELECT|TEXTAREA/.test(document.activeElement.tagName)) {
    if (event.key === "Escape") document.activeElement.blur();
    else if (event.key === "ArrowDown" && document.activeElement === el("q")) { moveFocus("ArrowDown"); event.preventDefault(); }
    return;
  }
  if (event.key === "/") { el("q").focus(); el("q").select(); event.preventDefault(); }
  else if (event.key.startsWith("Arrow")) { moveFocus(event.key); event.preventDefault(); }
  else if (event.key === "n" && view.page < pages()) goTo(view.page + 1);
  else if (event.key === "p" && view.page > 1) goTo(view.page - 1);
}

function start() {
  startTheme();
  const facts = el("facts");
  fact(facts, "images", number(BATCH.finished));
  if (BATCH.failed) fact(facts, "failed", number(BATCH.failed), true);
  for (const [name, value] of BATCH.facts) fact(facts, name, value);
  if (BATCH.models.length) fact(facts, BATCH.models.length > 1 ? "models" : "model", BATCH.models.join(", "));
  if (BATCH.made_at) fact(facts, "made", when(BATCH.made_at));
  const cell = el("cell");
  const size = (value) => document.documentElement.style.setProperty("--cell", value + "px");
  cell.value = remembered("cell") || 210;
  size(cell.value);
  cell.addEventListener("input", () => { size(cell.value); remembered("cell", cell.value); });
  let typing = 0;
  el("q").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => { view.q = el("q").value.trim(); view.page = 1; refresh(); }, 120);
  });
  for (const key of ["only", "sort"])
    el(key).addEventListener("change", () => { view[key] = el(key).value; view.page = 1; refresh(); });
  el("tools").addEventListener("submit", (event) => event.preventDefault());
  el("first").onclick = () => goTo(1);
  el("prev").onclick = () => goTo(view.page - 1);
  el("next").onclick = () => goTo(view.page + 1);
  el("last").onclick = () => goTo(pages());
  el("page").addEventListener("change", () => goTo(parseInt(el("page").value) || 1));
  el("before").onclick = () => show(open - 1);
  el("after").onclick = () => show(open + 1);
  el("close").onclick = () => el("viewer").close();
  el("viewer").addEventListener("click", (event) => { if (event.target === el("viewer")) el("viewer").close(); });
  el("viewer").addEventListener("close", () => {
    const place = open;
    open = -1;
    saveHash();
    document.querySelector(`.open[data-place="${place}"]`)?.focus();
  });
  document.addEventListener("keydown", onKey);
  addEventListener("hashchange", readHash);
  readHash().then(() => { if (BATCH.chunks <= PRELOAD) (window.requestIdleCallback || setTimeout)(() => loadAll()); });
}
start();
