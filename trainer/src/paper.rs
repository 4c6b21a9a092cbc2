//! The experiments of the paper, as far as open data allows: every task with every encoder and every head.
//!
//! A [`Matrix`] says which; each of its cells becomes a run's directory `<task>/<encoder>/<head>/<seed>`, which holds how
//! far it is. So a matrix can be left and gone on with, and several processes can share it.

mod figure;
mod job;
mod matrix;
mod report;
mod timing;

pub use job::{Outcome, train};
pub use matrix::{Block, Cell, Claim, Matrix, NamedEncoder, Reported};
pub use report::report;
pub use timing::{Decoding, time};
