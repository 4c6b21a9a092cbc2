//! A file of TensorBoard events: scalars by name and step.
//!
//! The frame is that of TFRecord (length, its checksum, data, its checksum), the data is the part of TensorFlow's
//! `Event` that carries scalars, with the field numbers of
//! <https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/util/event.proto>.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use prost::Message;

/// An open file of events.
#[derive(Debug)]
pub struct Events {
    file: File,
}

impl Events {
    /// Starts a new file in `dir`; its name holds the time, so that those of a resumed run stand beside each other.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(dir: &Path) -> Result<Self> {
        let path = dir.join(format!("events.out.tfevents.{}.{}", now() as u64, std::process::id()));
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let mut events = Self { file: file.with_context(|| format!("cannot write {}", path.display()))? };
        let what = Some(What::FileVersion("brain.Event:2".to_owned()));
        events.write(&Event { wall_time: now(), step: 0, what })?;
        Ok(events)
    }

    /// Adds scalars of one step.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn scalars<'a>(&mut self, step: u64, scalars: impl Iterator<Item = (String, &'a f64)>) -> Result<()> {
        let value = scalars.map(|(tag, &value)| Scalar { tag, simple_value: value as f32 }).collect();
        self.write(&Event { wall_time: now(), step: step as i64, what: Some(What::Summary(Summary { value })) })
    }

    fn write(&mut self, event: &Event) -> Result<()> {
        Ok(self.file.write_all(&frame(&event.encode_to_vec()))?)
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length).to_le_bytes(), data, &masked_crc(data).to_le_bytes()].concat()
}

/// TFRecord's checksum: CRC-32C, turned and shifted so that the checksum of a checksum is no fixed point.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bit by bit: a few hundred bytes at a time.
fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

/// `Event`.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
}

/// `Summary`.
#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

/// `Summary.Value`.
#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, tag = "2")]
    simple_value: f32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnolis() {
        // The test vectors of RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn scalars_come_back_from_their_frames() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = Events::create(dir.path()).unwrap();
        events.scalars(7, [("train/loss".to_owned(), &2.5)].into_iter()).unwrap();
        let path = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        let bytes = std::fs::read(path).unwrap();
        let length = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        let second = 12 + length(0) + 4;
        let event = Event::decode(&bytes[second + 12..second + 12 + length(second)]).unwrap();
        let value = vec![Scalar { tag: "train/loss".to_owned(), simple_value: 2.5 }];
        assert_eq!((event.step, event.what), (7, Some(What::Summary(Summary { value }))));
        assert_eq!(bytes.len(), second + 12 + length(second) + 4);
    }
}
