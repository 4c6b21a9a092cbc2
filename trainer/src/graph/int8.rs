//! Linear layers and embeddings in 8-bit integers.
//!
//! A row of activations is scaled by its own greatest value: q = round(x / s) with s = max |x| / 127, so that what a token
//! gets does not depend on the other tokens of its batch, as it would with one scale for all. Weights have a scale for
//! each output, w = s_w q_w. The product is exact in i32, y = s s_w Σ q q_w + b: activations go as u8 around 128 and
//! weights as i8, which is what the instructions of VNNI multiply. Processors without them (AVX2) add two such products
//! in 16 bits, where 255 · 127 · 2 would be cut off; hence weights of 7 bits, |q_w| ≤ 63.
//!
//! What remains of the batch is the rounding of the parts in f32 (attention, norms), which can tip a value over the edge
//! between two integers. Recurrent layers and the last layer of a head stay in f32: ONNX Runtime has no GRU in integers,
//! and the last layer decides.

use tch::kind::Element;
use tch::{Device, TchError, Tensor};

use super::{Writer, values};
use crate::model::Linear;
use crate::onnx::{MICROSOFT, Value};

/// The integer that stands for zero in activations and embeddings.
const ZERO: u8 = 128;
/// Steps on each side of zero, in activations and embeddings …
const STEPS: f64 = 127.0;
/// … and in weights.
const WEIGHT_STEPS: f64 = 63.0;

impl Writer {
    /// A linear layer on rows x [tokens, in].
    pub(super) fn quantized_linear(&mut self, x: &str, layer: &Linear) -> String {
        let (rows, row_scale) = self.quantize_rows(x);
        let (weight, weight_scale) = quantize(&layer.weight, WEIGHT_STEPS);
        // The operator wants [in, out].
        let weight = weight.transpose(0, 1);
        let weight_scale = self.graph.floats(&weight.size()[1..], &values(&weight_scale));
        let weight = self.graph.signed_bytes(&weight.size(), &bytes(&weight));
        let one = self.graph.floats(&[], &[1.0]);
        let (zero, weight_zero) = (self.graph.bytes(&[], &[ZERO]), self.graph.signed_bytes(&[], &[0]));
        let inputs: [&str; 6] = [&rows, &weight, &one, &weight_scale, &zero, &weight_zero];
        let product = self.graph.node_of(MICROSOFT, "MatMulIntegerToFloat", &inputs, &[]);
        let product = self.graph.node("Mul", &[&product, &row_scale], &[]);
        let bias = self.tensor(&layer.bias);
        self.graph.node("Add", &[&product, &bias], &[])
    }

    /// The rows of a table [n, width] that `index` names, each stored with a scale of its own.
    pub(super) fn quantized_rows(&mut self, table: &Tensor, index: &str) -> String {
        let (integers, scale) = quantize(table, STEPS);
        let integers = self.graph.bytes(&table.size(), &bytes(&(integers + i64::from(ZERO))));
        let scale = self.tensor(&scale);
        let rows = self.graph.node("Gather", &[&integers, index], &[]);
        let rows = self.graph.node("Cast", &[&rows], &[("to", Value::Int(1))]);
        let zero = self.graph.floats(&[1], &[f32::from(ZERO)]);
        let rows = self.graph.node("Sub", &[&rows, &zero], &[]);
        let scale = self.graph.node("Gather", &[&scale, index], &[]);
        self.graph.node("Mul", &[&rows, &scale], &[])
    }

    /// Rows [tokens, n] as u8, and the scale of each, [tokens, 1].
    fn quantize_rows(&mut self, x: &str) -> (String, String) {
        let axis = self.graph.integers(&[1]);
        let size = self.graph.node("Abs", &[x], &[]);
        let greatest = self.graph.node("ReduceMax", &[&size, &axis], &[("keepdims", Value::Int(1))]);
        let step = self.graph.floats(&[1], &[(1.0 / STEPS) as f32]);
        let scale = self.graph.node("Mul", &[&greatest, &step], &[]);
        let least = self.graph.floats(&[1], &[1e-12]); // a row of zeros
        let scale = self.graph.node("Max", &[&scale, &least], &[]);
        let list = self.graph.node("Squeeze", &[&scale, &axis], &[]);
        let count = self.graph.node("Shape", &[&list], &[]);
        let zero = self.graph.bytes(&[1], &[ZERO]);
        let zeros = self.graph.node("Expand", &[&zero, &count], &[]);
        let rows = self.graph.node("QuantizeLinear", &[x, &list, &zeros], &[("axis", Value::Int(0))]);
        (rows, scale)
    }
}

/// The integers of a matrix [rows, n], up to `steps` on each side of zero, and the scale of each row, [rows, 1].
fn quantize(matrix: &Tensor, steps: f64) -> (Tensor, Tensor) {
    let scale = (matrix.abs().amax([1], true) / steps).clamp_min(1e-12);
    let integers = (matrix / &scale).round().clamp(-steps, steps);
    (integers, scale)
}

fn bytes<T: Element>(integers: &Tensor) -> Vec<T>
where
    Vec<T>: for<'a> TryFrom<&'a Tensor, Error = TchError>,
{
    let flat = integers.detach().to_device(Device::Cpu).to_kind(T::KIND).reshape([-1]);
    Vec::try_from(&flat).expect("a flat tensor of bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_within_half_a_step_of_its_row() {
        let matrix = Tensor::from_slice(&[0.5f32, -1.27, 0.003, 0.0, 0.0, 0.0]).view([2, 3]);
        let (integers, scale) = quantize(&matrix, STEPS);
        assert_eq!(bytes::<i8>(&integers), [50, -127, 0, 0, 0, 0]);
        assert!((values(&scale)[0] - 0.01).abs() < 1e-7);
    }

    /// What the instructions of AVX2 for u8 by i8 can add without cutting off.
    #[test]
    fn two_products_fit_in_16_bits() {
        assert!(2.0 * 255.0 * WEIGHT_STEPS <= f64::from(i16::MAX));
    }
}
