//! The model as an ONNX graph over a packed batch (`vitag::pack::Packed`): linear layers, norms and activations on
//! [tokens, width], a padded view around attention and recurrence alone.

use tch::{Device, Kind, Tensor};

use crate::model::{BiGru, Encoder, Head, Layer, Linear, NORM_EPSILON, Norm, Tagger};
use crate::onnx::{Builder, Element, MICROSOFT, Value};

/// Writes `tagger`; `outputs` names the logits of every head.
pub fn build(tagger: &Tagger, name: &str, outputs: &[String]) -> Vec<u8> {
    let mut graph = Builder::default();
    graph.input("input_ids", Element::I64, &["tokens"]);
    graph.input("position_ids", Element::I64, &["tokens"]);
    graph.input("pad_index", Element::I64, &["batch", "width"]);
    graph.input("unpad_index", Element::I64, &["tokens"]);
    graph.input("lengths", Element::I32, &["batch"]);
    graph.input("word_index", Element::I64, &["units"]);
    let states = encoder(&mut graph, &tagger.encoder);
    for (head, output) in tagger.heads.iter().zip(outputs) {
        write_head(&mut graph, head, &states, output);
    }
    graph.finish(name)
}

/// The embeddings and the output of every layer, each [tokens, hidden].
fn encoder(graph: &mut Builder, encoder: &Encoder) -> Vec<String> {
    let (word, position) = (tensor(graph, &encoder.word), tensor(graph, &encoder.position));
    let word = graph.node("Gather", &[&word, "input_ids"], &[]);
    let position = graph.node("Gather", &[&position, "position_ids"], &[]);
    let sum = graph.node("Add", &[&word, &position], &[]);
    let embedded = norm(graph, &sum, &encoder.norm);
    let mut states = vec![match &encoder.projection {
        Some(projection) => linear(graph, &embedded, projection),
        None => embedded,
    }];
    for layer in &encoder.layers {
        let output = write_layer(graph, layer, &states[states.len() - 1], encoder.attention_heads);
        states.push(output);
    }
    states
}

fn write_layer(graph: &mut Builder, layer: &Layer, input: &str, heads: i64) -> String {
    let found = attention(graph, layer, input, heads);
    let found = linear(graph, &found, &layer.attention_out);
    let sum = graph.node("Add", &[input, &found], &[]);
    let middle = norm(graph, &sum, &layer.attention_norm);
    let wide = linear(graph, &middle, &layer.ffn_in);
    let wide = graph.node("Gelu", &[&wide], &[("approximate", Value::Text("none"))]);
    let narrow = linear(graph, &wide, &layer.ffn_out);
    let sum = graph.node("Add", &[&middle, &narrow], &[]);
    norm(graph, &sum, &layer.ffn_norm)
}

/// Attention of each sequence within itself, rows to rows.
fn attention(graph: &mut Builder, layer: &Layer, input: &str, heads: i64) -> String {
    let hidden = layer.attention_out.weight.size()[0];
    let rows = linear(graph, input, &layer.attention_in);
    let mut part = |which: i64| {
        let (start, end) = (graph.integers(&[which * hidden]), graph.integers(&[(which + 1) * hidden]));
        let axis = graph.integers(&[1]);
        let columns = graph.node("Slice", &[&rows, &start, &end, &axis], &[]);
        graph.node("Gather", &[&columns, "pad_index"], &[])
    };
    let (query, key, value) = (part(0), part(1), part(2));
    let found = graph.name("MultiHeadAttention");
    let inputs = [&query, &key, &value, "", "lengths"];
    graph.node_to(&found, MICROSOFT, "MultiHeadAttention", &inputs, &[("num_heads", Value::Int(heads))]);
    let shape = graph.integers(&[-1, hidden]);
    let slots = graph.node("Reshape", &[&found, &shape], &[]);
    graph.node("Gather", &[&slots, "unpad_index"], &[])
}

fn write_head(graph: &mut Builder, head: &Head, states: &[String], output: &str) {
    let mixed = mix(graph, &head.mix.factors(), states);
    let units = match &head.recurrent {
        Some(gru) => bigru(graph, gru, &mixed),
        None => graph.node("Gather", &[&mixed, "word_index"], &[]),
    };
    let (weight, bias) = (tensor(graph, &head.output.weight), tensor(graph, &head.output.bias));
    graph.node_to(output, "", "Gemm", &[&units, &weight, &bias], &[("transB", Value::Int(1))]);
    graph.output(output, Element::F32, &["units", &head.output.bias.size()[0].to_string()]);
}

/// The mix of all states with its factors folded into constants.
fn mix(graph: &mut Builder, factors: &Tensor, states: &[String]) -> String {
    let scaled: Vec<String> = states
        .iter()
        .zip(values(factors))
        .map(|(state, factor)| {
            let factor = graph.floats(&[1], &[factor]);
            graph.node("Mul", &[state, &factor], &[])
        })
        .collect();
    scaled.into_iter().reduce(|sum, part| graph.node("Add", &[&sum, &part], &[])).expect("at least the embeddings")
}

/// Rows [tokens, hidden] to the rows of the units [units, 2h].
fn bigru(graph: &mut Builder, gru: &BiGru, rows: &str) -> String {
    let direction = |i: usize| {
        let both = [0, 1].map(|direction: usize| reorder_gates(&gru.parameters[direction][i], gru.hidden));
        Tensor::stack(&both, 0)
    };
    let input_weight = tensor(graph, &direction(0));
    let recurrent_weight = tensor(graph, &direction(1));
    let bias = tensor(graph, &Tensor::cat(&[direction(2), direction(3)], 1));
    // The operator wants time first: turn the index, not the data.
    let index = graph.node("Transpose", &["pad_index"], &[("perm", Value::Ints(vec![1, 0]))]);
    let padded = graph.node("Gather", &[rows, &index], &[]);
    let found = graph.node(
        "GRU",
        &[&padded, &input_weight, &recurrent_weight, &bias, "lengths"],
        &[
            ("direction", Value::Text("bidirectional")),
            ("hidden_size", Value::Int(gru.hidden)),
            ("linear_before_reset", Value::Int(1)),
        ],
    );
    // [width, 2, batch, h] to the slots of the padded view [batch · width, 2h], of which the units are taken.
    let found = graph.node("Transpose", &[&found], &[("perm", Value::Ints(vec![2, 0, 1, 3]))]);
    let shape = graph.integers(&[-1, 2 * gru.hidden]);
    let slots = graph.node("Reshape", &[&found, &shape], &[]);
    let units = graph.node("Gather", &["unpad_index", "word_index"], &[]);
    graph.node("Gather", &[&slots, &units], &[])
}

/// The gates of libtorch, r z n, in the order of ONNX, z r n.
fn reorder_gates(parameter: &Tensor, hidden: i64) -> Tensor {
    let gate = |i| parameter.narrow(0, i * hidden, hidden);
    Tensor::cat(&[gate(1), gate(0), gate(2)], 0)
}

fn linear(graph: &mut Builder, x: &str, layer: &Linear) -> String {
    let (weight, bias) = (tensor(graph, &layer.weight), tensor(graph, &layer.bias));
    graph.node("Gemm", &[x, &weight, &bias], &[("transB", Value::Int(1))])
}

/// LayerNormalization after a plain Add: ONNX Runtime's SkipLayerNormalization is slower on a CPU.
fn norm(graph: &mut Builder, x: &str, norm: &Norm) -> String {
    let (weight, bias) = (tensor(graph, &norm.weight), tensor(graph, &norm.bias));
    let attributes = [("axis", Value::Int(-1)), ("epsilon", Value::Float(NORM_EPSILON as f32))];
    graph.node("LayerNormalization", &[x, &weight, &bias], &attributes)
}

fn tensor(graph: &mut Builder, tensor: &Tensor) -> String {
    graph.floats(&tensor.size(), &values(tensor))
}

fn values(tensor: &Tensor) -> Vec<f32> {
    let flat = tensor.detach().to_device(Device::Cpu).to_kind(Kind::Float).reshape([-1]);
    Vec::try_from(&flat).expect("a flat tensor of floats")
}
