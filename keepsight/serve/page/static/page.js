// Handles the picture, the question, and the two panes that answer it.

import { Pane } from "./pane.js";

const get = (id) => document.getElementById(id);
const SHOWN = 8; // drawn pictures to choose from at a time
// What the server offers; the panes; the chosen picture; the AbortController of the running answers; the number of the first
// drawn picture on show; how many pictures were chosen so far
let facts, panes = [], picture = null, running = null, first = 0, taken = 0;

// Shows an error of the page as a whole, or none; errors of an answer are shown in its pane
function trouble(message) {
  get("trouble").textContent = message ?? "";
  get("trouble").hidden = !message;
}

// The browser opens the picture before it is shown, so that a file that is no picture is refused without a request
function loaded(source) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("this browser cannot show that file as a picture"));
    image.src = source;
  });
}

// Reading takes a while: only the picture that was chosen last is shown, whichever is read first
async function choose(name, requested, read) {
  const turn = taken += 1;
  try {
    const source = await read();
    const image = await loaded(source);
    if (turn === taken) show({ name, requested: requested ?? { data: source }, source, image });
  } catch (error) {
    if (turn === taken) trouble(error.message);
  }
}

function show(chosen) {
  const old = picture;
  picture = chosen;
  const { name, source, image } = chosen;
  get("picture").src = source;
  get("picture").alt = `The chosen picture, ${name}`;
  get("picture").classList.toggle("drawn", image.naturalWidth <= 256);
  get("picture").hidden = false;
  get("picture-name").textContent = `${name}, ${image.naturalWidth} × ${image.naturalHeight}`;
  // An uploaded file has no scene, so that no drawn picture is marked as chosen, even if the file has the same name
  for (const one of get("thumbs").children) one.setAttribute("aria-pressed", String(one.title === chosen.requested.scene));
  if (old && old.source !== source) { // compared by content, since another file may have the same name
    stop();
    panes.forEach((pane) => pane.clear());
  }
  trouble(null);
}

function takeScene(name) {
  return choose(name, { scene: name }, async () => `scene/${name}.png`);
}

async function takeFile(file) {
  if (!file) return;
  await choose(file.name || "pasted picture", null, () => {
    if (file.size > facts.limits.image_bytes) throw new Error(`the file has more than ${facts.limits.image_bytes >> 20} MB: choose a smaller one`);
    // A data URI serves as the source of the page's own image and as the picture of the request
    return new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.onerror = () => reject(new Error("the file cannot be read"));
      reader.readAsDataURL(file);
    });
  });
}

function showThumbs() {
  const split = get("split").value;
  get("fewer").disabled = first === 0;
  get("thumbs").replaceChildren(...Array.from({ length: SHOWN }, (_, i) => {
    const name = `${split}:${first + i}`;
    const button = document.createElement("button");
    button.type = "button";
    button.title = name;
    button.setAttribute("aria-label", `drawn picture ${name}`);
    button.setAttribute("aria-pressed", String(picture?.requested.scene === name));
    const image = new Image(64, 64);
    image.alt = ""; // the button has the name already
    image.src = `scene/${name}.png`;
    button.append(image);
    button.addEventListener("click", () => takeScene(name));
    return button;
  }));
}

function stop() {
  running?.abort();
  running = null;
}

async function answer() {
  if (!picture) return trouble("choose a picture first");
  trouble(null);
  stop();
  const mine = running = new AbortController();
  get("stop").hidden = false;
  const request = { picture: picture.requested, question: get("question").value, tokens: Number(get("tokens").value) };
  // Both panes ask at the same time. A pane shows its own errors, so that one that fails does not end the other
  await Promise.all(panes.map((pane) => pane.run(request, picture.image, mine.signal, threshold())));
  // A newer answer may have begun, whose Stop button must stay
  if (running === mine) running = null;
  get("stop").hidden = running === null;
}

// The threshold below which words are flagged, in nats. While the field is empty it is the default.
function threshold() {
  const value = get("threshold").valueAsNumber;
  return Number.isNaN(value) ? facts.threshold : value;
}

// Without a choice the style sheet follows the browser's setting, and only the label of the button has to be set
function theme(chosen) {
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  if (chosen) document.documentElement.dataset.theme = chosen;
  get("theme").textContent = dark ? "Light" : "Dark";
  get("theme").setAttribute("aria-label", `Switch to ${dark ? "light" : "dark"} colours`);
  get("theme").onclick = () => theme(dark ? "light" : "dark");
}

function listen() {
  get("form").addEventListener("submit", (event) => { event.preventDefault(); answer(); });
  get("stop").addEventListener("click", stop);
  // Emptied each time, or choosing the same file once more would be no change
  get("file").addEventListener("change", (event) => { takeFile(event.target.files[0]); event.target.value = ""; });
  get("split").addEventListener("change", () => { first = 0; showThumbs(); });
  get("more").addEventListener("click", () => { first += SHOWN; showThumbs(); });
  get("fewer").addEventListener("click", () => { first = Math.max(first - SHOWN, 0); showThumbs(); });
  get("threshold").addEventListener("input", () => panes.forEach((pane) => pane.result && pane.flag(threshold())));
  document.addEventListener("paste", (event) => takeFile(event.clipboardData?.files[0]));
  // Without preventDefault() the browser would leave the page and open the file
  document.addEventListener("dragover", (event) => { event.preventDefault(); get("drop").classList.add("over"); });
  document.addEventListener("dragleave", () => get("drop").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    get("drop").classList.remove("over");
    takeFile(event.dataTransfer?.files[0]);
  });
}

async function begin() {
  // Everything that depends on the model comes from the server, so that the files of the page are the same for all models
  theme();
  facts = await (await fetch("api/facts")).json();
  get("model").textContent = facts.model;
  get("version").textContent = facts.version;
  document.title = `Keepsight · ${facts.model}`;
  get("packaged").hidden = !facts.packaged;
  get("question").value = facts.question;
  get("questions").append(...facts.questions.map((question) => new Option(question, question)));
  get("tokens").value = facts.tokens;
  get("tokens").max = facts.limits.tokens;
  get("threshold").value = facts.threshold;
  get("score").textContent = `${facts.score}, w = ${facts.weight}`;
  get("chosen").textContent = facts.packaged ? ", chosen on the demo world" : ", chosen on the demo world: find your own for this model";
  get("workers").textContent = facts.workers > 1
    ? "Answers are greedy. Both are written at the same time, so each takes longer than it would alone."
    : `Answers are greedy and written one after the other${facts.single_worker_reason ? ` (${facts.single_worker_reason})` : ""}.`;
  get("split").append(...facts.splits.map((split) => new Option(split, split)));
  panes = [new Pane("Setting A", facts, ""), new Pane("Setting B", facts, facts.methods.find((one) => one.name === "m3id").spec)];
  get("panes").append(...panes.map((pane) => pane.root));
  listen();
  showThumbs();
  await takeScene(`${facts.splits[0]}:1`);
  if (facts.packaged && picture) await answer();
}

begin().catch((error) => trouble(`the page could not start: ${error.message}`));
