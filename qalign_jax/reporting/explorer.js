// What is looked at: data, filters, the list, the address, keys. answer.js draws the answers.

const PREFIX = "#explorer?"; // the page's other anchors are left alone
const ALL = "all";
const ROW_REM = 4.75; // the height of a row of the list, as in the style

const root = document.getElementById("explorer");
const part = (name) => root.querySelector(`[data-part="${name}"]`);
const [message, view, stageSelect, benchmarkSelect, languageSelect, search, filters, disagree,
  reset, count, list, rows, detail, tip] = ["message", "view", "stage", "benchmark", "language",
  "search", "filters", "disagree", "reset", "count", "list", "rows", "detail", "tip"].map(part);

let index; // {datasets, ids}
let state; // {dataset, language, at: {language, id} | null, wanted: Map, disagree, search}
let matches = []; // {loaded, row} of each question that passes the filters
let current = null; // what the detail shows, in `matches` or not
let drawn = {}; // {first, last} of the list's rows
let waiting = null; // {hash, timer} of an address that is not written yet
let latest = 0; // the number of the newest update; older ones give up
const unpacked = new Map(); // number of a block -> promise of its content

// ---- data

async function unpack(id) {
  const binary = atob(document.getElementById(id).textContent);
  const bytes = new Uint8Array(binary.length);
  for (let place = 0; place < bytes.length; place++) bytes[place] = binary.charCodeAt(place);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

/** The content of a block as `prepare` makes it, the first time only. */
function once(block, prepare) {
  if (!unpacked.has(block)) unpacked.set(block, unpack(`explorer-block-${block}`).then(prepare));
  return unpacked.get(block);
}

const plain = (text) => text.toLowerCase().normalize("NFC");

function load(dataset, language) {
  return once(language.block, (data) => {
    const ids = index.ids[language.ids];
    // One long text: searching it once is several times faster than searching each answer.
    const texts = ids.map((id, row) => plain([id, data.questions[row],
      ...data.cells.map((cells) => cells[row]?.output ?? "")].join("\0")));
    const starts = new Uint32Array(texts.length + 1);
    texts.forEach((text, row) => { starts[row + 1] = starts[row] + text.length + 1; });
    const rowOf = new Map(ids.map((id, row) => [id, row]));
    return { dataset, language, ids, rowOf, starts, haystack: texts.join("\0"), ...data };
  });
}

/** true, false, or undefined where the system has not answered. */
const correct = (loaded, system, row) => loaded.cells[system][row]?.correct;

// ---- state, and its form in the address

function parse(hash) {
  const given = new URLSearchParams(hash.startsWith(PREFIX) ? hash.slice(PREFIX.length) : "");
  const named = (set) => set.benchmark === given.get("benchmark");
  const dataset = index.datasets.find((set) => named(set) && set.stage === given.get("stage"))
    ?? index.datasets.find(named) ?? index.datasets[0];
  const codes = dataset.languages.map((language) => language.code);
  const [, code, id] = /^([^:]*):(.*)$/s.exec(given.get("question") ?? "") ?? [];
  const at = codes.includes(code) ? { language: code, id } : null;
  const asked = given.get("language");
  const language = asked === ALL || codes.includes(asked) ? asked : at?.language ?? codes[0];
  const wanted = new Map();
  for (const value of [true, false]) {
    for (const name of given.getAll(value ? "right" : "wrong")) {
      if (dataset.systems.includes(name)) wanted.set(name, value);
    }
  }
  return { dataset, language, at: language === ALL || at?.language === language ? at : null,
    wanted, disagree: given.has("disagree"), search: given.get("search") ?? "" };
}

function address(changes = {}) {
  const now = { ...state, ...changes };
  const { dataset, at } = now;
  const pairs = [["benchmark", dataset.benchmark], ["language", now.language]];
  if (index.datasets.some((set) => set !== dataset && set.benchmark === dataset.benchmark)) {
    pairs.unshift(["stage", dataset.stage]);
  }
  if (at) pairs.push(["question", `${at.language}:${at.id}`]);
  for (const [name, value] of now.wanted) pairs.push([value ? "right" : "wrong", name]);
  if (now.disagree) pairs.push(["disagree", "1"]);
  if (now.search) pairs.push(["search", now.search]);
  return PREFIX + new URLSearchParams(pairs);
}

/** Puts the state into the address: as a new entry of the history, or soon in place of this one. */
function remember(push) {
  const hash = address();
  if (push) {
    settle();
    if (hash !== location.hash) history.pushState(null, "", hash);
    return;
  }
  clearTimeout(waiting?.timer); // browsers refuse hundreds of changes within seconds
  waiting = { hash, timer: setTimeout(settle, 200) };
}

function settle() {
  if (!waiting) return;
  clearTimeout(waiting.timer);
  history.replaceState(null, "", waiting.hash);
  waiting = null;
}

// ---- filters

/** Whether each row of the language holds the query. */
function found({ haystack, starts }, query) {
  const hits = new Uint8Array(starts.length - 1);
  let row = 0;
  for (let at = haystack.indexOf(query); at >= 0; at = haystack.indexOf(query, starts[row])) {
    while (starts[row + 1] <= at) row++;
    hits[row++] = 1;
  }
  return hits;
}

function passes(loaded, row) {
  const { systems } = loaded.dataset;
  let right = false, wrong = false;
  for (let system = 0; system < systems.length; system++) {
    const is = correct(loaded, system, row);
    const wanted = state.wanted.get(systems[system]);
    if (wanted !== undefined && is !== wanted) return false;
    if (is === true) right = true;
    if (is === false) wrong = true;
  }
  return !state.disagree || (right && wrong);
}

function filter(parts) {
  const query = plain(state.search.trim());
  const passed = [];
  for (const loaded of parts) {
    const hits = query ? found(loaded, query) : null;
    for (let row = 0; row < loaded.ids.length; row++) {
      if ((!hits || hits[row]) && passes(loaded, row)) passed.push({ loaded, row });
    }
  }
  return passed;
}

const update = (options) => refresh(options).catch(fail);

/** Filters and shows; a question that no longer passes is left, unless `keep` asks for it. */
async function refresh({ keep = false, push = null } = {}) {
  const turn = ++latest;
  root.setAttribute("aria-busy", "true");
  renderControls();
  const { dataset } = state;
  const wanted = dataset.languages.filter(({ code }) => [ALL, code].includes(state.language));
  const parts = [];
  for (const language of wanted) { // one after the other: memory, and the count below
    if (!unpacked.has(language.block)) {
      count.textContent = `Unpacking ${language.name} (${parts.length + 1} of ${wanted.length})`;
    }
    parts.push(await load(dataset, language));
    if (turn !== latest) return;
  }
  matches = filter(parts);
  const { at } = state;
  const isAt = ({ loaded, row: number }) =>
    loaded.language.code === at?.language && loaded.ids[number] === at.id;
  const home = parts.find((loaded) => loaded.language.code === at?.language);
  const row = home?.rowOf.get(at.id);
  const linked = keep && row !== undefined ? { loaded: home, row } : null;
  show(matches.find(isAt) ?? linked ?? matches[0] ?? null);
  const total = parts.reduce((sum, { ids }) => sum + ids.length, 0);
  const [some, all] = [matches.length, total].map((number) => number.toLocaleString("en"));
  count.textContent = `${some} of ${all} questions`;
  renderList(true);
  if (push !== null) remember(push);
  root.setAttribute("aria-busy", "false");
}

const isBusy = () => root.getAttribute("aria-busy") === "true";
const place = () => matches.findIndex(
  ({ loaded, row }) => loaded === current?.loaded && row === current?.row);

/** Makes a question the shown one, without filtering again. */
function show(match) {
  current = match;
  state.at = match && { language: match.loaded.language.code, id: match.loaded.ids[match.row] };
  renderDetail();
}

function select(number, push) {
  if (!matches.length || isBusy()) return;
  show(matches[Math.max(0, Math.min(matches.length - 1, number))]);
  renderList(true);
  remember(push);
}

const move = (step) => select(place() < 0 ? 0 : place() + step, false);

function button(label, attributes, action) {
  const element = make("button", { type: "button", class: "x-button", ...attributes }, label);
  element.addEventListener("click", action);
  return element;
}

function renderControls() {
  const { dataset, language } = state;
  const stages = [...new Set(index.datasets.map(({ stage }) => stage))];
  const sets = index.datasets.filter(({ stage }) => stage === dataset.stage);
  part("stage-field").hidden = stages.length < 2;
  fillSelect(stageSelect, stages.map((name) => [name, name]), dataset.stage);
  const benchmarks = sets.map((set) => [set.benchmark, set.benchmark]);
  fillSelect(benchmarkSelect, benchmarks, dataset.benchmark);
  fillSelect(languageSelect, [...(dataset.languages.length > 1 ? [[ALL, "All languages"]] : []),
    ...dataset.languages.map(({ code, name }) => [code, `${name} (${code})`])], language);
  if (search.value !== state.search) search.value = state.search;
  disagree.setAttribute("aria-pressed", state.disagree);
  reset.disabled = !(state.wanted.size || state.disagree || state.search);
  const shown = [...filters.children].map((group) => group.dataset.name);
  if (JSON.stringify(shown) !== JSON.stringify(dataset.systems)) {
    filters.replaceChildren(...dataset.systems.map(systemFilter));
  }
  for (const toggle of filters.querySelectorAll("button")) { // kept elements keep the focus
    const wanted = state.wanted.get(toggle.parentElement.dataset.name);
    toggle.setAttribute("aria-pressed", verdict(wanted) === toggle.dataset.is);
  }
}

function fillSelect(element, pairs, chosen) {
  element.replaceChildren(...pairs.map(([value, text]) => make("option", { value }, text)));
  element.value = chosen;
}

function systemFilter(name) {
  const toggle = (value) => button(TEXTS[verdict(value)], { "data-is": verdict(value) }, () => {
    if (state.wanted.get(name) === value) state.wanted.delete(name);
    else state.wanted.set(name, value);
    update({ push: true });
  });
  return make("div", { class: "x-system", role: "group", "aria-label": name,
    "data-name": name },
    make("bdi", {}, name), toggle(true), toggle(false));
}

const rowHeight = () => ROW_REM * parseFloat(getComputedStyle(document.documentElement).fontSize);

/** Draws the rows of the list in sight, anew where `reveal` scrolls to the shown question. */
function renderList(reveal = false) {
  const chosen = place();
  const height = rowHeight();
  rows.style.height = `${matches.length * height}px`;
  if (reveal) {
    const top = Math.max(0, chosen) * height;
    list.scrollTop = Math.max(top + height - list.clientHeight, Math.min(top, list.scrollTop));
  }
  const first = Math.max(0, Math.floor(list.scrollTop / height) - 3);
  const last = Math.min(matches.length, first + Math.ceil(list.clientHeight / height) + 6);
  if (!reveal && drawn.first === first && drawn.last === last) return;
  drawn = { first, last };
  const numbers = Array.from({ length: last - first }, (_, step) => first + step);
  rows.replaceChildren(...numbers.map((number) => listRow(number, number === chosen, height)));
  if (chosen >= first && chosen < last) {
    list.setAttribute("aria-activedescendant", `explorer-row-${chosen}`);
  } else list.removeAttribute("aria-activedescendant");
}

function listRow(number, chosen, height) {
  const { loaded, row } = matches[number];
  const { systems } = loaded.dataset;
  const { code } = loaded.language;
  const marks = systems.map((name, system) => {
    const is = verdict(correct(loaded, system, row));
    const label = `${name}: ${TEXTS[is]}`;
    return make("span", { class: `x-mark x-${is}`, title: label, role: "img", "aria-label": label },
      { right: "✓", wrong: "✗", none: "·" }[is]);
  });
  const element = make("div", { role: "option", id: `explorer-row-${number}`, class: "x-row",
    "aria-selected": chosen, "aria-setsize": matches.length, "aria-posinset": number + 1 },
  make("div", { class: "x-row-head" },
    ...(state.language === ALL ? [make("span", { class: "x-language" }, code)] : []),
    make("bdi", { class: "x-id" }, loaded.ids[row]), make("span", { class: "x-marks" }, ...marks)),
  make("div", { class: "x-snippet", dir: "auto", lang: code }, loaded.questions[row]));
  element.style.top = `${number * height}px`;
  element.dataset.number = number;
  return element;
}

// ---- one question

function renderDetail() {
  hideTip();
  if (!current) {
    detail.replaceChildren(make("p", { class: "x-message" }, "No question passes the filters."));
    return;
  }
  const { loaded, row } = current;
  const { dataset } = loaded;
  const { at } = state;
  const { code, name } = loaded.language;
  const number = place();
  const step = (by, label, glyph) => button(glyph, { "aria-label": label, title: label,
    ...(matches[number + by] && number >= 0 ? {} : { disabled: "" }) }, () => {
    move(by);
    [...detail.querySelectorAll("button")].find((other) => other.title === label)?.focus();
  });
  const others = dataset.languages
    .filter((language) => language.code !== code && has(language, at.id))
    .map((language) => make("a", { title: language.name, href: address({
      language: state.language === ALL ? ALL : language.code,
      at: { language: language.code, id: at.id } }) }, language.code));
  detail.replaceChildren(
    make("header", { class: "x-head" },
      make("h3", {}, make("bdi", {}, at.id), make("small", {}, name),
        ...(number < 0 ? [make("small", {}, "outside the filters")] : [])),
      make("div", { class: "x-actions" }, step(-1, "Previous question (k)", "↑"),
        step(1, "Next question (j)", "↓"), button("Copy link", {}, copyLink))),
    make("p", { class: "x-question", dir: "auto", lang: code }, loaded.questions[row]),
    make("p", { class: "x-facts" }, "Right answer ",
      make("strong", { dir: "auto" }, String(loaded.answers[row]))),
    ...(others.length ? [make("div", { class: "x-others", role: "navigation",
      "aria-label": "The question in other languages" }, "In other languages ", ...others)] : []),
    prompt(loaded.questions[row]),
    make("div", { class: "x-cards" }, ...dataset.systems.map((_, system) => card(system))));
  detail.dispatchEvent(new Event("drawn", { bubbles: true })); // the page hides systems
}

const idSets = new Map();
function has(language, id) {
  if (!idSets.has(language.ids)) idSets.set(language.ids, new Set(index.ids[language.ids]));
  return idSets.get(language.ids).has(id);
}

async function copyLink({ target }) {
  remember(false);
  settle();
  try {
    await navigator.clipboard.writeText(location.href);
    target.textContent = "Copied";
  } catch { // some browsers keep the clipboard from files
    target.textContent = "It is in the address bar";
  }
}

function prompt(question) {
  const { systems, templates } = current.loaded.dataset;
  const different = [...new Set(templates.filter(Boolean))];
  if (!different.length) return "";
  return make("details", { class: "x-prompt" }, make("summary", {}, "Prompt"),
    ...different.flatMap((template) => [
      ...(different.length > 1 ? [make("p", {}, "of ", make("bdi", {},
        systems.filter((_, system) => templates[system] === template).join(", ")))] : []),
      make("pre", { dir: "auto" }, template.replace("{instruction}", () => question))]));
}

// ---- events

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { key, target } = event;
  if (key === "Escape") {
    hideTip();
    if (target === search) {
      event.preventDefault(); // the text stays
      list.focus();
    }
  }
  if (target.closest("input, select, textarea, [contenteditable]")) return;
  const page = Math.max(1, Math.floor(list.clientHeight / rowHeight()) - 1);
  const inList = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page,
    Home: -matches.length, End: matches.length };
  const steps = { j: 1, k: -1, ...(target === list ? inList : {}) };
  if (key === "/") search.focus();
  else if (key in steps) move(steps[key]);
  else if (target.matches(".x-token") && ["ArrowLeft", "ArrowRight"].includes(key)) {
    moveToken(target, key === "ArrowRight" ? 1 : -1);
  } else return;
  event.preventDefault();
}

function listen() {
  const change = (element, event, push, set) => element.addEventListener(event, () => {
    set(element.value);
    update({ push });
  });
  const open = (dataset) => {
    const { language } = state;
    const kept = language === ALL || dataset.languages.some(({ code }) => code === language);
    const wanted = [...state.wanted].filter(([name]) => dataset.systems.includes(name));
    Object.assign(state, { dataset, wanted: new Map(wanted),
      language: kept ? language : dataset.languages[0].code });
  };
  const { datasets } = index;
  change(stageSelect, "change", true, (name) => open(
    datasets.find((set) => set.stage === name && set.benchmark === state.dataset.benchmark)
    ?? datasets.find((set) => set.stage === name)));
  change(benchmarkSelect, "change", true, (name) => open(
    datasets.find((set) => set.stage === state.dataset.stage && set.benchmark === name)));
  change(languageSelect, "change", true, (code) => {
    if (code !== ALL && state.at) state.at = { language: code, id: state.at.id };
    state.language = code;
  });
  change(search, "input", false, (text) => { state.search = text; });
  change(disagree, "click", true, () => { state.disagree = !state.disagree; });
  change(reset, "click", true, () => {
    Object.assign(state, { wanted: new Map(), disagree: false, search: "" });
  });
  list.addEventListener("scroll", () => renderList());
  list.addEventListener("click", ({ target }) => {
    const row = target.closest("[data-number]");
    if (!row) return;
    select(Number(row.dataset.number), true);
    if (detail.offsetLeft === list.offsetLeft) detail.scrollIntoView(); // one column: a phone
  });
  const tokenOf = ({ target }) => target.closest?.(".x-token");
  for (const name of ["mouseover", "focusin"]) {
    root.addEventListener(name, (event) => (tokenOf(event) ? showTip(tokenOf(event)) : hideTip()));
  }
  root.addEventListener("mouseleave", hideTip);
  addEventListener("scroll", followScroll, { passive: true });
  addEventListener("resize", () => renderList());
  document.addEventListener("keydown", onKey);
  addEventListener("hashchange", () => {
    if (!location.hash || location.hash.startsWith(PREFIX)) follow();
  });
}

/** Shows what the address says. */
async function follow() {
  clearTimeout(waiting?.timer);
  waiting = null;
  state = parse(location.hash);
  await update({ keep: true });
  const { top, bottom } = root.getBoundingClientRect();
  if (location.hash && (top > innerHeight || bottom < 0)) root.scrollIntoView();
}

function fail(reason) {
  message.textContent = `The answers cannot be shown: ${reason}`;
  message.hidden = false;
  root.setAttribute("aria-busy", "false");
}

async function start() {
  if (!("DecompressionStream" in window)) {
    throw new Error("this browser has no DecompressionStream, as all have since 2023");
  }
  index = await unpack("explorer-index");
  view.hidden = false;
  listen();
  await follow();
}

start().catch(fail);
