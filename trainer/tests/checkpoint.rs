//! What is saved comes back, and a run that was interrupted ends as one that was not.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Result, bail};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;
use vitag_trainer::fit::{self, Fit, Objective};
use vitag_trainer::{files, model};

/// Draws a vector to 1 through dropout; fails after the epoch `fails_after`, if there is one.
struct Toy<'a> {
    value: &'a Tensor,
    epoch: std::cell::Cell<usize>,
    fails_after: Option<usize>,
}

impl Objective for Toy<'_> {
    type Batch = f64;

    fn epoch(&self, epoch: usize) -> Vec<f64> {
        self.epoch.set(epoch + 1);
        vec![1.0, 0.5, epoch as f64]
    }

    fn loss(&self, scale: &f64) -> Tensor {
        ((self.value - 1.0).square() * *scale).dropout(0.5, true).sum(Kind::Float)
    }

    fn scores(&self) -> Result<BTreeMap<String, f64>> {
        if self.fails_after == Some(self.epoch.get()) {
            bail!("interrupted");
        }
        Ok(BTreeMap::from([("toy".to_owned(), self.epoch.get() as f64)]))
    }
}

fn train(out: &Path, start: f64, fails_after: Option<usize>, resume: bool) -> Result<Vec<f32>> {
    let settings = common::config(common::LINEAR, 4).train;
    let store = VarStore::new(Device::Cpu);
    let value = store.root().var("value", &[8], tch::nn::Init::Const(start));
    let toy = Toy { value: &value, epoch: 0.into(), fails_after };
    Fit { train: &settings, seed: 1, store: &store, out }.run(&toy, resume)?;
    Ok(Vec::try_from(&value)?)
}

#[test]
fn a_resumed_run_comes_to_the_same_weights() {
    let _alone = common::alone();
    let (whole, broken) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let expected = train(whole.path(), 0.0, None, false).unwrap();
    train(broken.path(), 0.0, Some(3), false).unwrap_err();
    // Other weights at the start: all comes from the checkpoint.
    assert_eq!(train(broken.path(), 9.0, None, true).unwrap(), expected);
    let (a, b) = (whole.path().join(fit::LAST), broken.path().join(fit::LAST));
    assert!(fs::read(a).unwrap() == fs::read(b).unwrap());
}

#[test]
fn a_checkpoint_returns_every_tensor_and_refuses_other_shapes() {
    let _alone = common::alone();
    let dir = TempDir::new().unwrap();
    let run = common::random_run(&dir, common::BIGRU);
    let path = dir.path().join("model.safetensors");
    let before: Vec<_> = model::variables(&run.store).into_iter().map(|(name, value)| (name, value.copy())).collect();
    fit::save(&path, &before).unwrap();
    tch::no_grad(|| run.store.trainable_variables().iter_mut().for_each(|value| drop(value.zero_())));
    let mut read = Tensor::read_safetensors(&path).unwrap();
    model::restore(&model::variables(&run.store), &read).unwrap();
    assert!(model::variables(&run.store).iter().zip(&before).all(|(a, b)| a.1 == b.1));

    let (name, tensor) = read.pop().unwrap();
    let missing = model::restore(&model::variables(&run.store), &read).unwrap_err().to_string();
    assert!(missing.contains("the checkpoint lacks") && missing.contains(&name), "{missing}");
    read.push((name, tensor.unsqueeze(0)));
    let shape = model::restore(&model::variables(&run.store), &read).unwrap_err().to_string();
    assert!(shape.contains("has shape"), "{shape}");
}

#[test]
fn an_interrupted_write_leaves_the_old_file() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("file");
    files::write_atomically(&path, b"old").unwrap();
    let half = files::replace(&path, |temporary| {
        fs::write(temporary, b"ne")?;
        bail!("no space left")
    });
    assert!(format!("{:#}", half.unwrap_err()).contains("no space left"));
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}
