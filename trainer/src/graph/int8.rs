//! Linear layers and embeddings in 8-bit integers.
//!
//! A row of activations is scaled by its own greatest value: q = round(x / s) with s = max |x| / 127, so that what a token
//! gets does not depend on the other tokens of its batch, as it would with one scale for all. Weights have a scale for
//! each output, w = s_w q_w. Both are stored as u8 around 128: of the kernels that ONNX Runtime has for this, those of
//! u8 by u8 lose nothing on processors without VNNI, where those of signed weights can saturate. The product is exact in
//! i32, y = s s_w Σ q q_w + b.
//!
//! What remains of the batch is the rounding of the parts in f32 (attention, norms), which can tip a value over the edge
//! between two integers. Recurrent layers and the last layer of a head stay in f32: they are small, and the last one
//! decides.

use tch::{Kind, Tensor};

use super::{Writer, values};
use crate::model::Linear;
use crate::onnx::{MICROSOFT, Value};

/// The integer that stands for zero.
const ZERO: u8 = 128;
/// Steps on each side of zero.
const STEPS: f64 = 127.0;

impl Writer {
    /// A linear layer on rows x [tokens, in].
    pub(super) fn quantized_linear(&mut self, x: &str, layer: &Linear) -> String {
        let (rows, row_scale) = self.quantize_rows(x);
        let (weight, weight_scale) = quantize(&layer.weight);
        let (outputs, inputs) = (layer.weight.size()[0], layer.weight.size()[1]);
        // The operator wants [in, out].
        let transposed = transpose(&weight, outputs as usize, inputs as usize);
        let weight = self.graph.bytes(&[inputs, outputs], &transposed);
        let weight_scale = self.graph.floats(&[outputs], &weight_scale);
        let (one, zero) = (self.graph.floats(&[], &[1.0]), self.graph.bytes(&[], &[ZERO]));
        let inputs: [&str; 6] = [&rows, &weight, &one, &weight_scale, &zero, &zero];
        let product = self.graph.node_of(MICROSOFT, "MatMulIntegerToFloat", &inputs, &[]);
        let product = self.graph.node("Mul", &[&product, &row_scale], &[]);
        let bias = self.tensor(&layer.bias);
        self.graph.node("Add", &[&product, &bias], &[])
    }

    /// The rows of a table [n, width] that `index` names, each stored with a scale of its own.
    pub(super) fn quantized_rows(&mut self, table: &Tensor, index: &str) -> String {
        let (bytes, scale) = quantize(table);
        let bytes = self.graph.bytes(&table.size(), &bytes);
        let scale = self.graph.floats(&[table.size()[0], 1], &scale);
        let rows = self.graph.node("Gather", &[&bytes, index], &[]);
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

/// A matrix [rows, n] as u8 around [`ZERO`], with the scale of each row.
fn quantize(matrix: &Tensor) -> (Vec<u8>, Vec<f32>) {
    let scale = (matrix.abs().amax([1], true) / STEPS).clamp_min(1e-12);
    let integers = (matrix / &scale).round().clamp(-STEPS, STEPS) + f64::from(ZERO);
    let bytes = Vec::<u8>::try_from(integers.detach().to_kind(Kind::Uint8).to_device(tch::Device::Cpu).reshape([-1]));
    (bytes.expect("a flat tensor of bytes"), values(&scale))
}

fn transpose(bytes: &[u8], rows: usize, columns: usize) -> Vec<u8> {
    (0..rows * columns).map(|i| bytes[i % rows * columns + i / rows]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_weight_is_within_half_a_step_of_its_row() {
        let matrix = Tensor::from_slice(&[0.5f32, -1.27, 0.003, 0.0, 0.0, 0.0]).view([2, 3]);
        let (bytes, scale) = quantize(&matrix);
        assert_eq!(bytes, [178, 1, 128, 128, 128, 128]);
        assert!((scale[0] - 0.01).abs() < 1e-7);
        assert_eq!(transpose(&bytes[..6], 2, 3), [178, 128, 1, 128, 128, 128]);
    }
}
