//! The model as an ONNX graph over a packed batch (`vitag::pack::Packed`): linear layers, norms and activations on
//! [tokens, width], a padded view around attention and recurrence alone.

use tch::{Device, Kind, Tensor};
use vitag::manifest::Variant;

use crate::model::{Attention, Encoder, Layer, Linear, Norm, Tagger};
use crate::onnx::{Builder, Element, MICROSOFT, Value};

mod heads;
mod int8;

/// Writes `tagger`; `outputs` names the logits of every head.
pub fn build(tagger: &Tagger, variant: Variant, name: &str, outputs: &[String]) -> Vec<u8> {
    let mut writer = Writer { graph: Builder::default(), variant };
    writer.graph.input("input_ids", Element::I64, &["tokens"]);
    writer.graph.input("position_ids", Element::I64, &["tokens"]);
    writer.graph.input("pad_index", Element::I64, &["batch", "width"]);
    writer.graph.input("unpad_index", Element::I64, &["tokens"]);
    writer.graph.input("lengths", Element::I32, &["batch"]);
    writer.graph.input("word_index", Element::I64, &["units"]);
    let states = writer.encoder(&tagger.encoder);
    for (head, output) in tagger.heads.iter().zip(outputs) {
        writer.head(head, &states, output);
    }
    writer.graph.finish(name)
}

/// Writes the parts of a model; what goes in and out are the names of values.
struct Writer {
    graph: Builder,
    variant: Variant,
}

impl Writer {
    /// The embeddings and the output of every layer, each [tokens, hidden].
    fn encoder(&mut self, encoder: &Encoder) -> Vec<String> {
        let word = self.word(&encoder.word);
        let position = self.tensor(&encoder.position);
        let position = self.graph.node("Gather", &[&position, "position_ids"], &[]);
        let sum = self.graph.node("Add", &[&word, &position], &[]);
        let embedded = self.norm(&sum, &encoder.norm);
        let mut states = vec![match &encoder.projection {
            Some(projection) => self.linear(&embedded, projection),
            None => embedded,
        }];
        for layer in &encoder.layers {
            let output = self.layer(layer, &states[states.len() - 1]);
            states.push(output);
        }
        states
    }

    fn word(&mut self, table: &Tensor) -> String {
        if self.variant == Variant::Int8 {
            return self.quantized_rows(table, "input_ids");
        }
        let table = self.tensor(table);
        self.graph.node("Gather", &[&table, "input_ids"], &[])
    }

    fn layer(&mut self, layer: &Layer, input: &str) -> String {
        let found = self.attention(&layer.attention, input);
        let sum = self.graph.node("Add", &[input, &found], &[]);
        let middle = self.norm(&sum, &layer.attention_norm);
        let wide = self.linear(&middle, &layer.ffn_in);
        let wide = self.graph.node("Gelu", &[&wide], &[("approximate", Value::Text("none"))]);
        let narrow = self.linear(&wide, &layer.ffn_out);
        let sum = self.graph.node("Add", &[&middle, &narrow], &[]);
        self.norm(&sum, &layer.ffn_norm)
    }

    /// Attention of each sequence to itself, rows to rows.
    fn attention(&mut self, attention: &Attention, input: &str) -> String {
        let width = attention.output.weight.size()[1];
        let rows = self.linear(input, &attention.input);
        let mut part = |which: i64| {
            let (start, end) = (self.graph.integers(&[which * width]), self.graph.integers(&[(which + 1) * width]));
            let axis = self.graph.integers(&[1]);
            let columns = self.graph.node("Slice", &[&rows, &start, &end, &axis], &[]);
            self.graph.node("Gather", &[&columns, "pad_index"], &[])
        };
        let (query, key, value) = (part(0), part(1), part(2));
        let inputs = [&query, &key, &value, "", "lengths"];
        let attributes = [("num_heads", Value::Int(attention.heads))];
        let found = self.graph.node_of(MICROSOFT, "MultiHeadAttention", &inputs, &attributes);
        let shape = self.graph.integers(&[-1, width]);
        let slots = self.graph.node("Reshape", &[&found, &shape], &[]);
        let rows = self.graph.node("Gather", &[&slots, "unpad_index"], &[]);
        self.linear(&rows, &attention.output)
    }

    fn linear(&mut self, x: &str, layer: &Linear) -> String {
        match self.variant {
            Variant::F32 => self.exact_linear(x, layer),
            Variant::Int8 => self.quantized_linear(x, layer),
        }
    }

    fn exact_linear(&mut self, x: &str, layer: &Linear) -> String {
        let (weight, bias) = (self.tensor(&layer.weight), self.tensor(&layer.bias));
        self.graph.node("Gemm", &[x, &weight, &bias], &[("transB", Value::Int(1))])
    }

    /// LayerNormalization after a plain Add: ONNX Runtime's SkipLayerNormalization is slower on a CPU.
    fn norm(&mut self, x: &str, norm: &Norm) -> String {
        let (weight, bias) = (self.tensor(&norm.weight), self.tensor(&norm.bias));
        let attributes = [("axis", Value::Int(-1)), ("epsilon", Value::Float(norm.epsilon as f32))];
        self.graph.node("LayerNormalization", &[x, &weight, &bias], &attributes)
    }

    fn tensor(&mut self, tensor: &Tensor) -> String {
        self.graph.floats(&tensor.size(), &values(tensor))
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    let flat = tensor.detach().to_device(Device::Cpu).to_kind(Kind::Float).reshape([-1]);
    Vec::try_from(&flat).expect("a flat tensor of floats")
}
