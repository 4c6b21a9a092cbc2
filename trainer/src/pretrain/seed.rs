//! Seeds that depend on what is drawn and when, and on nothing that was drawn before.

/// The order of the text in an epoch.
pub(super) const ORDER: u64 = 1;
/// The masks of a batch.
pub(super) const MASKS: u64 = 2;
/// Dropout and the samples of the generator in a batch.
pub(super) const TORCH: u64 = 3;

/// The seed of the draw `number` of its `kind` in a run, by the finaliser of SplitMix64 (Steele et al. 2014).
pub(super) fn of(run: u64, kind: u64, number: u64) -> u64 {
    [kind, number].iter().fold(mix(run), |seed, part| mix(seed ^ part.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
