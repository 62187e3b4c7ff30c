// One setting and its answer. Text of the model goes into the page as text nodes and never as markup.

import { drawHeat } from "./heat.js";

// With a typographic minus sign, and without a sign before a value that rounds to zero. The server sends null for an
// infinite value, which can only be minus infinity: the log-probability of a word that is ruled out
export const nats = (value) => (value === null ? "−∞" : value.toFixed(2).replace(/^-0\.00$/, "0.00").replace("-", "−"));
const percent = (rate) => (rate === null ? "–" : `${(100 * rate).toFixed(0)} %`);
const OWN = "own"; // the value of the list's last entry, whose spec is typed

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// Posts JSON. A refusal becomes an Error with the server's message; an unreachable server is fetch's own TypeError.
export async function post(address, body, signal) {
  const answer = await fetch(address, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
  });
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    throw new Error(told.error || `the server answered ${answer.status}`);
  }
  return answer;
}

export class Pane {
  constructor(name, facts, spec) {
    this.facts = facts;
    this.root = document.getElementById("pane").content.cloneNode(true).firstElementChild;
    const find = (selector) => this.root.querySelector(selector);
    for (const part of ["method", "spec", "gist", "answer", "error", "state", "map", "detail", "chair"]) this[part] = find(`.${part}`);
    this.canvas = find("canvas");
    find("h2").textContent = name;
    this.root.setAttribute("aria-label", name);
    find("label").htmlFor = this.method.id = `method-${name.slice(-1)}`;
    this.spec.setAttribute("aria-label", `${name}: method specs`);
    this.method.append(new Option("plain model", ""), ...facts.methods.map((one) => new Option(one.name, one.spec)),
      new Option("several, or your own", OWN));
    this.method.addEventListener("change", () => {
      if (this.method.value !== OWN) this.spec.value = this.method.value;
      this.settle();
      if (this.method.value === OWN) this.spec.focus();
    });
    this.spec.addEventListener("input", () => { this.match(this.spec.value, true); this.settle(); });
    // One listener for all words, since they are replaced with every answer
    this.answer.addEventListener("click", (event) => this.choose(event.target.closest("button.word")));
    this.answer.addEventListener("keydown", (event) => this.walk(event));
    this.root.addEventListener("keydown", (event) => { if (event.key === "Escape") this.choose(null); });
    this.spec.value = spec;
    this.match(spec);
    this.settle();
    this.clear();
  }

  // A typed spec may equal one that the list offers; otherwise the list shows "several, or your own"
  match(spec, typed = false) {
    const offered = (spec || !typed) && [...this.method.options].some((option) => option.value === spec);
    this.method.value = offered ? spec : OWN;
  }

  // Says under the list what the chosen methods do and cost, as far as their names are known
  settle() {
    this.spec.hidden = this.method.value === "";
    const names = this.spec.value.split("+").map((spec) => spec.trim().split(":")[0].toLowerCase());
    const known = this.facts.methods.filter((one) => names.includes(one.name));
    this.gist.textContent = this.spec.hidden ? "the model as it is"
      : known.map((one) => `${one.gist} (${one.cost})`).join("; ") || "NAME:parameter=value,…; join several methods with +";
  }

  // Requests for the old answer are aborted, so that nothing of it arrives in the new one
  clear() {
    this.looking?.abort();
    this.result = this.maps = this.chosen = this.signal = this.looking = null;
    this.words = [];
    this.answer.replaceChildren();
    this.error.hidden = this.map.hidden = this.chair.hidden = true;
    this.map.classList.remove("busy");
    this.answer.setAttribute("aria-busy", "false");
    this.detail.textContent = "";
    this.state.textContent = "";
  }

  fail(message) {
    this.error.textContent = message;
    this.error.hidden = false;
  }

  // Asks for an answer and shows it as it comes. After every wait, a newer run may own the pane: then nothing is written
  async run(request, picture, signal, threshold) {
    this.clear();
    this.signal = signal;
    this.request = { picture: request.picture, question: request.question, method: this.method.value === "" ? "" : this.spec.value };
    this.picture = picture;
    this.state.textContent = "asking …";
    this.answer.setAttribute("aria-busy", "true");
    try {
      const answer = await post("api/answer", { ...this.request, tokens: request.tokens }, signal);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = ""; // a chunk of the stream may end in the middle of a line
      for (;;) {
        const { value, done } = await reader.read();
        if (this.signal !== signal) return;
        if (done) break;
        const lines = (rest + value).split("\n");
        rest = lines.pop();
        for (const line of lines) this.heard(JSON.parse(line), threshold);
      }
      // The last event is an answer or an error. Without either, the server has ended
      if (!this.result && this.error.hidden) this.fail("the answer broke off: the server ended");
    } catch (error) {
      if (this.signal !== signal) return;
      if (error.name === "AbortError") this.state.textContent = "stopped";
      else this.fail(error instanceof TypeError ? "the server cannot be reached: is it still running?" : error.message);
    }
    if (!this.result && this.state.textContent !== "stopped") this.state.textContent = "";
    this.answer.setAttribute("aria-busy", "false");
  }

  // Takes one event of the stream; `_report_errors` and `PageService.answer` send them
  heard(event, threshold) {
    if (event.event === "queued") this.state.textContent = event.ahead ? `waiting for ${event.ahead} answer${event.ahead === 1 ? "" : "s"} to end …` : "looking at the picture …";
    else if (event.event === "begun") this.state.textContent = "looking at the picture …";
    else if (event.event === "piece") { this.answer.append(event.text); this.state.textContent = "writing …"; }
    else if (event.event === "error") this.fail(event.error);
    else if (event.event === "done") { this.result = event; this.show(threshold); }
  }

  // Replaces the streamed text by the whole answer, in which each object word is a button
  show(threshold) {
    const { segments, words, text } = this.result;
    this.words = [];
    let mark = ""; // the full stop or comma behind a word stays on its line
    this.answer.replaceChildren(...segments.map((segment, at) => {
      if (segment.word === null) return document.createTextNode(segment.text.slice(mark.length));
      const next = segments[at + 1];
      mark = next && next.word === null ? /^\p{P}*/u.exec(next.text)[0] : "";
      const button = element("button", segment.text, "word");
      button.type = "button";
      button.dataset.word = segment.word;
      button.setAttribute("aria-pressed", "false");
      this.words[segment.word] = button;
      const whole = element("span", undefined, "whole");
      whole.append(button, mark);
      return whole;
    }));
    if (!text) this.answer.append(element("em", "nothing was said", "soft"));
    const { tokens, seconds, full, unjudged } = this.result;
    this.state.textContent = `${tokens} token${tokens === 1 ? "" : "s"} in ${seconds.toFixed(1)} s${full ? ", cut at the longest answer" : ""}`;
    if (unjudged) this.fail(`The words could not be judged: ${unjudged}`);
    else if (text && !words.length) this.detail.textContent = "No object word of COCO was said.";
    this.flag(threshold);
    this.score();
  }

  // Colours the words by a threshold, also after the answer, when the threshold is changed
  flag(threshold) {
    this.threshold = threshold;
    this.words.forEach((button, number) => {
      const { support, present } = this.result.words[number];
      const value = support === null ? -Infinity : support;
      const flagged = value < threshold;
      button.classList.toggle("flagged", flagged);
      button.classList.toggle("absent", present === false);
      // The colour is strongest from two nats below the threshold on
      button.style.setProperty("--doubt", `${Math.round(14 + 32 * Math.min((threshold - value) / 2, 1))}%`);
      const truth = present === null ? "" : present ? ", in the picture" : ", not in the picture";
      button.title = `grounding ${nats(support)}${flagged ? ", may not be supported" : ""}${truth}`;
      button.setAttribute("aria-label", `${button.textContent}: ${button.title}`);
    });
    if (this.chosen !== null) this.tell(this.chosen);
  }

  // The arrow keys go from word to word, and from the last one to the first
  walk(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const at = this.words.indexOf(event.target);
    if (!step || at < 0) return;
    event.preventDefault();
    this.words[(at + step + this.words.length) % this.words.length].focus();
  }

  // A word's button shows its map, or hides it if it is shown. null, from Escape or a click beside the words, hides the map
  async choose(button) {
    if (button === null && this.chosen === null) return;
    if (button === undefined) return;
    const number = button ? Number(button.dataset.word) : null;
    const again = number === this.chosen;
    this.words.forEach((one) => one.setAttribute("aria-pressed", String(one === button && !again)));
    this.chosen = again ? null : number;
    if (this.chosen === null) {
      this.map.hidden = true;
      this.detail.textContent = "";
      return;
    }
    this.tell(number);
    const { result } = this;
    try {
      // One request brings the maps of all words, because they come from one generation. Later words use the same promise
      this.looking ??= new AbortController();
      this.maps ??= post("api/attention", { ...this.request, answer: result.ids }, this.looking.signal).then((answer) => answer.json());
      this.map.classList.add("busy");
      const maps = await this.maps;
      if (this.result !== result || this.chosen !== number) return; // a newer answer, or another word meanwhile
      if (maps.words.length !== result.words.length) throw new Error("the maps are of other words");
      const where = drawHeat(this.canvas, this.picture, maps, number);
      const share = `${(100 * maps.words[number].share).toFixed(1)} % of the attention is on the picture`;
      this.canvas.setAttribute("aria-label", `Attention map of “${button.textContent}”: strongest ${where}; ${share}`);
      this.map.hidden = false;
      this.tell(number, `; ${share}, most of it ${where}`);
    } catch (error) {
      if (this.result !== result) return;
      this.maps = null; // the next click may try again
      if (this.chosen !== number) return;
      this.map.hidden = true;
      this.tell(number, `. No map: ${error.message}`);
    } finally {
      if (this.result === result) this.map.classList.remove("busy");
    }
  }

  // Describes a word in one line. `more` is what is known of its map; a new threshold leaves it as it was
  tell(number, more) {
    const word = this.result.words[number];
    if (more !== undefined) this.more = more;
    else if (this.told !== number) this.more = "; looking where it looked …";
    this.told = number;
    const flagged = (word.support ?? -Infinity) < this.threshold ? ", flagged" : "";
    const named = word.word.toLowerCase() === word.object ? "" : ` (${word.object})`;
    const name = element("strong", word.word);
    this.detail.replaceChildren(name, `${named}: grounding ${nats(word.support)}${flagged}; log-probability `
      + `${nats(word.with_image)} with the picture, ${nats(word.without_image)} without${this.more}`);
  }

  // The CHAIR score, which only drawn scenes have
  score() {
    const { chair } = this.result;
    this.chair.hidden = !chair;
    if (!chair) return;
    const rows = [
      ["Invented", `${chair.invented.length} of ${chair.mentions} object words (CHAIR_i ${percent(chair.chair_i)})`
        + (chair.invented.length ? `: ${chair.invented.join(", ")}` : "")],
      ["Found", `${chair.found} of ${chair.present.length} objects (recall ${percent(chair.recall)})`
        + (chair.missed.length ? `; missed: ${chair.missed.join(", ")}` : "")],
    ];
    this.chair.replaceChildren(...rows.flatMap(([name, told]) => [element("dt", name), element("dd", told)]));
  }
}
