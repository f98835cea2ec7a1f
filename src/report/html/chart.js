// Drawing: one area chart for each course, on one scale.

const SVG = document.querySelector("svg")?.namespaceURI;
const MARGIN = { left: 62, right: 10, top: 26, bottom: 24 };
const STRIP = 5;

/** An element with attributes and children; texts become text and nothing else. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function drawn(tag, attributes = {}, text = null) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) {
    made.setAttribute(name, typeof value === "number" ? String(Math.round(value * 100) / 100) : value);
  }
  if (text !== null) {
    made.textContent = text;
  }
  return made;
}

const UNITS = {
  B: [1024, ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]],
  FLOP: [1000, ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"]],
};

/** As the tool writes amounts: one digit, two of a few GiB, rounded to the even one where two are as near. */
function format(amount, unit = "B") {
  const [base, names] = UNITS[unit];
  let size = Number(amount);
  let name = 0;
  while (name + 1 < names.length && Math.abs(size) >= base - 0.05) {
    size /= base;
    name += 1;
  }
  if (name === 0) {
    return `${amount} ${names[0]}`;
  }
  const digits = unit === "B" && name >= 3 && Math.abs(size) < 9.995 ? 2 : 1;
  const power = 10 ** digits;
  const parts = Math.abs(size) * power;
  let whole = Math.floor(parts);
  const rest = parts - whole;
  whole += rest > 0.5 || (rest === 0.5 && whole % 2 === 1) ? 1 : 0;
  const decimals = String(whole % power).padStart(digits, "0");
  return `${size < 0 ? "-" : ""}${Math.floor(whole / power)}.${decimals} ${names[name]}`;
}

/** Every byte of it, for a title. */
const exact = (amount, unit = "B") => `${String(amount).replace(/\B(?=(\d{3})+$)/g, "\u202f")} ${unit}`;

/** Round numbers of bytes from 0 to a maximum, about five of them. */
function ticks(most) {
  let unit = 1;
  while (unit * 1024 <= most / 2) {
    unit *= 1024;
  }
  const steps = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000];
  const step = Math.max(1, unit * (steps.find((size) => most / (size * unit) <= 5) ?? 1000));
  const found = [];
  for (let tick = 0; tick <= most; tick += step) {
    found.push(tick);
  }
  return found;
}

/** For each column of pixels the step with the most bytes in it, so that no peak is lost between two. */
function columnsOf(measured, width) {
  const { steps, total } = measured;
  if (steps <= width) {
    return Array.from({ length: steps }, (_, step) => step);
  }
  const columns = [];
  for (let column = 0; column < width; column += 1) {
    const start = Math.floor((column * steps) / width);
    const end = Math.floor(((column + 1) * steps) / width);
    let best = start;
    for (let step = start + 1; step < end; step += 1) {
      best = total[step] > total[best] ? step : best;
    }
    columns.push(best);
  }
  return columns;
}

/** Where a name of a band can stand inside it: the place with the most room, or null. */
function roomFor(text, edges, left, right, scale) {
  const half = (text.length * 6.6) / 2 + 6;
  const columns = edges.length;
  const pitch = (right - left) / columns;
  const reach = Math.ceil(half / pitch);
  let best = null;
  for (let middle = reach; middle + reach < columns; middle += Math.max(1, Math.floor(6 / pitch))) {
    let low = 0;
    let high = Infinity;
    for (let column = middle - reach; column <= middle + reach; column += 1) {
      low = Math.max(low, edges[column][0]);
      high = Math.min(high, edges[column][1]);
    }
    const room = scale(low) - scale(high);
    // Of places as good the one nearest to the middle.
    const worth = room - Math.abs(middle / columns - 0.5) * 4;
    if (room >= 17 && (best === null || worth > best.worth)) {
      best = { worth, x: left + (middle + 0.5) * pitch, y: (scale(low) + scale(high)) / 2 };
    }
  }
  return best;
}

/** Draws a course into a frame; returns what turns steps into places and places into steps. */
function drawChart(svg, measured, options) {
  const { width, most, base, categories, other } = options;
  const height = options.height ?? (width < 480 ? 190 : 240);
  const left = MARGIN.left;
  const right = width - MARGIN.right;
  const bottom = height - MARGIN.bottom;
  const scale = (bytes) => bottom - (bytes / most) * (bottom - MARGIN.top);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren();

  for (const tick of ticks(most)) {
    svg.append(drawn("line", { class: "grid", x1: left, x2: right, y1: scale(tick), y2: scale(tick) }));
    const label = tick === 0 ? "0" : format(tick).replace(".0 ", " ");
    svg.append(drawn("text", { class: "tick", x: left - 8, y: scale(tick) + 4 }, label));
  }

  const columns = columnsOf(measured, Math.max(1, Math.floor(right - left)));
  const pitch = (right - left) / Math.max(1, columns.length);
  const lower = new Float64Array(columns.length);
  const labels = [];
  categories.forEach((category, number) => {
    const edges = columns.map((step, column) => {
      const from = lower[column];
      lower[column] += measured.live[number][step] + (base ? measured.base[number] : 0);
      return [from, lower[column]];
    });
    if (!edges.some(([from, to]) => to > from)) {
      return;
    }
    const x = (column) => (left + column * pitch).toFixed(2);
    let path = `M${x(0)},${scale(edges[0][1]).toFixed(2)}`;
    edges.forEach(([, to], column) => {
      path += `V${scale(to).toFixed(2)}H${x(column + 1)}`;
    });
    for (let column = edges.length - 1; column >= 0; column -= 1) {
      path += `V${scale(edges[column][0]).toFixed(2)}H${x(column)}`;
    }
    svg.append(drawn("path", { class: "band", fill: `url(#fill-${category.key})`, d: `${path}Z` }));
    const room = roomFor(category.title, edges, left, right, scale);
    if (room) {
      labels.push(drawn("text", { class: "name", x: room.x, y: room.y + 4 }, category.title));
    }
  });
  const chosen = drawn("line", { class: "chosen", y1: MARGIN.top, y2: bottom, visibility: "hidden" });
  const pointed = drawn("line", { class: "pointed", y1: MARGIN.top, y2: bottom, visibility: "hidden" });
  svg.append(chosen, pointed, ...labels);
  drawHalves(svg, measured, left, right, bottom);

  const place = (step) => left + ((step + 0.5) / Math.max(1, measured.steps)) * (right - left);
  const shift = base ? measured.baseBytes : 0;
  if (other !== null && other + shift <= most * 1.001) {
    const y = scale(other + shift);
    svg.append(drawn("line", { class: "other", x1: left, x2: right, y1: y, y2: y }));
    // At the end where the peak's own name is not.
    const far = measured.peak * 2 < measured.steps ? ["end", right] : ["start", left];
    const at = { class: "other-name", "text-anchor": far[0], x: far[1], y: y - 6 };
    svg.append(drawn("text", at, `peak ${options.otherTitle}`));
  }
  if (measured.steps > 0) {
    const [x, y] = [place(measured.peak), scale(measured.peakBytes + shift)];
    const all = shift > 0 ? `, ${format(measured.peakBytes + shift)} in all` : "";
    const text = `peak ${format(measured.peakBytes)}${all}`;
    const half = (text.length * 6.6) / 2;
    const middle = Math.min(Math.max(x, left + half), right - half);
    svg.append(drawn("path", { class: "peak", d: `M${x.toFixed(2)},${(y - 2).toFixed(2)}l-5,-8h10Z` }));
    svg.append(drawn("text", { class: "peak-name", x: middle, y: y - 14 }, text));
  }
  return {
    chosen,
    pointed,
    place,
    step: (x) => {
      const share = (x * width - left) / (right - left);
      return Math.min(Math.max(Math.floor(share * measured.steps), 0), measured.steps - 1);
    },
  };
}

/** Below the chart: which steps belong to which half of the training step. */
function drawHalves(svg, measured, left, right, bottom) {
  // What reaches no output (a pin) counts to what it stands in.
  let previous = "n";
  const halves = Array.from(measured.course.steps.half, (half) => (previous = half === "n" ? previous : half));
  const x = (step) => left + (step / Math.max(1, halves.length)) * (right - left);
  const names = { f: "forward", b: "backward" };
  const places = { f: [], b: [] };
  for (let start = 0; start < halves.length; ) {
    let end = start + 1;
    while (end < halves.length && halves[end] === halves[start]) {
      end += 1;
    }
    const half = halves[start];
    if (names[half]) {
      const at = { x: x(start), y: bottom + 3, width: x(end) - x(start), height: STRIP };
      svg.append(drawn("rect", { class: `half ${names[half]}`, ...at }));
      for (let step = start; step < end; step += 1) {
        places[half].push(step);
      }
    }
    start = end;
  }
  for (const [half, steps] of Object.entries(places)) {
    if (x(steps.length) - left > 64) {
      const middle = x(steps[Math.floor(steps.length / 2)]);
      svg.append(drawn("text", { class: "half-name", x: middle, y: bottom + 3 + STRIP + 12 }, names[half]));
    }
  }
}

