//! AdamW (Loshchilov and Hutter 2019), its schedule and the clipping of gradients, on named tensors so that a
//! checkpoint holds all of its state.

use anyhow::{Result, ensure};
use tch::{Kind, Tensor};

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;

/// AdamW. Weight decay acts on matrices alone: norms, biases and the mix of layers are vectors.
#[derive(Debug)]
pub struct AdamW {
    parameters: Vec<Parameter>,
    settings: Settings,
    /// Steps done.
    pub step: i64,
}

/// The constants of AdamW beside β₁ = 0.9 and β₂ = 0.999.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// What keeps the division from zero.
    pub epsilon: f64,
}

#[derive(Debug)]
struct Parameter {
    name: String,
    /// Its learning rate as a multiple of that of a step.
    rate: f64,
    value: Tensor,
    mean: Tensor,
    square: Tensor,
}

impl AdamW {
    /// An optimiser of these variables, before its first step.
    pub fn new(variables: Vec<(String, Tensor)>, settings: Settings) -> Self {
        let parameters = variables
            .into_iter()
            .map(|(name, value)| Parameter {
                name,
                rate: 1.0,
                mean: value.zeros_like(),
                square: value.zeros_like(),
                value,
            })
            .collect();
        Self { parameters, settings, step: 0 }
    }

    /// Multiplies the learning rate of the variables whose name begins with `root`.
    pub fn scale_rate(&mut self, root: &str, factor: f64) {
        for parameter in self.parameters.iter_mut().filter(|p| p.name.starts_with(root)) {
            parameter.rate *= factor;
        }
    }

    /// One step down the mean of `parts` losses, made one after the other by `loss`, with gradients of a norm of at most
    /// `limit`. Returns that mean and the norm before.
    ///
    /// # Errors
    /// When a loss is not a number; nothing is changed then.
    pub fn descend(
        &mut self,
        parts: usize,
        mut loss: impl FnMut(usize) -> Tensor,
        limit: f64,
        learning_rate: f64,
    ) -> Result<(f64, f64)> {
        self.zero_grad();
        let mut mean = 0.0;
        for part in 0..parts {
            let loss = loss(part) / parts as f64;
            mean += loss.double_value(&[]);
            ensure!(mean.is_finite(), "the loss is not a number at step {}", self.step + 1);
            loss.backward();
        }
        let norm = self.clip(limit);
        self.step(learning_rate);
        Ok((mean, norm))
    }

    /// Forgets all gradients.
    pub fn zero_grad(&mut self) {
        for parameter in &mut self.parameters {
            parameter.value.zero_grad();
        }
    }

    /// Scales the gradients so that their common norm is at most `limit`; returns the norm before.
    pub fn clip(&mut self, limit: f64) -> f64 {
        let squares = self.parameters.iter().map(|p| p.value.grad()).filter(Tensor::defined);
        let squares: Vec<Tensor> = squares.map(|gradient| gradient.square().sum(Kind::Double)).collect();
        let norm = Tensor::stack(&squares, 0).sum(Kind::Double).sqrt().double_value(&[]);
        if norm > limit {
            for parameter in &self.parameters {
                let mut gradient = parameter.value.grad();
                if gradient.defined() {
                    let _ = gradient.g_mul_scalar_(limit / norm);
                }
            }
        }
        norm
    }

    /// One step along the gradients.
    pub fn step(&mut self, learning_rate: f64) {
        self.step += 1;
        let corrections = (1.0 - BETA1.powi(self.step as i32), 1.0 - BETA2.powi(self.step as i32));
        tch::no_grad(|| {
            for parameter in &mut self.parameters {
                parameter.step(learning_rate * parameter.rate, self.settings, corrections);
            }
        });
    }

    /// The running means under the names `mean.<variable>` and `square.<variable>`.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let named = |kind: &str, p: &Parameter, tensor: &Tensor| (format!("{kind}.{}", p.name), tensor.shallow_clone());
        self.parameters.iter().flat_map(|p| [named("mean", p, &p.mean), named("square", p, &p.square)]).collect()
    }
}

impl Parameter {
    fn step(&mut self, learning_rate: f64, settings: Settings, (first, second): (f64, f64)) {
        let gradient = self.value.grad();
        if !gradient.defined() {
            return; // no head in this batch used it
        }
        // In place where it can be: on a CPU the step costs as many passes over memory as there are operations.
        let _ = self.mean.lerp_(&gradient, 1.0 - BETA1);
        let _ = self.square.lerp_(&gradient.square(), 1.0 - BETA2);
        let mut size = (&self.square / second).sqrt_();
        let direction = &self.mean / size.g_add_scalar_(settings.epsilon);
        if self.value.dim() > 1 && settings.weight_decay > 0.0 {
            let _ = self.value.g_mul_scalar_(1.0 - learning_rate * settings.weight_decay);
        }
        let _ = self.value.g_sub_(&(direction * (learning_rate / first)));
    }
}

/// The learning rate of a step (from 0): a linear rise to `peak` over the share `warmup` of all steps, then a linear
/// fall to zero. A schedule by the clock gives parts of steps.
pub fn learning_rate(step: f64, total: usize, warmup: f64, peak: f64) -> f64 {
    let rise = (total as f64 * warmup).round();
    if step < rise {
        return peak * (step + 1.0) / rise;
    }
    peak * (total as f64 - step) / (total as f64 - rise).max(1.0)
}
