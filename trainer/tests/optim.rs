//! AdamW and its schedule against the formulas, worked in plain arithmetic.

use tch::nn::VarStore;
use tch::{Device, Tensor};
use vitag_trainer::model;
use vitag_trainer::optim::{AdamW, Settings, learning_rate};

/// One value of one parameter through AdamW (Loshchilov and Hutter 2019, algorithm 2), in f64.
fn reference(mut value: f64, gradients: &[f64], rate: f64, decay: f64) -> f64 {
    let (mut mean, mut square) = (0.0, 0.0);
    for (i, gradient) in gradients.iter().enumerate() {
        let step = i as i32 + 1;
        mean = 0.9 * mean + 0.1 * gradient;
        square = 0.999 * square + 0.001 * gradient * gradient;
        let mean = mean / (1.0 - 0.9f64.powi(step));
        let square = square / (1.0 - 0.999f64.powi(step));
        value -= rate * (mean / (square.sqrt() + 1e-6) + decay * value);
    }
    value
}

fn settings(weight_decay: f64) -> Settings {
    Settings { weight_decay, epsilon: 1e-6 }
}

#[test]
fn adamw_follows_its_formula_and_decays_matrices_alone() {
    let store = VarStore::new(Device::Cpu);
    let matrix = store.root().var_copy("matrix", &Tensor::from_slice(&[0.5f32, -1.5]).view([1, 2]));
    let vector = store.root().var_copy("vector", &Tensor::from_slice(&[2.0f32]));
    let mut optimizer = AdamW::new(model::variables(&store), settings(0.1));
    let gradients = [[0.3, -0.02, 4.0], [0.1, 0.5, -1.0], [-2.0, 0.0, 0.25]];
    for [a, b, c] in gradients {
        let slopes = Tensor::from_slice(&[a as f32, b as f32]).view([1, 2]);
        optimizer.zero_grad();
        ((&matrix * slopes).sum(tch::Kind::Float) + (&vector * c).sum(tch::Kind::Float)).backward();
        optimizer.step(0.01);
    }
    let column = |i: usize| gradients.map(|row| row[i]);
    let expected = [
        reference(0.5, &column(0), 0.01, 0.1),
        reference(-1.5, &column(1), 0.01, 0.1),
        reference(2.0, &column(2), 0.01, 0.0),
    ];
    let found = [matrix.double_value(&[0, 0]), matrix.double_value(&[0, 1]), vector.double_value(&[0])];
    for (expected, found) in expected.iter().zip(found) {
        assert!((expected - found).abs() < 1e-6, "{expected} {found}");
    }
}

#[test]
fn gradients_are_scaled_to_the_limit_together() {
    let store = VarStore::new(Device::Cpu);
    let value = store.root().var_copy("value", &Tensor::from_slice(&[1.0f32, 1.0]));
    (&value * Tensor::from_slice(&[3.0f32, 4.0])).sum(tch::Kind::Float).backward();
    let mut optimizer = AdamW::new(model::variables(&store), settings(0.0));
    assert!((optimizer.clip(1.0) - 5.0).abs() < 1e-6);
    assert!((value.grad().double_value(&[0]) - 0.6).abs() < 1e-6);
    assert!((optimizer.clip(2.0) - 1.0).abs() < 1e-6);
    assert!((value.grad().double_value(&[1]) - 0.8).abs() < 1e-6);
}

#[test]
fn the_learning_rate_rises_and_falls_on_lines() {
    let rates: Vec<f64> = (0..10).map(|step| learning_rate(f64::from(step), 10, 0.2, 1.0)).collect();
    assert_eq!(rates[..3], [0.5, 1.0, 1.0]);
    assert!((rates[9] - 0.125).abs() < 1e-12);
    assert_eq!(learning_rate(10.0, 10, 0.2, 1.0), 0.0);
}
