//! Decoded instructions. Operands are slots of the register files: registers, constants and special registers
//! all have one, so that execution never asks what an operand is.

/// Index into the register file of the operand's width (32, 64 bits, or predicates). 16-bit registers live
/// in the 32-bit file, with their upper half zero.
pub type Slot = u32;

/// The kinds of registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    Pred,
    B16,
    B32,
    B64,
}

/// A register of a kind that the operation alone does not say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reg {
    pub class: Class,
    pub slot: Slot,
}

/// Integer types of arithmetic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IntTy {
    S16,
    U16,
    S32,
    U32,
    S64,
    U64,
}

impl IntTy {
    /// Whether operands are in the 64-bit file.
    pub fn wide(self) -> bool {
        matches!(self, IntTy::S64 | IntTy::U64)
    }
}

/// Any scalar type, as memory and conversions see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ty {
    U8,
    S8,
    U16,
    S16,
    U32,
    S32,
    U64,
    S64,
    F16,
    Bf16,
    F32,
    F64,
}

impl Ty {
    /// Bytes in memory.
    pub fn size(self) -> usize {
        match self {
            Ty::U8 | Ty::S8 => 1,
            Ty::U16 | Ty::S16 | Ty::F16 | Ty::Bf16 => 2,
            Ty::U32 | Ty::S32 | Ty::F32 => 4,
            Ty::U64 | Ty::S64 | Ty::F64 => 8,
        }
    }

    /// Whether a load extends its sign.
    pub fn signed(self) -> bool {
        matches!(self, Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64)
    }

    /// Whether it is a floating-point type.
    pub fn float(self) -> bool {
        matches!(self, Ty::F16 | Ty::Bf16 | Ty::F32 | Ty::F64)
    }

    /// The narrowest class of registers that holds it.
    pub fn class(self) -> Class {
        match self.size() {
            1 | 2 => Class::B16,
            4 => Class::B32,
            _ => Class::B64,
        }
    }
}

/// Directions of rounding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Round {
    Nearest,
    Zero,
    Down,
    Up,
}

/// Integer operations on operands of one type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IntOp {
    Add,
    AddSat,
    Sub,
    SubSat,
    Mul,
    MulHi,
    MadLo,
    MadHi,
    Mul24,
    Div,
    Rem,
    Min,
    Max,
    Neg,
    Abs,
    Not,
    CNot,
    And,
    Or,
    Xor,
    Sad,
    Brev,
    /// `d = c >= 0 ? a : b`, on 32 bits.
    Slct,
}

/// Operations that count bits; their result has 32 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CountOp {
    Popc,
    Clz,
    /// Position of the highest bit that differs from the sign, or all ones.
    Bfind {
        signed: bool,
        shift: bool,
    },
}

/// 32-bit operations on bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BitOp {
    Prmt,
    PrmtF4e,
    PrmtB4e,
    PrmtRc8,
    PrmtEcl,
    PrmtEcr,
    PrmtRc16,
    ShfLeft { clamp: bool },
    ShfRight { clamp: bool },
    Lop3(u8),
    Bmsk { clamp: bool },
}

/// Floating-point operations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FloatOp {
    Add,
    Sub,
    Mul,
    Fma,
    Div,
    Min,
    Max,
    MinNan,
    MaxNan,
    Neg,
    Abs,
    Sqrt,
    Rcp,
    CopySign,
}

/// Approximations of the hardware's special-function unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ApproxOp {
    Rcp,
    Rsqrt,
    Sqrt,
    Ex2,
    Lg2,
    Sin,
    Cos,
    Tanh,
    Div,
    /// `div.full`: as `div.approx`, without its flaw for large divisors.
    DivFull,
}

/// Comparisons. The unordered ones are true where an operand is NaN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

/// Types of comparisons.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CmpTy {
    Int(IntTy),
    F32 { ftz: bool },
    F64,
    F16,
    Bf16,
}

/// Operations on predicates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BoolOp {
    And,
    Or,
    Xor,
}

/// Classes of floating-point numbers that `testp` asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TestOp {
    Finite,
    Infinite,
    Number,
    NotANumber,
    Normal,
    Subnormal,
}

/// Spaces of addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Space {
    /// Device memory, also module-level constants.
    Global,
    Shared,
    /// Also holds the parameters and results of device functions.
    Local,
    /// Told apart by the address.
    Generic,
}

/// Atomic updates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AtomOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
}

/// How a shuffle finds its source lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShflMode {
    Up,
    Down,
    Bfly,
    Idx,
}

/// What a vote computes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VoteOp {
    All,
    Any,
    Uni,
    Ballot,
}

/// Reductions over the lanes of a mask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReduxOp {
    Add,
    MinS,
    MinU,
    MaxS,
    MaxU,
    And,
    Or,
    Xor,
}

/// An instruction that needs all lanes of a mask at once.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Collective {
    Shfl {
        mode: ShflMode,
        d: Slot,
        p: Option<Slot>,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    Vote {
        op: VoteOp,
        d: Slot,
        a: Slot,
        inverted: bool,
    },
    Redux {
        op: ReduxOp,
        d: Slot,
        a: Slot,
    },
    MatchAny {
        d: Slot,
        a: Reg,
    },
    MatchAll {
        d: Slot,
        p: Option<Slot>,
        a: Reg,
    },
    BarWarp,
}

/// What a barrier of the block computes besides.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum BarReduce {
    None,
    And { d: Slot, a: Slot, inverted: bool },
    Or { d: Slot, a: Slot, inverted: bool },
    Popc { d: Slot, a: Slot, inverted: bool },
}

/// A load or store of 1, 2, 4 or 8 elements.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Transfer {
    pub space: Space,
    pub ty: Ty,
    pub count: u8,
    /// Destinations or sources; `None` for an element that is dropped.
    pub regs: [Option<Reg>; 8],
    pub base: Reg,
    pub offset: i64,
    /// Through the read-only cache.
    pub read_only: bool,
    /// `volatile` or with an order stronger than weak.
    pub strong: bool,
}

/// An atomic update of memory.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Atomic {
    pub space: Space,
    pub op: AtomOp,
    pub ty: Ty,
    /// `None` for `red`.
    pub d: Option<Reg>,
    pub base: Reg,
    pub offset: i64,
    pub value: Reg,
    /// The new value of a compare-and-swap, whose `value` is the expected one.
    pub swap: Option<Reg>,
}

/// A conversion.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Convert {
    pub to: Ty,
    pub from: Ty,
    pub round: Round,
    /// To an integral value.
    pub integral: bool,
    pub ftz: bool,
    pub sat: bool,
    pub d: Reg,
    pub a: Reg,
}

/// One operation.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Op {
    Nop,
    Mov {
        d: Reg,
        a: Reg,
    },
    Int {
        op: IntOp,
        ty: IntTy,
        d: Slot,
        s: [Slot; 3],
        n: u8,
    },
    /// Shifts; the amount is in the 32-bit file for all types.
    Shift {
        left: bool,
        ty: IntTy,
        d: Slot,
        a: Slot,
        by: Slot,
    },
    /// Product of twice the width, plus `c`.
    Wide {
        ty: IntTy,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Option<Slot>,
    },
    Count {
        op: CountOp,
        wide: bool,
        d: Slot,
        a: Slot,
    },
    /// Arithmetic with carry: `Add`, `Sub`, `MadLo` or `MadHi` of 32 or 64 bits.
    Carry {
        op: IntOp,
        ty: IntTy,
        carry_in: bool,
        carry_out: bool,
        d: Slot,
        s: [Slot; 3],
        n: u8,
    },
    Bits {
        op: BitOp,
        d: Slot,
        s: [Slot; 3],
        n: u8,
    },
    Bfe {
        ty: IntTy,
        d: Slot,
        a: Slot,
        pos: Slot,
        len: Slot,
    },
    Bfi {
        wide: bool,
        d: Slot,
        a: Slot,
        b: Slot,
        pos: Slot,
        len: Slot,
    },
    F32 {
        op: FloatOp,
        round: Round,
        ftz: bool,
        sat: bool,
        d: Slot,
        s: [Slot; 3],
        n: u8,
    },
    F64 {
        op: FloatOp,
        round: Round,
        d: Slot,
        s: [Slot; 3],
        n: u8,
    },
    Half {
        op: FloatOp,
        bf16: bool,
        pair: bool,
        ftz: bool,
        relu: bool,
        d: Slot,
        s: [Slot; 3],
        n: u8,
    },
    Approx {
        op: ApproxOp,
        ftz: bool,
        sat: bool,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    /// `rcp.approx.ftz.f64` and `rsqrt.approx.f64`: 20 bits of precision where `gross`.
    Approx64 {
        op: ApproxOp,
        gross: bool,
        d: Slot,
        a: Slot,
    },
    Cvt(Convert),
    /// Two 32-bit floats to a pair of 16-bit ones, `a` in the upper half.
    CvtPair {
        to: Ty,
        round: Round,
        relu: bool,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Setp {
        ty: CmpTy,
        cmp: Cmp,
        d: Slot,
        d2: Option<Slot>,
        a: Slot,
        b: Slot,
        with: Option<(BoolOp, Slot, bool)>,
    },
    /// `set`: all ones (or 1.0) where the comparison holds.
    Set {
        ty: CmpTy,
        cmp: Cmp,
        float: bool,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Testp {
        op: TestOp,
        wide: bool,
        d: Slot,
        a: Slot,
    },
    Selp {
        d: Reg,
        a: Reg,
        b: Reg,
        p: Slot,
        inverted: bool,
    },
    PredLogic {
        op: BoolOp,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    PredNot {
        d: Slot,
        a: Slot,
    },
    Pack {
        d: Reg,
        parts: [Option<Reg>; 4],
        n: u8,
    },
    Unpack {
        a: Reg,
        parts: [Option<Reg>; 4],
        n: u8,
    },
    /// A load of a kernel's parameter.
    LdParam {
        ty: Ty,
        count: u8,
        regs: [Option<Reg>; 8],
        offset: u32,
    },
    /// The same at an address, which is an offset in all parameters.
    LdParamAt {
        ty: Ty,
        count: u8,
        regs: [Option<Reg>; 8],
        base: Reg,
        offset: i64,
    },
    Ld(Transfer),
    St(Transfer),
    Atom(Atomic),
    /// Copies bytes of local memory, for the arguments and results of calls.
    CopyLocal {
        to: u32,
        from: u32,
        bytes: u32,
    },
    /// Adds or subtracts the base of a window of the generic address space.
    Window {
        space: Space,
        to_generic: bool,
        d: Reg,
        a: Reg,
    },
    /// Which space a generic address is in.
    IsSpace {
        space: Space,
        d: Slot,
        a: Slot,
    },
    Activemask {
        d: Slot,
    },
    Collective {
        what: Collective,
        mask: Slot,
    },
    Bar {
        id: u8,
        reduce: BarReduce,
    },
    Fence,
    Bra {
        target: u32,
    },
    BrxIdx {
        table: u32,
        index: Slot,
    },
    Call {
        target: u32,
    },
    Ret,
    Exit,
    Trap,
}

/// An operation, its guard, and where it comes from.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Inst {
    pub op: Op,
    /// The predicate that lets it run, and whether inverted.
    pub guard: Option<(Slot, bool)>,
    /// Line of the PTX text, from 1.
    pub line: u32,
}

/// What a slot of the 32-bit file holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Slot32 {
    Register,
    Constant(u32),
    Special(Special),
}

/// What a slot of the 64-bit file holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Slot64 {
    Register,
    Constant(u64),
    /// The address of a module's variable, by index, plus an offset.
    Variable(u32, i64),
}

/// What a slot of the predicate file holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SlotPred {
    Register,
    Constant(bool),
}

/// Special registers; the numbers are 0, 1, 2 for x, y, z.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    Laneid,
    Warpid,
    Nwarpid,
    Warpsize,
    LanemaskEq,
    LanemaskLt,
    LanemaskLe,
    LanemaskGt,
    LanemaskGe,
    /// Size of the dynamic shared memory.
    DynamicShared,
}
