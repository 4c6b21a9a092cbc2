//! When too many records become dead letters for it to be their fault: pure policy.

use std::collections::{HashMap, VecDeque};

use crate::record::{Code, Reject};

/// When to stop.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerOptions {
    /// Share of dead letters among the last records that stops the worker when it is exceeded; 1 never does.
    pub max_ratio: f64,
    /// How many of the last records the share is taken of.
    pub window_records: usize,
    /// Records before which the share says nothing.
    pub min_records: usize,
    /// Dead letters in a row that stop the worker; 0 never does.
    pub max_run: usize,
}

impl BreakerOptions {
    /// Never stops.
    pub fn off() -> Self {
        Self { max_ratio: 1.0, window_records: 0, min_records: 0, max_run: 0 }
    }
}

/// Remembers how the last records ended.
#[derive(Clone, Debug)]
pub struct Breaker {
    options: BreakerOptions,
    /// The last records, each with its code if it is a dead letter.
    window: VecDeque<Option<Code>>,
    dead: usize,
    /// Dead letters since the last record that was none.
    run: usize,
}

/// The breaker has tripped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what}, {count} of them with {}; the last one says: {message}. Nothing of these was committed: {}, or raise \
     {setting} to let them pass", code.as_str(), remedy(*code)
)]
pub struct Tripped {
    what: String,
    code: Code,
    count: usize,
    message: String,
    setting: &'static str,
}

/// What a code is most often about, when nearly every record has it.
fn remedy(code: Code) -> &'static str {
    match code {
        Code::InvalidUtf8 | Code::InvalidJson => "check input.topics and input.format",
        Code::MissingField | Code::WrongType => "check input.text_pointer, input.id_pointer and input.words_pointer",
        Code::EmptyText => "check input.text_pointer",
        Code::TextTooLarge => "raise input.max_text_bytes or set input.on_too_large to \"truncate\"",
        Code::TokenizerFailed | Code::InferenceFailed => "check model.path",
        Code::OutputTooLarge => "raise output.max_record_bytes and the topic's max.message.bytes",
    }
}

impl Breaker {
    /// A breaker that has seen nothing.
    pub fn new(options: BreakerOptions) -> Self {
        Self { options, window: VecDeque::new(), dead: 0, run: 0 }
    }

    /// The breaker as it is after these records, in their order; each with the reason if it is a dead letter.
    ///
    /// # Errors
    /// When it trips on one of them.
    pub fn after<'r>(&self, records: impl IntoIterator<Item = Option<&'r Reject>>) -> Result<Self, Tripped> {
        let mut next = self.clone();
        records.into_iter().try_for_each(|record| next.see(record))?;
        Ok(next)
    }

    fn see(&mut self, record: Option<&Reject>) -> Result<(), Tripped> {
        self.window.push_back(record.map(|reject| reject.code));
        self.dead += usize::from(record.is_some());
        self.run = if record.is_some() { self.run + 1 } else { 0 };
        self.forget();
        let Some(reject) = record else { return Ok(()) };
        let BreakerOptions { max_ratio, min_records, max_run, .. } = self.options;
        if max_run > 0 && self.run >= max_run {
            let what = format!("{} records in a row became dead letters", self.run);
            return Err(self.tripped(what, "breaker.max_run", self.run, reject));
        }
        let (dead, seen) = (self.dead, self.window.len());
        let ratio = dead as f64 / seen.max(1) as f64;
        if seen >= min_records && ratio > max_ratio {
            let what = format!(
                "{dead} of the last {seen} records became dead letters, a share of {ratio:.2} where breaker.max_ratio is \
                 {max_ratio}"
            );
            return Err(self.tripped(what, "breaker.max_ratio", seen, reject));
        }
        Ok(())
    }

    fn forget(&mut self) {
        while self.window.len() > self.options.window_records {
            self.dead -= usize::from(self.window.pop_front().flatten().is_some());
        }
    }

    /// With the most frequent code of the last `among` records.
    fn tripped(&self, what: String, setting: &'static str, among: usize, last: &Reject) -> Tripped {
        let mut counts: HashMap<Code, usize> = HashMap::new();
        let codes = self.window.iter().rev().take(among).flatten();
        codes.for_each(|code| *counts.entry(*code).or_default() += 1);
        let (code, count) =
            counts.into_iter().max_by_key(|&(code, count)| (count, code == last.code)).unwrap_or((last.code, 1));
        Tripped { what, code, count, message: last.message.clone(), setting }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Stage;
    use proptest::prelude::*;

    const OPTIONS: BreakerOptions = BreakerOptions { max_ratio: 0.5, window_records: 40, min_records: 10, max_run: 20 };

    fn reject(code: Code) -> Reject {
        Reject::new(Stage::Decode, code, "no value at /text")
    }

    /// Feeds whether each record is a dead letter; returns the place of the one that trips it.
    fn trips(options: BreakerOptions, dead: &[bool]) -> Option<usize> {
        let reject = reject(Code::MissingField);
        let mut breaker = Breaker::new(options);
        dead.iter().position(|&dead| match breaker.after([dead.then_some(&reject)]) {
            Ok(next) => {
                breaker = next;
                false
            }
            Err(_) => true,
        })
    }

    proptest! {
        /// Against the definition, counted anew for every record.
        #[test]
        fn it_trips_where_the_share_or_the_run_is_over(dead in prop::collection::vec(any::<bool>(), 0..120), weight in 0usize..4) {
            // Runs of like outcomes, longer with the weight.
            let dead: Vec<bool> = dead.into_iter().flat_map(|one| std::iter::repeat_n(one, 1 + weight * 3)).collect();
            let over = |end: &usize| {
                let seen = &dead[..=*end];
                let window = &seen[seen.len().saturating_sub(OPTIONS.window_records)..];
                let letters = window.iter().filter(|&&dead| dead).count();
                let share = window.len() >= OPTIONS.min_records && letters as f64 / window.len() as f64 > OPTIONS.max_ratio;
                let run = seen.iter().rev().take_while(|&&dead| dead).count() >= OPTIONS.max_run;
                seen[*end] && (share || run)
            };
            prop_assert_eq!(trips(OPTIONS, &dead), (0..dead.len()).find(over));
        }

        #[test]
        fn it_is_the_same_however_the_records_are_cut_into_commits(
            dead in prop::collection::vec(prop::bool::weighted(0.4), 1..120),
            cut in 0usize..120,
        ) {
            let reject = reject(Code::InvalidJson);
            let records = |part: &[bool]| part.iter().map(|&dead| dead.then_some(&reject)).collect::<Vec<_>>();
            let cut = cut.min(dead.len());
            let whole = Breaker::new(OPTIONS).after(records(&dead)).err();
            let parts = Breaker::new(OPTIONS).after(records(&dead[..cut])).and_then(|b| b.after(records(&dead[cut..]))).err();
            prop_assert_eq!(whole, parts);
        }

        #[test]
        fn switched_off_it_never_trips(dead in prop::collection::vec(any::<bool>(), 0..200)) {
            prop_assert_eq!(trips(BreakerOptions::off(), &dead), None);
        }
    }

    #[test]
    fn the_error_names_the_share_the_code_and_the_settings() {
        let (missing, empty) = (reject(Code::MissingField), reject(Code::EmptyText));
        let letters = (0..10).map(|n| Some(if n % 4 == 0 { &empty } else { &missing }));
        let error = Breaker::new(OPTIONS).after(letters).unwrap_err().to_string();
        for words in [
            "10 of the last 10",
            "1.00",
            "0.5",
            "7 of them with missing_field",
            "input.text_pointer",
            "breaker.max_ratio",
        ] {
            assert!(error.contains(words), "no {words:?} in {error}");
        }
        let run = BreakerOptions { min_records: 1000, window_records: 1000, ..OPTIONS };
        let error = Breaker::new(run).after(std::iter::repeat_n(Some(&missing), 20)).unwrap_err().to_string();
        assert!(error.contains("20 records in a row") && error.contains("raise breaker.max_run"), "{error}");
    }
}
