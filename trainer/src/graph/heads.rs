//! The heads of the model as parts of the graph.

use tch::Tensor;

use super::{Writer, values};
use crate::model::{Cell, Head, Mix, Recurrent};
use crate::onnx::{Element, Value};

impl Writer {
    /// From the states to the logits of one head, the output of the graph of that name.
    pub(super) fn head(&mut self, head: &Head, states: &[String], output: &str) {
        let mut rows = match &head.mix {
            Some(mix) => self.mix(mix, states),
            None => states[states.len() - 1].clone(),
        };
        if let Some(recurrent) = &head.recurrent {
            rows = self.recurrent(recurrent, &rows);
        }
        if let Some(attention) = &head.attention {
            let found = self.attention(attention, &rows);
            rows = self.graph.node("Add", &[&rows, &found], &[]);
        }
        let units = self.graph.node("Gather", &[&rows, "word_index"], &[]);
        let logits = self.exact_linear(&units, &head.output);
        self.graph.node_to(output, "", "Identity", &[&logits], &[]);
        self.graph.output(output, Element::F32, &["units", &head.output.bias.size()[0].to_string()]);
    }

    /// The mix of all states with its factors folded into constants.
    fn mix(&mut self, mix: &Mix, states: &[String]) -> String {
        let scaled: Vec<String> = states
            .iter()
            .zip(values(&mix.factors()))
            .map(|(state, factor)| {
                let factor = self.graph.floats(&[1], &[factor]);
                self.graph.node("Mul", &[state, &factor], &[])
            })
            .collect();
        let sum = |sum: String, part: String| self.graph.node("Add", &[&sum, &part], &[]);
        scaled.into_iter().reduce(sum).expect("at least the embeddings")
    }

    /// Rows [tokens, hidden] to rows [tokens, 2h].
    fn recurrent(&mut self, layer: &Recurrent, rows: &str) -> String {
        let direction = |i: usize| {
            let both = [0, 1].map(|direction: usize| reorder_gates(&layer.parameters[direction][i], layer));
            Tensor::stack(&both, 0)
        };
        let input_weight = self.tensor(&direction(0));
        let recurrent_weight = self.tensor(&direction(1));
        let bias = self.tensor(&Tensor::cat(&[direction(2), direction(3)], 1));
        // The operator wants time first: turn the index, not the data.
        let index = self.graph.node("Transpose", &["pad_index"], &[("perm", Value::Ints(vec![1, 0]))]);
        let padded = self.graph.node("Gather", &[rows, &index], &[]);
        let mut attributes =
            vec![("direction", Value::Text("bidirectional")), ("hidden_size", Value::Int(layer.hidden))];
        let operator = match layer.cell {
            Cell::Lstm => "LSTM",
            Cell::Gru => {
                attributes.push(("linear_before_reset", Value::Int(1)));
                "GRU"
            }
        };
        let inputs = [&padded, &input_weight, &recurrent_weight, &bias, "lengths"];
        let found = self.graph.node(operator, &inputs, &attributes);
        // [width, 2, batch, h] to the slots of the padded view [batch · width, 2h], of which the tokens are taken.
        let found = self.graph.node("Transpose", &[&found], &[("perm", Value::Ints(vec![2, 0, 1, 3]))]);
        let shape = self.graph.integers(&[-1, 2 * layer.hidden]);
        let slots = self.graph.node("Reshape", &[&found, &shape], &[]);
        self.graph.node("Gather", &[&slots, "unpad_index"], &[])
    }
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
