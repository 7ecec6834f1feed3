"use strict";

const $ = (id) => document.getElementById(id);
let model = null;
let lastName = "";

function say(text, isError = false) {
  $("message").textContent = text;
  $("message").classList.toggle("error", isError);
}

const PATIENCE = 60_000;  // milliseconds: more than the service itself takes for a request to arrive and be answered

async function ask(path, options = {}) {
  const headers = new Headers(options.headers || {});
  const key = sessionStorage.getItem("key");
  if (key) headers.set("Authorization", `Bearer ${key}`);
  const given = new AbortController(), timer = setTimeout(() => given.abort(), PATIENCE);
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, signal: given.signal });
  } catch {
    throw new Error(given.signal.aborted
      ? `The service did not answer within ${PATIENCE / 1000} seconds; see whether it runs, then try again.`
      : "The service does not answer; see whether it runs, then try again.");
  } finally {
    clearTimeout(timer);
  }
  if (answer.status === 401) askForKey(key ? "The service does not know this key; give another." : "The service asks for a key; give one.");
  if (!answer.ok) {
    const body = await answer.json().catch(() => ({}));
    throw new Error(body.detail || `The service answered ${answer.status}.`);
  }
  return answer;
}

function askForKey(why) {
  sessionStorage.removeItem("key");
  $("key-form").hidden = false;
  $("key").focus();
  throw new Error(why);
}

async function attempt(work) {
  say("");
  document.body.setAttribute("aria-busy", "true");
  try {
    return await work();
  } catch (error) {
    say(error.message, true);
    return null;
  } finally {
    document.body.removeAttribute("aria-busy");
  }
}

function show(image, file) {
  if (image.src) URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(file);
  image.alt = file.name || "the chosen picture";
  image.hidden = false;
}

function dropZone(id, chosen) {
  const zone = $(id), input = zone.querySelector("input"), image = zone.querySelector("img");
  const take = (file) => { if (file) { show(image, file); chosen(file); } };
  input.addEventListener("change", () => take(input.files[0]));
  for (const kind of ["dragenter", "dragover"]) {
    zone.addEventListener(kind, (event) => { event.preventDefault(); zone.classList.add("over"); });
  }
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    const files = event.dataTransfer.files;
    if (files.length === 1) take(files[0]);
    else say(files.length ? `${files.length} files were dropped, and one picture belongs here; drop one.` : "That was no file; drop a picture.", true);
  });
}

// what is dropped beside the fields would be opened in place of the page
for (const kind of ["dragover", "drop"]) {
  window.addEventListener(kind, (event) => {
    if (event.defaultPrevented || event.target.closest?.("input")) return;
    event.preventDefault();
    if (kind === "drop") say("Drop a picture on one of the fields.", true);
  });
}

function form(fields) {
  const data = new FormData();
  for (const [name, value] of fields) data.append(name, value);
  return { method: "POST", body: data };
}

// --- compare ---------------------------------------------------------------------------------------------------------

const pair = {};
const turns = { compare: 0, search: 0 };  // an answer that comes after a later question is not shown

async function compare() {
  if (!pair.a || !pair.b) return;
  const turn = ++turns.compare;
  await attempt(async () => {
    const found = await (await ask("../compare", form([["a", pair.a], ["b", pair.b]]))).json();
    if (turn !== turns.compare) return;
    const score = found.score.toFixed(3);
    if (found.same === null) {
      $("verdict").textContent = `Score ${score}. The model was never calibrated, so nothing says what that means.`;
    } else {
      const far = found.far.toExponential(0);
      const sure = found.interval ? ` (between ${found.interval.map((x) => x.toExponential(1)).join(" and ")})` : "";
      $("verdict").textContent = `${found.same ? "The same" : "Not the same"}: score ${score}, threshold ${found.threshold}, ` +
        `at which ${far}${sure} of strangers pass.`;
    }
    drawScores(found);
    $("compare-result").hidden = false;
  });
}

function svg(name, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function drawScores(found) {
  const picture = $("histogram"), bottom = 160, height = 140;
  picture.replaceChildren();
  const x = (score) => 10 + 580 * (Math.max(-1, Math.min(1, score)) + 1) / 2;
  const scores = model && model.scores;
  if (scores) {
    for (const kind of ["impostor", "genuine"]) {
      const counts = scores[kind], peak = Math.max(...counts, 1), width = 580 / counts.length;
      counts.forEach((count, i) => {
        const h = height * count / peak;
        if (h > 0) picture.append(svg("rect", { class: kind, opacity: 0.6, x: 10 + i * width, y: bottom - h, width, height: h }));
      });
    }
    picture.append(svg("text", { x: 12, y: 14, class: "impostor" }, "strangers"));
    picture.append(svg("text", { x: 588, y: 14, class: "genuine", "text-anchor": "end" }, "same identity"));
  }
  picture.append(svg("line", { class: "axis", x1: 10, x2: 590, y1: bottom, y2: bottom }));
  for (const tick of [-1, -0.5, 0, 0.5, 1]) {
    picture.append(svg("text", { x: x(tick), y: bottom + 18, "text-anchor": "middle" }, String(tick)));
  }
  const threshold = found.threshold && model ? model.thresholds[found.threshold] : null;
  if (threshold) {
    picture.append(svg("line", { class: "axis", "stroke-dasharray": "4 3", x1: x(threshold.value), x2: x(threshold.value), y1: 20, y2: bottom }));
  }
  picture.append(svg("line", { class: "mark", x1: x(found.score), x2: x(found.score), y1: 20, y2: bottom }));
  $("histogram-text").textContent = `The score ${found.score.toFixed(3)} (solid line)` +
    (threshold ? `, the threshold ${threshold.value.toFixed(3)} (dashed)` : "") +
    (scores ? ", and the scores of pairs of one identity and of strangers that the model was measured on." : ".");
}

// --- search ----------------------------------------------------------------------------------------------------------

async function preview(picture, image) {
  try {
    const answer = await ask(`../pictures/${picture}`);
    image.src = URL.createObjectURL(await answer.blob());
  } catch {
    image.remove();
  }
}

async function search(file) {
  const turn = ++turns.search;
  await attempt(async () => {
    const found = await (await ask("../search", form([["image", file], ["k", "5"]]))).json();
    if (turn !== turns.search) return;
    const rows = found.matches.map((match) => {
      const row = document.createElement("li"), image = document.createElement("img");
      image.alt = "";
      preview(match.picture, image);
      const name = document.createElement("span");
      name.className = "name";
      name.textContent = match.identity;
      const score = document.createElement("span");
      const verdict = match.same === null ? "" : match.same ? ", the same" : ", not the same";
      score.textContent = match.score.toFixed(3) + verdict;
      row.append(image, name, score);
      return row;
    });
    $("matches").replaceChildren(...rows);
    if (!rows.length) say("Nobody is enrolled yet.");
  });
}

// --- identities ------------------------------------------------------------------------------------------------------

function identityRow(identity) {
  const row = document.createElement("li"), image = document.createElement("img");
  image.alt = "";
  if (identity.pictures.length) preview(identity.pictures[0], image); else image.remove();
  const name = document.createElement("span");
  name.className = "name";
  const count = identity.pictures.length;
  name.textContent = `${identity.name} (${count} ${count === 1 ? "picture" : "pictures"})`;
  row.append(image, name);
  for (const [text, work] of [["Rename", rename], ["Delete", remove]]) {
    const button = document.createElement("button");
    button.textContent = text;
    button.setAttribute("aria-label", `${text} ${identity.name}`);
    if (text === "Delete") button.className = "danger";
    button.addEventListener("click", () => work(identity));
    row.append(button);
  }
  return row;
}

async function list(again) {
  if (again) lastName = "";
  await attempt(async () => {
    const found = await (await ask(`../identities?limit=50&after=${encodeURIComponent(lastName)}`)).json();
    const rows = found.identities.map(identityRow);
    if (again) $("identities").replaceChildren(...rows); else $("identities").append(...rows);
    $("more").hidden = found.next === null;
    if (found.next !== null) lastName = found.next;
  });
}

function answerOf(dialog) {
  dialog.returnValue = "cancel";
  dialog.showModal();
  return new Promise((done) => dialog.addEventListener("close", () => done(dialog.returnValue), { once: true }));
}

async function change(identity, options, done) {
  let said = done, failed = false;
  await attempt(() => ask(`../identities/${encodeURIComponent(identity.name)}`, options).catch((error) => {
    [said, failed] = [error.message, true];
  }));
  await list(true);  // also where it was refused: another may have changed it first
  if ($("key-form").hidden) say(said, failed);
}

async function rename(identity) {
  $("rename-name").value = identity.name;
  if (await answerOf($("rename-dialog")) !== "rename") return;
  const body = JSON.stringify({ name: $("rename-name").value });
  await change(identity, { method: "PATCH", body, headers: { "Content-Type": "application/json" } }, "");
}

async function remove(identity) {
  $("delete-text").textContent = `${identity.name} and all its pictures will be gone for good.`;
  if (await answerOf($("delete-dialog")) !== "delete") return;
  await change(identity, { method: "DELETE" }, `${identity.name} is deleted.`);
}

// not a submit button: Enter in a field would take the first of those
for (const button of document.querySelectorAll("[data-cancel]")) {
  button.addEventListener("click", () => button.closest("dialog").close("cancel"));
}

$("enrol-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = $("enrol-name").value;
  const fields = [["name", name], ...[...$("enrol-files").files].map((file) => ["images", file])];
  const options = form(fields);
  options.headers = { "Idempotency-Key": crypto.randomUUID ? crypto.randomUUID() : String(Math.random()) };
  const done = await attempt(() => ask("../identities", options));
  if (done) { event.target.reset(); await list(true); say(`${name} is enrolled.`); }
});

// --- start -----------------------------------------------------------------------------------------------------------

async function start() {
  const answer = await attempt(() => ask("../model"));
  if (!answer) return;
  model = await answer.json();
  const names = Object.keys(model.thresholds);
  $("model").textContent = `Model ${model.model.slice(0, 12)}, ${model.width} numbers a picture, ` +
    (names.length ? `thresholds ${names.join(", ")}.` : "never calibrated.");
  for (const section of document.querySelectorAll("[data-gallery]")) section.hidden = !model.gallery;
  if (model.gallery) await list(true);
}

dropZone("drop-a", (file) => { pair.a = file; compare(); });
dropZone("drop-b", (file) => { pair.b = file; compare(); });
dropZone("drop-search", search);
$("more").addEventListener("click", () => list(false));
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  $("key").value = "";
  if (!/^[\x21-\x7e]+$/.test(key)) return say("That is no key: keys are printed by pfc-serve --make-key, and begin with pfc_.", true);
  sessionStorage.setItem("key", key);
  $("key-form").hidden = true;
  start();
});
start();
