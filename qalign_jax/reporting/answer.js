// How one answer is drawn: verdict, prose, programs and outputs, likelihoods, tokens and their tip.
// The page puts this file and explorer.js into one function.

const TEXTS = { right: "✓ right", wrong: "✗ wrong", none: "not answered yet" };
const NOT_LATIN = /[^\P{L}\p{Script=Latin}]/u;
// The inside of a program, of its output, and of a fence with its label.
const BLOCKS = new RegExp(
  "<llm-code>(.*?)(?:</llm-code>|$)|<llm-code-output>(.*?)(?:</llm-code-output>|$)" +
    "|(?<=^|\\n)```(\\w*)[ \\t]*\\n(.*?)(?:(?<=\\n)```|$)", "dgs");
const tips = new WeakMap(); // element of a token -> what its tip says
let pointed = null; // the token whose tip was shown last

// ---- elements; data enters the page as text nodes and attributes only

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Attributes of a text in the question's language, or, as answers often are, in English. */
const spoken = (text, code) => ({
  dir: "auto", lang: code === "en" || NOT_LATIN.test(text) ? code : "",
});

const verdict = (is) => (is === undefined ? "none" : is ? "right" : "wrong");
const signed = (number, digits) => number.toFixed(digits).replace("-", "−");
const percent = (share) => `${(100 * share).toFixed(1)} %`;

function card(system) {
  const { loaded, row } = current;
  const name = loaded.dataset.systems[system];
  const { code } = loaded.language;
  const cell = loaded.cells[system][row];
  const is = verdict(cell?.correct);
  const kind = cell ? "x-card" : "x-card x-missing";
  const element = make("section", { class: kind, "aria-label": name, "data-system": name },
    make("header", {}, make("h4", {}, make("bdi", {}, name)),
      make("span", { class: `x-badge x-${is}` }, TEXTS[is])));
  if (!cell) return element;
  const said = (value) => (value === null ? make("em", {}, "nothing")
    : make("bdi", {}, String(value)));
  const body = make("div", { class: "x-answer" });
  fillAnswer(body, cell, code, null);
  element.append(make("p", { class: "x-facts" }, "Predicted ", said(cell.prediction),
    ...(cell.sound ? [" · by the sound reader ", said(cell.sound[0]),
      cell.sound[1] ? ", right" : ", wrong"] : [])), body);
  if (cell.likelihoods) element.append(likelihoods(cell.likelihoods));
  if (cell.traced) {
    once(loaded.language.traces, (traces) => traces)
      .then((traces) => fillAnswer(body, cell, code, traces[system][row])).catch(fail);
  }
  return element;
}

function likelihoods(values) {
  const { loaded, row } = current;
  const most = Math.max(...values);
  const weights = values.map((value) => Math.exp(value - most));
  const sum = weights.reduce((total, weight) => total + weight, 0);
  const rows = values.map((value, choice) => {
    const share = weights[choice] / sum;
    const text = loaded.choices[row]?.[choice] ?? "";
    const mark = make("small", { role: "img", "aria-label": "the right answer" }, " ✓");
    const bar = make("span", { class: "x-bar" });
    bar.style.setProperty("--share", share);
    return make("tr", value === most ? { class: "x-most" } : {},
      make("th", { scope: "row", dir: "auto" }, text,
        ...(text === loaded.answers[row] ? [mark] : [])),
      make("td", {}, bar, make("span", { class: "x-share" }, percent(share))),
      make("td", {}, signed(value, 2)));
  });
  return make("table", { class: "x-likelihoods" }, make("thead", {}, make("tr", {},
    ...["choice", "share", "log-likelihood"].map((name) => make("th", { scope: "col" }, name)))),
  make("tbody", {}, ...rows));
}

// ---- one answer: prose, programs, outputs, tokens

/** [{kind: "text" | "code" | "output", from, to}] of an answer, without tags and fences. */
function segments(output) {
  const result = [];
  const add = (kind, from, to) => {
    while (from < to && output[from] === "\n") from++;
    while (from < to && output[to - 1] === "\n") to--;
    if (from < to) result.push({ kind, from, to });
  };
  let end = 0;
  for (const match of output.matchAll(BLOCKS)) {
    const group = match.indices[1] ?? match.indices[2] ?? match.indices[4];
    add("text", end, match.index);
    add(match.indices[2] || match[3] === "output" ? "output" : "code", ...group);
    end = match.index + match[0].length;
  }
  add("text", end, output.length);
  return result;
}

const figure = (kind, caption, pre) => make("figure", { class: `x-block x-${kind}` },
  make("figcaption", {}, ...caption), pre);

/** Draws an answer; with a trace, columns as explorer.py has them, its tokens are shaded. */
function fillAnswer(body, { output, executions = [] }, code, trace) {
  const text = trace?.[0].join("");
  const inside = text === output ? trace : null;
  const parts = segments(output);
  let newest = -1; // the number of the program that was begun last
  body.replaceChildren();
  parts.forEach(({ kind, from, to }, number) => {
    if (kind === "text") {
      const prose = make("div", { class: "x-prose", ...spoken(output, code) });
      body.append(fill(prose, output, from, to, inside));
      return;
    }
    if (kind === "code") newest++;
    const ran = executions[newest];
    const pre = fill(make("pre", { dir: "ltr" }), output, from, to, inside);
    const status = make("span", { class: ran?.status === "ok" ? "x-right" : "x-wrong" },
      ran?.status ?? "not run");
    if (kind === "output") body.append(figure(kind, [ran ? "Output" : "Output as written"], pre));
    else body.append(figure(kind, ["Program ", status], pre));
    // What the answer does not hold: the message of a failed program ends the answer.
    if (kind === "code" && ran?.output && parts[number + 1]?.kind !== "output") {
      body.append(figure("output", ["Output"], make("pre", { dir: "ltr" }, ran.output)));
    }
  });
  if (!output) body.append(make("p", { class: "x-facts" }, "The answer is empty."));
  if (!trace) return;
  if (!inside) {
    const prose = make("div", { class: "x-prose", ...spoken(text, code) });
    body.append(make("p", { class: "x-facts" }, "Its tokens"),
      fill(prose, text, 0, text.length, trace));
  }
  const first = body.querySelector(".x-token");
  if (first) first.tabIndex = 0; // one stop of Tab; the arrows go on from it
  const different = trace[1].filter((base) => base !== null).length;
  const all = trace[3].filter((number) => number !== null).length;
  body.append(make("p", { class: "x-legend" }, "How far the proxy moved each token: ",
    make("span", { class: "x-scale" }, "down", make("i", {}), "up"),
    `. Underlined: the base alone would have said another token (${different} of ${all}). `,
    make("span", { class: "x-hint" }, "Point at a token, or use ← →.")));
}

/** Appends text[from:to] to an element, and with a trace of the text each token by itself. */
function fill(element, text, from, to, trace) {
  if (!trace) {
    element.append(text.slice(from, to));
    return element;
  }
  const [texts, bases, baseProbabilities, probabilities, moved] = trace;
  let end = 0;
  texts.forEach((token, number) => {
    const begin = end;
    end += token.length;
    const piece = text.slice(Math.max(begin, from), Math.max(from, Math.min(end, to)));
    if (!piece) return;
    if (probabilities[number] === null) { // a reply to the model, no token of its own
      element.append(piece);
      return;
    }
    const base = bases[number];
    const span = make("span", { class: `x-token${base === null ? "" : " x-other"}`, tabindex: -1,
      "aria-describedby": "explorer-tip" }, piece);
    span.style.setProperty("--moved", `${Math.abs(moved[number]) / 10}%`);
    span.style.setProperty("--toward", `var(--${moved[number] < 0 ? "bad" : "accent"})`);
    tips.set(span, { token, base: base ?? token, probability: probabilities[number],
      baseProbability: baseProbabilities[number], moved: moved[number] });
    element.append(span);
  });
  return element;
}

// ---- the tip of a token

const visible = (text) => text.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "⇥")
  || "(part of a character)";

function showTip(token) {
  const { token: text, base, probability, baseProbability, moved } = tips.get(token);
  const line = (label, ...values) => [make("dt", {}, label), make("dd", {}, ...values)];
  const code = (shown) => make("code", { dir: "auto" }, visible(shown));
  tip.replaceChildren(make("dl", {},
    ...line("token", code(text), percent(probability / 1000)),
    ...line("base alone", code(base), percent(baseProbability / 1000)),
    ...line("moved", `${moved < 0 ? "" : "+"}${signed(moved / 10, 1)} points`)));
  tip.hidden = false;
  pointed = token;
  const [box] = token.getClientRects();
  const below = box.bottom + 6;
  const fits = below + tip.offsetHeight < innerHeight;
  tip.style.top = `${fits ? below : box.top - 6 - tip.offsetHeight}px`;
  const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.left = `${Math.max(8, Math.min(box.left, room))}px`;
}

function hideTip() {
  tip.hidden = true;
}

function followScroll() { // focus itself may scroll
  if (!tip.hidden && pointed === document.activeElement) showTip(pointed);
  else hideTip();
}

function moveToken(token, step) {
  const tokens = [...token.closest(".x-answer").querySelectorAll(".x-token")];
  const next = tokens[tokens.indexOf(token) + step];
  if (!next) return;
  token.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

