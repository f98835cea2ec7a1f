//! Numbers that are known up to a radius, and what rounding does to them.
//!
//! A ball has all numbers that an implementation may get which rounds every operation to its type, in any
//! order of summation. Its middle is what the exact operation would give, worked out in 64 bits.

use velora_graph::shapes::DataType;

/// All numbers from `mid - rad` to `mid + rad`.
///
/// A middle that is infinite or no number has the radius 0 where everybody gets just that. An infinite radius
/// says that nothing is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ball {
    /// The middle.
    pub mid: f64,
    /// How far others may be from it.
    pub rad: f64,
}

/// What a type of floating-point numbers makes of a real number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Format {
    /// The relative error of one rounding: half the distance of 1 and the next number.
    pub unit: f64,
    /// The absolute error of one rounding where numbers are no longer normal.
    pub tiny: f64,
    /// The greatest number.
    pub largest: f64,
}

impl Format {
    /// 32 bits.
    pub const F32: Format = Format {
        unit: f32::EPSILON as f64 / 2.0,
        // 2⁻¹⁵⁰
        tiny: f32::MIN_POSITIVE as f64 * f32::EPSILON as f64 / 2.0,
        largest: f32::MAX as f64,
    };

    /// 64 bits. The unit is twice that of the type, because the middle is worked out in the same type and has
    /// an error of its own.
    pub const F64: Format = Format {
        unit: f64::EPSILON,
        tiny: f64::MIN_POSITIVE * f64::EPSILON,
        largest: f64::MAX,
    };

    /// The format of an element type; `None` where its elements are integers.
    pub fn of(ty: DataType) -> Option<Format> {
        Some(match ty {
            DataType::FLOAT => Format::F32,
            DataType::DOUBLE => Format::F64,
            DataType::FLOAT16 => Format {
                // 2⁻¹¹, 2⁻²⁵
                unit: 1.0 / 2048.0,
                tiny: 1.0 / 33_554_432.0,
                largest: 65_504.0,
            },
            DataType::BFLOAT16 => Format {
                // 2⁻⁸, 2⁻¹³⁴
                unit: 1.0 / 256.0,
                tiny: f32::MIN_POSITIVE as f64 / 256.0,
                largest: 3.389_531_389_251_535_5e38,
            },
            _ => return None,
        })
    }

    /// What elements of a type are computed in: 32 bits, unless they have 64.
    pub fn computing(ty: DataType) -> Format {
        match ty {
            DataType::DOUBLE => Format::F64,
            _ => Format::F32,
        }
    }

    /// The relative error of `count` roundings (Higham's γ); infinite for too many.
    pub fn gamma(self, count: f64) -> f64 {
        let part = count * self.unit;
        if part < 0.5 {
            part / (1.0 - part)
        } else {
            f64::INFINITY
        }
    }
}

impl Ball {
    /// 0.
    pub const ZERO: Ball = Ball::exact(0.0);

    /// Any number, or none.
    pub const UNKNOWN: Ball = Ball {
        mid: 0.0,
        rad: f64::INFINITY,
    };

    /// A number that all have.
    pub const fn exact(mid: f64) -> Ball {
        Ball { mid, rad: 0.0 }
    }

    /// The least ball that has all numbers between two, or nothing known where one is infinite.
    pub fn between(low: f64, high: f64) -> Ball {
        if low == high {
            return Ball::exact(low);
        }
        Ball::around(low / 2.0 + high / 2.0, high / 2.0 - low / 2.0)
    }

    /// A ball; nothing is known where its bounds are no numbers.
    pub fn around(mid: f64, rad: f64) -> Ball {
        if rad == 0.0 {
            Ball::exact(mid)
        } else if mid.is_finite() && rad.is_finite() {
            Ball { mid, rad }
        } else {
            Ball::UNKNOWN
        }
    }

    /// The least number.
    pub fn low(self) -> f64 {
        self.mid - self.rad
    }

    /// The greatest number.
    pub fn high(self) -> f64 {
        self.mid + self.rad
    }

    /// The greatest magnitude.
    pub fn size(self) -> f64 {
        self.mid.abs() + self.rad
    }

    /// Whether there is one number only, or the same infinity or no number for everybody.
    pub fn is_exact(self) -> bool {
        self.rad == 0.0
    }

    /// A ball that has the numbers of both.
    pub fn hull(self, other: Ball) -> Ball {
        let same = self == other || (self.mid.is_nan() && other.mid.is_nan());
        if same {
            return self;
        }
        if !(self.mid.is_finite() && other.mid.is_finite()) {
            return Ball::UNKNOWN;
        }
        Ball::between(self.low().min(other.low()), self.high().max(other.high()))
    }

    /// After one rounding.
    pub fn rounded(self, format: Format) -> Ball {
        self.rounded_by(1.0, format)
    }

    /// After something that has a relative error of so many units.
    pub fn rounded_by(self, units: f64, format: Format) -> Ball {
        // Integers and the like keep their value in any implementation.
        let kept = self.is_exact() && (self.mid == 0.0 || !self.mid.is_finite());
        let whole = format.unit > Format::F64.unit
            && self.is_exact()
            && units == 1.0
            && self.mid.abs() < 1.0 / format.unit
            && self.mid.fract() == 0.0;
        if kept || whole {
            return self;
        }
        let size = self.size();
        let rad = self.rad + units * (format.unit * size + format.tiny);
        if self.mid.abs() - rad > format.largest * (1.0 + format.unit) {
            return Ball::exact(self.mid.signum() * f64::INFINITY);
        }
        if size > format.largest {
            return Ball::UNKNOWN;
        }
        Ball::around(self.mid, rad)
    }

    /// The exact sum of any two numbers of the balls.
    pub fn plus(self, other: Ball) -> Ball {
        Ball::around(self.mid + other.mid, self.rad + other.rad)
    }

    /// The exact differences.
    pub fn minus(self, other: Ball) -> Ball {
        self.plus(other.negated())
    }

    /// The exact opposites.
    pub fn negated(self) -> Ball {
        Ball {
            mid: -self.mid,
            rad: self.rad,
        }
    }

    /// The exact products.
    pub fn times(self, other: Ball) -> Ball {
        let mid = self.mid * other.mid;
        if self.is_exact() && other.is_exact() {
            return Ball::exact(mid);
        }
        let rad = self.mid.abs() * other.rad + self.rad * other.size();
        Ball::around(mid, rad)
    }

    /// The exact quotients.
    pub fn over(self, other: Ball) -> Ball {
        let mid = self.mid / other.mid;
        if self.is_exact() && other.is_exact() {
            return Ball::exact(mid);
        }
        let least = other.mid.abs() - other.rad;
        if least <= 0.0 {
            return Ball::UNKNOWN;
        }
        // a/b - a'/b' = ((a - a') - (a/b) (b - b')) / b'
        Ball::around(mid, (self.rad + mid.abs() * other.rad) / least)
    }

    /// The exact square roots.
    pub fn root(self) -> Ball {
        if self.is_exact() {
            return Ball::exact(self.mid.sqrt());
        }
        if self.low() < 0.0 {
            return Ball::UNKNOWN;
        }
        let mid = self.mid.sqrt();
        let rad = (self.high().sqrt() - mid).max(mid - self.low().sqrt());
        Ball::around(mid, rad)
    }
}

/// A sum of many balls, in whatever order an implementation may add them.
///
/// Any order of n - 1 additions has an error of at most γ(n-1) Σ |terms| (Higham, Accuracy and Stability of
/// Numerical Algorithms, section 4.2).
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    mid: f64,
    rad: f64,
    size: f64,
    count: f64,
}

impl Sum {
    /// Adds a term.
    pub fn add(&mut self, term: Ball) {
        self.mid += term.mid;
        self.rad += term.rad;
        self.size += term.size();
        self.count += 1.0;
    }

    /// The sum, kept in a format.
    pub fn total(&self, format: Format) -> Ball {
        let additions = (self.count - 1.0).max(0.0);
        let rad = self.rad + format.gamma(additions) * self.size;
        // Without an error there is nothing to be said but the middle.
        if self.size == 0.0 {
            return Ball::exact(self.mid);
        }
        Ball::around(self.mid, rad)
    }

    /// The sum of some terms.
    pub fn of(terms: impl Iterator<Item = Ball>, format: Format) -> Ball {
        let mut sum = Sum::default();
        terms.for_each(|term| sum.add(term));
        sum.total(format)
    }
}
