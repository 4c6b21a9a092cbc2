//! The arguments of `vitag dlq`.

use std::io::{IsTerminal, Write};
use std::ops::RangeInclusive;

use clap::{Args, Subcommand};
use jiff::{Span, Timestamp, tz::TimeZone};

use super::{Failure, SettingsArgs, quiet_logs};
use crate::config::Settings;
use crate::dlq::{self, Filter, InspectOptions, Replay, ReplayOptions, ReplayReport};

/// Letters in the table unless -n says otherwise.
const SHOWN: usize = 20;

#[derive(Debug, Subcommand)]
pub(super) enum Dlq {
    /// Count the dead letters, and show them.
    #[command(after_help = "The settings are those of the worker. Nothing is committed.\n\n\
        Examples:\n  \
        vitag dlq inspect --config vitag.toml\n  \
        vitag dlq inspect --config vitag.toml --code missing_field --since=-1h -n 50\n  \
        vitag dlq inspect --config vitag.toml --records --json | jq -r .message")]
    Inspect(InspectArgs),
    /// Send dead letters back to the topics that they came from, each once.
    #[command(after_help = "A letter goes to the partition where it was, with its key, value, headers and timestamp, \
        and the header vitag.dlq.replays counts how often. What was sent back is noted in the consumer group \
        <kafka.group_id>.dlq-replay, in the transaction that sends it: a replay that was interrupted is repeated with \
        the same command. Letters that were not chosen, or could not be sent, stay for the next replay. \
        Exit code 65: some of the chosen letters were left.\n\n\
        Examples:\n  \
        vitag dlq replay --config vitag.toml --dry-run\n  \
        vitag dlq replay --config vitag.toml --code missing_field --since 2026-01-31T08:00:00Z\n  \
        vitag dlq replay --config vitag.toml --topic documents --partition 2 --offset 100-199 --yes")]
    Replay(ReplayArgs),
}

#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Show the letters too: input topic, partition and offset, reason, key and the head of the value.
    #[arg(long)]
    records: bool,
    /// Show at most so many letters; implies --records. By default 20, or all with --json.
    #[arg(short = 'n', value_name = "N")]
    number: Option<usize>,
    /// Print JSON: one object with the counts, or with --records one a line for each letter, whole.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(Debug, Args)]
pub(super) struct ReplayArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Say what would be sent, and send nothing.
    #[arg(long)]
    dry_run: bool,
    /// Send also what was sent back before.
    #[arg(long)]
    again: bool,
    /// Leave letters that were sent back so often.
    #[arg(long, value_name = "N", default_value_t = 3)]
    max_replays: u32,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    /// Print the outcome as a JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(Debug, Args)]
struct FilterArgs {
    /// Only letters with this code, such as missing_field; may be repeated.
    #[arg(long = "code", value_name = "CODE")]
    codes: Vec<String>,
    /// Only letters that this stage refused, such as decode; may be repeated.
    #[arg(long = "stage", value_name = "STAGE")]
    stages: Vec<String>,
    /// Only letters from this input topic; may be repeated.
    #[arg(long = "topic", value_name = "TOPIC")]
    topics: Vec<String>,
    /// Only letters from this partition of the input; may be repeated.
    #[arg(long = "partition", value_name = "N")]
    partitions: Vec<i32>,
    /// Only letters from these offsets of the input: N, N-M or N-; may be repeated.
    #[arg(long = "offset", value_name = "RANGE", value_parser = offsets)]
    offsets: Vec<RangeInclusive<i64>>,
    /// Only records of this time and later: RFC 3339, or before now, such as -1h or -3d.
    #[arg(long, value_name = "TIME", value_parser = time, allow_hyphen_values = true)]
    since: Option<Timestamp>,
    /// Only records before this time.
    #[arg(long, value_name = "TIME", value_parser = time, allow_hyphen_values = true)]
    until: Option<Timestamp>,
}

impl From<FilterArgs> for Filter {
    fn from(arguments: FilterArgs) -> Self {
        let FilterArgs { codes, stages, topics, partitions, offsets, since, until } = arguments;
        let ms = |time: Option<Timestamp>| time.map(Timestamp::as_millisecond);
        Self { codes, stages, topics, partitions, offsets, since_ms: ms(since), until_ms: ms(until) }
    }
}

fn offsets(text: &str) -> Result<RangeInclusive<i64>, String> {
    let number = |text: &str| text.parse().ok().filter(|offset: &i64| *offset >= 0);
    let range = match text.split_once('-') {
        None => number(text).map(|one| one..=one),
        Some((first, "")) => number(first).map(|first| first..=i64::MAX),
        Some((first, last)) => number(first).zip(number(last)).map(|(first, last)| first..=last),
    };
    range.filter(|range| !range.is_empty()).ok_or_else(|| "expected an offset N, or a range N-M or N-".to_owned())
}

fn time(text: &str) -> Result<Timestamp, String> {
    time_at(text, Timestamp::now())
}

/// A time of the calendar, or before `now`.
pub(super) fn time_at(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let ago = || {
        let span: Span = text.parse().ok().filter(|span: &Span| !span.is_positive())?;
        Some(now.to_zoned_datetime(TimeZone::UTC).checked_add(span).ok()?.timestamp())
    };
    let wrong = "expected a time such as 2026-01-31T08:00:00Z, or one before now such as -90m, -1h or -3d";
    text.parse().ok().or_else(ago).ok_or_else(|| wrong.to_owned())
}

pub(super) fn run(command: Dlq) -> Result<(), Failure> {
    match command {
        Dlq::Inspect(arguments) => inspect(arguments),
        Dlq::Replay(arguments) => replay(arguments),
    }
}

fn load(settings: SettingsArgs) -> Result<Settings, Failure> {
    let settings = settings.load()?;
    settings.validate_run()?;
    quiet_logs(&settings)?;
    Ok(settings)
}

fn inspect(arguments: InspectArgs) -> Result<(), Failure> {
    let settings = load(arguments.settings)?;
    let all = if arguments.json { usize::MAX } else { SHOWN };
    let letters = arguments.number.or(arguments.records.then_some(all));
    let options = InspectOptions { filter: arguments.filter.into(), letters, json: arguments.json };
    Ok(dlq::inspect(&settings, &options, &mut std::io::BufWriter::new(std::io::stdout().lock()))?)
}

fn replay(arguments: ReplayArgs) -> Result<(), Failure> {
    let settings = load(arguments.settings)?;
    let ReplayArgs { filter, again, max_replays, dry_run, yes, json, .. } = arguments;
    let replay = Replay::new(&settings, ReplayOptions { filter: filter.into(), again, max_replays })?;
    if !dry_run && !yes && !confirmed(&replay)? {
        eprintln!("nothing was sent");
        return Ok(());
    }
    let report = if dry_run { replay.plan()? } else { replay.run()? };
    let text = if json { dlq::json(&report) + "\n" } else { dlq::replay_report(&report) };
    super::print(text.as_bytes())?;
    match report.left() {
        0 => Ok(()),
        left => Err(Failure::LettersLeft(left)),
    }
}

/// Asks on the terminal, with the plan in sight.
fn confirmed(replay: &Replay<'_>) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::NobodyToAsk);
    }
    let plan: ReplayReport = replay.plan()?;
    eprint!("{}replay {} letters? [y/N] ", dlq::replay_report(&plan), plan.replayed);
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_one_or_a_range() {
        assert_eq!(offsets("7"), Ok(7..=7));
        assert_eq!(offsets("7-9"), Ok(7..=9));
        assert_eq!(offsets("7-"), Ok(7..=i64::MAX));
        for wrong in ["", "-", "-9", "9-7", "a", "1-b", "1--2"] {
            assert!(offsets(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn times_are_of_the_calendar_or_before_now() {
        let now: Timestamp = "2026-01-31T08:00:00Z".parse().unwrap();
        let time = |text| time_at(text, now).map(|time| time.to_string());
        for (text, expected) in [
            ("2026-01-31T08:00:00+07:00", "2026-01-31T01:00:00Z"),
            ("-90m", "2026-01-31T06:30:00Z"),
            ("-3d", "2026-01-28T08:00:00Z"),
            ("2h ago", "2026-01-31T06:00:00Z"),
        ] {
            assert_eq!(time(text).as_deref(), Ok(expected), "{text}");
        }
        for wrong in ["", "1h", "yesterday", "2026-01-31"] {
            assert!(time(wrong).is_err(), "{wrong:?}");
        }
    }
}
