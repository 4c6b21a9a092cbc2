//! The weights of a graph, in memory once for all sessions on it.
//!
//! ONNX Runtime takes a weight that it is given by name instead of the one in the graph, and shares what its matrix
//! products make of it. The messages are the part of the ONNX protocol buffers that is read here, with the field numbers
//! of the specification (<https://github.com/onnx/onnx/blob/main/onnx/onnx.proto>).

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use ort::session::builder::{PrepackedWeights, SessionBuilder};
use ort::value::{DynValue, PrimitiveTensorElementType, Tensor};
use prost::Message;

/// Smaller constants are left to each session, which folds shapes and axes into its plan.
const LEAST_BYTES: usize = 1024;

/// The large constants of a graph.
pub(super) struct Weights {
    tensors: Vec<(String, Arc<DynValue>)>,
    prepacked: PrepackedWeights,
}

impl Weights {
    /// Reads those of the graph in `path`.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
        let model = Model::decode(Bytes::from(bytes)).map_err(|e| e.to_string())?;
        let mut tensors = Vec::new();
        for constant in model.graph.unwrap_or_default().initializer {
            if constant.raw_data.len() >= LEAST_BYTES
                && let Some(tensor) = constant.tensor().map_err(|e| e.to_string())?
            {
                tensors.push((constant.name, Arc::new(tensor)));
            }
        }
        Ok(Self { tensors, prepacked: PrepackedWeights::new() })
    }

    /// Makes a session use them.
    pub(super) fn share_with(&self, mut builder: SessionBuilder) -> ort::Result<SessionBuilder> {
        builder = builder.with_prepacked_weights(&self.prepacked)?;
        for (name, tensor) in &self.tensors {
            builder = builder.with_initializer(name, tensor.clone())?;
        }
        Ok(builder)
    }
}

#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, optional, tag = "7")]
    graph: Option<Graph>,
}

#[derive(Clone, PartialEq, Message)]
struct Graph {
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<Initializer>,
}

#[derive(Clone, PartialEq, Message)]
struct Initializer {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(string, tag = "8")]
    name: String,
    #[prost(bytes = "bytes", tag = "9")]
    raw_data: Bytes,
}

impl Initializer {
    /// Of the types that weights have: f32, u8 and i8.
    fn tensor(&self) -> ort::Result<Option<DynValue>> {
        let bytes = &self.raw_data;
        match self.data_type {
            1 => self.of(bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()),
            2 => self.of(bytes.to_vec()),
            3 => self.of(bytes.iter().map(|byte| byte.cast_signed()).collect()),
            _ => return Ok(None),
        }
        .map(Some)
    }

    fn of<T: PrimitiveTensorElementType + Debug + Clone + 'static>(&self, values: Vec<T>) -> ort::Result<DynValue> {
        Ok(Tensor::from_array((self.dims.clone(), values))?.into_dyn())
    }
}
