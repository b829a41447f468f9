//! A TCP connection that fails as connections do.

use std::{
    collections::BTreeSet,
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream, ToSocketAddrs, lookup_host,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{
    address::{Authority, free_port},
    process::{DEADLINE, GLANCE},
};

/// A wire between a client and a server, that a test can cut before or after the effect of a
/// request, stall, and unplug. It carries bytes and understands none, so it serves every protocol.
///
/// A *request* is here what the wire reads from a client at a time, an *answer* what it reads from
/// the server. On a connection of its own that is what the words mean; where one connection carries
/// the requests of many callers, name the one that is meant ([`cut_before_one_with`]).
///
/// ```no_run
/// use retrysafe_testkit::servers::{RedisServer, Wire};
///
/// # async fn test() {
/// let redis = RedisServer::start().await;
/// let wire = Wire::to(redis.addr()).await;
/// let url = wire.url_for(&redis.url()); // what the store under test is given
/// wire.cut_after_one_with(b"complete");
/// // The store's next request that has `complete` in it takes effect, and is never answered.
/// # }
/// ```
///
/// It lives on the runtime that it was made on, and ends with its value: then every connection is
/// reset.
///
/// [`cut_before_one_with`]: Self::cut_before_one_with
pub struct Wire {
    addr: SocketAddr,
    shared: Arc<Shared>,
    /// None while the wire is unplugged.
    listening: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    target: Mutex<SocketAddr>,
    /// The cut that waits for its request.
    cut: Mutex<Option<Cut>>,
    state: watch::Sender<State>,
    round_trips: AtomicU64,
}

#[derive(Default)]
struct State {
    requests_stalled: bool,
    answers_stalled: bool,
    /// Connections are numbered: how many were taken so far, which of them still carry something,
    /// and the first that is not to be reset.
    taken: u64,
    alive: BTreeSet<u64>,
    spared_from: u64,
}

#[derive(Clone)]
struct Cut {
    when: When,
    /// What the request must contain.
    with: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Before,
    Within,
    After,
}

/// Why a connection ends other than by its own means.
enum End {
    /// It is cut, or a side of it broke.
    Reset,
    /// The server has had the whole request, and must be left in peace with it.
    AfterTheRequest,
}

impl Wire {
    /// A wire to a server, on an address of its own.
    ///
    /// # Panics
    ///
    /// If the address can't be resolved.
    pub async fn to(target: impl ToSocketAddrs) -> Self {
        let target = lookup_host(target).await.ok().and_then(|mut all| all.next());
        let shared = Arc::new(Shared {
            target: Mutex::new(target.expect("an address")),
            cut: Mutex::new(None),
            state: watch::Sender::default(),
            round_trips: AtomicU64::new(0),
        });
        let listener = loop {
            if let Ok(listener) = TcpListener::bind(("127.0.0.1", free_port())).await {
                break listener;
            }
        };
        let addr = listener.local_addr().expect("a bound address");
        let listening = tokio::spawn(listen(listener, shared.clone()));
        Self { addr, shared, listening: Mutex::new(Some(listening)) }
    }

    /// Where clients connect.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The same URL through this wire: its host and port replaced.
    pub fn url_for(&self, url: &str) -> String {
        Authority::of(url).at(self.addr)
    }

    /// Cuts the next request off: the server sees nothing of it, and the client's connection is
    /// reset.
    pub fn cut_before(&self) {
        self.cut_before_one_with(b"");
    }

    /// Lets the next request through and swallows its answer: when the server begins to answer, the
    /// client's connection is reset.
    pub fn cut_after(&self) {
        self.cut_after_one_with(b"");
    }

    /// Lets the next request through, and all of its answer but the last byte: then the client's
    /// connection is reset.
    pub fn cut_within(&self) {
        *lock(&self.shared.cut) = Some(Cut { when: When::Within, with: Vec::new() });
    }

    /// [`cut_before`](Self::cut_before), for the next request that has these bytes in it. Others go
    /// through.
    pub fn cut_before_one_with(&self, bytes: &[u8]) {
        *lock(&self.shared.cut) = Some(Cut { when: When::Before, with: bytes.to_vec() });
    }

    /// [`cut_after`](Self::cut_after), for the next request that has these bytes in it. Others go
    /// through.
    pub fn cut_after_one_with(&self, bytes: &[u8]) {
        *lock(&self.shared.cut) = Some(Cut { when: When::After, with: bytes.to_vec() });
    }

    /// Whether a cut still waits for its request.
    pub fn awaits_cut(&self) -> bool {
        lock(&self.shared.cut).is_some()
    }

    /// Holds everything back, in both directions, until [`unstall`](Self::unstall). Connections stay
    /// open, and new ones are taken.
    pub fn stall(&self) {
        self.shared
            .state
            .send_modify(|it| (it.requests_stalled, it.answers_stalled) = (true, true));
    }

    /// Holds back only what the server says: requests have their effect, and are answered late.
    pub fn stall_answers(&self) {
        self.shared.state.send_modify(|it| it.answers_stalled = true);
    }

    /// Delivers what was held back.
    pub fn unstall(&self) {
        self.shared
            .state
            .send_modify(|it| (it.requests_stalled, it.answers_stalled) = (false, false));
    }

    /// Resets every connection, and returns when none of them carries anything any more. New ones
    /// are taken.
    ///
    /// # Cancel safety
    ///
    /// They are reset all the same.
    pub async fn reset(&self) {
        let mut state = self.shared.state.subscribe();
        self.shared.state.send_modify(|it| it.spared_from = it.taken);
        let last = state.borrow().taken;
        let gone = |it: &State| it.alive.first().is_none_or(|&first| first >= last);
        let _ = state.wait_for(gone).await;
    }

    /// Unplugs it: every connection is reset and new ones are refused, as by a server that is down,
    /// until [`accept`](Self::accept). Nothing gets through once this has returned.
    pub async fn refuse(&self) {
        let listening = lock(&self.listening).take();
        if let Some(listening) = listening {
            listening.abort();
            let _ = listening.await; // the port is closed when the task is gone
        }
        self.reset().await;
    }

    /// Plugs it in again, at the same address.
    ///
    /// # Panics
    ///
    /// If somebody else has taken the address.
    pub async fn accept(&self) {
        if lock(&self.listening).is_some() {
            return;
        }
        let deadline = Instant::now() + DEADLINE;
        let listener = loop {
            match TcpListener::bind(self.addr).await {
                Ok(listener) => break listener,
                Err(error) => assert!(Instant::now() < deadline, "{}: {error}", self.addr),
            }
            sleep(GLANCE).await;
        };
        *lock(&self.listening) = Some(tokio::spawn(listen(listener, self.shared.clone())));
    }

    /// Moves its other end to another server, as a floating address moves at a failover: every
    /// connection is reset, and new ones go there.
    pub async fn switch_to(&self, target: SocketAddr) {
        *lock(&self.shared.target) = target;
        self.reset().await;
    }

    /// How often so far one or more requests in a row were answered, over all connections. What a
    /// driver says when it connects counts too: take the difference.
    pub fn round_trips(&self) -> u64 {
        self.shared.round_trips.load(Ordering::SeqCst)
    }

    /// How many connections it has taken so far.
    pub fn connections(&self) -> u64 {
        self.shared.state.borrow().taken
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if let Some(listening) = lock(&self.listening).take() {
            listening.abort();
        }
        self.shared.state.send_modify(|it| it.spared_from = u64::MAX);
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = *lock(&self.shared.target);
        let mut wire = f.debug_struct("Wire");
        wire.field("addr", &self.addr).field("target", &target).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn listen(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let mut number = 0;
        shared.state.send_modify(|it| {
            number = it.taken;
            it.taken += 1;
            it.alive.insert(number);
        });
        // A task of its own: this one ends when the wire refuses, connections end by its reset.
        tokio::spawn(carry(client, shared.clone(), number));
    }
}

/// One connection, to its end.
async fn carry(mut client: TcpStream, shared: Arc<Shared>, number: u64) {
    let target = *lock(&shared.target);
    let (mut state, mut server) = (shared.state.subscribe(), None);
    let carried = async {
        let server = server.insert(TcpStream::connect(target).await?);
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        let talk = Talk { shared: &shared, asked: false.into(), cut: Mutex::default() };
        tokio::try_join!(
            talk.requests(from_client, to_server),
            talk.answers(from_server, to_client),
        )
    };
    let end = tokio::select! {
        biased; // what is reset carries nothing more
        _ = state.wait_for(|it| number < it.spared_from) => Some(End::Reset),
        end = carried => end.err(),
    };
    if end.is_some() {
        let _ = client.set_zero_linger(); // a reset, not an end
    }
    drop(client);
    shared.state.send_modify(|it| _ = it.alive.remove(&number));
    if let (Some(End::AfterTheRequest), Some(mut server)) = (end, server) {
        // Our reset could make the server drop what it has not read yet. So we only say that there
        // is nothing to come.
        let _ = server.shutdown().await;
        let mut rest = [0; 4096];
        let drained = async { while !matches!(server.read(&mut rest).await, Ok(0) | Err(_)) {} };
        let _ = timeout(DEADLINE, drained).await;
    }
}

/// What the two directions of a connection know of each other.
struct Talk<'a> {
    shared: &'a Shared,
    /// A request went out since the last answer.
    asked: AtomicBool,
    /// Where the next answer is cut off.
    cut: Mutex<Option<When>>,
}

impl Talk<'_> {
    async fn requests(
        &self,
        mut client: ReadHalf<'_>,
        mut server: WriteHalf<'_>,
    ) -> Result<(), End> {
        let mut buffer = vec![0; 64 << 10];
        let mut seen = Vec::new();
        loop {
            let length = client.read(&mut buffer).await?;
            if length == 0 {
                return Ok(server.shutdown().await?);
            }
            let request = &buffer[..length];
            self.wait_for(|it| !it.requests_stalled).await;
            match self.cut(&mut seen, request) {
                Some(When::Before) => return Err(End::Reset),
                Some(when) => *lock(&self.cut) = Some(when),
                None => {}
            }
            self.asked.store(true, Ordering::SeqCst);
            server.write_all(request).await?;
        }
    }

    async fn answers(
        &self,
        mut server: ReadHalf<'_>,
        mut client: WriteHalf<'_>,
    ) -> Result<(), End> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let length = server.read(&mut buffer).await?;
            let cut = *lock(&self.cut);
            if let Some(when) = cut {
                if when == When::Within {
                    client.write_all(&buffer[..length.saturating_sub(1)]).await?;
                }
                return Err(End::AfterTheRequest);
            }
            if length == 0 {
                return Ok(client.shutdown().await?);
            }
            self.wait_for(|it| !it.answers_stalled).await;
            if self.asked.swap(false, Ordering::SeqCst) {
                self.shared.round_trips.fetch_add(1, Ordering::SeqCst);
            }
            client.write_all(&buffer[..length]).await?;
        }
    }

    async fn wait_for(&self, so: impl Fn(&State) -> bool) {
        let _ = self.shared.state.subscribe().wait_for(|it| so(it)).await;
    }

    /// Takes the cut that waits, if this is its request. `seen` is the end of what came before: the
    /// bytes that are looked for may arrive in two pieces.
    fn cut(&self, seen: &mut Vec<u8>, request: &[u8]) -> Option<When> {
        seen.extend_from_slice(request);
        let mut waiting = lock(&self.shared.cut);
        let cut = waiting.take_if(|cut| {
            let with = &cut.with;
            with.is_empty() || seen.windows(with.len()).any(|it| it == with)
        });
        let keep = waiting.as_ref().map_or(0, |cut| cut.with.len().saturating_sub(1));
        seen.drain(..seen.len().saturating_sub(keep));
        Some(cut?.when)
    }
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Reset
    }
}
