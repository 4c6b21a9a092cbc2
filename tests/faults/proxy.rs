//! Between the workers and the broker: a proxy that knows where a request begins and of which type it is, so that a
//! fault can be aimed at one.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

/// Types of requests, by their numbers in the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
pub(crate) enum Api {
    Produce = 0,
    Fetch = 1,
    OffsetFetch = 9,
    FindCoordinator = 10,
    JoinGroup = 11,
    Heartbeat = 12,
    SyncGroup = 14,
    InitProducerId = 22,
    AddPartitionsToTxn = 24,
    AddOffsetsToTxn = 25,
    EndTxn = 26,
    TxnOffsetCommit = 28,
    ConsumerGroupHeartbeat = 68,
}

pub(crate) const APIS: [Api; 13] = [
    Api::InitProducerId,
    Api::AddPartitionsToTxn,
    Api::AddOffsetsToTxn,
    Api::TxnOffsetCommit,
    Api::EndTxn,
    Api::Produce,
    Api::FindCoordinator,
    Api::OffsetFetch,
    Api::Fetch,
    Api::JoinGroup,
    Api::SyncGroup,
    Api::Heartbeat,
    Api::ConsumerGroupHeartbeat,
];

impl Api {
    /// Whether a worker that runs undisturbed sends none.
    pub(crate) fn is_sent_at_the_start(self) -> bool {
        matches!(self, Api::InitProducerId | Api::FindCoordinator | Api::OffsetFetch | Api::JoinGroup | Api::SyncGroup)
    }
}

/// Whether the transactional producer sends it.
fn is_of_producers(api: i16) -> bool {
    const OF_PRODUCERS: [Api; 6] = [
        Api::Produce,
        Api::InitProducerId,
        Api::AddPartitionsToTxn,
        Api::AddOffsetsToTxn,
        Api::TxnOffsetCommit,
        Api::EndTxn,
    ];
    OF_PRODUCERS.iter().any(|&known| known as i16 == api)
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// It comes late, but in time.
    Delay,
    /// It comes when the client has stopped waiting.
    Stall,
    /// The connection is closed in its place.
    Reset,
    /// Half of it comes, then the connection is closed.
    Cut,
    /// It comes, and its answer does not.
    Withhold,
    /// It comes and is done, and its answer says that it is not. Of [`Api::EndTxn`] alone.
    Misreport,
}

/// Those that can befall every request.
pub(crate) const ACTIONS: [Action; 5] = [Action::Delay, Action::Stall, Action::Reset, Action::Cut, Action::Withhold];

/// Where the answer to `EndTxn` says how it went, and what for a disk that takes no more (`KAFKA_STORAGE_ERROR`).
const END_TXN_ERROR: std::ops::Range<usize> = 12..14;
const STORAGE_ERROR: i16 = 56;

const DELAY: Duration = Duration::from_millis(500);
/// Longer than the `socket.timeout.ms` of the consumers.
const STALL: Duration = Duration::from_millis(3500);
/// Longer than a publication may take.
const LONG_STALL: Duration = Duration::from_millis(8000);

/// A fault, and the type of request that it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Aim {
    pub(crate) api: Api,
    pub(crate) action: Action,
}

#[derive(Default)]
struct State {
    /// Port of the broker.
    target: OnceLock<u16>,
    /// The fault at hand, and how many requests it still befalls.
    aim: Mutex<Option<(Aim, u32)>>,
    hits: AtomicU32,
}

impl State {
    /// What happens to a request of this type.
    fn befalls(&self, api: i16) -> Option<Action> {
        let mut armed = self.aim.lock().unwrap_or_else(PoisonError::into_inner);
        let (aim, left) = armed.as_mut().filter(|(aim, left)| aim.api as i16 == api && *left > 0)?;
        *left -= 1;
        self.hits.fetch_add(1, Ordering::Relaxed);
        Some(aim.action)
    }
}

/// A proxy on a port of loopback, as long as the test process lives.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    state: Arc<State>,
}

impl Proxy {
    /// Listens; connections are taken to the broker once its port is known.
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let state = Arc::new(State::default());
        let shared = state.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let state = shared.clone();
                thread::spawn(move || connect(&client, &state));
            }
        });
        Self { port, state }
    }

    /// Says where the broker is.
    pub(crate) fn lead_to(&self, port: u16) {
        self.state.target.set(port).expect("it is said once");
    }

    /// Aims at the next `times` requests.
    pub(crate) fn arm(&self, aim: Aim, times: u32) {
        self.state.hits.store(0, Ordering::Relaxed);
        *self.state.aim.lock().unwrap_or_else(PoisonError::into_inner) = Some((aim, times));
    }

    /// How many requests the fault has befallen.
    pub(crate) fn hits(&self) -> u32 {
        self.state.hits.load(Ordering::Relaxed)
    }

    /// Ends the fault.
    pub(crate) fn disarm(&self) {
        *self.state.aim.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn connect(client: &TcpStream, state: &State) {
    let Some(broker) = state.target.get().and_then(|&port| TcpStream::connect(("127.0.0.1", port)).ok()) else {
        return;
    };
    let _ = (client.set_nodelay(true), broker.set_nodelay(true));
    let marked = Mutex::new(HashMap::new());
    let close = |_| [client, &broker].map(|stream| stream.shutdown(Shutdown::Both));
    thread::scope(|scope| {
        scope.spawn(|| answers(&broker, client, &marked).map_err(close));
        let _ = requests(client, &broker, &marked, state).map_err(close);
    });
}

/// A request: its length, its type (2 bytes), the version of that (2), a number that its answer bears (4), the rest.
fn requests(
    mut client: &TcpStream,
    mut broker: &TcpStream,
    marked: &Mutex<HashMap<[u8; 4], Action>>,
    state: &State,
) -> io::Result<()> {
    loop {
        let frame = frame(&mut client)?;
        let api = i16::from_be_bytes([frame[4], frame[5]]);
        match state.befalls(api) {
            None => {}
            Some(Action::Delay) => thread::sleep(DELAY),
            Some(Action::Stall) => thread::sleep(if is_of_producers(api) { LONG_STALL } else { STALL }),
            Some(Action::Reset) => return Err(io::ErrorKind::ConnectionReset.into()),
            Some(Action::Cut) => {
                broker.write_all(&frame[..frame.len() / 2])?;
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            Some(action @ (Action::Withhold | Action::Misreport)) => {
                let number = [frame[8], frame[9], frame[10], frame[11]];
                marked.lock().unwrap_or_else(PoisonError::into_inner).insert(number, action);
            }
        }
        broker.write_all(&frame)?;
    }
}

/// An answer: its length, the number of its request (4 bytes), the rest.
fn answers(mut broker: &TcpStream, mut client: &TcpStream, marked: &Mutex<HashMap<[u8; 4], Action>>) -> io::Result<()> {
    loop {
        let mut frame = frame(&mut broker)?;
        let number = [frame[4], frame[5], frame[6], frame[7]];
        let mark = marked.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        if mark == Some(Action::Misreport) {
            frame[END_TXN_ERROR].copy_from_slice(&STORAGE_ERROR.to_be_bytes());
        }
        if mark != Some(Action::Withhold) {
            client.write_all(&frame)?;
        }
    }
}

/// The next frame, with the 4 bytes of its length.
fn frame(stream: &mut &TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut frame = length.to_vec();
    frame.resize(4 + u32::from_be_bytes(length) as usize, 0);
    stream.read_exact(&mut frame[4..])?;
    Ok(frame)
}
