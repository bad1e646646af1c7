const PAGE = 300;

const ORDERS = {
  new: (a, b) => (b.made_at || "").localeCompare(a.made_at || "") || (a.batch < b.batch ? -1 : 1),
  name: (a, b) => (a.batch < b.batch ? -1 : 1),
  large: (a, b) => b.images - a.images || (a.batch < b.batch ? -1 : 1),
};

function card(batch) {
  const item = make("li"), link = make("a"), about = make("div", "about");
  const names = batch.cover.length >= 4 ? batch.cover.slice(0, 4) : batch.cover.slice(0, batch.cover.length >= 2 ? 2 : 1);
  const cover = make("div", "cover " + (["none", "one", "two"][names.length] || ""));
  for (const name of names) {
    const image = make("img", batch.small ? "crisp" : "");
    image.loading = "lazy";
    image.decoding = "async";
    image.alt = "";
    image.src = encodeURI(`${batch.batch}/${name}`);
    cover.append(image);
  }
  if (!names.length) cover.textContent = "no images";
  link.href = encodeURI(`${batch.batch}/index.html`);
  const counts = make("p", "", `${number(batch.finished)} ${batch.finished === 1 ? "image" : "images"}`);
  if (batch.failed) counts.append(", ", make("span", "bad", `${number(batch.failed)} failed`));
  if (batch.made_at) counts.append(" · " + when(batch.made_at));
  about.append(make("strong", "", batch.batch), counts);
  if (batch.models.length) about.append(make("p", "", batch.models.join(", ")));
  link.append(cover, about);
  item.append(link);
  return item;
}

function draw() {
  const wanted = el("q").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = BATCHES.filter((b) => wanted.every((w) => `${b.batch} ${b.models.join(" ")}`.toLowerCase().includes(w)));
  found.sort(ORDERS[el("sort").value]);
  el("batches").replaceChildren(...found.slice(0, PAGE).map(card));
  el("empty").classList.toggle("hidden", found.length > 0 && found.length <= PAGE);
  if (found.length > PAGE) el("empty").textContent = `${number(found.length - PAGE)} more: search for them.`;
  else el("empty").textContent = BATCHES.length ? "Nothing matches." : "There are no batches yet.";
}

startTheme();
fact(el("facts"), "batches", number(BATCHES.length));
fact(el("facts"), "images", number(BATCHES.reduce((sum, b) => sum + b.finished, 0)));
el("q").addEventListener("input", draw);
el("sort").addEventListener("change", draw);
el("tools").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement !== el("q")) { el("q").focus(); event.preventDefault(); }
  if (event.key === "Escape") el("q").blur();
});
draw();
