//! When a new version is taken back: pure policy, without a clock inside.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::compare::Agreement;
use crate::serving::Counts;

/// The rules, as the settings have them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RuleOptions {
    pub(super) window: Duration,
    pub(super) min_records: u64,
    pub(super) max_dead_letter_ratio: f64,
    /// 0 for none.
    pub(super) max_latency_ratio: f64,
    /// 0 for none.
    pub(super) min_agreement: f64,
}

/// What is seen of a version at a time, counted from its beginning.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sighting {
    pub(super) candidate: Counts,
    /// Of the version that it is held against.
    pub(super) baseline: Counts,
    pub(super) agreement: Agreement,
    /// Records of which the agreement is.
    pub(super) compared: u64,
}

/// A rule that does not hold.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Breach {
    pub(super) rule: &'static str,
    pub(super) found: f64,
    pub(super) accepted: f64,
    pub(super) records: u64,
}

/// A version under the rules.
#[derive(Debug)]
pub(super) struct Watch {
    options: RuleOptions,
    seen: VecDeque<(Instant, Sighting)>,
}

impl Watch {
    pub(super) fn new(options: RuleOptions) -> Self {
        Self { options, seen: VecDeque::new() }
    }

    /// Takes a look; the rule that does not hold over the window, if there is one.
    pub(super) fn look(&mut self, now: Instant, sighting: Sighting) -> Option<Breach> {
        self.seen.push_back((now, sighting));
        // The last before the window is where it begins.
        while self.seen.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= self.options.window) {
            self.seen.pop_front();
        }
        let first = self.seen.front()?.1;
        self.breach(&first, &sighting)
    }

    fn breach(&self, first: &Sighting, last: &Sighting) -> Option<Breach> {
        let options = &self.options;
        let candidate = last.candidate.since(&first.candidate);
        let records = candidate.records;
        if records >= options.min_records {
            let found = candidate.dead_letters as f64 / records as f64;
            let (rule, accepted) = ("rollback.max_dead_letter_ratio", options.max_dead_letter_ratio);
            if found > accepted {
                return Some(Breach { rule, found, accepted, records });
            }
            let ratio = candidate.nanos_per_token().zip(last.baseline.nanos_per_token()).map(|(new, old)| new / old);
            let (rule, accepted) = ("rollback.max_latency_ratio", options.max_latency_ratio);
            if let Some(found) = ratio.filter(|&ratio| accepted > 0.0 && ratio > accepted) {
                return Some(Breach { rule, found, accepted, records });
            }
        }
        let records = last.compared - first.compared;
        let agreement = Agreement {
            same: last.agreement.same - first.agreement.same,
            all: last.agreement.all - first.agreement.all,
        };
        let (rule, found, accepted) = ("rollback.min_agreement", agreement.share(), options.min_agreement);
        (records >= options.min_records && found < accepted).then_some(Breach { rule, found, accepted, records })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn options() -> RuleOptions {
        RuleOptions {
            window: 10 * SECOND,
            min_records: 100,
            max_dead_letter_ratio: 0.1,
            max_latency_ratio: 2.0,
            min_agreement: 0.9,
        }
    }

    fn counts(records: u64, dead_letters: u64, nanos: u64) -> Counts {
        Counts { records, dead_letters, tokens: records * 10, slots: records * 12, nanos: records * 10 * nanos }
    }

    /// What a watch says in the end of sightings, one a second.
    fn last(sightings: &[Sighting]) -> Option<Breach> {
        let (mut watch, start) = (Watch::new(options()), Instant::now());
        watch.look(start, Sighting::default());
        let looks = sightings.iter().zip(1..).map(|(sighting, n)| watch.look(start + n * SECOND, *sighting));
        looks.last().unwrap()
    }

    #[test]
    fn each_rule_counts_from_enough_records_on() {
        let baseline = counts(1000, 0, 100);
        let of = |candidate| Sighting { candidate, baseline, ..Sighting::default() };
        assert_eq!(last(&[of(counts(99, 99, 100))]), None, "too few");
        let breach = last(&[of(counts(100, 11, 100))]).unwrap();
        assert_eq!((breach.rule, breach.found), ("rollback.max_dead_letter_ratio", 0.11));
        assert_eq!(last(&[of(counts(100, 10, 200))]), None, "just within");
        assert_eq!(last(&[of(counts(100, 10, 201))]).unwrap().rule, "rollback.max_latency_ratio");
        let compared =
            |same, compared| Sighting { agreement: Agreement { same, all: 1000 }, compared, ..Sighting::default() };
        assert_eq!(last(&[compared(899, 99)]), None);
        assert_eq!(last(&[compared(899, 100)]).unwrap().rule, "rollback.min_agreement");
        assert_eq!(last(&[compared(900, 100)]), None);
    }

    #[test]
    fn what_is_older_than_the_window_does_not_count() {
        let of =
            |records, dead_letters| Sighting { candidate: counts(records, dead_letters, 1), ..Sighting::default() };
        let mut sightings = vec![of(50, 50)];
        sightings.extend((1..=10).map(|n| of(50 + 20 * n, 50)));
        assert!(last(&sightings[..10]).is_some(), "50 of 230 within the window");
        sightings.push(of(300, 50));
        assert_eq!(last(&sightings), None, "the 50 are older than ten seconds");
    }
}
