//! What fails, and when: drawn from a seed, so that a run can be repeated.

use std::fmt;
use std::time::Duration;

use crate::proxy::{ACTIONS, APIS, Action, Aim, Api};

/// The fail points of the worker.
pub(crate) const POINTS: [&str; 11] = [
    "after_poll",
    "after_tokenize",
    "infer",
    "after_staging",
    "after_begin",
    "after_produce",
    "after_send_offsets",
    "before_commit",
    "after_commit",
    "rebalance",
    "drain",
];

/// How the members of the group share its partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// The members do, one partition after the other.
    Cooperative,
    /// The members do; all stop for it.
    Eager,
    /// The broker does (KIP-848).
    Consumer,
}

impl Protocol {
    /// The settings of a worker.
    pub(crate) fn settings(self) -> &'static [&'static str] {
        const HEARTBEAT: &str = "kafka.consumer_properties.heartbeat.interval.ms=500";
        match self {
            Protocol::Cooperative => &["kafka.assignment_strategy=cooperative-sticky", HEARTBEAT],
            Protocol::Eager => &["kafka.assignment_strategy=range", HEARTBEAT],
            // The broker sets the heartbeat, and the session.
            Protocol::Consumer => &["kafka.group_protocol=consumer"],
        }
    }

    /// Whether its members send requests of this type.
    fn sends(self, api: Api) -> bool {
        match api {
            Api::JoinGroup | Api::SyncGroup | Api::Heartbeat => self != Protocol::Consumer,
            Api::ConsumerGroupHeartbeat => self == Protocol::Consumer,
            _ => true,
        }
    }
}

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A worker is killed, and its successor again at a fail point, the `nth` time that it comes there, after it has
    /// held still for a while.
    KillAt { point: &'static str, nth: u32, hold_ms: u32 },
    /// A worker is killed with its transaction open and does not come back; one of another name does.
    Abandon,
    /// A worker stands still until the group has given it up, and goes on.
    Freeze,
    /// A second worker starts under the name of one that runs.
    Namesake,
    /// Workers join and leave, some in good order and some not.
    Storm { rounds: u32, pause_ms: u64 },
    /// The broker is killed and started again.
    RestartBroker,
    /// The broker stands still.
    PauseBroker { ms: u64 },
    /// The broker's disk takes no more; it gives up and is started again.
    FullDisk,
    /// The input gets one more partition.
    Grow,
    /// The connection fails at a type of request.
    Network(Aim),
}

impl Fault {
    /// Whether it is SIGKILLs alone.
    pub(crate) fn is_kill(&self) -> bool {
        matches!(self, Fault::KillAt { .. })
    }

    /// Its kind, for the table.
    pub(crate) fn kind(&self) -> String {
        match self {
            Fault::KillAt { point, .. } => format!("SIGKILL at `{point}`"),
            Fault::Abandon => "dead for ever in an open transaction".into(),
            Fault::Freeze => "SIGSTOP past the session, SIGCONT".into(),
            Fault::Namesake => "second worker of the same name".into(),
            Fault::Storm { .. } => "joins and leaves".into(),
            Fault::RestartBroker => "broker killed and restarted".into(),
            Fault::PauseBroker { .. } => "broker paused 3 to 5 s".into(),
            Fault::FullDisk => "broker's disk full".into(),
            Fault::Grow => "partition added".into(),
            Fault::Network(aim) => format!("network: {:?}", aim.action).to_lowercase(),
        }
    }
}

/// A run: who works, on what, and what goes wrong in which order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) workers: usize,
    pub(crate) partitions: i32,
    pub(crate) protocol: Protocol,
    /// Whether the input is compacted, so that its offsets have gaps.
    pub(crate) compacted: bool,
    pub(crate) faults: Vec<Fault>,
    /// How long the workers may take at the end.
    pub(crate) patience: Duration,
}

impl Plan {
    /// The plan of a seed. Over successive seeds every fail point, every kind of fault and every type of request has its
    /// turn.
    pub(crate) fn of(seed: u64) -> Self {
        Self::sized(seed, 5, 4, 3)
    }

    /// The plan of a seed with fewer faults.
    pub(crate) fn short(seed: u64) -> Self {
        Self::sized(seed, 2, 1, 1)
    }

    fn sized(seed: u64, kills: u64, network: u64, others: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let protocol = [Protocol::Cooperative, Protocol::Eager, Protocol::Consumer][seed as usize % 3];
        let workers = random.usize(1..=4);
        let turn = |many: u64, of: u64, i: u64| ((seed * many + i) % of) as usize;
        let mut faults = Vec::new();
        for i in 0..kills {
            let point = POINTS[turn(kills, POINTS.len() as u64, i)];
            faults.push(Fault::KillAt { point, nth: random.u32(1..=3), hold_ms: random.u32(0..=400) });
        }
        let apis: Vec<Api> = APIS.into_iter().filter(|&api| protocol.sends(api)).collect();
        for i in 0..network {
            let aims = (apis.len() * ACTIONS.len()) as u64;
            let aim = ((seed * network + i) * 7 % aims) as usize;
            let (api, action) = (apis[aim / ACTIONS.len()], ACTIONS[aim % ACTIONS.len()]);
            faults.push(Fault::Network(Aim { api, action }));
        }
        let all = [
            Fault::Freeze,
            Fault::RestartBroker,
            Fault::Namesake,
            Fault::Storm { rounds: random.u32(3..=6), pause_ms: random.u64(300..=2000) },
            Fault::Abandon,
            Fault::PauseBroker { ms: random.u64(3000..=5000) },
            Fault::Grow,
            Fault::FullDisk,
            Fault::Network(Aim { api: Api::EndTxn, action: Action::Misreport }),
        ];
        faults.extend((0..others).map(|i| all[turn(others, all.len() as u64, i)]));
        random.shuffle(&mut faults);
        let partitions = (workers + random.usize(0..=2)) as i32;
        Self {
            seed,
            workers,
            partitions,
            protocol,
            compacted: seed % 4 == 3,
            faults,
            patience: Duration::from_secs(120),
        }
    }

    /// A plan of these faults alone.
    pub(crate) fn alone(faults: Vec<Fault>, patience: Duration) -> Self {
        let protocol = Protocol::Cooperative;
        Self { seed: 0, workers: 2, partitions: 4, protocol, compacted: false, faults, patience }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, workers, partitions, protocol, compacted, faults, .. } = self;
        write!(f, "seed {seed}: {workers} workers, {partitions} partitions, {protocol:?}, compacted: {compacted}")?;
        faults.iter().try_for_each(|fault| write!(f, "\n  {fault:?}"))
    }
}
