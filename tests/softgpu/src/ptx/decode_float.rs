//! Floating-point arithmetic.

use super::decode_ops::{Mods, expect};
use super::inst::*;
use super::module::Decoded;
use super::operands::Decoder;
use super::syntax::Arg;

impl<'a> Decoder<'a> {
    pub(super) fn float(
        &mut self,
        base: &str,
        ty: &str,
        mods: &mut Mods<'a>,
        args: &'a [Arg<'a>],
    ) -> Decoded<Op> {
        let nan = mods.take("NaN");
        let op = match base {
            "add" => FloatOp::Add,
            "sub" => FloatOp::Sub,
            "mul" => FloatOp::Mul,
            // `mad` of floats is `fma` on every device since sm_20.
            "fma" | "mad" => FloatOp::Fma,
            "div" if mods.take("approx") => return self.approx(ApproxOp::Div, ty, mods, args),
            "div" if mods.take("full") => return self.approx(ApproxOp::DivFull, ty, mods, args),
            "div" => FloatOp::Div,
            "min" if nan => FloatOp::MinNan,
            "max" if nan => FloatOp::MaxNan,
            "min" => FloatOp::Min,
            "max" => FloatOp::Max,
            "neg" => FloatOp::Neg,
            _ => FloatOp::Abs,
        };
        let n = match op {
            FloatOp::Fma => 3,
            FloatOp::Neg | FloatOp::Abs => 1,
            _ => 2,
        };
        self.float_op(op, ty, n, mods, args)
    }

    fn float_op(
        &mut self,
        op: FloatOp,
        ty: &str,
        n: usize,
        mods: &mut Mods<'a>,
        args: &[Arg<'a>],
    ) -> Decoded<Op> {
        expect(args, n + 1)?;
        let (round, ftz, sat) = (mods.round(), mods.take("ftz"), mods.take("sat"));
        let class = match ty {
            "f64" => Class::B64,
            "f16" | "bf16" => Class::B16,
            _ => Class::B32,
        };
        let (d, s, n) = (
            self.dest_of(&args[0], class)?,
            self.sources(&args[1..], class)?,
            n as u8,
        );
        match ty {
            "f32" => Ok(Op::F32 {
                op,
                round,
                ftz,
                sat,
                d,
                s,
                n,
            }),
            "f64" if ftz || sat => Err("unsupported modifier of f64".into()),
            "f64" => Ok(Op::F64 { op, round, d, s, n }),
            _ => {
                let relu = mods.take("relu");
                if round != Round::Nearest || sat || matches!(op, FloatOp::Div | FloatOp::CopySign)
                {
                    return Err("unsupported operation on 16-bit floats".into());
                }
                Ok(Op::Half {
                    op,
                    bf16: ty.starts_with('b'),
                    pair: ty.ends_with("x2"),
                    ftz,
                    relu,
                    d,
                    s,
                    n,
                })
            }
        }
    }

    pub(super) fn special_function(
        &mut self,
        base: &str,
        mods: &mut Mods<'a>,
        args: &'a [Arg<'a>],
    ) -> Decoded<Op> {
        let ty = mods.list.pop().ok_or("a type is missing")?;
        let op = match base {
            "sqrt" => ApproxOp::Sqrt,
            "rcp" => ApproxOp::Rcp,
            "rsqrt" => ApproxOp::Rsqrt,
            "ex2" => ApproxOp::Ex2,
            "lg2" => ApproxOp::Lg2,
            "sin" => ApproxOp::Sin,
            "cos" => ApproxOp::Cos,
            _ => ApproxOp::Tanh,
        };
        if mods.take("approx") {
            return self.approx(op, ty, mods, args);
        }
        match op {
            ApproxOp::Sqrt => self.float_op(FloatOp::Sqrt, ty, 1, mods, args),
            ApproxOp::Rcp => self.float_op(FloatOp::Rcp, ty, 1, mods, args),
            _ => Err(format!("{base} without .approx")),
        }
    }

    fn approx(
        &mut self,
        op: ApproxOp,
        ty: &str,
        mods: &mut Mods<'a>,
        args: &[Arg<'a>],
    ) -> Decoded<Op> {
        let (ftz, sat) = (mods.take("ftz"), mods.take("sat"));
        let n = if matches!(op, ApproxOp::Div | ApproxOp::DivFull) {
            2
        } else {
            1
        };
        expect(args, n + 1)?;
        match ty {
            "f32" => {
                let (d, s) = (
                    self.dest_of(&args[0], Class::B32)?,
                    self.sources(&args[1..], Class::B32)?,
                );
                Ok(Op::Approx {
                    op,
                    ftz,
                    sat,
                    d,
                    a: s[0],
                    b: if n == 2 { s[1] } else { s[0] },
                })
            }
            "f64" if matches!(op, ApproxOp::Rcp | ApproxOp::Rsqrt) && !sat => {
                let (d, s) = (
                    self.dest_of(&args[0], Class::B64)?,
                    self.sources(&args[1..], Class::B64)?,
                );
                Ok(Op::Approx64 {
                    op,
                    gross: ftz,
                    d,
                    a: s[0],
                })
            }
            _ => Err(format!("unsupported approximation of {ty}")),
        }
    }

    pub(super) fn copysign(&mut self, mods: &mut Mods<'a>, args: &'a [Arg<'a>]) -> Decoded<Op> {
        match mods.next()? {
            ty @ ("f32" | "f64") => self.float_op(FloatOp::CopySign, ty, 2, mods, args),
            other => Err(format!("unsupported type .{other}")),
        }
    }

    pub(super) fn testp(&mut self, mods: &mut Mods<'a>, args: &[Arg<'a>]) -> Decoded<Op> {
        let choices = [
            ("finite", TestOp::Finite),
            ("infinite", TestOp::Infinite),
            ("number", TestOp::Number),
            ("notanumber", TestOp::NotANumber),
            ("normal", TestOp::Normal),
            ("subnormal", TestOp::Subnormal),
        ];
        let op = mods.choose(&choices).ok_or("a kind of number is missing")?;
        let wide = mods.next()? == "f64";
        expect(args, 2)?;
        let d = self.dest_of(&args[0], Class::Pred)?;
        Ok(Op::Testp {
            op,
            wide,
            d,
            a: self.source_of(&args[1], if wide { Class::B64 } else { Class::B32 })?,
        })
    }
}
