// The page: sizes to try, the charts, what is alive in a step, and tables that can be sorted.

/** Longer tables show some rows until all are asked for; paper shows all. */
const LONG = 25;
/** More tensors of a step than this are not listed. */
const LISTED = 2000;

const block = document.getElementById("data");
const data = block ? JSON.parse(block.textContent) : null;
const expressions = (data?.expressions ?? []).map(parseExpression);
const categories = data?.categories ?? [];
const initial = (data?.symbols ?? []).map((symbol) => BigInt(symbol.size));

/** What the page shows at the moment. */
const state = {
  sizes: initial.slice(),
  values: [],
  measured: [],
  /** The step chosen in each course, and the course whose tensors are listed. */
  chosen: [],
  listed: 0,
  base: true,
  panels: [],
};

const text = (number) => data.texts[number];
const label = (course, step) => `${text(course.steps.node[step])} (${text(course.steps.op[step])})`;
const HALVES = { f: "forward", b: "backward", n: "reaches no output" };

function recompute() {
  state.values = expressions.map((expression) => evaluate(expression, state.sizes));
  state.measured = (data?.courses ?? []).map((course) => measure(course, state.values, categories));
  state.chosen = state.measured.map((measured, side) =>
    measured === null ? 0 : (state.follow?.[side] ?? true) ? measured.peak : state.chosen[side],
  );
}

// Amounts in the tables.

function refreshAmounts() {
  for (const cell of document.querySelectorAll("[data-x]")) {
    show(cell, state.values[Number(cell.dataset.x)]);
  }
  for (const cell of document.querySelectorAll("[data-v]:not([data-x])")) {
    cell.title = exact(cell.dataset.v, cell.dataset.unit);
  }
  for (const row of document.querySelectorAll(".totals tbody tr")) {
    const cells = row.querySelectorAll("td");
    if (row.classList.contains("is-peak") && state.measured.length > 0) {
      const first = state.measured[0];
      const last = state.measured.at(-1);
      [first, last].forEach((measured, side) => {
        show(cells[side], measured === null || measured.unknown > 0 ? null : BigInt(measured.peakBytes));
      });
    }
    const [before, after] = [cells[0], cells[1]].map((cell) => Number(cell.dataset.v ?? NaN));
    cells[2].textContent = before > 0 && after >= 0 ? `${((100 * after) / before).toFixed(1)}%` : "";
  }
  const widths = [...document.querySelectorAll("td.bar")].map((cell) => {
    return [cell.querySelector("span"), Number(cell.nextElementSibling.dataset.v ?? 0)];
  });
  const most = widths.reduce((most, [, bytes]) => Math.max(most, bytes), 1);
  for (const [bar, bytes] of widths) {
    bar.style.width = `${(100 * bytes) / most}%`;
  }
}

function show(cell, value) {
  if (value === null) {
    cell.textContent = "?";
    cell.removeAttribute("data-v");
    cell.removeAttribute("title");
  } else {
    cell.textContent = format(value, cell.dataset.unit);
    cell.dataset.v = String(value);
    cell.title = exact(value, cell.dataset.unit);
  }
}

// Sorting.

function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = element("button", { type: "button" }, ...head.childNodes);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") === "descending";
      const first = !head.hasAttribute("aria-sort") && !isNumeric(head);
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", ascending || first ? "ascending" : "descending");
      sortRows(table, column, ascending || first, isNumeric(head));
    });
  });
}

/** Hides the end of a long table behind a button. */
function shorten(table) {
  const rows = table.tBodies[0].rows.length;
  if (rows <= LONG) {
    return;
  }
  table.classList.add("is-short");
  const more = element("button", { type: "button", class: "more" }, `Show all ${rows}`);
  more.addEventListener("click", () => {
    table.classList.remove("is-short");
    more.remove();
  });
  table.closest(".scroll").after(more);
}

const isNumeric = (head) => head.classList.contains("n") || head.classList.contains("bar");

function keyOf(cell, numeric) {
  if (!numeric) {
    return cell.textContent;
  }
  const holder = cell.classList.contains("bar") ? cell.nextElementSibling : cell;
  if (holder.dataset.v !== undefined) {
    return BigInt(holder.dataset.v);
  }
  const number = Number.parseFloat(holder.textContent.replaceAll(",", ""));
  return Number.isNaN(number) ? null : number;
}

/** Stable; what is not known stays at the end either way. */
function sortRows(table, column, ascending, numeric) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [keyOf(row.cells[column], numeric), row]);
  rows.sort(([a], [b]) => {
    if (a === null || b === null) {
      return (a === null) - (b === null);
    }
    const order = numeric ? (a < b ? -1 : a > b ? 1 : 0) : a.localeCompare(b, "en", { numeric: true });
    return ascending ? order : -order;
  });
  body.append(...rows.map(([, row]) => row));
}

// Sizes.

function sizesForm() {
  const form = element("form", { class: "sizes", "aria-label": "Sizes" });
  const inputs = data.symbols.map((symbol, number) => {
    const input = element("input", { type: "number", min: "1", step: "1", required: "", value: String(symbol.size) });
    input.addEventListener("input", () => {
      if (input.checkValidity() && /^\d+$/.test(input.value)) {
        state.sizes[number] = BigInt(input.value);
        state.follow = state.follow?.map(() => true);
        refresh();
      }
    });
    return input;
  });
  const field = (number) => element("label", {}, element("code", {}, data.symbols[number].name), inputs[number]);
  const numbers = data.symbols.map((_, number) => number);
  form.append(...numbers.filter((number) => data.symbols[number].input).map(field));
  const made = numbers.filter((number) => !data.symbols[number].input);
  if (made.length > 0) {
    const summary = element("summary", {}, "sizes that depend on data");
    form.append(element("details", {}, summary, ...made.map(field)));
  }
  const reset = element("button", { type: "reset" }, "Reset");
  form.append(reset);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => {
    state.sizes = initial.slice();
    refresh();
  });
  return form;
}

function sizesNote() {
  const listed = data.symbols.filter((symbol) => symbol.input);
  const at = listed.map((symbol) => `${symbol.name}\u00a0=\u00a0${symbol.size}`).join(", ");
  const moved = state.sizes.some((size, number) => size !== initial[number]);
  const parts = [
    `The order of the steps, and which layers are rewritten, were chosen at ${at}.`,
    moved ? "At these sizes another choice may be better: --dim makes it anew." : "Try other sizes here.",
  ];
  const fixed = Math.max(...data.courses.map((course) => course.fixed));
  if (moved && fixed > 0) {
    parts.push(`${fixed} tensors keep the bytes that they have there: how they depend on the sizes is not known.`);
  }
  return parts.join(" ");
}

// Charts.

function buildPanel(course, side) {
  const svg = drawn("svg", { "aria-hidden": "true" });
  const plot = element("div", {
    class: "plot",
    role: "slider",
    tabindex: "0",
    "aria-label": `Step of the schedule, ${course.title}. Enter lists the tensors alive there.`,
  });
  plot.append(svg);
  const peak = element("button", { type: "button", class: "to-peak" });
  const readout = element("p", { class: "readout" });
  const title = element("h3", {}, course.title);
  const figure = element("figure", { class: "panel" }, element("figcaption", {}, title, peak), plot, readout);
  const panel = { svg, plot, peak, readout, figure, at: null, drawing: null };
  peak.addEventListener("click", () => choose(side, state.measured[side].peak, true));
  plot.addEventListener("pointermove", (event) => point(side, stepUnder(panel, event)));
  plot.addEventListener("pointerleave", () => point(side, null));
  plot.addEventListener("click", (event) => choose(side, stepUnder(panel, event), true));
  plot.addEventListener("keydown", (event) => moveBy(side, event));
  return panel;
}

function stepUnder(panel, event) {
  const frame = panel.svg.getBoundingClientRect();
  return panel.drawing.step((event.clientX - frame.left) / frame.width);
}

function moveBy(side, event) {
  const measured = state.measured[side];
  if (measured === null) {
    return;
  }
  const page = Math.max(1, Math.round(measured.steps / 20));
  const moves = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: page, PageDown: -page };
  const here = state.chosen[side];
  const to = { Home: 0, End: measured.steps - 1, p: measured.peak, Enter: here, " ": here }[event.key];
  const step = to ?? here + (moves[event.key] ?? NaN);
  if (Number.isNaN(step) || event.ctrlKey || event.metaKey || event.altKey) {
    return;
  }
  event.preventDefault();
  choose(side, Math.min(Math.max(step, 0), measured.steps - 1), event.key === "Enter" || event.key === " ");
}

/** Where the pointer is; null where it has left. */
function point(side, step) {
  state.panels[side].at = step;
  refreshStep(side);
  refreshLegend();
}

/** Chooses a step, and lists what is alive there where that is asked. */
function choose(side, step, list) {
  state.chosen[side] = step;
  state.follow ??= state.measured.map(() => true);
  state.follow[side] = step === state.measured[side].peak;
  refreshStep(side);
  refreshLegend();
  if (list) {
    state.listed = side;
    refreshAlive();
  } else if (state.listed === side) {
    refreshAlive();
  }
}

const current = (side) => state.panels[side].at ?? state.chosen[side];

function refreshStep(side) {
  const panel = state.panels[side];
  const measured = state.measured[side];
  if (measured === null || measured.steps === 0 || panel.drawing === null) {
    return;
  }
  const step = current(side);
  const { course } = measured;
  const where = `step ${step + 1} of ${measured.steps}`;
  const what = `${label(course, step)}, ${HALVES[course.steps.half[step]]}`;
  panel.readout.textContent = `${where}: ${what}`;
  const plot = panel.plot;
  plot.setAttribute("aria-valuemin", "1");
  plot.setAttribute("aria-valuemax", String(measured.steps));
  plot.setAttribute("aria-valuenow", String(state.chosen[side] + 1));
  const alive = format(measured.total[state.chosen[side]]);
  plot.setAttribute("aria-valuetext", `${where}, ${alive} alive, ${what}`);
  place(panel.drawing.chosen, panel.drawing.place(state.chosen[side]));
  place(panel.drawing.pointed, panel.at === null ? null : panel.drawing.place(panel.at));
}

function place(line, x) {
  line.setAttribute("visibility", x === null ? "hidden" : "visible");
  line.setAttribute("x1", String(x ?? 0));
  line.setAttribute("x2", String(x ?? 0));
}

function draw(width = null, height = null) {
  const top = state.measured.map((m) => (m === null ? 0 : m.peakBytes + (state.base ? m.baseBytes : 0)));
  const most = Math.max(1, ...top) * 1.02;
  state.panels.forEach((panel, side) => {
    const measured = state.measured[side];
    panel.figure.classList.toggle("is-too-large", measured === null);
    if (measured === null) {
      panel.svg.replaceChildren();
      panel.drawing = null;
      panel.peak.textContent = "";
      panel.readout.textContent = "Over 8 PiB: too many bytes to be added up here.";
      return;
    }
    const options = {
      width: Math.max(width ?? panel.plot.clientWidth, 200),
      height,
      most,
      base: state.base,
      categories,
      otherTitle: data.courses[0].title,
      other: side > 0 && state.measured[0] ? state.measured[0].peakBytes : null,
    };
    panel.drawing = drawChart(panel.svg, measured, options);
    const unknown = measured.unknown > 0 ? `; ${measured.unknown} tensors of unknown size count nothing` : "";
    panel.peak.textContent = `peak ${format(measured.peakBytes)} at step ${measured.peak + 1}${unknown}`;
    panel.peak.title = exact(measured.peakBytes);
    refreshStep(side);
  });
}

// The legend: bytes by category in the steps that are chosen or pointed at.

function buildLegend() {
  const swatch = (key) => {
    const svg = drawn("svg", { class: "swatch", viewBox: "0 0 14 14", "aria-hidden": "true" });
    svg.append(drawn("rect", { width: 14, height: 14, fill: `url(#fill-${key})` }));
    return svg;
  };
  const head = element("tr", {}, element("td"));
  const body = element("tbody");
  for (let number = categories.length - 1; number >= 0; number -= 1) {
    const { key, title } = categories[number];
    const row = element("tr", { "data-key": key }, element("th", { scope: "row" }, swatch(key), title));
    body.append(row);
  }
  const foot = element("tfoot");
  for (const [key, title] of [["alive", "alive in the step"], ["together", "in all"]]) {
    foot.append(element("tr", { "data-key": key }, element("th", { scope: "row" }, title)));
  }
  const rows = [...body.rows, ...foot.rows];
  for (const course of data.courses) {
    head.append(element("th", { scope: "col", class: "n" }, course.title));
    rows.forEach((row) => row.append(element("td", { class: "n" })));
  }
  return element("table", { class: "legend", "aria-label": "Bytes by category" }, element("thead", {}, head), body, foot);
}

function refreshLegend() {
  state.measured.forEach((measured, side) => {
    const step = current(side);
    const head = state.legend.tHead.rows[0].cells[side + 1];
    head.textContent = data.courses[side].title;
    head.append(element("small", {}, measured === null ? "" : `step ${step + 1}`));
    const set = (key, bytes) => {
      const cell = state.legend.querySelector(`[data-key="${key}"]`).cells[side + 1];
      cell.textContent = bytes === null ? "?" : format(bytes);
      cell.dataset.v = bytes === null ? "" : String(bytes);
      cell.classList.toggle("is-zero", bytes === 0);
    };
    categories.forEach(({ key }, number) => {
      const live = measured?.live[number][step] ?? 0;
      set(key, measured === null ? null : live + (state.base ? measured.base[number] : 0));
    });
    const alive = measured?.total[step] ?? 0;
    set("alive", measured === null ? null : alive);
    set("together", measured === null ? null : alive + measured.baseBytes);
  });
  // A category that occurs nowhere needs no line; without a base, inputs have none.
  categories.forEach(({ key }, number) => {
    const row = state.legend.querySelector(`[data-key="${key}"]`);
    const occurs = state.measured.some((measured) => {
      return measured !== null && ((state.base && measured.base[number] > 0) || measured.live[number].some((b) => b > 0));
    });
    row.hidden = !occurs;
  });
  state.legend.querySelector('[data-key="together"]').hidden = !state.base;
}

// What is alive in a step.

function refreshAlive() {
  const side = state.listed;
  const measured = state.measured[side];
  const box = state.alive;
  box.replaceChildren();
  if (measured === null || measured.steps === 0) {
    return;
  }
  const step = state.chosen[side];
  const { course } = measured;
  const numbers = aliveAt(measured, step);
  const peak = step === measured.peak ? "the peak" : `step ${step + 1}`;
  box.append(element("h3", {}, `Alive at ${peak}, ${course.title}`));
  const summary = `${numbers.length} tensors, ${format(measured.total[step])}, while ${label(course, step)} runs, step ${step + 1} of ${measured.steps}.`;
  box.append(element("p", { class: "note", role: "status" }, summary));

  const columns = [["share", "bar"], ["bytes", "n"], ["tensor", ""], ["what", ""], ["shape", ""], ["type", ""], ["made by", ""], ["needed by", ""]];
  const heads = columns.map(([title, kind]) => element("th", kind ? { scope: "col", class: kind } : { scope: "col" }, title));
  const body = element("tbody");
  const largest = Math.max(1, ...numbers.map((number) => measured.known[number] ?? 0));
  for (const number of numbers.slice(0, LISTED)) {
    body.append(aliveRow(measured, number, step, largest));
  }
  const table = element("table", { class: "sortable" }, element("thead", {}, element("tr", {}, ...heads)), body);
  box.append(element("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": `Tensors alive at ${peak}` }, table));
  makeSortable(table);
  shorten(table);
  if (numbers.length > LISTED) {
    box.append(element("p", { class: "note" }, `The ${LISTED} largest of them.`));
  }
}

function aliveRow(measured, number, step, largest) {
  const { course, known, over } = measured;
  const { buffers } = course;
  const bytes = known[number];
  const category = categories[buffers.category[number]];
  const bar = element("span", { class: `fill-${category.key}` });
  bar.style.width = `${(100 * (bytes ?? 0)) / largest}%`;
  const size = element("td", { class: "n" }, bytes === null ? "?" : format(bytes));
  if (bytes !== null) {
    size.dataset.v = String(bytes);
    size.title = exact(bytes);
  }
  const code = (content) => element("td", {}, element("code", {}, content));
  const born = buffers.born[number];
  const old = over.get(number);
  const written = old === undefined ? "" : `, over ${text(buffers.tensor[old])}`;
  return element(
    "tr",
    { "data-key": category.key },
    element("td", { class: "bar" }, element("div", {}, bar)),
    size,
    code(text(buffers.tensor[number])),
    element("td", { class: "what" }, category.title),
    element("td", { class: "shape" }, text(buffers.shape[number])),
    element("td", {}, text(buffers.dtype[number])),
    code(`${label(course, born)}${written}`),
    code(reasons(measured, number, step)),
  );
}

/** Why a tensor is still there: who reads it from here on. */
function reasons(measured, number, step) {
  const { course } = measured;
  const { buffers } = course;
  const names = buffers.readers[number].filter((reader) => reader >= step).map((reader) => label(course, reader));
  if (buffers.last[number] >= measured.steps) {
    names.push("leaves the graph");
  }
  if (names.length === 0) {
    return buffers.born[number] === step ? "made here, read by none" : "";
  }
  const shown = names.slice(0, 3).join(", ");
  return names.length > 3 ? `${shown}, ${names.length - 3} more` : shown;
}

// All of it.

function refresh() {
  recompute();
  refreshAmounts();
  if (state.panels.length > 0) {
    state.note.textContent = data.symbols.length > 0 ? sizesNote() : "";
    draw();
    refreshLegend();
    refreshAlive();
  }
}

function build() {
  document.documentElement.classList.add("scripted");
  for (const table of document.querySelectorAll("table.sortable")) {
    makeSortable(table);
    shorten(table);
  }
  const box = document.getElementById("schedule");
  if (data === null || box === null) {
    refresh();
    return;
  }
  state.note = element("p", { class: "note" });
  state.panels = data.courses.map(buildPanel);
  state.legend = buildLegend();
  state.alive = element("section", { class: "alive", "aria-label": "Tensors alive in a step" });
  const check = element("input", { type: "checkbox", checked: "" });
  check.addEventListener("change", () => {
    state.base = check.checked;
    draw();
    refreshLegend();
  });
  const base = element("label", { class: "base" }, check, "also what lies in memory throughout, which the peak does not count");
  const same = "Nothing is rewritten, so that it is the same afterwards.";
  const charts = element("div", { class: "panels" }, ...state.panels.map((panel) => panel.figure));
  if (state.panels.length === 1) {
    charts.append(element("p", { class: "note" }, same));
  }
  if (data.symbols.length > 0) {
    box.append(sizesForm());
  }
  box.append(state.note, element("div", { class: "charts" }, charts, element("div", { class: "side" }, state.legend, base)), state.alive);
  refresh();
  let width = box.clientWidth;
  new ResizeObserver(() => {
    if (box.clientWidth !== width) {
      width = box.clientWidth;
      draw();
    }
  }).observe(box);
  // Paper has a width of its own.
  addEventListener("beforeprint", () => draw(720, 185));
  addEventListener("afterprint", () => draw());
}

build();

// For the console, and for tests.
globalThis.velora = Object.freeze({ parseExpression, evaluate, format, data, state, aliveAt });
