//! What failed when the model did: the sequences that it was given, or the memory and the device that it runs on.

use ort::ErrorCode;

/// Why the model failed on a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The sequences: the same ones fail again.
    Sequences,
    /// Memory or the device: less at once, or the same later, may pass.
    Device,
}

/// Words, in lower case, that ONNX Runtime and its providers use of memory and devices alone.
const OF_DEVICES: [&str; 12] = [
    // The arena: "BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size …".
    "failed to allocate memory",
    // Allocation without the arena; the second is what Windows says.
    "bad_alloc",
    "bad allocation",
    // "CUDA failure 2: out of memory ; GPU=0 ; …", and TensorRT.
    "out of memory",
    "cuda failure",
    "cuda error",
    "cudnn failure",
    "cudnn_status_",
    "cublas failure",
    "cublas_status_",
    // "TensorRT EP execution context enqueue failed", "TensorRT EP failed to create engine …".
    "tensorrt ep",
    "trt ep",
];

impl Cause {
    /// Reads an error of ONNX Runtime. Most failures of memory have no code of their own, only words: a kernel that
    /// throws gives `RuntimeException` whatever it threw.
    pub(super) fn of(code: ErrorCode, message: &str) -> Self {
        use ErrorCode::{DeviceReset, EngineError, ExecutionProviderFailure};
        let message = message.to_lowercase();
        let by_code = matches!(code, DeviceReset | EngineError | ExecutionProviderFailure);
        if by_code || OF_DEVICES.iter().any(|words| message.contains(words)) { Cause::Device } else { Cause::Sequences }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_devices_are_told_from_sequences() {
        let of_devices = [
            "Non-zero status code returned while running MatMul node. Name:'m' Status Message: bfc_arena.cc:376 void* \
             onnxruntime::BFCArena::AllocateRawInternal(size_t) Failed to allocate memory for requested buffer of size 9",
            "Non-zero status code returned while running Add node. Name:'a' Status Message: std::bad_alloc",
            "CUDA failure 2: out of memory ; GPU=0 ; hostname=h ; file=cuda_allocator.cc ; expr=cudaMalloc((void**)&p, size);",
            "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=h",
            "CUDNN failure 8: CUDNN_STATUS_EXECUTION_FAILED ; GPU=0",
            "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; expr=cublasCreate(&cublas_handle_);",
            "TensorRT EP execution context enqueue failed.",
        ];
        for message in of_devices {
            assert_eq!(Cause::of(ErrorCode::RuntimeException, message), Cause::Device, "{message}");
        }
        let of_sequences = [
            "Non-zero status code returned while running Gather node. Name:'words' Status Message: indices element out of \
             data bounds, idx=99999 must be within the inclusive range [-4000,3999]",
            "Got invalid dimensions for input: lengths for the following indices",
        ];
        for message in of_sequences {
            assert_eq!(Cause::of(ErrorCode::InvalidArgument, message), Cause::Sequences, "{message}");
        }
        assert_eq!(Cause::of(ErrorCode::DeviceReset, "gone"), Cause::Device);
    }
}
