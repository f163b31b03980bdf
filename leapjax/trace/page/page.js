"use strict";
const trace = JSON.parse(document.getElementById("trace").textContent);
const at = (id) => document.getElementById(id);
const made = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text; // never as markup
  return node;
};
const show = { prompt: 0, step: 0, timer: null, panels: [] };
const count = (number, what = "step") => number + " " + what + (number === 1 ? "" : "s");
const quoted = (text) => "“" + text.replace(/\n/g, "↵") + "”";

function last() {
  return Math.max(...trace.items[show.prompt].runs.map((run) => run.steps));
}

// How many edits of a token were made in so many steps, and what stands there after them.
function edits(token, done) {
  return token.earlier.filter((edit) => edit.step < done).length;
}

function standing(token, done) {
  return token.earlier[edits(token, done)] || token;
}

// What is written in a box: line ends and the end of the text as signs.
function written(token) {
  if (token.special) return "□";
  return token.text.replace(/\r?\n/g, "↵") || "·";
}

function describe(run, token, place, done) {
  const name = run.policy + ", position " + (place + 1) + ": ";
  if (token.shown > done) return name + "still open";
  const now = standing(token, done), times = edits(token, done);
  let text = name + quoted(now.text) + ", ";
  if (token.step === -2) return text + "given";
  if (token.step === -1) return text + "filled in behind the end, by no pass";
  if (token.step >= 0) text += "committed in step " + (token.step + 1) + " (" + trace.kinds[token.kind][1] + ")";
  else text += trace.kinds[token.kind][1];
  text += ", confidence " + token.confidence.toFixed(3);
  token.earlier.slice(0, times).forEach((old, n) => {
    const next = token.earlier[n + 1] || token;
    text += "; edited in step " + (old.step + 1) + ": " + quoted(old.text) + " → " + quoted(next.text);
  });
  if (now.same === false) text += "; greedy has another token here";
  return text;
}

function build() {
  const item = trace.items[show.prompt];
  at("prompt").textContent = item.prompt;
  const greedy = item.runs.find((run) => run.policy === "greedy");
  at("runs").replaceChildren();
  show.panels = item.runs.map((run) => {
    const panel = made("section", "run");
    panel.setAttribute("aria-label", run.policy);
    const head = made("div", "head");
    head.append(made("h2", "", run.policy));
    if (greedy && run !== greedy) {
      const saved = Math.round(100 * (1 - run.steps / greedy.steps));
      const words = saved >= 0 ? saved + " % fewer" : -saved + " % more";
      head.append(made("span", "saved", count(run.steps) + ", " + words + " than greedy’s " + greedy.steps));
    } else head.append(made("span", "saved", count(run.steps)));
    panel.append(head, made("p", "options", run.options + verdict(run, greedy)));
    const state = made("p", "state");
    const bar = made("div", "bar");
    bar.append(made("i"));
    const canvas = made("div", "canvas");
    canvas.setAttribute("role", "group");
    canvas.setAttribute("aria-label", "Canvas of " + run.policy + ": arrow keys go from token to token");
    const boxes = run.tokens.map((token, place) => box(run, token, place, canvas));
    if (boxes.length) boxes[0].tabIndex = 0;
    panel.append(state, bar, canvas);
    at("runs").append(panel);
    return { run, state, bar: bar.firstChild, boxes };
  });
  const used = new Set(item.runs.flatMap((run) => run.tokens.map((token) => token.kind)));
  if (item.runs.some((run) => run.tokens.some((token) => token.earlier.length))) used.add("edited");
  at("legend").replaceChildren();
  for (const [kind, [mark, meaning]] of Object.entries(trace.kinds)) {
    if (!used.has(kind)) continue;
    const entry = made("li");
    entry.append(made("b", kind, mark), meaning);
    at("legend").append(entry);
  }
  for (const [sign, meaning] of [["≠", "not greedy’s token"], ["□", "end of text, or another control token"]]) {
    const entry = made("li");
    entry.append(made("b", "", sign), meaning);
    at("legend").append(entry);
  }
  at("step").max = last();
  go(last());
}

function verdict(run, greedy) {
  if (!greedy || run === greedy) return "";
  return run.answer === greedy.answer ? "; the same answer as greedy" : "; another answer than greedy";
}

function box(run, token, place, canvas) {
  const node = made("span", "token");
  node.append(made("span", "text"), made("span", "mark"));
  node.widest = Math.max(...[token, ...token.earlier].map((look) => [...written(look)].length));
  node.tabIndex = -1;
  node.setAttribute("role", "img");
  const tell = () => { at("detail").textContent = describe(run, token, place, Math.min(show.step, run.steps)); };
  node.addEventListener("mouseenter", tell);
  node.addEventListener("focus", tell);
  node.addEventListener("click", () => enter(node));
  canvas.append(node);
  if (!token.special && token.text.includes("\n")) canvas.append(made("br"));
  return node;
}

function enter(node) {
  for (const other of node.parentNode.querySelectorAll(".token")) other.tabIndex = -1;
  node.tabIndex = 0;
  node.focus();
}

function go(step) {
  show.step = Math.max(0, Math.min(step, last()));
  at("step").value = show.step;
  const words = "step " + show.step + " of " + last();
  at("count").textContent = words;
  at("step").setAttribute("aria-valuetext", words);
  for (const { run, state, bar, boxes } of show.panels) {
    const done = Math.min(show.step, run.steps);
    let decided = 0, changed = 0;
    run.tokens.forEach((token, place) => {
      const node = boxes[place], here = token.shown <= done, now = standing(token, done);
      const own = edits(token, done);
      changed += own;
      if (here && token.step >= 0) decided += 1;
      const decision = own ? token.earlier[own - 1].step : token.step;
      const fresh = here && decision >= 0 && decision === show.step - 1;
      node.className = "token" + (here ? " " + (own ? "edited" : token.kind) : " open") +
        (here && now.special ? " special" : "") + (fresh ? " new" : "");
      // A box is as wide as its widest token will be, so that nothing jumps.
      const text = here ? written(now) : "";
      const room = node.widest - [...text].length, before = Math.floor(room / 2);
      node.firstChild.textContent = "\u00a0".repeat(before) + text + "\u00a0".repeat(room - before);
      const mark = here ? trace.kinds[token.kind][0] + (own ? trace.kinds.edited[0] : "") : "";
      node.lastChild.textContent = here && now.same === false && token.confidence !== null ? mark + "≠" : mark;
      node.setAttribute("aria-label", describe(run, token, place, done));
    });
    const over = done === run.steps;
    state.textContent = (over ? "finished after " + count(run.steps) : "step " + done + " of " + run.steps) +
      ", " + decided + " of " + run.decided + " tokens" +
      (run.tokens.some((token) => token.earlier.length) ? ", " + count(changed, "edit") : "");
    bar.style.width = (100 * done) / Math.max(run.steps, 1) + "%";
  }
  const held = document.activeElement;
  if (held && held.classList.contains("token")) at("detail").textContent = held.getAttribute("aria-label");
  if (show.step === last()) pause();
}

function pause() {
  clearInterval(show.timer);
  show.timer = null;
  at("play").textContent = "▶ Play";
  at("play").setAttribute("aria-label", "Play");
}

function play() {
  if (show.timer !== null) return pause();
  if (show.step === last()) go(0);
  show.timer = setInterval(() => go(show.step + 1), 1000 / Number(at("speed").value));
  at("play").textContent = "⏸ Pause";
  at("play").setAttribute("aria-label", "Pause");
}

function amongTokens(event, node) {
  const boxes = [...node.parentNode.querySelectorAll(".token")];
  const place = boxes.indexOf(node);
  const goal = {
    ArrowRight: place + 1, ArrowDown: place + 1, ArrowLeft: place - 1, ArrowUp: place - 1,
    Home: 0, End: boxes.length - 1,
  }[event.key];
  if (event.key === "Escape") at("step").focus();
  else if (goal === undefined) return false;
  else if (boxes[goal]) enter(boxes[goal]);
  return true;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const node = event.target;
  if (node.classList && node.classList.contains("token") && amongTokens(event, node)) return event.preventDefault();
  const tag = node.tagName;
  if (tag === "SELECT" || (tag === "INPUT" && event.key !== " ")) return; // these have keys of their own
  if (event.key === " " && tag !== "BUTTON") play();
  else if (event.key === "ArrowRight") { pause(); go(show.step + 1); }
  else if (event.key === "ArrowLeft") { pause(); go(show.step - 1); }
  else if (event.key === "Home") { pause(); go(0); }
  else if (event.key === "End") { pause(); go(last()); }
  else return;
  event.preventDefault();
});
at("step").addEventListener("input", () => { pause(); go(Number(at("step").value)); });
at("speed").addEventListener("change", () => { if (show.timer !== null) { pause(); play(); } });
at("play").addEventListener("click", play);
for (const [id, goal] of [["first", () => 0], ["back", () => show.step - 1], ["forward", () => show.step + 1], ["last", last]])
  at(id).addEventListener("click", () => { pause(); go(goal()); });

if (trace.items.length > 1) trace.items.forEach((item, n) => {
  const button = made("button", "", item.name);
  button.type = "button";
  button.title = item.prompt.slice(0, 120);
  button.setAttribute("aria-label", "Prompt " + (n + 1) + ": " + item.prompt.slice(0, 80));
  button.addEventListener("click", () => { pause(); show.prompt = n; mark(); build(); });
  at("prompts").append(button);
});
function mark() {
  [...at("prompts").children].forEach((b, n) => b.setAttribute("aria-current", String(n === show.prompt)));
}
mark();
build();
