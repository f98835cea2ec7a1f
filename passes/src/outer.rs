//! `v ⊗ A` at full size, in standard operators.

use crate::select::sub_token_size;
use velora_graph::onnx::make::{int_vector, node};
use velora_graph::onnx::schema::{NodeProto, TensorProto};

/// The product of a direction and a factor of a weight or of its gradient.
#[derive(Clone, Copy, Debug)]
pub struct Outer<'a> {
    /// The name of A or P, [G, O] or [O, G].
    pub factor: &'a str,
    /// The name of v, of M numbers or of G·M.
    pub direction: &'a str,
    /// G.
    pub groups: i64,
    /// D.
    pub features: i64,
    /// O.
    pub outputs: i64,
    /// Whether the product is [O, D] rather than [D, O].
    pub features_last: bool,
}

impl Outer<'_> {
    /// The nodes that make the product under the name `to`, and the constants that they read; `name` gives
    /// names to what is between.
    pub fn expand(
        &self,
        to: &str,
        mut name: impl FnMut(&str) -> String,
    ) -> (Vec<NodeProto>, Vec<TensorProto>) {
        let (g, o) = (self.groups, self.outputs);
        let m = sub_token_size(self.features, g);
        // A with an axis for the features of a group, v with axes for those that it lacks.
        let (of_a, of_v, whole, axis) = match self.features_last {
            false => ([g, 1, o], [-1, m, 1], [g * m, o], 0),
            true => ([o, g, 1], [1, -1, m], [o, g * m], 1),
        };
        let mut constants = Vec::new();
        let mut vector = |what: &str, entries: &[i64]| {
            let name = name(what);
            constants.push(int_vector(&name, entries));
            name
        };
        let shapes = [
            vector("A_shape", &of_a),
            vector("v_shape", &of_v),
            vector("shape", &whole),
        ];
        let cut = (g * m != self.features).then(|| {
            [
                vector("start", &[0]),
                vector("end", &[self.features]),
                vector("axis", &[axis]),
            ]
        });
        let [a, v, outer] = ["A", "v", "outer"].map(&mut name);
        let mut nodes = vec![
            node("Reshape", &[self.factor, &shapes[0]], &a),
            node("Reshape", &[self.direction, &shapes[1]], &v),
            node("Mul", &[&a, &v], &outer),
        ];
        match cut {
            Some([start, end, axis]) => {
                let padded = name("padded");
                nodes.push(node("Reshape", &[&outer, &shapes[2]], &padded));
                nodes.push(node("Slice", &[&padded, &start, &end, &axis], to));
            }
            None => nodes.push(node("Reshape", &[&outer, &shapes[2]], to)),
        }
        (nodes, constants)
    }
}
