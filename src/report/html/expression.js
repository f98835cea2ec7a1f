// Sizes as expressions: what the tool's own evaluator computes, with integers of any length.
//
// The text is what it writes: sums of products of numbers, symbols `s0`, `s1`, …, `(a//b)`, `CeilDiv`, `Mod`,
// `Max` and `Min`, with powers. The value is null where a divisor is 0 or a number does not fit.

const WIDEST = 1n << 127n;
const LONGEST = 1n << 63n;

/** An intermediate result; the tool holds it in 128 bits. */
function fits(value) {
  if (value >= WIDEST || value < -WIDEST) {
    throw new RangeError("a size does not fit");
  }
  return value;
}

function floorDivide(numerator, divisor) {
  if (divisor === 0n) {
    throw new RangeError("a size is divided by 0");
  }
  const quotient = numerator / divisor;
  const exact = quotient * divisor === numerator;
  return exact || (numerator < 0n) === (divisor < 0n) ? quotient : quotient - 1n;
}

const OPERATIONS = {
  CeilDiv: ([numerator, divisor]) => -floorDivide(fits(-numerator), divisor),
  FloorDiv: ([numerator, divisor]) => floorDivide(numerator, divisor),
  Mod: ([numerator, divisor]) => numerator - floorDivide(numerator, divisor) * divisor,
  Max: (operands) => operands.reduce((most, next) => (next > most ? next : most)),
  Min: (operands) => operands.reduce((least, next) => (next < least ? next : least)),
};

/** Reads an expression into a function from the symbols' values to its own. */
function parseExpression(text) {
  const tokens = text.match(/\d+|[A-Za-z]+\d*|\/\/|[()^·+,-]/g) ?? [];
  if (tokens.join("") !== text.replaceAll(" ", "")) {
    throw new SyntaxError(`no expression: ${text}`);
  }
  let place = 0;
  const take = (token) => tokens[place] === token && (place += 1, true);
  const expect = (token) => {
    if (!take(token)) {
      throw new SyntaxError(`expected ${token} in ${text}`);
    }
  };

  function sum() {
    const terms = [[take("-") ? -1n : 1n, product()]];
    for (;;) {
      if (take("+")) {
        terms.push([1n, product()]);
      } else if (take("-")) {
        terms.push([-1n, product()]);
      } else {
        return (values) => terms.reduce((total, [sign, term]) => fits(total + sign * term(values)), 0n);
      }
    }
  }

  function product() {
    const factors = [power()];
    while (take("·")) {
      factors.push(power());
    }
    return (values) => factors.reduce((total, factor) => fits(total * factor(values)), 1n);
  }

  function power() {
    const base = atom();
    if (!take("^")) {
      return base;
    }
    const exponent = BigInt(tokens[place++]);
    return (values) => {
      const value = base(values);
      // Numbers but these grow with every factor, so that a large exponent is refused before it is computed.
      if (exponent > 127n && (value > 1n || value < -1n)) {
        throw new RangeError("a size does not fit");
      }
      return fits(value ** exponent);
    };
  }

  function atom() {
    const token = tokens[place++];
    if (token === "(") {
      const inner = sum();
      const divisor = take("//") ? sum() : null;
      expect(")");
      return divisor ? (values) => fits(floorDivide(inner(values), divisor(values))) : inner;
    }
    if (/^\d/.test(token)) {
      const number = BigInt(token);
      return () => number;
    }
    if (Object.hasOwn(OPERATIONS, token)) {
      expect("(");
      const operands = [sum()];
      while (take(",")) {
        operands.push(sum());
      }
      expect(")");
      return (values) => fits(OPERATIONS[token](operands.map((operand) => operand(values))));
    }
    const symbol = /^s(\d+)$/.exec(token ?? "");
    if (!symbol) {
      throw new SyntaxError(`no symbol: ${token} in ${text}`);
    }
    return (values) => values[Number(symbol[1])];
  }

  const whole = sum();
  if (place !== tokens.length) {
    throw new SyntaxError(`something is left of ${text}`);
  }
  return whole;
}

/** The value of an expression that was read, for the symbols' values (BigInt), or null. */
function evaluate(expression, values) {
  try {
    const value = expression(values);
    return value >= -LONGEST && value < LONGEST ? value : null;
  } catch (error) {
    if (error instanceof RangeError) {
      return null;
    }
    throw error;
  }
}

