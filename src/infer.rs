//! Sequences to logits: one session of ONNX Runtime, owned by the thread of its lane.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::str::FromStr;

use ort::ep::{self, ArbitrarilyConfigurableExecutionProvider, ExecutionProviderDispatch};
use ort::logging::LogLevel;
use ort::session::Session as OrtSession;
use ort::session::builder::GraphOptimizationLevel;
use ort::value::{TensorRef, ValueType};
use serde::{Deserialize, Serialize};

use crate::manifest::Head;
use crate::pack::Packed;
use crate::registry::Model;
use crate::tokenize::Window;

mod budget;
mod fault;
mod recovery;
mod runtime;
mod weights;

pub use fault::Cause;
pub use recovery::Recovery;
pub use runtime::{Runtime, RuntimeError};

use weights::Weights;

/// Where a model runs; a device that is named and missing is an error, never a silent fallback.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    /// The first CUDA device if there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device by number.
    Cuda(i32),
    /// A CUDA device by number, through TensorRT.
    TensorRt(i32),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<i32>().ok().filter(|&n| n >= 0);
        match text.split_once(':') {
            None if text == "auto" => Some(Device::Auto),
            None if text == "cpu" => Some(Device::Cpu),
            None if text == "cuda" => Some(Device::Cuda(0)),
            Some(("cuda", n)) => number(n).map(Device::Cuda),
            Some(("tensorrt", n)) => number(n).map(Device::TensorRt),
            _ => None,
        }
        .ok_or_else(|| format!("expected \"auto\", \"cpu\", \"cuda:N\" or \"tensorrt:N\", found {text:?}"))
    }
}

impl TryFrom<String> for Device {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(n) => write!(f, "cuda:{n}"),
            Device::TensorRt(n) => write!(f, "tensorrt:{n}"),
        }
    }
}

/// How sessions are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InferOptions {
    /// Where they run.
    pub device: Device,
    /// Threads inside one session.
    pub threads: usize,
    /// Options of the device's execution provider, by the names that ONNX Runtime has for them.
    pub provider_options: BTreeMap<String, String>,
}

impl Default for InferOptions {
    fn default() -> Self {
        Self { device: Device::Auto, threads: 1, provider_options: BTreeMap::new() }
    }
}

/// A session cannot be made or does not fit its manifest.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The library of ONNX Runtime.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The device that was asked for is not there.
    #[error("model.device is {device}, which cannot be used: {reason}")]
    Device {
        /// As set.
        device: Device,
        /// Why not.
        reason: String,
    },
    /// ONNX Runtime refused the graph.
    #[error("cannot load the graph: {0}")]
    Graph(String),
    /// A head whose output the graph lacks.
    #[error("head {head:?}: the graph has no output {output:?}, only {found:?}")]
    Output {
        /// The head.
        head: String,
        /// Output named by the manifest.
        output: String,
        /// Outputs of the graph.
        found: Vec<String>,
    },
    /// A head with another number of labels than logits.
    #[error("head {head:?} has {labels} labels, output {output:?} of the graph has {found}")]
    Labels {
        /// The head.
        head: String,
        /// Output named by the manifest.
        output: String,
        /// Labels in the manifest.
        labels: usize,
        /// Last dimension of the output.
        found: String,
    },
}

/// The model failed on a batch.
#[derive(Clone, Debug, thiserror::Error)]
#[error("inference failed: {reason}")]
pub struct InferError {
    /// Whose fault it is.
    pub cause: Cause,
    /// What ONNX Runtime says.
    pub reason: String,
}

#[cfg(feature = "failpoints")]
impl InferError {
    /// What a fail point asks for: `memory`, else a failure of the sequences.
    pub(crate) fn injected(fault: Option<String>) -> Self {
        let fault = fault.unwrap_or_default();
        let cause = if fault == "memory" { Cause::Device } else { Cause::Sequences };
        Self { cause, reason: format!("injected: {fault}") }
    }
}

impl From<ort::Error> for InferError {
    fn from(error: ort::Error) -> Self {
        Self { cause: Cause::of(error.code(), error.message()), reason: error.to_string() }
    }
}

/// Logits of one sequence: for every head, row-major [units, labels].
pub type Logits = Vec<Vec<f32>>;

/// A session of ONNX Runtime on one model.
#[derive(Debug)]
pub struct Session {
    inner: OrtSession,
    /// Output name and number of labels of every head.
    heads: Vec<(String, usize)>,
    device: Device,
}

impl Session {
    /// Opens so many sessions on `model`; on a CPU its weights are in memory once for all.
    ///
    /// # Errors
    /// When the library or the device is missing, or the graph is not what the manifest says.
    pub fn open(
        runtime: &Runtime,
        model: &Model,
        options: &InferOptions,
        count: usize,
    ) -> Result<Vec<Self>, SessionError> {
        let open = |device, weights: Option<Weights>| {
            (0..count).map(|_| Self::open_on(device, runtime, model, options, weights.as_ref())).collect()
        };
        let on_cpu = || {
            let weights = (count > 1).then(|| Weights::read(&model.graph()));
            open(Device::Cpu, weights.transpose().map_err(SessionError::Graph)?)
        };
        match options.device {
            Device::Cpu => on_cpu(),
            Device::Auto if !cuda_is_compiled_in() => on_cpu(),
            Device::Auto => match open(Device::Cuda(0), None) {
                Err(SessionError::Device { reason, .. }) => {
                    tracing::info!(reason, "no CUDA device, using the CPU");
                    on_cpu()
                }
                opened => opened,
            },
            device => open(device, None),
        }
    }

    fn open_on(
        device: Device,
        runtime: &Runtime,
        model: &Model,
        options: &InferOptions,
        weights: Option<&Weights>,
    ) -> Result<Self, SessionError> {
        let graph = |e: &dyn std::fmt::Display| SessionError::Graph(e.to_string());
        let refused = |e: &dyn std::fmt::Display| SessionError::Device { device, reason: e.to_string() };
        let mut builder = OrtSession::builder(runtime.environment())
            .map_err(|e| graph(&e))?
            .with_optimization_level(GraphOptimizationLevel::All)
            .map_err(|e| graph(&e))?
            .with_intra_threads(options.threads)
            .map_err(|e| graph(&e))?
            .with_intra_op_spinning(false)
            .map_err(|e| graph(&e))?
            // Below this it tells of every allocation.
            .with_log_level(LogLevel::Warning)
            .map_err(|e| graph(&e))?
            .with_execution_providers(providers(device, &options.provider_options))
            .map_err(|e| refused(&e))?;
        if let Some(weights) = weights {
            builder = weights.share_with(builder).map_err(|e| graph(&e))?;
        }
        let inner = builder.commit_from_file(model.graph()).map_err(|e| graph(&e))?;
        let heads = model.dir.manifest.heads.iter().map(|head| check_head(&inner, head)).collect::<Result<_, _>>()?;
        Ok(Self { inner, heads, device })
    }

    /// Where it runs: never [`Device::Auto`].
    pub fn device(&self) -> Device {
        self.device
    }

    /// Runs one batch; the answers are in the order of the windows.
    ///
    /// # Errors
    /// When ONNX Runtime fails.
    pub fn run<W: Borrow<Window>>(&mut self, windows: &[W]) -> Result<Vec<Logits>, InferError> {
        let packed = Packed::new(windows.iter().map(Borrow::borrow));
        let flat = self.run_packed(&packed)?;
        let mut first = 0;
        let answers = windows.iter().map(|window| {
            let rows = first..first + window.borrow().word_starts.len();
            first = rows.end;
            let of_head = |(logits, (_, labels)): (&Vec<f32>, &(String, usize))| {
                logits[rows.start * labels..rows.end * labels].to_vec()
            };
            flat.iter().zip(&self.heads).map(of_head).collect()
        });
        Ok(answers.collect())
    }

    /// Runs one batch whose tensors are made; logits of every head for the whole batch, row-major [units, labels].
    ///
    /// # Errors
    /// When ONNX Runtime fails.
    pub fn run_packed(&mut self, packed: &Packed) -> Result<Vec<Vec<f32>>, InferError> {
        Ok(self.run_tensors(packed)?)
    }

    fn run_tensors(&mut self, packed: &Packed) -> ort::Result<Vec<Vec<f32>>> {
        let (batch, width) = (packed.lengths.len(), packed.width);
        let outputs = self.inner.run(ort::inputs![
            "input_ids" => TensorRef::from_array_view(([packed.input_ids.len()], packed.input_ids.as_slice()))?,
            "position_ids" => TensorRef::from_array_view(([packed.position_ids.len()], packed.position_ids.as_slice()))?,
            "pad_index" => TensorRef::from_array_view(([batch, width], packed.pad_index.as_slice()))?,
            "unpad_index" => TensorRef::from_array_view(([packed.unpad_index.len()], packed.unpad_index.as_slice()))?,
            "lengths" => TensorRef::from_array_view(([batch], packed.lengths.as_slice()))?,
            "word_index" => TensorRef::from_array_view(([packed.word_index.len()], packed.word_index.as_slice()))?,
        ])?;
        let expected = packed.word_index.len();
        self.heads
            .iter()
            .map(|(output, labels)| {
                let (_, logits) = outputs[output.as_str()].try_extract_tensor::<f32>()?;
                if logits.len() != expected * labels {
                    return Err(ort::Error::new(format!("output {output:?} has {} values", logits.len())));
                }
                Ok(logits.to_vec())
            })
            .collect()
    }
}

/// What ONNX Runtime needs for a device. One that is asked for by name must be there.
fn providers(device: Device, options: &BTreeMap<String, String>) -> Vec<ExecutionProviderDispatch> {
    fn with<P: ArbitrarilyConfigurableExecutionProvider>(provider: P, options: &BTreeMap<String, String>) -> P {
        options.iter().fold(provider, |provider, (name, value)| provider.with_arbitrary_config(name, value))
    }
    let cuda = |n| ep::CUDA::default().with_device_id(n);
    let tensorrt = |n| with(ep::TensorRT::default().with_device_id(n), options).build().error_on_failure();
    match device {
        Device::Auto | Device::Cpu => vec![],
        Device::Cuda(n) => vec![with(cuda(n), options).build().error_on_failure()],
        Device::TensorRt(n) => vec![tensorrt(n), cuda(n).build().error_on_failure()],
    }
}

/// Whether the library can speak to CUDA; whether there is a device is another matter.
fn cuda_is_compiled_in() -> bool {
    use ort::ep::ExecutionProvider as _;
    ep::CUDA::is_available().unwrap_or(false)
}

fn check_head(session: &OrtSession, head: &Head) -> Result<(String, usize), SessionError> {
    let Some(outlet) = session.outputs().iter().find(|outlet| outlet.name() == head.output) else {
        let found = session.outputs().iter().map(|outlet| outlet.name().to_owned()).collect();
        return Err(SessionError::Output { head: head.name.clone(), output: head.output.clone(), found });
    };
    let labels = head.labels.len();
    let width = match outlet.dtype() {
        ValueType::Tensor { shape, .. } if shape.len() == 2 => shape[1],
        _ => -1,
    };
    if width == labels as i64 {
        return Ok((head.output.clone(), labels));
    }
    let found = if width < 0 { "no fixed number".to_owned() } else { width.to_string() };
    Err(SessionError::Labels { head: head.name.clone(), output: head.output.clone(), labels, found })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for device in [Device::Auto, Device::Cpu, Device::Cuda(3), Device::TensorRt(0)] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "tensorrt", "cpu:0"] {
            assert!(wrong.parse::<Device>().is_err(), "{wrong}");
        }
    }
}
