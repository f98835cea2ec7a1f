// What is alive in which step: the tool's model of lifetimes, at any sizes.

/** The bytes of tensors by number of expression; null where they are not known. */
function bytesOf(tensors, values) {
  return tensors.bytes.map((expression) => {
    const value = expression < 0 ? null : values[expression];
    return value === null || value < 0n ? null : value;
  });
}

/**
 * A course at some sizes: bytes by category for each step. Null where the bytes are too many to be added up
 * exactly.
 */
function measure(course, values, categories) {
  const { buffers, held } = course;
  const wide = bytesOf(buffers, values);
  const throughout = bytesOf(held, values);
  const everything = [...wide, ...throughout].reduce((total, bytes) => total + (bytes ?? 0n), 0n);
  if (everything > BigInt(Number.MAX_SAFE_INTEGER)) {
    return null;
  }
  const known = wide.map((bytes) => (bytes === null ? null : Number(bytes)));
  const bytes = known.map((number) => number ?? 0);

  // An element-wise result is written over the first operand that dies and is as large.
  const over = new Map();
  for (const [number, candidates] of buffers.over) {
    const old = candidates.find((candidate) => known[number] !== null && known[candidate] === known[number]);
    if (old !== undefined) {
      over.set(number, old);
    }
  }
  const leaves = buffers.last.slice();
  for (const [number, old] of over) {
    leaves[old] = buffers.born[number] - 1;
  }

  const steps = course.steps.node.length;
  const live = categories.map(() => new Float64Array(steps + 1));
  bytes.forEach((size, number) => {
    const share = live[buffers.category[number]];
    share[buffers.born[number]] += size;
    share[Math.min(leaves[number] + 1, steps)] -= size;
  });
  const total = new Float64Array(steps);
  for (const share of live) {
    for (let step = 0; step < steps; step += 1) {
      if (step > 0) {
        share[step] += share[step - 1];
      }
      total[step] += share[step];
    }
  }
  let peak = 0;
  for (let step = 1; step < steps; step += 1) {
    if (total[step] > total[peak]) {
      peak = step;
    }
  }
  const base = categories.map(() => 0);
  throughout.forEach((size, number) => {
    base[held.category[number]] += Number(size ?? 0n);
  });
  const isSaved = (category) => categories[category].key.startsWith("saved-");
  return {
    course,
    steps,
    known,
    over,
    leaves,
    live,
    total,
    peak,
    peakBytes: steps > 0 ? total[peak] : 0,
    base,
    baseBytes: base.reduce((sum, size) => sum + size, 0),
    savedBytes: bytes.reduce((sum, size, number) => (isSaved(buffers.category[number]) ? sum + size : sum), 0),
    unknown: known.filter((size) => size === null).length,
  };
}

/** The numbers of the buffers that are alive in a step, largest first. */
function aliveAt(measured, step) {
  const { buffers } = measured.course;
  const alive = [];
  for (let number = 0; number < buffers.born.length; number += 1) {
    if (buffers.born[number] <= step && step <= measured.leaves[number]) {
      alive.push(number);
    }
  }
  const size = (number) => measured.known[number] ?? -1;
  return alive.sort((a, b) => size(b) - size(a) || a - b);
}

