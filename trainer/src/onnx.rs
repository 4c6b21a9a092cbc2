//! Writes ONNX graphs. It knows the format and no model.
//!
//! The messages are the part of the ONNX protocol buffers that is written here, with the field numbers of the
//! specification (<https://github.com/onnx/onnx/blob/main/onnx/onnx.proto>).

use prost::Message;

/// Domain of the operators that ONNX Runtime adds.
pub const MICROSOFT: &str = "com.microsoft";

/// Version of the standard operators: the first with Gelu.
pub const OPSET: u32 = 20;

/// Version of the format that came with [`OPSET`].
const IR_VERSION: i64 = 9;

/// Type of the elements of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// 32-bit float.
    F32 = 1,
    /// 8-bit integer without a sign.
    U8 = 2,
    /// 8-bit integer with a sign.
    I8 = 3,
    /// 32-bit integer.
    I32 = 6,
    /// 64-bit integer.
    I64 = 7,
}

/// The value of an attribute.
#[derive(Clone, Debug)]
pub enum Value {
    /// A float.
    Float(f32),
    /// An integer.
    Int(i64),
    /// A string.
    Text(&'static str),
    /// Integers.
    Ints(Vec<i64>),
}

/// A graph in the making. Values go by their names; those of results are made here and never clash.
#[derive(Debug, Default)]
pub struct Builder {
    graph: Graph,
    made: usize,
}

impl Builder {
    /// Adds an input; a dimension is a name or a number.
    pub fn input(&mut self, name: &str, element: Element, dimensions: &[&str]) {
        self.graph.input.push(value_info(name, element, dimensions));
    }

    /// Declares `name`, made by [`Builder::node_to`], as an output.
    pub fn output(&mut self, name: &str, element: Element, dimensions: &[&str]) {
        self.graph.output.push(value_info(name, element, dimensions));
    }

    /// Adds a constant of floats and returns its name.
    pub fn floats(&mut self, shape: &[i64], values: &[f32]) -> String {
        self.constant(Element::F32, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// Adds a constant of bytes and returns its name.
    pub fn bytes(&mut self, shape: &[i64], values: &[u8]) -> String {
        self.constant(Element::U8, shape, values.to_vec())
    }

    /// Adds a constant of signed bytes and returns its name.
    pub fn signed_bytes(&mut self, shape: &[i64], values: &[i8]) -> String {
        self.constant(Element::I8, shape, values.iter().map(|value| value.cast_unsigned()).collect())
    }

    /// Adds a constant list of integers and returns its name.
    pub fn integers(&mut self, values: &[i64]) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(Element::I64, &[values.len() as i64], bytes)
    }

    /// Adds a node of the standard operators with one result and returns its name.
    pub fn node(&mut self, operator: &str, inputs: &[&str], attributes: &[(&str, Value)]) -> String {
        self.node_of("", operator, inputs, attributes)
    }

    /// Adds a node of `domain` with one result and returns its name.
    pub fn node_of(&mut self, domain: &str, operator: &str, inputs: &[&str], attributes: &[(&str, Value)]) -> String {
        let result = self.name(operator);
        self.node_to(&result, domain, operator, inputs, attributes);
        result
    }

    /// Adds a node of `domain` whose result is called `result`.
    pub fn node_to(
        &mut self,
        result: &str,
        domain: &str,
        operator: &str,
        inputs: &[&str],
        attributes: &[(&str, Value)],
    ) {
        self.graph.node.push(Node {
            input: inputs.iter().map(|&input| input.to_owned()).collect(),
            output: vec![result.to_owned()],
            name: format!("make {result}"),
            op_type: operator.to_owned(),
            attribute: attributes.iter().map(|(name, value)| attribute(name, value)).collect(),
            domain: domain.to_owned(),
        });
    }

    /// A name that nothing has yet.
    pub fn name(&mut self, what: &str) -> String {
        self.made += 1;
        format!("{what}_{}", self.made)
    }

    /// The bytes of the model file.
    pub fn finish(mut self, name: &str) -> Vec<u8> {
        self.graph.name = name.to_owned();
        let opset = |domain: &str, version: u32| Opset { domain: domain.to_owned(), version: i64::from(version) };
        let model = Model {
            ir_version: IR_VERSION,
            producer_name: env!("CARGO_PKG_NAME").to_owned(),
            producer_version: env!("CARGO_PKG_VERSION").to_owned(),
            graph: Some(self.graph),
            opset_import: vec![opset("", OPSET), opset(MICROSOFT, 1)],
        };
        model.encode_to_vec()
    }

    fn constant(&mut self, element: Element, shape: &[i64], raw_data: Vec<u8>) -> String {
        let name = self.name("constant");
        let (dims, data_type) = (shape.to_vec(), element as i32);
        self.graph.initializer.push(Initializer { dims, data_type, name: name.clone(), raw_data });
        name
    }
}

fn attribute(name: &str, value: &Value) -> Attribute {
    let mut attribute = Attribute { name: name.to_owned(), ..Attribute::default() };
    match value {
        Value::Float(f) => (attribute.f, attribute.r#type) = (*f, 1),
        Value::Int(i) => (attribute.i, attribute.r#type) = (*i, 2),
        Value::Text(s) => (attribute.s, attribute.r#type) = (s.as_bytes().to_vec(), 3),
        Value::Ints(ints) => (attribute.ints, attribute.r#type) = (ints.clone(), 7),
    }
    attribute
}

fn value_info(name: &str, element: Element, dimensions: &[&str]) -> ValueInfo {
    let dimension = |text: &&str| match text.parse() {
        Ok(number) => Dimension { value: Some(DimensionValue::Number(number)) },
        Err(_) => Dimension { value: Some(DimensionValue::Name((*text).to_owned())) },
    };
    let shape = Shape { dim: dimensions.iter().map(dimension).collect() };
    let tensor_type = Some(TensorType { elem_type: element as i32, shape: Some(shape) });
    ValueInfo { name: name.to_owned(), r#type: Some(Type { tensor_type }) }
}

/// `ModelProto`.
#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(int64, tag = "1")]
    ir_version: i64,
    #[prost(string, tag = "2")]
    producer_name: String,
    #[prost(string, tag = "3")]
    producer_version: String,
    #[prost(message, optional, tag = "7")]
    graph: Option<Graph>,
    #[prost(message, repeated, tag = "8")]
    opset_import: Vec<Opset>,
}

/// `OperatorSetIdProto`.
#[derive(Clone, PartialEq, Message)]
struct Opset {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(int64, tag = "2")]
    version: i64,
}

/// `GraphProto`.
#[derive(Clone, PartialEq, Message)]
struct Graph {
    #[prost(message, repeated, tag = "1")]
    node: Vec<Node>,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<Initializer>,
    #[prost(message, repeated, tag = "11")]
    input: Vec<ValueInfo>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueInfo>,
}

/// `NodeProto`.
#[derive(Clone, PartialEq, Message)]
struct Node {
    #[prost(string, repeated, tag = "1")]
    input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    output: Vec<String>,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(string, tag = "4")]
    op_type: String,
    #[prost(message, repeated, tag = "5")]
    attribute: Vec<Attribute>,
    #[prost(string, tag = "7")]
    domain: String,
}

/// `AttributeProto`.
#[derive(Clone, PartialEq, Message)]
struct Attribute {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(float, tag = "2")]
    f: f32,
    #[prost(int64, tag = "3")]
    i: i64,
    #[prost(bytes = "vec", tag = "4")]
    s: Vec<u8>,
    #[prost(int64, repeated, packed = "false", tag = "8")]
    ints: Vec<i64>,
    #[prost(int32, tag = "20")]
    r#type: i32,
}

/// `TensorProto`.
#[derive(Clone, PartialEq, Message)]
struct Initializer {
    #[prost(int64, repeated, packed = "false", tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(string, tag = "8")]
    name: String,
    /// Little-endian.
    #[prost(bytes = "vec", tag = "9")]
    raw_data: Vec<u8>,
}

/// `ValueInfoProto`.
#[derive(Clone, PartialEq, Message)]
struct ValueInfo {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    r#type: Option<Type>,
}

/// `TypeProto`.
#[derive(Clone, PartialEq, Message)]
struct Type {
    #[prost(message, optional, tag = "1")]
    tensor_type: Option<TensorType>,
}

/// `TypeProto.Tensor`.
#[derive(Clone, PartialEq, Message)]
struct TensorType {
    #[prost(int32, tag = "1")]
    elem_type: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
}

/// `TensorShapeProto`.
#[derive(Clone, PartialEq, Message)]
struct Shape {
    #[prost(message, repeated, tag = "1")]
    dim: Vec<Dimension>,
}

/// `TensorShapeProto.Dimension`.
#[derive(Clone, PartialEq, Message)]
struct Dimension {
    #[prost(oneof = "DimensionValue", tags = "1, 2")]
    value: Option<DimensionValue>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum DimensionValue {
    #[prost(int64, tag = "1")]
    Number(i64),
    #[prost(string, tag = "2")]
    Name(String),
}
