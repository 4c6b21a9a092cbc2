//! The model as an ONNX graph over a packed batch (`vitag::pack::Packed`): linear layers, norms and activations on
//! [tokens, width], a padded view around attention and recurrence alone.

use tch::{Device, Kind, Tensor};

use crate::model::{Attention, Cell, Encoder, Head, Layer, Linear, Norm, Recurrent, Tagger};
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
        let output = write_layer(graph, layer, &states[states.len() - 1]);
        states.push(output);
    }
    states
}

fn write_layer(graph: &mut Builder, layer: &Layer, input: &str) -> String {
    let found = write_attention(graph, &layer.attention, input);
    let sum = graph.node("Add", &[input, &found], &[]);
    let middle = norm(graph, &sum, &layer.attention_norm);
    let wide = linear(graph, &middle, &layer.ffn_in);
    let wide = graph.node("Gelu", &[&wide], &[("approximate", Value::Text("none"))]);
    let narrow = linear(graph, &wide, &layer.ffn_out);
    let sum = graph.node("Add", &[&middle, &narrow], &[]);
    norm(graph, &sum, &layer.ffn_norm)
}

/// Attention of each sequence to itself, rows to rows.
fn write_attention(graph: &mut Builder, attention: &Attention, input: &str) -> String {
    let width = attention.output.weight.size()[1];
    let rows = linear(graph, input, &attention.input);
    let mut part = |which: i64| {
        let (start, end) = (graph.integers(&[which * width]), graph.integers(&[(which + 1) * width]));
        let axis = graph.integers(&[1]);
        let columns = graph.node("Slice", &[&rows, &start, &end, &axis], &[]);
        graph.node("Gather", &[&columns, "pad_index"], &[])
    };
    let (query, key, value) = (part(0), part(1), part(2));
    let found = graph.name("MultiHeadAttention");
    let inputs = [&query, &key, &value, "", "lengths"];
    graph.node_to(&found, MICROSOFT, "MultiHeadAttention", &inputs, &[("num_heads", Value::Int(attention.heads))]);
    let shape = graph.integers(&[-1, width]);
    let slots = graph.node("Reshape", &[&found, &shape], &[]);
    let rows = graph.node("Gather", &[&slots, "unpad_index"], &[]);
    linear(graph, &rows, &attention.output)
}

fn write_head(graph: &mut Builder, head: &Head, states: &[String], output: &str) {
    let mut rows = match &head.mix {
        Some(mix) => write_mix(graph, &mix.factors(), states),
        None => states[states.len() - 1].clone(),
    };
    if let Some(recurrent) = &head.recurrent {
        rows = write_recurrent(graph, recurrent, &rows);
    }
    if let Some(attention) = &head.attention {
        let found = write_attention(graph, attention, &rows);
        rows = graph.node("Add", &[&rows, &found], &[]);
    }
    let units = graph.node("Gather", &[&rows, "word_index"], &[]);
    let (weight, bias) = (tensor(graph, &head.output.weight), tensor(graph, &head.output.bias));
    graph.node_to(output, "", "Gemm", &[&units, &weight, &bias], &[("transB", Value::Int(1))]);
    graph.output(output, Element::F32, &["units", &head.output.bias.size()[0].to_string()]);
}

/// The mix of all states with its factors folded into constants.
fn write_mix(graph: &mut Builder, factors: &Tensor, states: &[String]) -> String {
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

/// Rows [tokens, hidden] to rows [tokens, 2h].
fn write_recurrent(graph: &mut Builder, layer: &Recurrent, rows: &str) -> String {
    let direction = |i: usize| {
        let both = [0, 1].map(|direction: usize| reorder_gates(&layer.parameters[direction][i], layer));
        Tensor::stack(&both, 0)
    };
    let input_weight = tensor(graph, &direction(0));
    let recurrent_weight = tensor(graph, &direction(1));
    let bias = tensor(graph, &Tensor::cat(&[direction(2), direction(3)], 1));
    // The operator wants time first: turn the index, not the data.
    let index = graph.node("Transpose", &["pad_index"], &[("perm", Value::Ints(vec![1, 0]))]);
    let padded = graph.node("Gather", &[rows, &index], &[]);
    let mut attributes = vec![("direction", Value::Text("bidirectional")), ("hidden_size", Value::Int(layer.hidden))];
    let operator = match layer.cell {
        Cell::Lstm => "LSTM",
        Cell::Gru => {
            attributes.push(("linear_before_reset", Value::Int(1)));
            "GRU"
        }
    };
    let inputs = [&padded, &input_weight, &recurrent_weight, &bias, "lengths"];
    let found = graph.node(operator, &inputs, &attributes);
    // [width, 2, batch, h] to the slots of the padded view [batch · width, 2h], of which the tokens are taken.
    let found = graph.node("Transpose", &[&found], &[("perm", Value::Ints(vec![2, 0, 1, 3]))]);
    let shape = graph.integers(&[-1, 2 * layer.hidden]);
    let slots = graph.node("Reshape", &[&found, &shape], &[]);
    graph.node("Gather", &[&slots, "unpad_index"], &[])
}

/// The gates of libtorch in the order of ONNX: r z n to z r n, i f g o to i o f g.
fn reorder_gates(parameter: &Tensor, layer: &Recurrent) -> Tensor {
    let order: &[i64] = match layer.cell {
        Cell::Gru => &[1, 0, 2],
        Cell::Lstm => &[0, 3, 1, 2],
    };
    let gates: Vec<Tensor> = order.iter().map(|i| parameter.narrow(0, i * layer.hidden, layer.hidden)).collect();
    Tensor::cat(&gates, 0)
}

fn linear(graph: &mut Builder, x: &str, layer: &Linear) -> String {
    let (weight, bias) = (tensor(graph, &layer.weight), tensor(graph, &layer.bias));
    graph.node("Gemm", &[x, &weight, &bias], &[("transB", Value::Int(1))])
}

/// LayerNormalization after a plain Add: ONNX Runtime's SkipLayerNormalization is slower on a CPU.
fn norm(graph: &mut Builder, x: &str, norm: &Norm) -> String {
    let (weight, bias) = (tensor(graph, &norm.weight), tensor(graph, &norm.bias));
    let attributes = [("axis", Value::Int(-1)), ("epsilon", Value::Float(norm.epsilon as f32))];
    graph.node("LayerNormalization", &[x, &weight, &bias], &attributes)
}

fn tensor(graph: &mut Builder, tensor: &Tensor) -> String {
    graph.floats(&tensor.size(), &values(tensor))
}

fn values(tensor: &Tensor) -> Vec<f32> {
    let flat = tensor.detach().to_device(Device::Cpu).to_kind(Kind::Float).reshape([-1]);
    Vec::try_from(&flat).expect("a flat tensor of floats")
}
